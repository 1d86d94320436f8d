// guests/web.c: the front end of the example: a web server for the files of a folder, and a proxy to another cell.
//
//   web FOLDER [NAME:PORT]
//
//   GET /healthz   "ok": the host asks for it to see whether the cell is well
//   /api/...       is passed on to the cell NAME, with all that the client sends, and so is the answer
//   GET /...       a file of FOLDER; index.html for a folder
//
// One thread serves all connections. Sockets don't block, and poll() is the only place to wait. (cellar_connect() waits
// too, but no longer than another cell takes to be asked.) A connection takes one request and is closed.
//
// What moves bytes is a Pipe: from one descriptor to another, by way of a buffer. A connection has two of them: one for
// the request, which goes to the other cell or nowhere, and one for the answer, which comes from there or from a file.

#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>
#include "cellar.h"

enum { BUFFER = 16 * 1024, HEAD_BYTES_MAX = 8 * 1024, PATH_BYTES_MAX = 1024 };
enum { CONNECTIONS_MAX = 256, IDLE_SECONDS_MAX = 30 };

typedef struct {
  int from, to;           // -1: nothing more comes; it goes nowhere
  size_t start, end;      // what is in the buffer
  char bytes[BUFFER];
} Pipe;

typedef struct {
  int client, source;     // source: the file or the other cell that the answer comes from, or -1
  bool answering;         // the head of the request is complete
  time_t active;
  Pipe request, answer;
} Connection;

static Connection *connections[CONNECTIONS_MAX];
static int connection_count;
static const char *folder;
static char backend[254];    // the other cell, or empty
static uint16_t backend_port;

static time_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec;
}

static int first_listener(void) {
  __wasi_prestat_t granted;
  int fd = 3;
  while (__wasi_fd_prestat_get(fd, &granted) == 0) fd++;
  return fd;
}

static void dont_block(int fd) { fcntl(fd, F_SETFL, O_NONBLOCK); }

// ---- pipes

static bool is_empty(const Pipe *pipe) { return pipe->start == pipe->end; }

// Moves what there is: false if the connection is broken. What one side doesn't take now stays in the buffer, and as
// long as something is there nothing more is read.
static bool pump(Pipe *pipe) {
  if (is_empty(pipe) && pipe->from >= 0) {
    ssize_t count = read(pipe->from, pipe->bytes, sizeof pipe->bytes);
    if (count < 0) return errno == EAGAIN;
    if (count == 0) pipe->from = -1;
    pipe->start = 0;
    pipe->end = (size_t)count;
  }
  if (!is_empty(pipe)) {
    ssize_t count = write(pipe->to, pipe->bytes + pipe->start, pipe->end - pipe->start);
    if (count < 0) return errno == EAGAIN;
    pipe->start += (size_t)count;
  }
  if (is_empty(pipe) && pipe->from < 0 && pipe->to >= 0) {
    shutdown(pipe->to, SHUT_WR);
    pipe->to = -1;
  }
  return true;
}

// ---- answers

static void say(Connection *connection, const char *status, const char *type, long long length, const char *body) {
  Pipe *answer = &connection->answer;
  answer->to = connection->client;
  answer->start = 0;
  answer->end = (size_t)snprintf(answer->bytes, sizeof answer->bytes,
    "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %lld\r\n"
    "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%s", status, type, length, body);
}

static void say_text(Connection *connection, const char *status, const char *text) {
  say(connection, status, "text/plain; charset=utf-8", (long long)strlen(text), text);
}

static const char *type_of(const char *path) {
  static const char *const TYPES[][2] = {
    { ".html", "text/html; charset=utf-8" }, { ".css", "text/css; charset=utf-8" }, { ".svg", "image/svg+xml" },
    { ".js", "text/javascript; charset=utf-8" }, { ".json", "application/json" }, { ".png", "image/png" },
    { ".txt", "text/plain; charset=utf-8" }, { ".ico", "image/x-icon" }, { ".wasm", "application/wasm" },
  };
  const char *dot = strrchr(path, '.');
  for (size_t i = 0; dot != NULL && i < sizeof TYPES / sizeof *TYPES; i++) {
    if (strcmp(dot, TYPES[i][0]) == 0) return TYPES[i][1];
  }
  return "application/octet-stream";
}

