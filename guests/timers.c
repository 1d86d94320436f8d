// guests/timers.c: waits for as many clocks at once as it is let, each due within 2 µs, again and again for ever.
//
// It begins with a million subscriptions and halves the number until poll_oneoff takes it. An argument N ends it after
// N polls with the line "N polls of COUNT clocks". A poll that fails otherwise, or in which no clock rings, is reported
// and makes the status 1.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

enum { CLOCKS_MAX = 1 << 20 };

static __wasi_subscription_t *subscriptions;
static __wasi_event_t *events;

// Room for `count`, filled in; false if there is no memory for it.
static int prepare(size_t count) {
  free(subscriptions);
  free(events);
  subscriptions = calloc(count, sizeof *subscriptions);
  events = calloc(count, sizeof *events);
  if (subscriptions == NULL || events == NULL) return 0;
  for (size_t i = 0; i < count; i++) {
    subscriptions[i].userdata = i;
    subscriptions[i].u.tag = __WASI_EVENTTYPE_CLOCK;
    subscriptions[i].u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
    subscriptions[i].u.u.clock.timeout = 1000 + i % 1000;
  }
  return 1;
}

int main(int argc, char **argv) {
  uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : UINT64_MAX;
  size_t count = CLOCKS_MAX;
  int ready = prepare(count);
  for (uint64_t round = 0; round < rounds;) {
    __wasi_size_t rang = 0;
    __wasi_errno_t error = ready ? __wasi_poll_oneoff(subscriptions, events, count, &rang) : __WASI_ERRNO_NOMEM;
    if ((error == __WASI_ERRNO_INVAL || error == __WASI_ERRNO_NOMEM) && count > 1) {
      ready = prepare(count /= 2);
    } else if (error != 0 || rang == 0) {
      fprintf(stderr, "timers: %s, %zu of %zu clocks rang\n", strerror(error), (size_t)rang, count);
      return 1;
    } else {
      round++;
    }
  }
  printf("%llu polls of %zu clocks\n", rounds, count);
  return 0;
}
