// tar.c: files and folders as tar archives (POSIX ustar, pax where that is too narrow), so that a guest needs no tar.
//
// In an archive of /a/b all names begin with b; of / they begin with what is in it. Files, folders and symbolic links
// are in it, all else is left out and told on stderr; /proc and /sys are left out when they are met on the way. A file
// is sent with the size that it had when it was opened: one that grows is cut off there, one that shrinks is filled up
// with zeros and told.
//
// What is unpacked was packed by whoever uses the host. Names with `..` are refused all the same; a link that lies
// where a file goes is replaced, and links on the way there are followed, as they are the guest's own.

#define _GNU_SOURCE
#include "agent.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define BLOCK 512
#define PATH_BYTES_MAX 16384
#define META_BYTES_MAX 65536
#define DEPTH_MAX 400
#define PROC_SUPER_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572

static int status;
static uint8_t buffer[65536];

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  va_end(values);
  status = 1;
}

// ---- writing

// Nobody to write for any more.
static void put(const void *bytes, size_t size) {
  for (const char *at = bytes; size > 0;) {
    ssize_t sent = write(1, at, size);
    if (sent < 0) _exit(1);
    at += sent;
    size -= sent;
  }
}

static void pad(uint64_t size) {
  static const uint8_t zeros[BLOCK];
  put(zeros, (BLOCK - size % BLOCK) % BLOCK);
}

static void octal(char *field, int digits, uint64_t value) {
  field[digits] = 0;
  for (int i = digits - 1; i >= 0; i--, value >>= 3) field[i] = '0' + (value & 7);
}

static void put_block(const char *name, const struct stat *found, char flag, uint64_t size, const char *link) {
  char block[BLOCK] = { 0 };
  strncpy(block, name, 100);
  octal(block + 100, 7, found->st_mode & 07777);
  octal(block + 108, 7, found->st_uid & 07777777);
  octal(block + 116, 7, found->st_gid & 07777777);
  octal(block + 124, 11, size < 1ull << 33 ? size : 0);
  octal(block + 136, 11, found->st_mtime > 0 ? found->st_mtime : 0);
  block[156] = flag;
  strncpy(block + 157, link, 100);
  memcpy(block + 257, "ustar\0" "00", 8);
  memset(block + 148, ' ', 8);
  unsigned sum = 0;
  for (int i = 0; i < BLOCK; i++) sum += (uint8_t)block[i];
  octal(block + 148, 6, sum);
  put(block, BLOCK);
}

// `LENGTH KEY=VALUE\n`, where the length counts itself.
static size_t record(char *to, const char *key, const char *value) {
  size_t rest = strlen(key) + strlen(value) + 3, total = rest;
  char digits[24];
  while (total != rest + (size_t)snprintf(digits, sizeof digits, "%zu", total)) total = rest + strlen(digits);
  return sprintf(to, "%zu %s=%s\n", total, key, value);
}

static void put_header(const char *name, const struct stat *found, char flag, uint64_t size, const char *link) {
  static char records[2 * PATH_BYTES_MAX + 256];
  size_t length = 0;
  char digits[24];
  if (strlen(name) > 100) length += record(records + length, "path", name);
  if (strlen(link) > 100) length += record(records + length, "linkpath", link);
  if (size >= 1ull << 33) {
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)size);
    length += record(records + length, "size", digits);
  }
  if (length > 0) {
    put_block("pax", found, 'x', length, "");
    put(records, length);
    pad(length);
  }
  put_block(name, found, flag, size, link);
}

static void put_file(int fd, const char *name, const struct stat *found) {
  uint64_t size = found->st_size;
  ssize_t got = 0;
  // Files of /proc have no size, and content.
  if (size == 0 && (got = read(fd, buffer, sizeof buffer)) > 0) size = got;
  put_header(name, found, '0', size, "");
  if (got > 0) put(buffer, got);
  for (uint64_t left = size - (got > 0 ? got : 0); left > 0; left -= got) {
    got = read(fd, buffer, left < sizeof buffer ? left : sizeof buffer);
    if (got <= 0) {
      complain("%s: %s", name, got < 0 ? strerror(errno) : "it became shorter meanwhile");
      memset(buffer, 0, sizeof buffer);
      for (; left > 0; left -= got) put(buffer, got = left < sizeof buffer ? left : sizeof buffer);
      break;
    }
    put(buffer, got);
  }
  pad(size);
}

