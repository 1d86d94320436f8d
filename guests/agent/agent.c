// agent.c: Cellar's agent in a machine: runs programs, moves files and passes on what a guest and its host have to say.
//
//   agent                        serves the host: over vsock, or over the virtio-serial port `cellar.agent.0`
//   agent --unix PATH | --stdio  the same over that, for tests: the machine itself is left alone
//   agent metadata | snapshot [NAME] | fork COUNT | hibernate | connect NAME PORT
//                                asks the host through an agent that serves (local.c)
//
// One thread, one poll loop, no memory but what is here: every buffer has its size at compile time. The host may go
// and come at any moment, and a machine may be saved in any instruction and go on elsewhere, so a session begins with
// a hello that resets everything of the last one. The other files: session.c (programs), tar.c (files), life.c (the
// machine), local.c (the guest's own programs). protocol.h has the frames.

#define _GNU_SOURCE
#include "agent.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SOURCE
#define SOURCE "unknown"
#endif
#define OUT_BYTES (512 * 1024)
// What small frames may need of it in one round: their number is bounded by what is read in one round.
#define OUT_RESERVE (128 * 1024)
#define WATCHED_MAX 512
#define PORT_NAME "cellar.agent.0"
#define RETRY_MS_FIRST 200
#define RETRY_MS_MAX 1000

struct sockaddr_vm { unsigned short family, reserved; unsigned port, cid; unsigned char flags, zero[3]; };

bool is_guest = true;
const char *hooks = "/etc/cellar";
const char *socket_path = "/run/cellar.sock";

static enum { BY_VSOCK, BY_UNIX, BY_STDIO } way = BY_VSOCK;
static const char *unix_path;

// The line: two descriptors that may be one; -1 if it isn't there. A session is on it once a hello has come.
static int line_in = -1, line_out = -1;
static bool is_connecting, tries_port;
static uint32_t session_tag;
static bool has_session;
static uint8_t generation[16];
static bool has_generation;
static int retry_ms = RETRY_MS_FIRST;
static int64_t retry_at;

static uint8_t in[FRAME_BYTES_MAX];
static size_t in_have;
static uint8_t out[OUT_BYTES];
static size_t out_from, out_to;

static struct pollfd watched[WATCHED_MAX];
static int watched_count;

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int watch(int fd, short events) {
  if (fd < 0 || watched_count == WATCHED_MAX) return -1;
  watched[watched_count] = (struct pollfd){ .fd = fd, .events = events };
  return watched_count++;
}

short revents_of(int index) { return index < 0 ? 0 : watched[index].revents; }

// ---- fields

uint32_t take(struct reader *reader, int size) {
  if (reader->end - reader->at < size) {
    reader->bad = true;
    return 0;
  }
  uint32_t value = 0;
  for (int i = 0; i < size; i++) value |= (uint32_t)*reader->at++ << 8 * i;
  return value;
}

uint64_t take64(struct reader *reader) {
  uint64_t low = take(reader, 4);
  return low | (uint64_t)take(reader, 4) << 32;
}

char *take_text(struct reader *reader, char **room, const char *room_end) {
  size_t size = take(reader, 2);
  if (reader->bad || (size_t)(reader->end - reader->at) < size || (size_t)(room_end - *room) < size + 1 ||
      memchr(reader->at, 0, size) != NULL) {
    reader->bad = true;
    return "";
  }
  char *text = *room;
  memcpy(text, reader->at, size);
  text[size] = 0;
  reader->at += size;
  *room += size + 1;
  return text;
}

void store(uint8_t *to, uint64_t value, int size) {
  for (int i = 0; i < size; i++) to[i] = value >> 8 * i;
}

// ---- frames out

static size_t out_room(void) { return OUT_BYTES - (out_to - out_from); }

bool is_connected(void) { return has_session; }

bool has_room(void) { return has_session && out_room() >= FRAME_BYTES_MAX + OUT_RESERVE; }

void send_frame(uint8_t kind, uint32_t id, const void *head, size_t head_size, const void *rest, size_t rest_size) {
  size_t size = head_size + rest_size;
  if (!has_session || size > BODY_BYTES_MAX || out_room() < HEADER_BYTES + size + TAG_BYTES) return;
  if (OUT_BYTES - out_to < HEADER_BYTES + size + TAG_BYTES) {
    memmove(out, out + out_from, out_to - out_from);
    out_to -= out_from;
    out_from = 0;
  }
  uint8_t *at = out + out_to;
  at[0] = FRAME_MARK;
  at[1] = kind;
  store(at + 2, 0, 2);
  store(at + 4, id, 4);
  store(at + 8, size, 4);
  if (head_size > 0) memcpy(at + HEADER_BYTES, head, head_size);
  if (rest_size > 0) memcpy(at + HEADER_BYTES + head_size, rest, rest_size);
  store(at + HEADER_BYTES + size, session_tag, TAG_BYTES);
  out_to += HEADER_BYTES + size + TAG_BYTES;
}

// ---- frames in

