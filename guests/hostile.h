// guests/hostile.h: what the two halves of hostile.c share: counting checks, naming errnos, making bad pointers.

#include <stdio.h>
#include <string.h>
#include "hypercalls.h"

enum {
  SUCCESS = 0, ACCES = 2, AGAIN = 6, BADF = 8, BUSY = 10, EXIST = 20, FAULT = 21, FBIG = 22, ILSEQ = 25, INVAL = 28,
  ISDIR = 31, LOOP = 32, MFILE = 33, NAMETOOLONG = 37, NOENT = 44, NOSPC = 51, NOTDIR = 54, NOTEMPTY = 55, NOTSOCK = 57,
  NOTSUP = 58, OVERFLOW = 61, PERM = 63, ROFS = 69, SPIPE = 70, NOTCAPABLE = 76,
};

static const char *const ERRNO_NAMES[] = {
  "ESUCCESS", "E2BIG", "EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN", "EALREADY", "EBADF",
  "EBADMSG", "EBUSY", "ECANCELED", "ECHILD", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDEADLK", "EDESTADDRREQ",
  "EDOM", "EDQUOT", "EEXIST", "EFAULT", "EFBIG", "EHOSTUNREACH", "EIDRM", "EILSEQ", "EINPROGRESS", "EINTR", "EINVAL",
  "EIO", "EISCONN", "EISDIR", "ELOOP", "EMFILE", "EMLINK", "EMSGSIZE", "EMULTIHOP", "ENAMETOOLONG", "ENETDOWN",
  "ENETRESET", "ENETUNREACH", "ENFILE", "ENOBUFS", "ENODEV", "ENOENT", "ENOEXEC", "ENOLCK", "ENOLINK", "ENOMEM",
  "ENOMSG", "ENOPROTOOPT", "ENOSPC", "ENOSYS", "ENOTCONN", "ENOTDIR", "ENOTEMPTY", "ENOTRECOVERABLE", "ENOTSOCK",
  "ENOTSUP", "ENOTTY", "ENXIO", "EOVERFLOW", "EOWNERDEAD", "EPERM", "EPIPE", "EPROTO", "EPROTONOSUPPORT",
  "EPROTOTYPE", "ERANGE", "EROFS", "ESPIPE", "ESRCH", "ESTALE", "ETIMEDOUT", "ETXTBSY", "EXDEV", "ENOTCAPABLE",
};

enum {
  FD_READ = 1 << 1, FD_SEEK = 1 << 2, FD_TELL = 1 << 5, FD_WRITE = 1 << 6, FILE_RIGHTS = 0x08e001ff,
  CREAT = 1, DIRECTORY = 2, EXCL = 4, TRUNC = 8, FOLLOW = 1, SOCKET_STREAM = 6,
};

typedef struct { uint32_t buf, len; } Iovec;

// An address as the hypervisor gets it.
#define A(pointer) ((uint32_t)(uintptr_t)(pointer))
// A path argument: pointer and length.
#define P(path) A(path), (uint32_t)strlen(path)

static unsigned checks, failures;
// What the checks of a loop are about: printed with a failure.
static const char *about = "";
static uint32_t about_number;

static const char *errno_name(uint32_t number) {
  return number < sizeof ERRNO_NAMES / sizeof *ERRNO_NAMES ? ERRNO_NAMES[number] : "no errno at all";
}

static void check(const char *name, uint32_t got, const uint8_t *expected, size_t count) {
  checks++;
  for (size_t i = 0; i < count; i++) {
    if (got == expected[i]) return;
  }
  failures++;
  printf("FAIL %s", name);
  if (*about != 0) printf(" [%s 0x%x]", about, about_number);
  printf(": got errno %s, expected", errno_name(got));
  for (size_t i = 0; i < count; i++) printf("%s %s", i == 0 ? "" : " or", errno_name(expected[i]));
  printf("\n");
}

// A hypercall's answer must be one of the errnos named.
#define EXPECT(call, ...) check(#call, call, (const uint8_t[]){ __VA_ARGS__ }, sizeof (const uint8_t[]){ __VA_ARGS__ })

// Anything else that must hold.
static void holds(const char *name, int condition) {
  checks++;
  if (condition) return;
  failures++;
  printf("FAIL %s", name);
  if (*about != 0) printf(" [%s 0x%x]", about, about_number);
  printf(": got false, expected true\n");
}
#define HOLDS(condition) holds(#condition, condition)

enum { BAD_POINTERS = 8 };

static uint32_t memory_end(void) {
  return (uint32_t)__builtin_wasm_memory_size(0) * 65536;
}

// The i-th address from which `size` bytes reach outside: just so, far away, with the sign bit, or around 2^32 to 0.
static uint32_t bad_pointer(int i, uint32_t size) {
  const uint32_t pointers[BAD_POINTERS] = {
    memory_end() - size + 1, memory_end(), memory_end() + 0x10000, 0x7fffffff, 0x80000000, -size, 1 - size, 0xffffffff,
  };
  return pointers[i];
}

static int next_bad(int *i, uint32_t *pointer, uint32_t size) {
  about = *i < BAD_POINTERS ? "pointer" : "";
  if (*i == BAD_POINTERS) return 0;
  about_number = *pointer = bad_pointer((*i)++, size);
  return 1;
}

// Runs the statement that follows for each bad address of `size` bytes, two or more.
#define FOR_BAD(pointer, size) \
  for (uint32_t pointer, once = 1; once; once = 0) for (int bad_i = 0; next_bad(&bad_i, &pointer, size);)

// Set up by main: a folder of its own, a file of 16 bytes in it, the granted folder, its rights.
static uint32_t granted, work, file;
static uint64_t base_rights, inheriting_rights;

static uint32_t open_at(
  uint32_t fd, uint32_t lookup, const char *path, uint32_t oflags, uint64_t rights, uint32_t *opened
) {
  return path_open(fd, lookup, P(path), oflags, rights, inheriting_rights, 0, A(opened));
}

static uint64_t size_of(uint32_t fd) {
  uint64_t stat[8];
  return fd_filestat_get(fd, A(stat)) == SUCCESS ? stat[4] : (uint64_t)-1;
}
