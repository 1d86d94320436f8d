// guests/forkme.c: copies itself, and each copy says who it is.
//
//   forkme [CHILDREN [SNAPSHOT]]
//
// It makes CHILDREN copies of itself (default 2). Then each of them, and the first, prints one line:
//
//   parent NAME ID generation G event none 0 nonce X drawn Y
//   child 1 NAME ID generation G event fork 1 nonce X drawn Y
//
// X was drawn before the fork, so all have the same; Y after it, and no two have the same Y or G. What comes from the
// descriptor of events is compared with the last event: a difference is a failure of the hypervisor, status 1.
//
// With SNAPSHOT the parent then saves itself by this name and prints "saved"; a guest that is restored from it prints
// "restored NAME ID generation G event restore 0 …". On a host it needs `--may fork`, and `--may snapshot`; the status is
// 2 if a call fails: the reason is on stderr.

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include "cellar.h"

static uint64_t nonce;
static int events;

static int fail(const char *what) {
  fprintf(stderr, "forkme: %s: %s\n", what, strerror(errno));
  return 2;
}

static const char *kind_name(uint32_t kind) {
  static const char *const names[] = { "none", "fork", "restore", "wake", "migrate" };
  return kind < sizeof names / sizeof *names ? names[kind] : "?";
}

// What the descriptor has must end with the last event, or be nothing if there was none since it was opened.
static int check_events(const struct cellar_event *last, int expected) {
  struct cellar_event event;
  int count = 0;
  while (read(events, &event, sizeof event) == sizeof event) count++;
  if (errno != EAGAIN) return fail("read");
  if (count == expected && (count == 0 || memcmp(&event, last, sizeof event) == 0)) return 0;
  fprintf(stderr, "forkme: %d events were read in place of %d\n", count, expected);
  return 1;
}

// `who`: parent, child N, restored. `expected`: how many events there are to be read.
static int introduce(const char *who, int expected) {
  char id[64], name[64], generation[33];
  struct cellar_event last;
  uint64_t drawn;
  if (cellar_identity(CELLAR_ID, id, sizeof id) < 0 || cellar_identity(CELLAR_NAME, name, sizeof name) < 0 ||
      cellar_generation_text(generation) < 0) return fail("identity");
  if (cellar_event_last(&last) != 0 || getentropy(&drawn, sizeof drawn) != 0) return 2;
  printf("%s %s %s generation %s event %s %" PRIu32 " nonce %016" PRIx64 " drawn %016" PRIx64 "\n", who, name, id,
    generation, kind_name(last.kind), last.number, nonce, drawn);
  fflush(stdout);
  return check_events(&last, expected);
}

int main(int argc, char **argv) {
  int children = argc > 1 ? atoi(argv[1]) : 2;
  if (getentropy(&nonce, sizeof nonce) != 0) return fail("getentropy");
  events = cellar_events();
  if (events < 0 || fcntl(events, F_SETFL, O_NONBLOCK) < 0) return fail("events");
  int child = cellar_fork(children);
  if (child < 0) return fail("fork");
  char who[32] = "parent";
  if (child > 0) snprintf(who, sizeof who, "child %d", child);
  int status = introduce(who, child > 0);
  if (status != 0 || child > 0 || argc < 3) return status;
  int restored = cellar_snapshot(argv[2]);
  if (restored < 0) return fail("snapshot");
  if (restored) return introduce("restored", 1);
  printf("saved\n");
  return 0;
}
