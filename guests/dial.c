// guests/dial.c: connects to NAME:PORT, sends MESSAGE, and prints the answer until its end.
//
//   dial NAME PORT MESSAGE
//
// Its status is 0, or 1 if it can't connect or the connection breaks: then the reason is on stderr.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cellar.h"

static int fail(const char *what) {
  fprintf(stderr, "dial: %s: %s\n", what, strerror(errno));
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: dial NAME PORT MESSAGE\n");
    return 2;
  }
  int fd = cellar_connect(argv[1], (uint16_t)atoi(argv[2]));
  if (fd < 0) return fail(argv[1]);
  const char *message = argv[3];
  for (size_t left = strlen(message); left > 0;) {
    ssize_t sent = write(fd, message, left);
    if (sent < 0) return fail("write");
    message += sent;
    left -= (size_t)sent;
  }
  if (shutdown(fd, SHUT_WR) < 0) return fail("shutdown");
  char block[4096];
  ssize_t length;
  while ((length = read(fd, block, sizeof block)) > 0) fwrite(block, 1, (size_t)length, stdout);
  return length < 0 ? fail("read") : 0;
}
