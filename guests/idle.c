// guests/idle.c: the smallest server: each connection gets one line, the program's name, and is closed.
//
// It listens on its first descriptor from 3 on that isn't a granted folder. Nothing is allocated, and no part of libc
// is used that would: its memory is one page (tools/build_guests.ts).

#include <wasi/api.h>

enum { ARGUMENTS_BYTES_MAX = 1024, ARGUMENTS_MAX = 64 };

static uint8_t text[ARGUMENTS_BYTES_MAX];
static uint8_t *arguments[ARGUMENTS_MAX];

// The first argument as a line: its length.
static __wasi_size_t line(void) {
  __wasi_size_t count, bytes;
  if (__wasi_args_sizes_get(&count, &bytes) != 0) return 0;
  if (count == 0 || count > ARGUMENTS_MAX || bytes > sizeof text) return 0;
  if (__wasi_args_get(arguments, text) != 0) return 0;
  __wasi_size_t length = 0;
  while (text[length] != 0) length++;
  text[length] = '\n';
  return length + 1;
}

static __wasi_fd_t listener(void) {
  __wasi_fd_t fd = 3;
  __wasi_prestat_t prestat;
  while (__wasi_fd_prestat_get(fd, &prestat) == 0) fd++;
  return fd;
}

int main(void) {
  __wasi_size_t length = line();
  __wasi_fd_t listening = listener();
  for (;;) {
    __wasi_fd_t connection;
    if (__wasi_sock_accept(listening, 0, &connection) != 0) return 1;
    __wasi_ciovec_t data = { .buf = text, .buf_len = length };
    __wasi_size_t sent;
    // One who is gone already is no reason to stop.
    if (__wasi_sock_send(connection, &data, 1, 0, &sent) != 0) { /* nobody to tell */ }
    if (__wasi_fd_close(connection) != 0) return 1;
  }
}
