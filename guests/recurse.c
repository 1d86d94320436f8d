// guests/recurse.c: calls itself for ever: traps when the vCPU's stack is used up. Nothing in C can catch that.
//
// No local variable has an address, so that it is the call stack that grows, not the guest's own in its memory. Through
// volatiles: the compiler must neither see that it never ends nor make a loop of it.

static volatile int zero;
static volatile unsigned depth;

__attribute__((noinline)) static unsigned descend(unsigned level) {
  if (zero != 0) return level;
  depth = level;
  unsigned deeper = descend(level + 1);
  depth = deeper;
  return deeper ^ level;
}

int main(void) {
  return (int)descend(0);
}
