// sdk/c/cellar.h: what Cellar gives to a guest beyond WASI preview 1.
//
// Preview 1 has no call that opens a connection, and none by which a program copies or saves itself. Cellar's own
// module, `cellar`, has them. What cellar_connect gives is a socket as sock_accept gives it: read, write, send, recv,
// shutdown, poll and close work on it.
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

// ---- Who this guest is, and what has become of it
//
// A host may save a guest, fork it, put it to sleep and move it to another host while it runs. Memory and clock go on
// as if nothing had been, so a guest that must know is told in two ways.
//
// By its generation: 16 random bytes that no other launch of a guest has. One that keeps a copy beside what must not be
// used twice (a random generator's state, an id of its own) finds out by comparing them that it was copied or moved:
//
//   static uint8_t seeded_in[16];
//   uint8_t now[16];
//   cellar_generation(now);
//   if (memcmp(now, seeded_in, 16) != 0) { reseed(); memcpy(seeded_in, now, 16); }
//
// And by events: a descriptor to poll and to read, each event a struct cellar_event.
//
//   int fd = cellar_events();
//   struct cellar_event event;
//   if (read(fd, &event, sizeof event) == sizeof event && event.kind == CELLAR_EVENT_MIGRATE) reconnect();
//
// What becomes of descriptors: the console, files and listening sockets go on; a connection to who isn't there any more
// answers ECONNRESET.

// What may have become of a guest: it is the copy of another; it goes on from a snapshot that was taken of it; it was
// woken, having been hibernated; it is on another host.
enum {
  CELLAR_EVENT_NONE = 0,
  CELLAR_EVENT_FORK = 1,
  CELLAR_EVENT_RESTORE = 2,
  CELLAR_EVENT_WAKE = 3,
  CELLAR_EVENT_MIGRATE = 4,
};

// One event, as it is read from a descriptor of cellar_events().
struct cellar_event {
  uint32_t kind;
  // Of a fork: which of the children this guest is, from 1; else 0.
  uint32_t number;
  // When it went on, in nanoseconds since 1970.
  uint64_t time_ns;
  // What cellar_generation() has said from then on.
  uint8_t generation[16];
};

enum { CELLAR_ID = 0, CELLAR_NAME = 1 };

// The hypercalls themselves: each answers an errno of WASI preview 1, 0 if it was done.
#define CELLAR_HYPERCALL(name) __attribute__((import_module("cellar"), import_name(#name))) int32_t cellar_##name

// The guest's id or name (`what`) goes to `buffer`, in UTF-8 without a NUL, and its length to `*length`; ERANGE if it
// has more than `size` bytes. Both are empty for a guest in the foreground of `cellar run`.
CELLAR_HYPERCALL(identity_get)(int32_t what, char *buffer, size_t size, size_t *length);
// 16 bytes.
CELLAR_HYPERCALL(generation_get)(uint8_t *generation);
// The last event, of the kind CELLAR_EVENT_NONE if there was none.
CELLAR_HYPERCALL(event_last)(struct cellar_event *event);
CELLAR_HYPERCALL(events_open)(int32_t *fd);
CELLAR_HYPERCALL(guest_snapshot)(const char *name, size_t name_length, int32_t *restored);
CELLAR_HYPERCALL(guest_fork)(int32_t count, int32_t *child);
CELLAR_HYPERCALL(guest_hibernate)(void);

#undef CELLAR_HYPERCALL

static inline int cellar_answer(int32_t error) {
  if (error == 0) return 0;
  errno = error;
  return -1;
}

// The guest's id or name, with its NUL: 0, or -1 with errno (ERANGE: it doesn't fit).
static inline int cellar_identity(int what, char *buffer, size_t size) {
  size_t length = 0;
  if (size == 0) return cellar_answer(ERANGE);
  int32_t error = cellar_identity_get(what, buffer, size - 1, &length);
  if (error == 0) buffer[length] = 0;
  return cellar_answer(error);
}

// The generation: 0, or -1 with errno.
static inline int cellar_generation(uint8_t generation[16]) {
  return cellar_answer(cellar_generation_get(generation));
}

// The generation as 32 hexadecimal digits with their NUL: 0, or -1 with errno.
static inline int cellar_generation_text(char text[33]) {
  uint8_t bytes[16];
  if (cellar_generation(bytes) < 0) return -1;
  for (int i = 0; i < 32; i++) text[i] = "0123456789abcdef"[bytes[i / 2] >> (i % 2 ? 0 : 4) & 15];
  text[32] = 0;
  return 0;
}

// A descriptor of the events that come from now on, or -1 with errno. A read gives as many whole events as there are
// and fit, and waits for one, unless the descriptor is non-blocking; poll() and close() work on it.
static inline int cellar_events(void) {
  int32_t fd = -1;
  return cellar_answer(cellar_events_open(&fd)) < 0 ? -1 : fd;
}

// Saves this guest, as `name` if it isn't empty. Returns twice, as fork() does: 0 in the guest that goes on, and 1 in
// one that was restored from this snapshot, each time that it is restored. -1 with errno:
//
//   ENOTSUP  no host keeps this guest, or it can't be saved (`cellar inspect` says why)
//   EACCES   this guest may not: its specification must say so (`may: [snapshot]`, or `run -d --may snapshot`)
//   EINVAL   this is no name of a snapshot
//   ENOSPC   the disk is full
//   EAGAIN   not now: it has asked too often, is about to be moved, or its host has just gone
//   EINTR    it was woken or moved to another host meanwhile, and whether this snapshot was taken isn't known
static inline int cellar_snapshot(const char *name) {
  int32_t restored = 0;
  return cellar_answer(cellar_guest_snapshot(name, strlen(name), &restored)) < 0 ? -1 : restored;
}

// Makes `count` copies of this guest. Returns 0 in this one, and in each child its number, from 1 on. -1 with errno as
// cellar_snapshot(), and
//
//   EINVAL   `count` is 0 or more than 1000
//   ENOMEM   the host has no room for so many: there is none of them
static inline int cellar_fork(int count) {
  int32_t child = 0;
  return cellar_answer(cellar_guest_fork(count, &child)) < 0 ? -1 : child;
}

// Puts this guest to sleep: its memory goes to disk and is free for others, until somebody connects to it, sends it
// input or wakes it (`cellar resume`). Returns 0 when it is awake again, or -1 with errno as cellar_snapshot().
static inline int cellar_hibernate(void) {
  return cellar_answer(cellar_guest_hibernate());
}

#ifdef __cplusplus
}
#endif

#endif
