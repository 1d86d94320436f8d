// guests/nap.c: sleeps argv[1] µs (default 1000), argv[2] times (default 1000), and measures how late each wake-up was
// by its own monotonic clock: what a cell that shares its pCPU feels of the others.
//
// Prints "nap COUNT p50 P p99 P max P", the lateness in whole µs. Waking too early is a failure of the hypervisor:
// reported, exit status 1.

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

// Of a sorted list: the value below which a share of `percent` lies, in µs.
static long long percentile_us(const int64_t *sorted, size_t count, size_t percent) {
  return sorted[count * percent / 100] / 1000;
}

int main(int argc, char **argv) {
  int64_t period_ns = argc > 1 ? strtoll(argv[1], NULL, 10) * 1000 : 1000000;
  size_t count = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;
  int64_t *late_ns = calloc(count, sizeof *late_ns);
  if (period_ns < 0 || count == 0 || late_ns == NULL) {
    fprintf(stderr, "nap: usage: nap PERIOD_US COUNT\n");
    return 2;
  }
  struct timespec period = { .tv_sec = period_ns / 1000000000, .tv_nsec = period_ns % 1000000000 };
  for (size_t i = 0; i < count; i++) {
    int64_t due = monotonic_ns() + period_ns;
    // It answers with the error, unlike nanosleep().
    int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &period, NULL);
    late_ns[i] = monotonic_ns() - due;
    if (error == 0 && late_ns[i] >= 0) continue;
    if (error != 0) fprintf(stderr, "nap: %s\n", strerror(error));
    else fprintf(stderr, "nap: woke %lld ns too early\n", -late_ns[i]);
    return 1;
  }
  qsort(late_ns, count, sizeof *late_ns, by_value);
  printf("nap %zu p50 %lld p99 %lld max %lld\n", count, percentile_us(late_ns, count, 50),
    percentile_us(late_ns, count, 99), late_ns[count - 1] / 1000ll);
  return 0;
}