static void put_entry(int folder, const char *name, char *path, size_t length, int depth);

static bool is_kernels(int fd) {
  struct statfs found;
  return fstatfs(fd, &found) == 0 && ((unsigned long)found.f_type == PROC_SUPER_MAGIC || found.f_type == SYSFS_MAGIC);
}

// `path` holds the folder's name in the archive, '' for the root, and is given back as it was.
static void put_folder(int fd, char *path, size_t length, int depth) {
  DIR *folder = fdopendir(fd);
  if (folder == NULL || depth == DEPTH_MAX) {
    complain("%s: %s", path, folder == NULL ? strerror(errno) : "too many folders in each other");
    if (folder == NULL) close(fd);
    else closedir(folder);
    return;
  }
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    const char *name = entry->d_name;
    size_t size = strlen(name);
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
    if (length + size + 3 > PATH_BYTES_MAX) {
      complain("%s: a name below it is too long", path);
      continue;
    }
    size_t added = length;
    if (length > 0) path[added++] = '/';
    strcpy(path + added, name);
    put_entry(dirfd(folder), name, path, added + size, depth + 1);
    path[length] = 0;
  }
  closedir(folder);
}

static void put_entry(int folder, const char *name, char *path, size_t length, int depth) {
  struct stat found;
  if (fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW) != 0) return complain("%s: %s", path, strerror(errno));
  if (S_ISLNK(found.st_mode)) {
    static char link[PATH_BYTES_MAX];
    ssize_t size = readlinkat(folder, name, link, sizeof link - 1);
    if (size < 0) return complain("%s: %s", path, strerror(errno));
    link[size] = 0;
    return put_header(path, &found, '2', 0, link);
  }
  if (!S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode)) {
    fprintf(stderr, "%s: left out, as it is no file\n", path);
    return;
  }
  // Not to wait if it has just become a pipe.
  int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &found) != 0) {
    complain("%s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    return;
  }
  if (S_ISDIR(found.st_mode)) {
    strcpy(path + length, "/");
    if (length > 0) put_header(path, &found, '5', 0, "");
    path[length] = 0;
    if (depth == 0 || !is_kernels(fd) || is_kernels(folder)) return put_folder(fd, path, length, depth);
    fprintf(stderr, "%s: left out, as it is the kernel's\n", path);
  } else if (S_ISREG(found.st_mode)) put_file(fd, path, &found);
  close(fd);
}

int tar_get(const char *from, void (*failed)(int error)) {
  static char path[PATH_BYTES_MAX + 2];
  static char whole[PATH_BYTES_MAX];
  struct stat found;
  size_t size = strlen(from);
  if (size >= sizeof whole) failed(ENAMETOOLONG);
  strcpy(whole, from);
  while (size > 1 && whole[size - 1] == '/') whole[--size] = 0;
  const char *name = strrchr(whole, '/') + 1;
  if (strcmp(name, "..") == 0 || strcmp(name, ".") == 0) failed(EINVAL);
  strcpy(path, name);
  if (lstat(whole, &found) != 0) failed(errno);
  // A link at the top is followed: it is what was asked for.
  if (S_ISLNK(found.st_mode)) {
    char *real = realpath(whole, NULL);
    if (real == NULL) failed(errno);
    put_entry(AT_FDCWD, real, path, strlen(path), 0);
  } else put_entry(AT_FDCWD, whole, path, strlen(path), 0);
  uint8_t end[2 * BLOCK] = { 0 };
  put(end, sizeof end);
  return status;
}

// ---- reading

static void die(const char *what) {
  complain("%s", what);
  _exit(1);
}

// All of it; false at the end of the input, before the first byte.
static bool get(void *bytes, size_t size) {
  for (size_t have = 0; have < size;) {
    ssize_t got = read(0, (char *)bytes + have, size - have);
    if (got == 0 && have == 0) return false;
    if (got <= 0) die("the archive is cut off");
    have += got;
  }
  return true;
}

