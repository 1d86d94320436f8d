// agent.h: what the files of the agent have of each other.

#ifndef AGENT_H
#define AGENT_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "protocol.h"

// ---- the line to the host (agent.c)

// A frame for the host: `head`, then `rest`. It is dropped if no session is open. Small ones always fit: input is read
// from the host, and output from programs, only while there is room for what follows from it.
void send_frame(uint8_t kind, uint32_t id, const void *head, size_t head_size, const void *rest, size_t rest_size);
bool is_connected(void);
// Room for one piece of output beside what small frames may need.
bool has_room(void);
// False in the modes for tests: then nothing of the machine itself is changed.
extern bool is_guest;
// The folder of the guest's own programs that are run on an event: `renew`, `stop`.
extern const char *hooks;
// Where programs of the guest find the agent.
extern const char *socket_path;

// A descriptor to be polled until the next round; `revents` of it then. -1 is nobody's.
int watch(int fd, short events);
short revents_of(int index);

// ---- reading a frame's body: a field that isn't all there sets `bad`

struct reader { const uint8_t *at, *end; bool bad; };
uint32_t take(struct reader *reader, int size);
uint64_t take64(struct reader *reader);
// Of the length before it; copied with a NUL. One with a NUL inside is bad.
char *take_text(struct reader *reader, char **room, const char *room_end);
void store(uint8_t *to, uint64_t value, int size);

// ---- sessions (session.c)

void session_frame(uint8_t kind, uint32_t id, struct reader *body);
void sessions_watch(void);
void sessions_serve(void);
void sessions_reap(void);
void sessions_end(void);
// A program of the guest's on the other side of a local socket: `fd` is the session's from now on.
bool session_of_socket(uint32_t id, int fd, const char *first);
// Runs a program and forgets it. False if it isn't there.
bool run_hook(const char *name, const char *word, const char *variable);

// ---- files (tar.c): each runs in a process of its own and gives its exit status

// An archive of `path` to stdout. `failed` is told why if `path` itself can't be read.
int tar_get(const char *path, void (*failed)(int error));
// Unpacks the archive on stdin in the folder `path`.
int tar_put(const char *path, void (*failed)(int error));

// ---- the machine itself (life.c)

int life_stop(int how);
// Whether it was told to stop so long ago that nothing but force is left; -1 or milliseconds until then.
int life_wait(void);
uint32_t life_event(int kind, uint64_t at_ms, const char *hostname, const uint8_t *entropy, size_t entropy_size,
                    const char *generation);

// ---- programs of the guest that ask the host (local.c)

void local_listen(void);
void local_watch(void);
void local_serve(void);
void local_answer(uint32_t id, struct reader *body);
// The connection was lost; a session is there again in the same life of the machine, or `kind` has become of it.
void local_same_life(void);
void local_event(int kind, uint32_t number);
int local_command(int argc, char **argv);

#endif
