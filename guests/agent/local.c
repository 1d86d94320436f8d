// local.c: programs of the guest that ask the host, both ends.
//
// A program connects to /run/cellar.sock and sends one line: `metadata`, `snapshot [NAME]`, `fork COUNT`, `hibernate`
// or `connect NAME PORT`. The answer is a line `ERRNO VALUE LENGTH` and LENGTH bytes; after that of `connect` come the
// bytes of the connection. What a guest may ask for is the host's to decide; who in the guest may ask is the socket's
// mode. VALUE is what fork() would return: 0 in the machine that goes on, another in one that was made from it.
//
// A machine may be saved while a request waits, and go on elsewhere, where nobody knows of it. What has become of it
// (an event) is the answer then.

#define _GNU_SOURCE
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 32
#define LINE_BYTES_MAX 512
#define HEAD_BYTES_MAX 64
#define CONNECT_TRIES 50
#define CONNECT_WAIT_US 200000

struct client {
  enum { FREE, READS, WAITS, IS_TOLD } state;
  int fd, index, ask;
  uint32_t id;
  char line[LINE_BYTES_MAX + 1];
  size_t line_size;
  char told[HEAD_BYTES_MAX + BODY_BYTES_MAX];
  size_t told_from, told_size;
};

static const char *const asks[] = { "metadata", "snapshot", "fork", "hibernate", "connect" };
static struct client clients[CLIENTS_MAX];
static int listener = -1, listener_index = -1;
static uint32_t next_id;

static int socket_at(const char *path, struct sockaddr_un *address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address->sun_path) return -1;
  strcpy(address->sun_path, path);
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

void local_listen(void) {
  struct sockaddr_un address;
  int fd = socket_at(socket_path, &address);
  unlink(socket_path);
  // Only root may ask, unless the guest's owner lets others.
  mode_t mask = umask(0177);
  if (fd < 0 || bind(fd, (void *)&address, sizeof address) != 0 || listen(fd, CLIENTS_MAX) != 0) {
    fprintf(stderr, "agent: no socket %s: %s\n", socket_path, strerror(errno));
    if (fd >= 0) close(fd);
    fd = -1;
  }
  umask(mask);
  listener = fd;
}

static void leave(struct client *client) {
  close(client->fd);
  client->state = FREE;
}

static void tell(struct client *client, uint32_t error, uint32_t value, const uint8_t *bytes, size_t size) {
  int head = snprintf(client->told, HEAD_BYTES_MAX, "%u %u %zu\n", error, value, size);
  if (size > 0) memcpy(client->told + head, bytes, size);
  client->told_from = 0;
  client->told_size = head + size;
  client->state = IS_TOLD;
}

// ---- requests

static bool number_of(const char *text, uint32_t max, uint32_t *value) {
  char *end;
  unsigned long number = strtoul(text, &end, 10);
  *value = number;
  return *text >= '0' && *text <= '9' && *end == 0 && number > 0 && number <= max;
}

static void ask(struct client *client) {
  char *rest = client->line, *word = strsep(&rest, " "), *name = "";
  uint32_t value = 0;
  int what = -1;
  for (int i = 0; i < 5; i++) if (strcmp(word, asks[i]) == 0) what = i;
  bool is_good = what >= 0;
  if (what == ASK_SNAPSHOT && rest != NULL) name = rest;
  else if (what == ASK_FORK) is_good = rest != NULL && number_of(rest, 100000, &value);
  else if (what == ASK_CONNECT) {
    name = rest != NULL ? strsep(&rest, " ") : "";
    is_good = *name != 0 && rest != NULL && number_of(rest, 65535, &value);
  } else if (rest != NULL) is_good = false;
  if (!is_good) return tell(client, EINVAL, 0, NULL, 0);
  if (!is_connected()) return tell(client, ENOTCONN, 0, NULL, 0);
  if (!has_room()) return tell(client, EAGAIN, 0, NULL, 0);
  uint8_t head[7] = { what };
  store(head + 1, value, 4);
  store(head + 5, strlen(name), 2);
  client->ask = what;
  client->id = GUEST_ID | next_id++;
  client->state = WAITS;
  send_frame(FROM_REQUEST, client->id, head, sizeof head, name, strlen(name));
}

