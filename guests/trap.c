// guests/trap.c: traps in the way argv[1] says, a few named functions deep, so that the stack can be checked.
//
//   unreachable   the `unreachable` instruction                 main > give_up > run_out_of_ideas
//   divide        an integer division by zero                   main > share_nothing > share_among > divide
//   overflow      INT_MIN / -1                                  main > overflow_quotient > divide
//   oob           a load beyond the end of memory               main > read_far_away > load
//   stack         endless recursion                             main > fall > fall > …
//   indirect      call_indirect with another signature          main > call_wrongly > call_through
//   null          call_indirect of the table's empty entry 0    main > call_nothing > call_through
//   table         call_indirect beyond the table's end          main > call_far_away > call_through
//   convert       a float that fits no integer                  main > convert_too_much
//
// Everything goes through volatiles: the compiler must neither see the mistake nor fold the frames away.

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define NAMED __attribute__((noinline))

static volatile int zero = 0;
static volatile int sink;

NAMED static int divide(int a, int b) {
  int quotient = a / b;
  sink = quotient;
  return quotient;
}

NAMED static int share_among(int a, int people) {
  int part = divide(a, people);
  sink = part;
  return part + 1;
}

NAMED static int share_nothing(void) {
  int part = share_among(42, zero);
  sink = part;
  return part + 2;
}

NAMED static int overflow_quotient(void) {
  int quotient = divide(INT_MIN + zero, zero - 1);
  sink = quotient;
  return quotient + 1;
}

NAMED static void run_out_of_ideas(void) {
  if (zero == 0) __builtin_trap();
  sink = 1;
}

NAMED static void give_up(void) {
  sink = 2;
  run_out_of_ideas();
  sink = 3;
}

NAMED static int load(uintptr_t address) {
  int value = *(volatile int *)address;
  sink = value;
  return value;
}

NAMED static int read_far_away(void) {
  int value = load(UINTPTR_MAX - 15 - (uintptr_t)zero);
  sink = value;
  return value + 1;
}

NAMED static int fall(int depth) {
  if (depth == zero - 1) return depth;
  int deeper = fall(depth + 1);
  sink = deeper;
  return deeper ^ depth;
}

typedef int function(int);

NAMED static int call_through(uintptr_t pointer) {
  function *volatile call = (function *)pointer;
  int value = call(zero);
  sink = value;
  return value;
}

NAMED static double other_signature(double a, double b) {
  return a * b + zero;
}

NAMED static int call_wrongly(void) {
  double (*volatile other)(double, double) = other_signature;
  int value = call_through((uintptr_t)other);
  sink = value;
  return value + 1;
}

NAMED static int call_nothing(void) {
  int value = call_through((uintptr_t)zero);
  sink = value;
  return value + 1;
}

NAMED static int call_far_away(void) {
  int value = call_through(0x7fffffff - (uintptr_t)zero);
  sink = value;
  return value + 1;
}

NAMED static int convert_too_much(void) {
  volatile double huge = 1e300;
  int value;
  // The C cast saturates on this target; the instruction itself traps.
  double number = huge;
  __asm__ volatile("local.get %1\n i32.trunc_f64_s\n local.set %0" : "=r"(value) : "r"(number));
  sink = value;
  return value;
}

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "unreachable";
  fprintf(stderr, "about to trap: %s\n", how);
  if (strcmp(how, "unreachable") == 0) give_up();
  else if (strcmp(how, "divide") == 0) share_nothing();
  else if (strcmp(how, "overflow") == 0) overflow_quotient();
  else if (strcmp(how, "oob") == 0) read_far_away();
  else if (strcmp(how, "stack") == 0) fall(0);
  else if (strcmp(how, "indirect") == 0) call_wrongly();
  else if (strcmp(how, "null") == 0) call_nothing();
  else if (strcmp(how, "table") == 0) call_far_away();
  else if (strcmp(how, "convert") == 0) convert_too_much();
  else {
    fprintf(stderr, "trap: no such way to trap: %s\n", how);
    return 2;
  }
  fprintf(stderr, "trap: still here\n");
  return 99;
}
