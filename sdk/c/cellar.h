// sdk/c/cellar.h: what Cellar gives to a guest beyond WASI preview 1.
//
// Preview 1 has no call that opens a connection. Cellar's own module, `cellar`, has one. What it gives is a socket as
// sock_accept gives it: read, write, send, recv, shutdown, poll and close work on it.
//
//   int fd = cellar_connect("db", 5432);
//   if (fd < 0) perror("db");
//
// The name is that of a cell that shares a network with this one, or one outside that the cell may reach (`egress`).

#ifndef CELLAR_H
#define CELLAR_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

// The hypercall itself: an errno of WASI preview 1, 0 if `*fd` is the connection. `name` is UTF-8 without a NUL, of 253
// bytes at most.
__attribute__((import_module("cellar"), import_name("net_connect")))
int32_t cellar_net_connect(const char *name, size_t name_length, int32_t port, int32_t *fd);

// Connects to `port` of who is called `name`, and waits until that is done or has failed. Returns the connection's
// descriptor, which is blocking and the caller's to close, or -1 with errno:
//
//   ECONNREFUSED  it is there, and nobody listens on this port
//   EHOSTUNREACH  nobody is called so, or it can't be reached now
//   EACCES        this cell may not reach it
//   ENETUNREACH   this cell is in no network
//   ETIMEDOUT     it doesn't answer
//   EMFILE        this cell has no descriptor left
//   EINVAL        the name is empty or too long, or the port is 0
static inline int cellar_connect(const char *name, uint16_t port) {
  int32_t fd;
  int32_t error = cellar_net_connect(name, strlen(name), port, &fd);
  if (error == 0) return fd;
  errno = error;
  return -1;
}

#ifdef __cplusplus
}
#endif

#endif