static void read_line(struct client *client) {
  ssize_t got = read(client->fd, client->line + client->line_size, LINE_BYTES_MAX - client->line_size);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return leave(client);
  client->line_size += got;
  char *end = memchr(client->line, '\n', client->line_size);
  if (end == NULL && client->line_size < LINE_BYTES_MAX) return;
  // Who waits for an answer has nothing more to say.
  if (end == NULL || end + 1 != client->line + client->line_size) return tell(client, EINVAL, 0, NULL, 0);
  *end = 0;
  ask(client);
}

static void write_told(struct client *client) {
  ssize_t sent = write(client->fd, client->told + client->told_from, client->told_size - client->told_from);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (sent > 0) client->told_from += sent;
  if (sent < 0 || client->told_from == client->told_size) leave(client);
}

static void accept_client(void) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  for (int i = 0; i < CLIENTS_MAX && fd >= 0; i++) {
    struct client *client = &clients[i];
    if (client->state != FREE) continue;
    client->state = READS;
    client->fd = fd;
    client->index = -1;
    client->line_size = 0;
    return;
  }
  if (fd >= 0) close(fd);
}

void local_watch(void) {
  bool has_place = false;
  for (int i = 0; i < CLIENTS_MAX; i++) {
    struct client *client = &clients[i];
    client->index = -1;
    if (client->state == FREE) has_place = true;
    else client->index = watch(client->fd, client->state == READS ? POLLIN : client->state == IS_TOLD ? POLLOUT : 0);
  }
  listener_index = has_place ? watch(listener, POLLIN) : -1;
}

void local_serve(void) {
  for (int i = 0; i < CLIENTS_MAX; i++) {
    struct client *client = &clients[i];
    short ready = client->state == FREE ? 0 : revents_of(client->index);
    if (client->state == READS && ready) read_line(client);
    else if (client->state == IS_TOLD && ready) write_told(client);
    // It has gone, and the answer will be nobody's.
    else if (client->state == WAITS && ready & (POLLHUP | POLLERR)) leave(client);
  }
  if (revents_of(listener_index)) accept_client();
}

// ---- answers

void local_answer(uint32_t id, struct reader *body) {
  uint32_t error = take(body, 4), value = take(body, 4);
  if (body->bad) return;
  struct client *client = NULL;
  for (int i = 0; i < CLIENTS_MAX; i++) {
    if (clients[i].state == WAITS && clients[i].id == id) client = &clients[i];
  }
  if (client == NULL || client->ask != ASK_CONNECT || error != 0) {
    if (client != NULL) tell(client, error, value, body->at, body->end - body->at);
    // Who wanted the connection has gone, and its other end is there.
    else if (id & GUEST_ID && error == 0) send_frame(FROM_EXIT, id, "\0\0\0\0\0", 5, NULL, 0);
    return;
  }
  if (session_of_socket(id, client->fd, "0 0 0\n")) {
    client->state = FREE;
    return;
  }
  send_frame(FROM_EXIT, id, "\0\0\0\0\0", 5, NULL, 0);
  tell(client, EMFILE, 0, NULL, 0);
}

// The host that was asked is gone, and whether it was done isn't known.
void local_same_life(void) {
  for (int i = 0; i < CLIENTS_MAX; i++) if (clients[i].state == WAITS) tell(&clients[i], EINTR, 0, NULL, 0);
}

void local_event(int kind, uint32_t number) {
  for (int i = 0; i < CLIENTS_MAX; i++) {
    struct client *client = &clients[i];
    if (client->state != WAITS) continue;
    bool is_copy = kind == EVENT_RESTORE || kind == EVENT_FORK;
    if (client->ask == ASK_SNAPSHOT && is_copy) tell(client, 0, 1, NULL, 0);
    else if (client->ask == ASK_FORK && kind == EVENT_FORK) tell(client, 0, number, NULL, 0);
    else if (client->ask == ASK_HIBERNATE) tell(client, 0, 0, NULL, 0);
    else tell(client, EINTR, 0, NULL, 0);
  }
}

// ---- the command

static bool write_all(int fd, const char *bytes, size_t size) {
  for (ssize_t sent; size > 0; bytes += sent, size -= sent) {
    sent = write(fd, bytes, size);
    if (sent < 0) return false;
  }
  return true;
}

// One line, byte by byte: what follows it isn't ours.
static bool read_head(int fd, uint32_t *error, uint32_t *value, size_t *size) {
  char head[HEAD_BYTES_MAX];
  for (size_t i = 0; i < sizeof head - 1 && read(fd, head + i, 1) == 1; i++) {
    if (head[i] != '\n') continue;
    head[i] = 0;
    return sscanf(head, "%u %u %zu", error, value, size) == 3;
  }
  return false;
}

