// guests/counter.c: the back end of the example: answers every request with how many it has answered, and its name.
//
//   counter [NAME]
//
// It speaks just enough HTTP/1.1: a request is read up to the empty line that ends its head, the answer is JSON, and
// the connection is closed. One connection at a time: an answer takes microseconds, and who waits is in the backlog.

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <wasi/api.h>

static int first_listener(void) {
  __wasi_prestat_t folder;
  int fd = 3;
  while (__wasi_fd_prestat_get(fd, &folder) == 0) fd++;
  return fd;
}

// Reads the head of a request: 0 if there is none, as the other side has gone or sends too much.
static int read_head(int connection, char *head, size_t size) {
  size_t length = 0;
  while (length < size - 1) {
    ssize_t count = read(connection, head + length, size - 1 - length);
    if (count <= 0) return 0;
    length += (size_t)count;
    head[length] = 0;
    if (strstr(head, "\r\n\r\n") != NULL) return 1;
  }
  return 0;
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "counter";
  int listener = first_listener();
  for (unsigned long count = 1;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) {
      perror("counter: accept");
      return 1;
    }
    char head[4096];
    if (read_head(connection, head, sizeof head)) {
      char body[256], answer[512];
      int length = snprintf(body, sizeof body, "{\"count\":%lu,\"name\":\"%.64s\"}\n", count++, name);
      int size = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\nConnection: close\r\n\r\n%s", length, body);
      write(connection, answer, (size_t)size);
    }
    close(connection);
  }
}
