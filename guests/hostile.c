// guests/hostile.c: a guest that means harm. It hands each hypercall what a guest may allege: bad pointers, lengths,
// counts, overlaps, descriptors, flags and numbers (hostile_values.h), tries to leave the folder it was granted
// (hostile_escape.h), and to have itself copied (hostile_life.h). Every answer must be an errno that fits, never a trap
// and never a success.
//
// Prints "ok N checks", or a line "FAIL name: got errno X, expected Y" for each wrong answer and exits with 1. Needs a
// folder to be granted, and is best run with stdin not at a terminal. In a read-only folder it tries to write instead.
// A listening socket, if one is granted, is tried too. It cleans up what it creates: "hostile.tmp".
//
// A test puts a file "secret" beside the granted folder and finds it unchanged afterwards. Where a wall is missing,
// that file is all that is lost. All the same: run a hypervisor that is broken on purpose as nobody, never as root.

#include "hostile.h"
#include "hostile_values.h"
#include "hostile_escape.h"
#include "hostile_life.h"

static int find_grants(uint32_t *socket) {
  int found = 0;
  uint32_t stat[6], prestat[2];
  for (uint32_t fd = 3; fd_fdstat_get(fd, A(stat)) == SUCCESS; fd++) {
    if ((stat[0] & 0xff) == SOCKET_STREAM) *socket = fd;
    if (found || fd_prestat_get(fd, A(prestat)) != SUCCESS) continue;
    granted = fd;
    base_rights = stat[2] | (uint64_t)stat[3] << 32;
    inheriting_rights = stat[4] | (uint64_t)stat[5] << 32;
    found = 1;
  }
  return found;
}

static void read_only(void) {
  uint32_t opened;
  EXPECT(open_at(granted, 0, "new", CREAT, FD_READ, &opened), ROFS, NOTCAPABLE, PERM, ACCES);
  EXPECT(open_at(granted, 0, "file", TRUNC, FD_READ, &opened), ROFS, NOTCAPABLE, PERM, ACCES, NOENT);
  EXPECT(open_at(granted, 0, "file", 0, FD_WRITE, &opened), ROFS, NOTCAPABLE, PERM, ACCES, NOENT);
  EXPECT(path_symlink(P("file"), granted, P("new")), ROFS, NOTCAPABLE, PERM, ACCES);
  EXPECT(path_link(granted, 0, P("file"), granted, P("new")), ROFS, NOTCAPABLE, PERM, ACCES, NOENT);
  EXPECT(path_rename(granted, P("file"), granted, P("new")), ROFS, NOTCAPABLE, PERM, ACCES, NOENT);
  EXPECT(path_unlink_file(granted, P("file")), ROFS, NOTCAPABLE, PERM, ACCES, NOENT);
  EXPECT(path_remove_directory(granted, P("new")), ROFS, NOTCAPABLE, PERM, ACCES, NOENT);
  EXPECT(path_filestat_set_times(granted, 0, P("."), 1, 1, 5), ROFS, NOTCAPABLE, PERM, ACCES);
  EXPECT(fd_filestat_set_times(granted, 1, 1, 5), ROFS, NOTCAPABLE, PERM, ACCES, BADF);
  // A folder opened through it can do no more than it can.
  EXPECT(open_at(granted, 0, ".", DIRECTORY, base_rights, &opened), SUCCESS);
  EXPECT(path_create_directory(opened, P("new")), ROFS, NOTCAPABLE, PERM, ACCES);
  EXPECT(fd_fdstat_set_rights(opened, base_rights | FD_SEEK, 0), NOTCAPABLE);
  EXPECT(path_filestat_get(granted, 0, P("new"), A(scratch)), NOENT);
}

static int set_up(void) {
  if (path_create_directory(granted, P("hostile.tmp")) != SUCCESS) return 0;
  EXPECT(open_at(granted, 0, "hostile.tmp", DIRECTORY, base_rights, &work), SUCCESS);
  EXPECT(open_at(work, 0, "file", CREAT | EXCL, FILE_RIGHTS | 3 << 21 | 1 << 23, &file), SUCCESS);
  EXPECT(path_create_directory(work, P("sub")), SUCCESS);
  EXPECT(path_create_directory(work, P("sub/deep")), SUCCESS);
  EXPECT(path_symlink(P("file"), work, P("link")), SUCCESS);
  list[0] = (Iovec){ A("0123456789abcdef"), 16 };
  EXPECT(fd_pwrite(file, A(list), 1, 0, A(&moved)), SUCCESS);
  return 1;
}

static void clean_up(uint32_t parent) {
  EXPECT(path_unlink_file(work, P("link")), SUCCESS);
  EXPECT(path_unlink_file(work, P("file")), SUCCESS);
  EXPECT(path_remove_directory(work, P("sub/deep")), SUCCESS);
  EXPECT(path_remove_directory(work, P("sub")), SUCCESS);
  EXPECT(path_remove_directory(parent, P("hostile.tmp")), SUCCESS);
  // The folder is gone and still open: there is nothing below it, and nothing above.
  uint32_t opened;
  EXPECT(open_at(work, 0, "file", CREAT, FD_WRITE, &opened), NOENT, REFUSED);
  EXPECT(open_at(work, 0, "../secret", 0, FD_READ, &opened), NOENT, REFUSED);
}

static void attack(void) {
  const uint32_t closed = 9999;
  uint32_t spare, parent;
  EXPECT(open_at(work, 0, "file", 0, FD_READ, &spare), SUCCESS);
  EXPECT(fd_close(spare), SUCCESS);
  const uint32_t descriptors[] = { 0xffffffff, 0x80000000, 0x7fffffff, 0x10000, 0x100000, closed, spare };
  for (int i = 0; i < 7; i++) bad_descriptor(descriptors[i]);
  wrong_kinds();
  result_pointers();
  path_pointers();
  vectors();
  extremes();
  flags_and_ids();
  rights();
  polls();
  paths_out();
  strange_paths();
  links_out();
  moved_folders();
  EXPECT(open_at(granted, 0, ".", DIRECTORY, base_rights, &parent), SUCCESS);
  renumbered();
  clean_up(parent);
}

int main(void) {
  // A trap or a signal in the middle must not swallow the lines before it.
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  uint32_t socket = 0;
  if (!find_grants(&socket)) {
    fprintf(stderr, "hostile: no folder is granted: run with --dir FOLDER:/data\n");
    return 2;
  }
  if (socket != 0) listener(socket);
  life();
  int writable = set_up();
  // Without its own folder and file, every answer would be about something else.
  if (writable && failures == 0) attack();
  else if (!writable) read_only();
  if (failures == 0) printf("ok %u checks\n", checks);
  else printf("%u of %u checks failed\n", failures, checks);
  fflush(stdout);
  proc_exit(failures == 0 ? 0 : 1);
}