// A new session: whatever was of the last one is over, for the host has forgotten it.
static void hello(struct reader *body, uint32_t tag) {
  uint32_t version = take(body, 4), own_tag = take(body, 4);
  const uint8_t *nonce = body->at;
  if (body->bad || body->end - body->at < 32 || version != AGENT_PROTOCOL_VERSION || own_tag != tag || tag == 0) return;
  sessions_end();
  session_tag = tag;
  has_session = true;
  out_from = out_to = 0;
  bool same_life = has_generation && memcmp(generation, nonce + 16, 16) == 0;
  memcpy(generation, nonce + 16, 16);
  has_generation = true;
  struct utsname name = { 0 };
  uname(&name);
  const char *texts[] = { SOURCE, name.sysname, name.release, name.machine, name.nodename };
  uint8_t answer[20 + 5 * 130];
  store(answer, AGENT_PROTOCOL_VERSION, 4);
  memcpy(answer + 4, nonce, 16);
  size_t size = 20;
  for (int i = 0; i < 5; i++) {
    size_t length = strnlen(texts[i], 128);
    store(answer + size, length, 2);
    memcpy(answer + size + 2, texts[i], length);
    size += 2 + length;
  }
  send_frame(FROM_HELLO, 0, answer, size, NULL, 0);
  if (same_life) local_same_life();
}

static void event(uint32_t id, struct reader *body) {
  static char room[BODY_BYTES_MAX];
  char *at = room, text[33];
  int kind = take(body, 1);
  uint32_t number = take(body, 4);
  uint64_t at_ms = take64(body);
  const uint8_t *bytes = body->at;
  if (body->end - body->at < 16) return;
  body->at += 16;
  const char *hostname = take_text(body, &at, room + sizeof room);
  if (body->bad) return;
  for (int i = 0; i < 32; i++) text[i] = "0123456789abcdef"[bytes[i / 2] >> (i % 2 ? 0 : 4) & 15];
  text[32] = 0;
  memcpy(generation, bytes, 16);
  uint8_t done[8] = { 0 };
  store(done + 4, life_event(kind, at_ms, hostname, body->at, body->end - body->at, text), 4);
  send_frame(FROM_DONE, id, done, sizeof done, NULL, 0);
  local_event(kind, number);
}

static void frame(const uint8_t *bytes, size_t size) {
  uint8_t kind = bytes[1];
  uint32_t id = bytes[4] | bytes[5] << 8 | bytes[6] << 16 | (uint32_t)bytes[7] << 24;
  struct reader body = { bytes + HEADER_BYTES, bytes + size - TAG_BYTES, false };
  struct reader end = { body.end, bytes + size, false };
  uint32_t tag = take(&end, TAG_BYTES);
  if (kind == TO_HELLO) return hello(&body, tag);
  // Of a session that is over.
  if (!has_session || tag != session_tag) return;
  if (kind == TO_PING) send_frame(FROM_PONG, id, NULL, 0, NULL, 0);
  else if (kind == TO_EVENT) event(id, &body);
  else if (kind == TO_ANSWER) local_answer(id, &body);
  else if (kind == TO_STOP) {
    uint8_t done[8] = { 0 };
    int how = take(&body, 1);
    store(done, body.bad ? EINVAL : life_stop(how), 4);
    send_frame(FROM_DONE, id, done, sizeof done, NULL, 0);
  } else session_frame(kind, id, &body);
}

static void lose_line(void) {
  if (line_in > 2) close(line_in);
  line_in = line_out = -1;
  is_connecting = has_session = false;
  in_have = out_from = out_to = 0;
  sessions_end();
  retry_at = now_ms() + retry_ms;
  if (retry_ms < RETRY_MS_MAX) retry_ms += 20;
}

// Gives whole frames from what is there. What can't be a frame ends the line: nothing after it can be understood.
static bool parse(void) {
  size_t at = 0;
  while (at < in_have && out_room() >= OUT_RESERVE / 2) {
    if (in[at] == 0) {
      at++;
      continue;
    }
    if (in[at] != FRAME_MARK) return false;
    if (in_have - at < HEADER_BYTES) break;
    struct reader length = { in + at + 8, in + at + 12, false };
    size_t size = take(&length, 4);
    if (size > BODY_BYTES_MAX) return false;
    size += HEADER_BYTES + TAG_BYTES;
    if (in_have - at < size) break;
    frame(in + at, size);
    at += size;
  }
  memmove(in, in + at, in_have - at);
  in_have -= at;
  return true;
}

static void read_line(void) {
  if (in_have < sizeof in) {
    ssize_t got = read(line_in, in + in_have, sizeof in - in_have);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return lose_line();
    if (got > 0) in_have += got;
  }
  if (!parse()) return lose_line();
  if (has_session) retry_ms = RETRY_MS_FIRST;
}

static void write_line(void) {
  ssize_t sent = write(line_out, out + out_from, out_to - out_from);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) return lose_line();
  if (sent > 0) out_from += sent;
  if (out_from == out_to) out_from = out_to = 0;
}

// ---- ways to the host

