// guests/fillmem.c: grows its memory as far as it may, then fills all of it for ever: each time one `memory.fill`, the
// longest that a single instruction can keep a pCPU busy.
//
// An argument N ends it with status 0 after N fills. Its data and its stack are filled too, so that from the first fill
// on it has nothing but locals, and ends without stdio.

#include <stdint.h>
#include <stdlib.h>
#include <wasi/api.h>

enum { PAGE = 65536 };

// memset() of address 0 has no meaning in C, and might become a loop: the instruction itself, whatever the flags.
__attribute__((target("bulk-memory"))) static inline void fill(uint32_t from, uint32_t value, uint32_t bytes) {
  __asm__ volatile("local.get %0\n local.get %1\n local.get %2\n memory.fill 0" ::
    "r"(from), "r"(value), "r"(bytes) : "memory");
}

__attribute__((target("bulk-memory"))) int main(int argc, char **argv) {
  uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : UINT64_MAX;
  for (size_t step = 65536; step > 0; step /= 2) {
    while (__builtin_wasm_memory_grow(0, step) != (size_t)-1) {}
  }
  size_t pages = __builtin_wasm_memory_size(0);
  // 4 GiB is one more than the instruction can be told.
  uint32_t bytes = pages == 65536 ? UINT32_MAX : (uint32_t)pages * PAGE;
  for (uint64_t round = 0; round < rounds; round++) fill(0, (uint32_t)round, bytes);
  __wasi_proc_exit(0);
}
