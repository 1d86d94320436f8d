// guests/hello.c: prints one line and ends. The smallest guest: what starting a cell costs is measured with it.
//
// It uses write() instead of stdio, so that nothing but one fd_write stands between `_start` and its end.

#include <unistd.h>

static const char TEXT[] = "Hello from a cell\n";

int main(void) {
  return write(STDOUT_FILENO, TEXT, sizeof TEXT - 1) == sizeof TEXT - 1 ? 0 : 1;
}
