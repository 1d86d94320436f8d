// guests/exit.c: ends in the way argv[1] says, from a few calls deep.
//
//   N         exit status N, by exit(): handlers run, stdio is flushed (default 0)
//   now N     exit status N, by proc_exit at once
//   abort     abort(), which is the `unreachable` instruction
//   raise N   proc_raise with WASI's signal number N; exit status 3 if the guest goes on

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

__attribute__((import_module("wasi_snapshot_preview1"), import_name("proc_raise")))
extern int32_t proc_raise(int32_t signal);

static volatile int depth = 3;

__attribute__((noinline)) static void end(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "0";
  uint32_t number = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
  if (strcmp(how, "abort") == 0) abort();
  if (strcmp(how, "now") == 0) __wasi_proc_exit(number);
  if (strcmp(how, "raise") == 0) {
    proc_raise((int32_t)number);
    exit(3);
  }
  exit((int)strtoul(how, NULL, 10));
}

__attribute__((noinline)) static void descend(int levels, int argc, char **argv) {
  if (levels == 0) end(argc, argv);
  else descend(levels - 1, argc, argv);
  depth = levels;
}

int main(int argc, char **argv) {
  // Without a newline: it is seen only if exit() has flushed it.
  printf("ending");
  descend(depth, argc, argv);
  puts("still here");
  return 99;
}
