// guests/cat.c: copies stdin, or the files named, to stdout. Any bytes, in blocks of 256 KiB.
//
// "-" stands for stdin, as everywhere. A file that can't be read is reported on stderr and makes the status 1; the
// others are copied all the same. Short writes are gone on with: stdout may be a pipe.

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static char block[256 * 1024];

static void complain(const char *name) {
  const char *why = strerror(errno);
  write(STDERR_FILENO, "cat: ", 5);
  write(STDERR_FILENO, name, strlen(name));
  write(STDERR_FILENO, ": ", 2);
  write(STDERR_FILENO, why, strlen(why));
  write(STDERR_FILENO, "\n", 1);
}

static int write_all(const char *data, size_t length) {
  while (length > 0) {
    ssize_t written = write(STDOUT_FILENO, data, length);
    if (written < 0) return -1;
    data += written;
    length -= (size_t)written;
  }
  return 0;
}

static int copy(int fd, const char *name) {
  for (;;) {
    ssize_t length = read(fd, block, sizeof block);
    if (length == 0) return 0;
    if (length < 0) {
      complain(name);
      return 1;
    }
    if (write_all(block, (size_t)length) < 0) {
      complain("standard output");
      _exit(1);
    }
  }
}

int main(int argc, char **argv) {
  if (argc < 2) return copy(STDIN_FILENO, "standard input");
  int status = 0;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "-") == 0) {
      status |= copy(STDIN_FILENO, "standard input");
      continue;
    }
    int fd = open(argv[i], O_RDONLY);
    if (fd < 0) {
      complain(argv[i]);
      status = 1;
      continue;
    }
    status |= copy(fd, argv[i]);
    close(fd);
  }
  return status;
}
