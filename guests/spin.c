// guests/spin.c: never ends and never calls the hypervisor. For --timeout, kill, preemption and CPU limits.
//
// An argument is printed as a line first, so that a test knows when the spinning begins.

#include <string.h>
#include <unistd.h>

static volatile unsigned turns;

int main(int argc, char **argv) {
  if (argc > 1) {
    write(STDOUT_FILENO, argv[1], strlen(argv[1]));
    write(STDOUT_FILENO, "\n", 1);
  }
  for (;;) turns++;
}