static void skip(uint64_t size) {
  for (uint64_t left = size + (BLOCK - size % BLOCK) % BLOCK, step; left > 0; left -= step) {
    step = left < sizeof buffer ? left : sizeof buffer;
    if (!get(buffer, step)) die("the archive is cut off");
  }
}

static uint64_t number(const uint8_t *field, int size) {
  uint64_t value = 0;
  int i = 0;
  if (field[0] & 0x80) {
    for (value = field[0] & 0x7f, i = 1; i < size; i++) {
      if (value >> 54) die("a number in the archive is too large");
      value = value << 8 | field[i];
    }
    return value;
  }
  while (i < size && field[i] == ' ') i++;
  for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = value << 3 | (field[i] - '0');
  if (i < size && field[i] != 0 && field[i] != ' ') die("a number in the archive is none");
  return value;
}

struct meta { char path[PATH_BYTES_MAX], link[PATH_BYTES_MAX]; bool has_path, has_link, has_size; uint64_t size; };

static void keep(char *to, const char *from, size_t size) {
  if (size >= PATH_BYTES_MAX || memchr(from, 0, size) != NULL) die("a name in the archive is too long or no name");
  memcpy(to, from, size);
  to[size] = 0;
}

static void take_pax(struct meta *meta, const char *text, size_t size) {
  for (size_t at = 0; at < size;) {
    size_t length = 0, from = at;
    for (; from < size && text[from] >= '0' && text[from] <= '9' && length < META_BYTES_MAX; from++) {
      length = length * 10 + (text[from] - '0');
    }
    if (from == size || text[from] != ' ' || length > size - at || length < from - at + 2) die("a header is malformed");
    const char *record = text + from + 1, *end = text + at + length - 1;
    const char *equals = *end == '\n' ? memchr(record, '=', end - record) : NULL;
    if (equals == NULL) die("a header is malformed");
    size_t key = equals - record, value = end - equals - 1;
    if (key == 4 && memcmp(record, "path", 4) == 0) keep(meta->path, equals + 1, value), meta->has_path = true;
    if (key == 8 && memcmp(record, "linkpath", 8) == 0) keep(meta->link, equals + 1, value), meta->has_link = true;
    if (key == 4 && memcmp(record, "size", 4) == 0) meta->size = strtoull(equals + 1, NULL, 10), meta->has_size = true;
    if (key >= 11 && memcmp(record, "GNU.sparse.", 11) == 0) die("the archive has files with holes");
    at += length;
  }
}

// A pax header or a long name of GNU's, which belong to the next entry.
static void take_meta(struct meta *meta, char flag, uint64_t size) {
  static char text[META_BYTES_MAX + BLOCK];
  if (size > META_BYTES_MAX) die("a header is too long");
  if (size > 0 && !get(text, size + (BLOCK - size % BLOCK) % BLOCK)) die("the archive is cut off");
  if (flag == 'x') take_pax(meta, text, size);
  else if (flag == 'L') keep(meta->path, text, strnlen(text, size)), meta->has_path = true;
  else if (flag == 'K') keep(meta->link, text, strnlen(text, size)), meta->has_link = true;
}

// The path without `.` and empty parts; false if it leads out.
static bool clean(char *path) {
  char *to = path;
  for (char *from = path, *next; from != NULL; from = next) {
    next = strchr(from, '/');
    if (next != NULL) *next++ = 0;
    if (strcmp(from, "..") == 0) return false;
    if (*from == 0 || strcmp(from, ".") == 0) continue;
    if (to != path) *to++ = '/';
    size_t size = strlen(from);
    memmove(to, from, size);
    to += size;
  }
  *to = 0;
  return true;
}

// The folders above the last part.
static void make_parents(char *path) {
  for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    mkdir(path, 0755);
    *slash = '/';
  }
}