static int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// The file that the target of a request names: `path` is FOLDER and the target without its query, its %XX decoded.
// False for what no page links to: a part that begins with a dot, and so "..", or one with a NUL or a backslash.
static bool path_of(const char *target, char *path) {
  size_t length = strlen(folder);
  if (length + 1 > PATH_BYTES_MAX / 2 || target[0] != '/') return false;
  memcpy(path, folder, length);
  for (const char *c = target; *c != 0 && *c != '?' && *c != '#'; c++) {
    char decoded = *c;
    if (decoded == '%') {
      int high = digit(c[1]);
      int low = high < 0 ? -1 : digit(c[2]);
      if (low < 0) return false;
      decoded = (char)(high * 16 + low);
      c += 2;
    }
    if (decoded == 0 || decoded == '\\' || (decoded == '.' && path[length - 1] == '/')) return false;
    if (length >= PATH_BYTES_MAX - sizeof "index.html") return false;
    path[length++] = decoded;
  }
  path[length] = 0;
  if (path[length - 1] == '/') strcpy(path + length, "index.html");
  return true;
}

static void answer_with_file(Connection *connection, const char *target, bool head_only) {
  char path[PATH_BYTES_MAX];
  struct stat stat;
  int file = path_of(target, path) ? open(path, O_RDONLY) : -1;
  if (file < 0 || fstat(file, &stat) < 0 || !S_ISREG(stat.st_mode)) {
    if (file >= 0) close(file);
    say_text(connection, "404 Not Found", "not found\n");
    return;
  }
  say(connection, "200 OK", type_of(path), (long long)stat.st_size, "");
  connection->source = file;
  if (!head_only) connection->answer.from = file;
}

// The request goes on as it came, but for one line that asks the other side to close, too.
static void pass_on(Connection *connection) {
  static const char CLOSE[] = "Connection: close\r\n";
  Pipe *request = &connection->request;
  int cell = cellar_connect(backend, backend_port);
  if (cell < 0) {
    fprintf(stderr, "web: %s:%d: %s\n", backend, backend_port, strerror(errno));
    say_text(connection, "502 Bad Gateway", "the other cell doesn't answer\n");
    return;
  }
  dont_block(cell);
  char *second_line = strstr(request->bytes, "\r\n") + 2;
  memmove(second_line + sizeof CLOSE - 1, second_line, (size_t)(request->bytes + request->end - second_line));
  memcpy(second_line, CLOSE, sizeof CLOSE - 1);
  request->end += sizeof CLOSE - 1;
  request->to = cell;
  connection->source = cell;
  connection->answer.from = cell;
  connection->answer.to = connection->client;
}

// Decides about the request whose head is in the buffer.
static void answer(Connection *connection) {
  char method[8], target[PATH_BYTES_MAX];
  connection->answering = true;
  connection->answer.from = -1;
  if (sscanf(connection->request.bytes, "%7s %1023s HTTP/1.", method, target) != 2) {
    say_text(connection, "400 Bad Request", "this isn't HTTP\n");
    return;
  }
  if (strncmp(target, "/api/", 5) == 0 && backend[0] != 0) {
    pass_on(connection);
    return;
  }
  bool head_only = strcmp(method, "HEAD") == 0;
  if (!head_only && strcmp(method, "GET") != 0) say_text(connection, "405 Method Not Allowed", "GET or HEAD\n");
  else if (strcmp(target, "/healthz") == 0) say_text(connection, "200 OK", "ok\n");
  else answer_with_file(connection, target, head_only);
}

// ---- connections

