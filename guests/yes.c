// guests/yes.c: writes argv[1] (default "y") as lines until nobody reads any more. For closed pipes and throughput.
//
// A broken pipe ends the guest as SIGPIPE ends a process; if the hypervisor answers EPIPE instead, the status is 1.

#include <errno.h>
#include <string.h>
#include <unistd.h>

static char block[16 * 1024];

int main(int argc, char **argv) {
  const char *line = argc > 1 ? argv[1] : "y";
  size_t length = strlen(line);
  if (length + 1 > sizeof block) return 2;
  size_t used = 0;
  for (; used + length + 1 <= sizeof block; used += length + 1) {
    memcpy(block + used, line, length);
    block[used + length] = '\n';
  }
  for (;;) {
    // A short write must be gone on with, or lines would be cut.
    for (size_t done = 0; done < used;) {
      ssize_t written = write(STDOUT_FILENO, block + done, used - done);
      if (written < 0) {
        const char *why = strerror(errno);
        write(STDERR_FILENO, "yes: standard output: ", 22);
        write(STDERR_FILENO, why, strlen(why));
        write(STDERR_FILENO, "\n", 1);
        return 1;
      }
      done += (size_t)written;
    }
  }
}