static void unpack_file(const char *path, mode_t mode, time_t time, uint64_t size) {
  if (unlink(path) != 0 && errno != ENOENT) {
    complain("%s: %s", path, strerror(errno));
    return skip(size);
  }
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) {
    complain("%s: %s", path, strerror(errno));
    return skip(size);
  }
  for (uint64_t left = size, step; left > 0; left -= step) {
    step = left < sizeof buffer ? left : sizeof buffer;
    if (!get(buffer, step)) die("the archive is cut off");
    for (size_t at = 0; at < step;) {
      ssize_t sent = write(fd, buffer + at, step - at);
      if (sent < 0) {
        complain("%s: %s", path, strerror(errno));
        _exit(1);
      }
      at += sent;
    }
  }
  uint8_t rest[BLOCK];
  if (size % BLOCK != 0 && !get(rest, BLOCK - size % BLOCK)) die("the archive is cut off");
  struct timespec times[2] = { { .tv_sec = time }, { .tv_sec = time } };
  if (fchmod(fd, mode) != 0 || futimens(fd, times) != 0 || close(fd) != 0) complain("%s: %s", path, strerror(errno));
}

static void unpack(char flag, char *path, const char *base, char *link, const uint8_t *block, uint64_t size) {
  static char target[2 * PATH_BYTES_MAX + 2];
  struct stat found;
  mode_t mode = number(block + 100, 8) & 07777;
  make_parents(path);
  if (flag == '0' || flag == 0 || flag == '7') return unpack_file(path, mode, number(block + 136, 12), size);
  skip(size);
  if (flag == '5') {
    if (mkdir(path, mode) == 0) chmod(path, mode);
    else if (stat(path, &found) != 0 || !S_ISDIR(found.st_mode)) complain("%s: %s", path, strerror(EEXIST));
  } else if (flag == '2') {
    unlink(path);
    if (symlink(link, path) != 0) complain("%s: %s", path, strerror(errno));
  } else if (flag == '1') {
    if (!clean(link)) die("a link in the archive leads out of it");
    snprintf(target, sizeof target, "%s/%s", base, link);
    unlink(path);
    if (linkat(AT_FDCWD, target, AT_FDCWD, path, 0) != 0) complain("%s: %s", path, strerror(errno));
  } else fprintf(stderr, "%s: left out, as it is no file\n", path);
}

int tar_put(const char *base, void (*failed)(int error)) {
  static char path[2 * PATH_BYTES_MAX + 2];
  static struct meta meta;
  uint8_t block[BLOCK];
  if (strlen(base) >= PATH_BYTES_MAX) failed(ENAMETOOLONG);
  umask(022);
  strcpy(path, base);
  make_parents(path);
  mkdir(path, 0755);
  struct stat found;
  if (stat(path, &found) != 0) failed(errno);
  if (!S_ISDIR(found.st_mode)) failed(ENOTDIR);
  while (get(block, BLOCK)) {
    unsigned sum = 0;
    for (int i = 0; i < BLOCK; i++) sum += i >= 148 && i < 156 ? ' ' : block[i];
    if (sum == 8 * ' ') break;
    if (number(block + 148, 8) != sum) die("this is no archive, or a damaged one");
    char flag = block[156];
    uint64_t size = number(block + 124, 12);
    if (memchr("xLKg", flag, 4) != NULL) {
      take_meta(&meta, flag, size);
      continue;
    }
    if (!meta.has_path) {
      bool has_prefix = memcmp(block + 257, "ustar\0", 6) == 0 && block[345] != 0;
      snprintf(meta.path, sizeof meta.path, "%.155s%s%.100s", has_prefix ? (char *)block + 345 : "",
               has_prefix ? "/" : "", (char *)block);
    }
    if (!meta.has_link) snprintf(meta.link, sizeof meta.link, "%.100s", (char *)block + 157);
    if (meta.has_size) size = meta.size;
    if (size >> 60) die("a number in the archive is too large");
    bool is_folder = flag == '5' || ((flag == '0' || flag == 0) && *meta.path != 0 &&
                                     meta.path[strlen(meta.path) - 1] == '/');
    if (!clean(meta.path)) die("a name in the archive leads out of it");
    snprintf(path, sizeof path, "%s/%s", strcmp(base, "/") == 0 ? "" : base, meta.path);
    // The top itself is there.
    if (*meta.path != 0) unpack(is_folder ? '5' : flag, path, base, meta.link, block, size);
    else skip(size);
    meta.has_path = meta.has_link = meta.has_size = false;
  }
  // What follows the end is read all the same: whoever sends it mustn't find nobody there.
  while (read(0, buffer, sizeof buffer) > 0) continue;
  return status;
}