// The port's device, by the name that it has in sysfs: /dev/virtio-ports/ is udev's, and not every guest has that.
static int open_port(void) {
  int fd = open("/dev/virtio-ports/" PORT_NAME, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0) return fd;
  DIR *folder = opendir("/sys/class/virtio-ports");
  if (folder == NULL) return -1;
  for (struct dirent *entry; fd < 0 && (entry = readdir(folder)) != NULL;) {
    char path[320], name[64] = "";
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
    FILE *file = fopen(path, "re");
    if (file == NULL) continue;
    if (fgets(name, sizeof name, file) != NULL && strcmp(strtok(name, "\n"), PORT_NAME) == 0) {
      snprintf(path, sizeof path, "/dev/%s", entry->d_name);
      fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    fclose(file);
  }
  closedir(folder);
  return fd;
}

static int connecting(int fd, const void *address, socklen_t size) {
  if (fd >= 0 && connect(fd, address, size) < 0) {
    if (errno != EINPROGRESS) {
      close(fd);
      return -1;
    }
    is_connecting = true;
  }
  return fd;
}

static void open_line(void) {
  int fd = -1;
  if (way == BY_UNIX) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, unix_path, sizeof address.sun_path - 1);
    fd = connecting(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), &address, sizeof address);
  } else {
    // By turns, as a guest may have both, and the host behind one of them.
    if (!tries_port) {
      struct sockaddr_vm address = { .family = AF_VSOCK, .port = AGENT_PORT, .cid = 2 };
      fd = connecting(socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), &address, sizeof address);
    }
    if (fd < 0) fd = open_port();
    tries_port = !tries_port;
  }
  line_in = line_out = fd;
  if (fd < 0) {
    retry_at = now_ms() + retry_ms;
    if (retry_ms < RETRY_MS_MAX) retry_ms += 20;
  }
}

static void open_stdio(void) {
  line_in = 0;
  line_out = 1;
  for (int i = 0; i < 2; i++) fcntl(i, F_SETFL, fcntl(i, F_GETFL) | O_NONBLOCK);
}

static void serve_line(int in_index, int out_index) {
  short ready = revents_of(in_index) | revents_of(out_index);
  if (is_connecting) {
    int error = 0;
    socklen_t size = sizeof error;
    if (ready == 0) return;
    getsockopt(line_in, SOL_SOCKET, SO_ERROR, &error, &size);
    is_connecting = false;
    if (error != 0) lose_line();
    return;
  }
  if (revents_of(in_index) & (POLLIN | POLLHUP | POLLERR)) read_line();
  // What was held back for want of room.
  else if (line_in >= 0 && in_have > 0 && !parse()) lose_line();
}

static int timeout_ms(void) {
  int wait = life_wait();
  if (line_in < 0) {
    int64_t left = retry_at - now_ms();
    if (left < 0) left = 0;
    if (wait < 0 || left < wait) wait = left;
  }
  return wait;
}

static int serve(void) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGCHLD);
  sigprocmask(SIG_BLOCK, &signals, NULL);
  signal(SIGPIPE, SIG_IGN);
  int children = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (way == BY_STDIO) open_stdio();
  for (;;) {
    if (line_in < 0) {
      if (way == BY_STDIO) return 0;
      if (now_ms() >= retry_at) open_line();
    }
    watched_count = 0;
    int child_index = watch(children, POLLIN);
    bool may_read = !is_connecting && out_room() >= OUT_RESERVE / 2;
    int in_index = watch(line_in, may_read ? POLLIN : 0);
    int out_index = watch(line_out, is_connecting || out_to > out_from ? POLLOUT : 0);
    sessions_watch();
    local_watch();
    if (poll(watched, watched_count, timeout_ms()) < 0 && errno != EINTR) return 1;
    if (revents_of(child_index)) {
      struct signalfd_siginfo info;
      while (read(children, &info, sizeof info) > 0) continue;
    }
    sessions_reap();
    // Frames first: what they ask for is done in this round, as nothing else might wake the next.
    serve_line(in_index, out_index);
    sessions_serve();
    local_serve();
    if (line_out >= 0 && !is_connecting && out_to > out_from) write_line();
  }
}

int main(int argc, char **argv) {
  bool has_socket = true;
  int i = 1;
  // A program that is started without them would get a pipe of ours as one.
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  while (null >= 0 && null <= 2) null = dup(null);
  if (null >= 0) close(null);
  for (; i < argc && argv[i][0] == '-'; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (strcmp(argv[i], "--version") == 0) return printf("%d %s\n", AGENT_PROTOCOL_VERSION, SOURCE) < 0;
    if (strcmp(argv[i], "--stdio") == 0) way = BY_STDIO, is_guest = has_socket = false;
    else if (strcmp(argv[i], "--unix") == 0 && value != NULL) {
      way = BY_UNIX, is_guest = has_socket = false, unix_path = value, i++;
    } else if (strcmp(argv[i], "--socket") == 0 && value != NULL) socket_path = value, has_socket = true, i++;
    else if (strcmp(argv[i], "--hooks") == 0 && value != NULL) hooks = value, i++;
    else {
      fprintf(stderr, "agent: no such option: %s\n", argv[i]);
      return 2;
    }
  }
  if (i < argc) return local_command(argc - i, argv + i);
  if (has_socket) local_listen();
  return serve();
}
