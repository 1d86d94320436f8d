// guests/files.c: everything one does with files, in a folder it creates in argv[1] (default "."), and prints what it
// saw. The output depends on nothing but the file service: no inodes, no times, names sorted.
//
// Each step that fails is printed with its errno's text and makes the exit status 1; what was created is removed.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;

static int must(const char *what, int result) {
  if (result >= 0) return result;
  printf("FAILED %s: %s\n", what, strerror(errno));
  failures++;
  return -1;
}
#define MUST(call) must(#call, call)

static void must_fail(const char *what, int result, int expected) {
  if (result < 0 && errno == expected) {
    printf("%s: %s\n", what, strerror(errno));
    return;
  }
  printf("FAILED %s: got %s, expected %s\n", what, result < 0 ? strerror(errno) : "success", strerror(expected));
  failures++;
}

static void write_file(const char *name, int flags, const char *text) {
  int fd = MUST(open(name, O_WRONLY | O_CREAT | flags, 0666));
  if (fd < 0) return;
  MUST((int)write(fd, text, strlen(text)));
  MUST(close(fd));
}

static void show_file(const char *name) {
  char text[256];
  int fd = MUST(open(name, O_RDONLY));
  if (fd < 0) return;
  ssize_t length = MUST((int)read(fd, text, sizeof text));
  printf("%s: \"%.*s\"\n", name, (int)length, text);
  MUST(close(fd));
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static void show_folder(const char *name) {
  char *names[64];
  size_t count = 0;
  DIR *folder = opendir(name);
  if (MUST(folder == NULL ? -1 : 0) < 0) return;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL && count < 64;) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    const char *mark = entry->d_type == DT_DIR ? "/" : entry->d_type == DT_LNK ? "@" : "";
    names[count] = malloc(strlen(entry->d_name) + 2);
    sprintf(names[count++], "%s%s", entry->d_name, mark);
  }
  closedir(folder);
  qsort(names, count, sizeof names[0], by_name);
  printf("%s:", name);
  for (size_t i = 0; i < count; i++) {
    printf(" %s", names[i]);
    free(names[i]);
  }
  printf("\n");
}

static void show_stat(const char *name) {
  struct stat stat;
  if (MUST(lstat(name, &stat)) < 0) return;
  mode_t mode = stat.st_mode;
  const char *kind = S_ISDIR(mode) ? "folder" : S_ISLNK(mode) ? "link" : S_ISREG(mode) ? "file" : "?";
  // The size of a folder is its file system's business.
  if (S_ISDIR(mode)) printf("%s: %s\n", name, kind);
  else printf("%s: %s, %lld bytes, %llu names\n", name, kind, stat.st_size, stat.st_nlink);
}

static void offsets(void) {
  char text[16] = "";
  int fd = MUST(open("numbers", O_RDWR | O_CREAT | O_EXCL, 0666));
  if (fd < 0) return;
  MUST((int)write(fd, "0123456789", 10));
  MUST((int)pwrite(fd, "ABC", 3, 4));
  MUST((int)pread(fd, text, 5, 3));
  printf("pread at 3: \"%s\", offset %lld\n", text, lseek(fd, 0, SEEK_CUR));
  MUST((int)lseek(fd, -2, SEEK_END));
  MUST((int)write(fd, "xyz", 3));
  MUST(ftruncate(fd, 16));
  MUST(fsync(fd));
  struct stat stat;
  MUST(fstat(fd, &stat));
  printf("after ftruncate: %lld bytes\n", stat.st_size);
  MUST(ftruncate(fd, 11));
  MUST(close(fd));
  must_fail("open numbers with O_EXCL", open("numbers", O_RDWR | O_CREAT | O_EXCL, 0666), EEXIST);
  show_file("numbers");
}

static void names(void) {
  char target[64] = "";
  MUST(mkdir("sub", 0777));
  must_fail("mkdir sub again", mkdir("sub", 0777), EEXIST);
  write_file("a", 0, "first\n");
  write_file("a", O_APPEND, "second\n");
  show_file("a");
  MUST(rename("a", "sub/b"));
  must_fail("open a", open("a", O_RDONLY), ENOENT);
  MUST(link("sub/b", "c"));
  MUST(symlink("sub/b", "d"));
  MUST((int)readlink("d", target, sizeof target - 1));
  printf("d -> %s\n", target);
  show_file("d");
  show_stat("c");
  show_stat("d");
  show_stat("sub");
  write_file("c", O_TRUNC, "through the other name\n");
  show_file("sub/b");
  show_folder(".");
  show_folder("sub");
  must_fail("rmdir sub", rmdir("sub"), ENOTEMPTY);
  must_fail("unlink c/x", unlink("c/x"), ENOTDIR);
}

static void clean_up(void) {
  MUST(unlink("d"));
  MUST(unlink("c"));
  MUST(unlink("sub/b"));
  MUST(unlink("numbers"));
  MUST(rmdir("sub"));
  show_folder(".");
}

int main(int argc, char **argv) {
  if (argc > 1 && MUST(chdir(argv[1])) < 0) return 1;
  if (MUST(mkdir("files.tmp", 0777)) < 0 || MUST(chdir("files.tmp")) < 0) return 1;
  names();
  offsets();
  clean_up();
  MUST(chdir(".."));
  MUST(rmdir("files.tmp"));
  if (failures == 0) puts("ok");
  return failures == 0 ? 0 : 1;
}