static void take(int listener) {
  int client = accept(listener, NULL, NULL);
  if (client < 0) return;
  Connection *connection = malloc(sizeof *connection);
  if (connection == NULL) {
    close(client);
    return;
  }
  dont_block(client);
  connection->client = client;
  connection->source = -1;
  connection->answering = false;
  connection->active = now();
  connection->request.from = client;
  connection->request.to = connection->answer.to = -1;
  connection->request.start = connection->request.end = 0;
  connections[connection_count++] = connection;
}

static void drop(int i) {
  Connection *connection = connections[i];
  close(connection->client);
  if (connection->source >= 0) close(connection->source);
  free(connection);
  connections[i] = connections[--connection_count];
}

// Reads more of a request's head: false if it doesn't come.
static bool read_head(Connection *connection) {
  Pipe *request = &connection->request;
  ssize_t count = read(connection->client, request->bytes + request->end, HEAD_BYTES_MAX - request->end);
  if (count <= 0) return count < 0 && errno == EAGAIN;
  request->end += (size_t)count;
  request->bytes[request->end] = 0;
  if (strstr(request->bytes, "\r\n\r\n") != NULL) answer(connection);
  else if (request->end == HEAD_BYTES_MAX) {
    connection->answering = true;
    connection->answer.from = -1;
    say_text(connection, "431 Request Header Fields Too Large", "too large\n");
  }
  return true;
}

// Does what can be done now: false if the connection is done with.
static bool serve(Connection *connection) {
  connection->active = now();
  if (!connection->answering) return read_head(connection);
  // Who takes no more of the request may still answer it.
  if (connection->request.to >= 0 && !pump(&connection->request)) connection->request.to = -1;
  return pump(&connection->answer) && connection->answer.to >= 0;
}

// What to wait for so that a pipe goes on: its source while the buffer is empty, else its destination.
static void wait_for(struct pollfd **polled, const Pipe *pipe) {
  if (pipe->to < 0) return;
  if (!is_empty(pipe)) *(*polled)++ = (struct pollfd){ .fd = pipe->to, .events = POLLOUT };
  else if (pipe->from >= 0) *(*polled)++ = (struct pollfd){ .fd = pipe->from, .events = POLLIN };
}

// Waits, then serves who can go on.
static void turn(int listener) {
  static struct pollfd list[1 + 2 * CONNECTIONS_MAX];
  static struct pollfd *begin[CONNECTIONS_MAX + 1];
  struct pollfd *polled = list;
  *polled++ = (struct pollfd){ .fd = listener, .events = connection_count < CONNECTIONS_MAX ? POLLIN : 0 };
  for (int i = 0; i < connection_count; i++) {
    begin[i] = polled;
    if (connections[i]->answering) {
      wait_for(&polled, &connections[i]->request);
      wait_for(&polled, &connections[i]->answer);
    } else *polled++ = (struct pollfd){ .fd = connections[i]->client, .events = POLLIN };
  }
  begin[connection_count] = polled;
  // Without connections nobody can be idle for too long.
  if (poll(list, (nfds_t)(polled - list), connection_count > 0 ? 1000 : -1) < 0) {
    perror("web: poll");
    exit(1);
  }
  // From the last: drop() puts the last one, which has been served, into the gap.
  for (int i = connection_count - 1; i >= 0; i--) {
    bool ready = false;
    for (struct pollfd *one = begin[i]; one < begin[i + 1]; one++) ready |= one->revents != 0;
    bool done = ready ? !serve(connections[i]) : now() - connections[i]->active > IDLE_SECONDS_MAX;
    if (done) drop(i);
  }
  if (list[0].revents != 0) take(listener);
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 3 || (argc == 3 && sscanf(argv[2], "%253[^:]:%hu", backend, &backend_port) != 2)) {
    fprintf(stderr, "usage: web FOLDER [NAME:PORT]\n");
    return 2;
  }
  folder = argv[1];
  int listener = first_listener();
  dont_block(listener);
  for (;;) turn(listener);
}
