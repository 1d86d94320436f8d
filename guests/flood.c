// guests/flood.c: writes to stdout for ever, 4 KiB at once, as fast as it is let. For pipes nobody reads, full disks,
// and limits of output.
//
// An argument N ends it with status 0 after N KiB. Each line is "flood" and dots, 64 bytes with its end.

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, LINE = 64, KIB = 1024 };

static char block[BLOCK];

int main(int argc, char **argv) {
  uint64_t left = argc > 1 ? strtoull(argv[1], NULL, 10) * KIB : UINT64_MAX;
  memset(block, '.', BLOCK);
  for (size_t at = 0; at < BLOCK; at += LINE) {
    memcpy(block + at, "flood", 5);
    block[at + LINE - 1] = '\n';
  }
  for (size_t at = 0; left > 0;) {
    size_t length = left < BLOCK - at ? (size_t)left : BLOCK - at;
    ssize_t written = write(STDOUT_FILENO, block + at, length);
    if (written < 0) {
      const char *why = strerror(errno);
      write(STDERR_FILENO, "flood: standard output: ", 24);
      write(STDERR_FILENO, why, strlen(why));
      write(STDERR_FILENO, "\n", 1);
      return 1;
    }
    if (left != UINT64_MAX) left -= (uint64_t)written;
    // A short write is gone on with, or lines would be cut.
    at = (at + (size_t)written) % BLOCK;
  }
  return 0;
}
