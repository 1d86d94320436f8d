// guests/openmany.c: opens the first folder it was granted again and again and closes nothing; once it is refused, it
// goes on asking for ever.
//
// With the argument "once" it ends at the first refusal and prints "N descriptors: WHY": those that it opened, beside
// those it was given. Status 2 if no folder was granted.

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <wasi/api.h>

static __wasi_errno_t open_again(__wasi_fd_t folder) {
  __wasi_fd_t opened;
  return __wasi_path_open(folder, 0, ".", __WASI_OFLAGS_DIRECTORY, __WASI_RIGHTS_FD_READDIR, 0, 0, &opened);
}

int main(int argc, char **argv) {
  int once = argc > 1 && strcmp(argv[1], "once") == 0;
  __wasi_fd_t folder = 3;
  __wasi_prestat_t prestat;
  __wasi_fdstat_t fdstat;
  // Listening sockets may stand before the folders.
  while (__wasi_fd_prestat_get(folder, &prestat) != 0) {
    if (__wasi_fd_fdstat_get(folder++, &fdstat) == 0) continue;
    fprintf(stderr, "openmany: needs a folder: run with --dir\n");
    return 2;
  }
  for (uint32_t count = 0;;) {
    __wasi_errno_t error = open_again(folder);
    if (error == 0) count++;
    if (error == 0 || !once) continue;
    // wasi-libc's errno values are WASI's, so that strerror() knows them.
    printf("%u descriptors: %s\n", count, strerror(error));
    return 0;
  }
}
