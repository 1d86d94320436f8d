// guests/echo.c: a TCP echo server, one thread and any number of connections.
//
// Run with --listen tcp:HOST:PORT: the listening socket is the first descriptor from 3 on that isn't a granted folder.
// With an argument N it ends with status 0 once N connections have been served and closed; else it serves forever.
//
// All sockets are non-blocking; the only place to wait is poll_oneoff. A connection waits either for data (FD_READ) or,
// while the peer hasn't taken what was echoed, for room (FD_WRITE): it is not read meanwhile, so that memory stays
// bounded. Idle connections own no buffer. After the peer's end of data all is sent, then the connection is shut.
//
// subscriptions[0] is the listener's, subscriptions[i + 1] that of connections[i]; `userdata` is that index. Slots move
// only between polls, when closed connections are squeezed out.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <wasi/api.h>

enum { BLOCK = 64 * 1024, CONNECTIONS_MAX = 65536 };

typedef struct {
  __wasi_fd_t fd;
  int closed;
  char *unsent;    // what the socket hasn't taken yet: length bytes from offset; NULL if nothing
  size_t offset;
  size_t length;
} Connection;

static Connection *connections;
static __wasi_subscription_t *subscriptions;
static __wasi_event_t *events;
static size_t connection_count;
static size_t capacity;
static size_t served;
static size_t wanted;    // 0: forever
static __wasi_fd_t listener;
static char block[BLOCK];

static void fail(const char *what, __wasi_errno_t error) {
  fprintf(stderr, "echo: %s: %s\n", what, strerror(error));
  exit(1);
}

// wasi-libc's errno values are WASI's, so that strerror() knows them.
static void find_listener(void) {
  for (__wasi_fd_t fd = 3;; fd++) {
    __wasi_prestat_t prestat;
    __wasi_fdstat_t fdstat;
    if (__wasi_fd_prestat_get(fd, &prestat) == 0) continue;
    if (__wasi_fd_fdstat_get(fd, &fdstat) != 0) break;
    listener = fd;
    __wasi_errno_t error = __wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_NONBLOCK);
    if (error != 0) fail("fd_fdstat_set_flags", error);
    return;
  }
  fprintf(stderr, "echo: no listening socket is granted: run with --listen tcp:127.0.0.1:7777\n");
  exit(1);
}

static void make_room(void) {
  if (connection_count < capacity) return;
  capacity = capacity == 0 ? 64 : capacity * 2;
  connections = realloc(connections, capacity * sizeof *connections);
  subscriptions = realloc(subscriptions, (capacity + 1) * sizeof *subscriptions);
  events = realloc(events, (capacity + 1) * sizeof *events);
  if (connections == NULL || subscriptions == NULL || events == NULL) fail("connections", __WASI_ERRNO_NOMEM);
}

static void subscribe(size_t index, __wasi_fd_t fd, uint8_t tag) {
  __wasi_subscription_t *subscription = &subscriptions[index];
  subscription->userdata = index;
  subscription->u.tag = tag;
  subscription->u.u.fd_read.file_descriptor = fd;
}

static void end(Connection *connection) {
  free(connection->unsent);
  connection->unsent = NULL;
  connection->closed = 1;
  if (__wasi_fd_close(connection->fd) != 0) fail("fd_close", __WASI_ERRNO_BADF);
  served++;
}

// Sends what it can: the bytes taken, or -1 if the connection is over.
static ssize_t send_some(Connection *connection, const char *data, size_t length) {
  size_t done = 0;
  while (done < length) {
    __wasi_ciovec_t iovec = { .buf = (const uint8_t *)data + done, .buf_len = length - done };
    __wasi_size_t sent;
    __wasi_errno_t error = __wasi_sock_send(connection->fd, &iovec, 1, 0, &sent);
    if (error == __WASI_ERRNO_AGAIN) break;
    if (error != 0) return -1;
    done += sent;
  }
  return (ssize_t)done;
}

static void on_readable(Connection *connection) {
  __wasi_iovec_t iovec = { .buf = (uint8_t *)block, .buf_len = BLOCK };
  __wasi_size_t length;
  __wasi_roflags_t flags;
  __wasi_errno_t error = __wasi_sock_recv(connection->fd, &iovec, 1, 0, &length, &flags);
  if (error == __WASI_ERRNO_AGAIN) return;
  if (error != 0 || length == 0) {
    // The peer may be gone already, so that a shutdown that fails is no news.
    if (error == 0 && __wasi_sock_shutdown(connection->fd, __WASI_SDFLAGS_WR) != 0) { /* nothing to shut */ }
    end(connection);
    return;
  }
  ssize_t sent = send_some(connection, block, length);
  if (sent < 0) {
    end(connection);
    return;
  }
  if ((size_t)sent == length) return;
  connection->length = length - (size_t)sent;
  connection->offset = 0;
  connection->unsent = malloc(connection->length);
  if (connection->unsent == NULL) {
    end(connection);
    return;
  }
  memcpy(connection->unsent, block + sent, connection->length);
}

static void on_writable(Connection *connection) {
  ssize_t sent = send_some(connection, connection->unsent + connection->offset, connection->length);
  if (sent < 0) {
    end(connection);
    return;
  }
  connection->offset += (size_t)sent;
  connection->length -= (size_t)sent;
  if (connection->length > 0) return;
  free(connection->unsent);
  connection->unsent = NULL;
}

static void on_connection(void) {
  while (connection_count < CONNECTIONS_MAX) {
    make_room();
    __wasi_fd_t fd;
    __wasi_errno_t error = __wasi_sock_accept(listener, __WASI_FDFLAGS_NONBLOCK, &fd);
    // A peer that gave up before it was accepted is no error of ours; without descriptors, the next close brings one.
    if (error == __WASI_ERRNO_AGAIN || error == __WASI_ERRNO_MFILE || error == __WASI_ERRNO_CONNABORTED) return;
    if (error != 0) fail("sock_accept", error);
    connections[connection_count++] = (Connection){ .fd = fd };
  }
}

static void squeeze(void) {
  size_t kept = 0;
  for (size_t i = 0; i < connection_count; i++) {
    if (!connections[i].closed) connections[kept++] = connections[i];
  }
  connection_count = kept;
}

static void serve(void) {
  subscribe(0, listener, __WASI_EVENTTYPE_FD_READ);
  for (size_t i = 0; i < connection_count; i++) {
    int writing = connections[i].unsent != NULL;
    subscribe(i + 1, connections[i].fd, writing ? __WASI_EVENTTYPE_FD_WRITE : __WASI_EVENTTYPE_FD_READ);
  }
  __wasi_size_t event_count;
  __wasi_errno_t error = __wasi_poll_oneoff(subscriptions, events, connection_count + 1, &event_count);
  if (error != 0) fail("poll_oneoff", error);
  int accepting = 0;
  for (size_t i = 0; i < event_count; i++) {
    size_t index = (size_t)events[i].userdata;
    if (index == 0) {
      accepting = 1;
      continue;
    }
    Connection *connection = &connections[index - 1];
    if (events[i].error != 0) end(connection);
    else if (connection->unsent != NULL) on_writable(connection);
    else on_readable(connection);
  }
  squeeze();
  // Last, as it may move the arrays.
  if (accepting) on_connection();
}

int main(int argc, char **argv) {
  wanted = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
  find_listener();
  make_room();
  while (wanted == 0 || served < wanted) serve();
  printf("served %zu connections\n", served);
  return 0;
}
