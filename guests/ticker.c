// guests/ticker.c: counts aloud, and shows by what it says whether it was restarted or went on.
//
//   ticker [INTERVAL_MS [COUNT [MIB [busy]]]]
//
// Each line is "tick N nonce X generation Y": N counts from 1, X was drawn at random when the program started and is
// in its memory only, Y is what Cellar calls this launch of the guest. One that goes on from a snapshot keeps N and X
// and gets another Y; one that was restarted begins at 1 with another X; of two forks both say the same X, and
// different Ys.
//
// A line comes every INTERVAL_MS (default 1000), COUNT of them (default 0: no end). MIB of memory are filled from the
// nonce at the start; with each tick some of it is compared and changed. With `busy` it computes in between, in this
// memory, where it would sleep. Its status is 0, or 1 if memory isn't what it was: then it says where.

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include "cellar.h"

enum { PAGE_WORDS = 4096 / 8 };

static uint64_t nonce;
static uint64_t *memory;
static size_t pages;

static int64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

// What a page holds in its first word after it was touched so often: in all others it has the nonce and its number.
static uint64_t word_of(size_t page, uint64_t touched) {
  return nonce ^ (page * 0x9e3779b97f4a7c15u + touched);
}

static void fill(void) {
  for (size_t page = 0; page < pages; page++) {
    for (size_t i = 0; i < PAGE_WORDS; i++) memory[page * PAGE_WORDS + i] = word_of(page, 0);
  }
}

// Page by page, all of the memory in turns: 1 if the page isn't what the last turn left there.
static int touch(uint64_t *turns) {
  size_t page = *turns % pages;
  uint64_t round = *turns / pages;
  uint64_t *words = memory + page * PAGE_WORDS;
  if (words[0] != word_of(page, round) || words[PAGE_WORDS - 1] != word_of(page, 0)) {
    fprintf(stderr, "ticker: page %zu is damaged in round %" PRIu64 "\n", page, round);
    return 1;
  }
  words[0] = word_of(page, round + 1);
  ++*turns;
  return 0;
}

static void sleep_until(int64_t due_ns) {
  int64_t left = due_ns - monotonic_ns();
  if (left <= 0) return;
  struct timespec time = { .tv_sec = left / 1000000000, .tv_nsec = left % 1000000000 };
  clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

int main(int argc, char **argv) {
  int64_t interval_ns = (argc > 1 ? strtoll(argv[1], NULL, 10) : 1000) * 1000000;
  uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
  pages = (argc > 3 ? strtoul(argv[3], NULL, 10) : 0) * 256;
  int busy = argc > 4 && strcmp(argv[4], "busy") == 0;
  if (getentropy(&nonce, sizeof nonce) != 0) return 1;
  if (pages > 0) {
    memory = aligned_alloc(4096, pages * 4096);
    if (memory == NULL) {
      fprintf(stderr, "ticker: no memory for %zu pages\n", pages);
      return 2;
    }
    fill();
  }
  uint64_t turns = 0;
  int64_t due = monotonic_ns();
  for (uint64_t tick = 1; count == 0 || tick <= count; tick++) {
    char generation[33];
    if (cellar_generation_text(generation) != 0) strcpy(generation, "none");
    printf("tick %" PRIu64 " nonce %016" PRIx64 " generation %s\n", tick, nonce, generation);
    fflush(stdout);
    if (pages > 0 && touch(&turns)) return 1;
    due += interval_ns;
    while (busy && pages > 0 && monotonic_ns() < due) {
      for (int i = 0; i < 64; i++) if (touch(&turns)) return 1;
    }
    sleep_until(due);
  }
  return 0;
}
