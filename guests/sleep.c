// guests/sleep.c: sleeps for argv[1] milliseconds (default 1000), then prints "slept N ms". Also the idle cell of
// density tests: while it sleeps it costs its memory and one parked stack.
//
// Waking too early by the guest's own monotonic clock is a failure of the hypervisor: reported, exit status 1.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

int main(int argc, char **argv) {
  long ms = argc > 1 ? strtol(argv[1], NULL, 10) : 1000;
  struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
  long long began = monotonic_ns();
  if (nanosleep(&time, NULL) != 0) {
    perror("sleep");
    return 1;
  }
  long long slept = monotonic_ns() - began;
  if (slept < ms * 1000000ll) {
    fprintf(stderr, "sleep: woke after %lld ns of %ld ms\n", slept, ms);
    return 1;
  }
  printf("slept %ld ms\n", ms);
  return 0;
}
