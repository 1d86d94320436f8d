// guests/work.c: a long computation whose answer is known: the decimal digits of π, 50 a line, as they are found.
//
//   work [DIGITS]
//
// DIGITS is 20000 by default, some seconds, and at most 1000000; twice as many take four times as long. The last line
// is "work done: DIGITS digits, sum S", S being the FNV-1a hash (64 bits) of all digits after the point. Nothing but
// the digits depends on anything: whoever stops it, copies it or moves it on its way, it says the same.
//
// The digits come from the spigot of Rabinowitz and Wagon (American Mathematical Monthly 102, 1995), four at a time:
// π in the base whose places are worth 1/3, 2/5, 3/7 …, times 10000 again and again. A group may still be carried
// into by what comes after it; so one is kept back, with the groups of 9999 behind it.

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { BASE = 10000, GROUP_DIGITS = 4, LINE_DIGITS = 50, DIGITS_MAX = 1000000 };

static uint32_t digits_wanted, digits_said;
static uint64_t sum = 0xcbf29ce484222325u;
static char line[LINE_DIGITS + 1];

static void say_digit(char digit) {
  if (digits_said == digits_wanted) return;
  line[digits_said++ % LINE_DIGITS] = digit;
  sum = (sum ^ (uint8_t)digit) * 0x100000001b3u;
  if (digits_said % LINE_DIGITS != 0 && digits_said != digits_wanted) return;
  uint32_t length = (digits_said - 1) % LINE_DIGITS + 1;
  printf("%7" PRIu32 "  %.*s\n", digits_said, (int)length, line);
  fflush(stdout);
}

static void say_group(uint32_t group) {
  for (uint32_t unit = BASE / 10; unit > 0; unit /= 10) say_digit((char)('0' + group / unit % 10));
}

// The next group before carries: `place` has the fraction that is left.
static uint32_t next_group(uint32_t *place, uint32_t places) {
  uint64_t carry = 0;
  for (uint32_t i = places - 1; i > 0; i--) {
    uint64_t value = (uint64_t)place[i] * BASE + carry;
    uint32_t divisor = 2 * i + 1;
    place[i] = (uint32_t)(value % divisor);
    carry = value / divisor * i;
  }
  uint64_t value = (uint64_t)place[0] * BASE + carry;
  place[0] = (uint32_t)(value % BASE);
  return (uint32_t)(value / BASE);
}

int main(int argc, char **argv) {
  long wanted = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
  if (wanted < 1 || wanted > DIGITS_MAX) {
    fprintf(stderr, "work: the argument is a number of digits from 1 to %d\n", DIGITS_MAX);
    return 2;
  }
  digits_wanted = (uint32_t)wanted;
  // Each place is worth half of the one before it or less: 10/3 of them for a digit, and some for the last group.
  uint32_t places = digits_wanted / 3 * 10 + 64;
  uint32_t *place = malloc(places * sizeof *place);
  if (place == NULL) return 1;
  // π = 2 + 1/3 (2 + 2/5 (2 + 3/7 (…))). The first group is what stands before the point.
  for (uint32_t i = 0; i < places; i++) place[i] = 2;
  next_group(place, places);
  uint32_t kept = 0, nines = 0;
  for (int started = 0; digits_said < digits_wanted;) {
    uint32_t group = next_group(place, places);
    if (group == BASE - 1) {
      nines++;
      continue;
    }
    uint32_t carry = group / BASE;
    if (started) say_group(kept + carry);
    for (; nines > 0; nines--) say_group(carry ? 0 : BASE - 1);
    kept = group % BASE;
    started = 1;
  }
  printf("work done: %" PRIu32 " digits, sum %016" PRIx64 "\n", digits_wanted, sum);
  return 0;
}
