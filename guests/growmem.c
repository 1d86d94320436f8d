// guests/growmem.c: grows its memory page by page for ever; once it is refused, it goes on asking for ever.
//
// With the argument "once" it ends at the first refusal and prints "N pages": what its memory has then. Unlike grow.c
// it touches none of them.

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
  int once = argc > 1 && strcmp(argv[1], "once") == 0;
  for (;;) {
    if (__builtin_wasm_memory_grow(0, 1) == (size_t)-1 && once) break;
  }
  printf("%zu pages\n", __builtin_wasm_memory_size(0));
  return 0;
}
