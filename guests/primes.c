// guests/primes.c: counts the primes below argv[1] (default 1,000,000; at most 4,000,000,000). Pure computation, no
// hypercall until the answer: for benchmarks against native code, and for sharing a pCPU between cells.
//
// A segmented sieve: odd numbers only, 32 KiB a segment, so that memory stays at a few hundred KiB for any argument.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEGMENT = 32 * 1024, ROOT_MAX = 65536 };

static uint8_t composite[SEGMENT];       // composite[i]: the number low + 2i + 1 has a factor
static uint8_t root_composite[ROOT_MAX];
static uint32_t primes[6542];            // the primes below 65,536 …
static uint32_t next_multiple[6542];     // … and the index of each one's next odd multiple, from the segment's start
static uint32_t prime_count;

static void sieve_roots(uint64_t limit) {
  for (uint32_t n = 3; n < ROOT_MAX && (uint64_t)n * n < limit; n += 2) {
    if (root_composite[n]) continue;
    for (uint32_t m = n * n; n < 256 && m < ROOT_MAX; m += 2 * n) root_composite[m] = 1;
    primes[prime_count] = n;
    next_multiple[prime_count++] = n * n / 2;
  }
}

static uint64_t count_segment(uint64_t low, uint64_t limit) {
  memset(composite, 0, SEGMENT);
  for (uint32_t i = 0; i < prime_count; i++) {
    uint32_t at = next_multiple[i];
    for (; at < SEGMENT; at += primes[i]) composite[at] = 1;
    next_multiple[i] = at - SEGMENT;
  }
  uint64_t count = 0;
  for (uint32_t i = 0; i < SEGMENT && low + 2 * i + 1 < limit; i++) count += !composite[i];
  return count;
}

int main(int argc, char **argv) {
  uint64_t limit = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
  if (limit > 4000000000u) {
    fprintf(stderr, "primes: the argument is at most 4000000000\n");
    return 2;
  }
  sieve_roots(limit);
  // 1 is counted by the first segment in place of 2, which no segment holds.
  uint64_t count = 0;
  for (uint64_t low = 0; low < limit; low += 2 * SEGMENT) count += count_segment(low, limit);
  printf("%llu\n", limit > 2 ? count : 0);
  return 0;
}
