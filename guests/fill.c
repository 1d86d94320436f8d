// guests/fill.c: fills a volume in different ways until it is told ENOSPC, prints how far it came, and then ends with
// status 0; another error is status 1.
//
//   fill bytes PATH STEP     appends STEP bytes again and again: prints the bytes
//   fill names PREFIX        makes empty files PREFIX0, PREFIX1, …: prints how many
//   fill grow PATH           makes one file as long as it goes with ftruncate, by halves: prints the bytes
//   fill keep PATH STEP      as bytes, but the file has lost its name before: prints the bytes, closes it, does it again
//   fill write PATH TEXT     not until it is full: writes TEXT to the start of the file that is there
//   fill times PATH          not until it is full: sets the times of the file that is there to 1 s

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char block[1 << 20];

static int failed(const char *what) {
  printf("%s: %s\n", what, strerror(errno));
  return 1;
}

static int full(uint64_t count) {
  if (errno != ENOSPC) return failed("fill");
  printf("%llu\n", (unsigned long long)count);
  return 0;
}

static int bytes(const char *path, size_t step, int keeps) {
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (fd < 0) return full(0);
  if (keeps && unlink(path) < 0) return failed("unlink");
  memset(block, 'x', sizeof block);
  uint64_t total = 0;
  for (;;) {
    ssize_t written = write(fd, block, step);
    if (written < 0) break;
    total += (uint64_t)written;
  }
  int result = full(total);
  close(fd);
  return result;
}

static int names(const char *prefix) {
  for (uint64_t i = 0;; i++) {
    char name[256];
    snprintf(name, sizeof name, "%s%llu", prefix, (unsigned long long)i);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0) return full(i);
    close(fd);
  }
}

static int grow(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT, 0666);
  if (fd < 0) return full(0);
  int64_t size = 0;
  for (int64_t step = (int64_t)1 << 40; step > 0; step /= 2) {
    if (ftruncate(fd, size + step) == 0) size += step;
    else if (errno != ENOSPC) return failed("ftruncate");
  }
  errno = ENOSPC;
  return full((uint64_t)size);
}

static int overwrite(const char *path, const char *text) {
  int fd = open(path, O_WRONLY);
  if (fd < 0) return failed("open");
  if (write(fd, text, strlen(text)) != (ssize_t)strlen(text)) return failed("write");
  return close(fd) < 0 ? failed("close") : 0;
}

int main(int argc, char **argv) {
  const char *what = argc > 2 ? argv[1] : "";
  size_t step = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
  if (step > sizeof block) step = sizeof block;
  if (strcmp(what, "bytes") == 0) return bytes(argv[2], step, 0);
  if (strcmp(what, "names") == 0) return names(argv[2]);
  if (strcmp(what, "grow") == 0) return grow(argv[2]);
  if (strcmp(what, "keep") == 0) return bytes(argv[2], step, 1) || bytes(argv[2], step, 1);
  if (strcmp(what, "write") == 0 && argc > 3) return overwrite(argv[2], argv[3]);
  if (strcmp(what, "times") == 0) {
    struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = 1 } };
    return utimensat(AT_FDCWD, argv[2], times, 0) < 0 ? failed("utimensat") : 0;
  }
  return 2;
}