// One direction of a connection: what was read and isn't written yet. -1: that end is done with.
struct flow { int from, to; size_t at, size; char bytes[65536]; };

static void flow_read(struct flow *flow) {
  ssize_t got = read(flow->from, flow->bytes, sizeof flow->bytes);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  flow->at = 0;
  flow->size = got > 0 ? got : 0;
  if (got <= 0) flow->from = -1;
}

// Not more than what a pipe takes at once if it takes anything: neither direction may hold the other up.
static void flow_write(struct flow *flow) {
  size_t size = flow->size - flow->at < 4096 ? flow->size - flow->at : 4096;
  ssize_t sent = write(flow->to, flow->bytes + flow->at, size);
  if (sent > 0) flow->at += sent;
  if (sent < 0 && errno != EAGAIN) flow->from = -1, flow->at = flow->size;
}

// Both ways until the other side has ended: this one may have ended long before.
static int carry(int fd) {
  static struct flow up, down;
  bool has_ended = false;
  up.from = 0, up.to = down.from = fd, down.to = 1;
  fcntl(fd, F_SETFL, O_NONBLOCK);
  while (down.from >= 0 || down.at < down.size) {
    bool up_waits = up.at < up.size, down_waits = down.at < down.size;
    if (up.from < 0 && !up_waits && !has_ended) {
      shutdown(fd, SHUT_WR);
      has_ended = true;
    }
    struct pollfd ends[4] = {
      { up_waits ? -1 : up.from, POLLIN, 0 }, { up_waits ? up.to : -1, POLLOUT, 0 },
      { down_waits ? -1 : down.from, POLLIN, 0 }, { down_waits ? down.to : -1, POLLOUT, 0 },
    };
    if (poll(ends, 4, -1) < 0) return 1;
    if (ends[0].revents) flow_read(&up);
    if (ends[1].revents) flow_write(&up);
    if (ends[2].revents) flow_read(&down);
    if (ends[3].revents) flow_write(&down);
  }
  return 0;
}

static int ask_once(const char *line, bool is_connect, uint32_t *error) {
  struct sockaddr_un address;
  uint32_t value;
  size_t size;
  int fd = socket_at(socket_path, &address);
  *error = errno = 0;
  if (fd < 0 || connect(fd, (void *)&address, sizeof address) != 0 || !write_all(fd, line, strlen(line)) ||
      !read_head(fd, error, &value, &size)) {
    *error = errno != 0 ? errno : EPIPE;
    if (fd >= 0) close(fd);
    return 1;
  }
  if (*error == 0 && is_connect) return carry(fd);
  if (*error == 0 && size == 0) printf("%u\n", value);
  for (char piece[4096]; size > 0;) {
    ssize_t got = read(fd, piece, size < sizeof piece ? size : sizeof piece);
    // Of a refusal it is the reason.
    if (got <= 0 || !write_all(*error == 0 ? 1 : 2, piece, got)) return 1;
    size -= got;
  }
  close(fd);
  return *error == 0 ? 0 : 1;
}

int local_command(int argc, char **argv) {
  char line[LINE_BYTES_MAX + 2] = "";
  size_t size = 0;
  bool is_known = false;
  for (int i = 0; i < 5; i++) if (strcmp(argv[0], asks[i]) == 0) is_known = true;
  for (int i = 0; i < argc; i++) {
    int added = snprintf(line + size, sizeof line - 1 - size, "%s%s", i > 0 ? " " : "", argv[i]);
    if (added < 0 || strchr(argv[i], '\n') != NULL || size + added >= sizeof line - 2) is_known = false;
    else size += added;
  }
  if (!is_known) {
    fputs("Usage: agent metadata | snapshot [NAME] | fork COUNT | hibernate | connect NAME PORT\n", stderr);
    return 2;
  }
  strcpy(line + size, "\n");
  const char *path = getenv("CELLAR_SOCKET");
  if (path != NULL) socket_path = path;
  uint32_t error = 0;
  int status = 1;
  // The agent may be on its way to its host, as it is just after a restore.
  for (int i = 0; i < CONNECT_TRIES; i++) {
    status = ask_once(line, strcmp(argv[0], "connect") == 0, &error);
    if (error != ENOTCONN) break;
    usleep(CONNECT_WAIT_US);
  }
  if (error != 0) fprintf(stderr, "agent: %s: %s\n", argv[0], strerror(error));
  return status;
}
