// guests/grow.c: grows its memory page by page until the hypervisor refuses, or to argv[1] MiB, and touches each page.
// Prints the size reached as "N MiB": under --memory 64MiB that is "64 MiB".
//
// After a refusal the guest must go on as before: malloc answers NULL and what was written is still there, or the
// exit status is 1.

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { PAGE = 65536, PAGES_A_MIB = 16 };

static uint8_t *page_at(size_t page) {
  return (uint8_t *)(page * PAGE);
}

int main(int argc, char **argv) {
  size_t wanted = argc > 1 ? strtoul(argv[1], NULL, 10) * PAGES_A_MIB : 65536;
  size_t first = __builtin_wasm_memory_size(0);
  size_t pages = first;
  for (; pages < wanted && __builtin_wasm_memory_grow(0, 1) == pages; pages++) {
    if (page_at(pages)[0] != 0 || page_at(pages)[PAGE - 1] != 0) {
      fprintf(stderr, "grow: page %zu isn't zero\n", pages);
      return 1;
    }
    page_at(pages)[0] = page_at(pages)[PAGE - 1] = (uint8_t)(pages % 251 + 1);
  }
  for (size_t page = first; page < pages; page++) {
    if (page_at(page)[0] != page % 251 + 1 || page_at(page)[PAGE - 1] != page % 251 + 1) {
      fprintf(stderr, "grow: page %zu has lost what was written\n", page);
      return 1;
    }
  }
  if (__builtin_wasm_memory_size(0) != pages) {
    fprintf(stderr, "grow: memory.size is %zu pages after growing to %zu\n", __builtin_wasm_memory_size(0), pages);
    return 1;
  }
  // Through a volatile, as the compiler may take an unused malloc for a success.
  void *volatile more = pages < wanted ? malloc(4 * PAGE) : NULL;
  if (more != NULL) {
    fprintf(stderr, "grow: malloc has got memory that memory.grow was refused\n");
    return 1;
  }
  printf("%zu MiB\n", pages / PAGES_A_MIB);
  return 0;
}
