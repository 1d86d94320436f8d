// guests/standstill.c: works without a pause, and says for how long it was kept from it.
//
//   standstill MIB FILLED_MIB WRITTEN_KIB
//
// Its memory is made MIB large. FILLED_MIB of it are filled: every other page (64 KiB) with random numbers, which can't
// be compressed, the rest with words. Of these, WRITTEN_KIB are written to all the time, each cache line in turn. It
// looks at the clock every few microseconds; each 50 ms it prints "gap N µs", the longest time between two looks since
// the last line was made: what it takes to print that is in the next one. That is what a user of a program notices of
// its being stopped, moved, or kept waiting for its turn.
//
// The clock is the wall's: two hosts on one machine have the same, and no copy of the program can have missed a part.

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PAGE = 65536, LINE = 64, LINES_A_LOOK = 256 };
static const int64_t INTERVAL_NS = 50000000;

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static uint32_t random_state = 2463534242u;

// Marsaglia's xorshift: the same numbers everywhere.
static uint32_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}

static void fill_with_words(char *page) {
  static const char *const WORDS[] = { "cell", "guest", "memory", "page", "stack", "clock", "port", "volume" };
  for (size_t at = 0; at + 16 < PAGE;) {
    const char *word = WORDS[next_random() % 8];
    size_t length = strlen(word);
    memcpy(page + at, word, length);
    page[at + length] = ' ';
    at += length + 1;
  }
}

static void fill(char *memory, size_t bytes) {
  for (size_t at = 0; at < bytes; at += PAGE) {
    if (at / PAGE % 2 == 0) fill_with_words(memory + at);
    else for (size_t i = 0; i < PAGE; i += 4) *(uint32_t *)(memory + at + i) = next_random();
  }
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: standstill MIB FILLED_MIB WRITTEN_KIB\n");
    return 2;
  }
  size_t pages = strtoul(argv[1], NULL, 10) * 16, bytes = strtoul(argv[2], NULL, 10) << 20;
  size_t written = strtoul(argv[3], NULL, 10) << 10;
  char *memory = aligned_alloc(PAGE, bytes);
  size_t has = __builtin_wasm_memory_size(0);
  if (memory == NULL || written < LINE || written > bytes ||
      (has < pages && __builtin_wasm_memory_grow(0, pages - has) == (size_t)-1)) {
    fprintf(stderr, "standstill: it doesn't have this memory\n");
    return 2;
  }
  fill(memory, bytes);
  int64_t last = now_ns(), said = last, gap = 0;
  for (size_t at = 0;;) {
    for (int i = 0; i < LINES_A_LOOK; i++) {
      ++*(uint64_t *)(memory + at);
      at += LINE;
      if (at >= written) at = 0;
    }
    int64_t now = now_ns();
    if (now - last > gap) gap = now - last;
    last = now;
    if (now - said < INTERVAL_NS) continue;
    printf("gap %" PRId64 " µs\n", gap / 1000);
    fflush(stdout);
    said = now;
    gap = 0;
  }
}
