// guests/hostile_escape.h: the ways out of a granted folder, each of which must lead nowhere.
//
// `granted` is the folder that the hypervisor gave, `work` one that the guest made in it and opened: from either,
// nothing above it may be seen, told apart or changed. What the host finds outside afterwards is for the test that runs
// this guest to check; here it is the answers: "no", never "not there", which would tell what is there.

// This file must do no harm on the day a wall is missing, as that is what it is there to find out, perhaps as root.
// Three kinds of outside path, therefore:
//   look    real files of the host: opened to be read and described, never changed
//   dots    paths that end in "..", or "/": also given to calls that any kernel refuses for such names
//   decoy   "secret" beside the granted folder, which is the test's, and names that exist nowhere: everything is tried

// The answers to a way out. EXDEV would be the kernel's own word for it, which WASI doesn't know here.
#define REFUSED PERM, NOTCAPABLE, ACCES
// Names like ".." can't be created, removed or renamed anywhere; which reason is given first tells nothing.
#define REFUSED_DOTS REFUSED, INVAL, BUSY, EXIST, NOTEMPTY, ISDIR, NOENT, NOTDIR

static void look(uint32_t fd, const char *path) {
  uint32_t opened;
  uint64_t stat[8];
  about = path;
  about_number = fd;
  EXPECT(open_at(fd, 0, path, 0, FD_READ, &opened), REFUSED);
  EXPECT(open_at(fd, FOLLOW, path, 0, FD_READ, &opened), REFUSED);
  EXPECT(open_at(fd, FOLLOW, path, 0, 0, &opened), REFUSED);
  EXPECT(open_at(fd, FOLLOW, path, DIRECTORY, base_rights, &opened), REFUSED);
  EXPECT(path_filestat_get(fd, 0, P(path), A(stat)), REFUSED);
  EXPECT(path_filestat_get(fd, FOLLOW, P(path), A(stat)), REFUSED);
  EXPECT(path_readlink(fd, P(path), A(stat), 64, A(&opened)), REFUSED, INVAL);
  about = "";
}

static void dots(uint32_t fd, const char *path) {
  uint32_t opened;
  look(fd, path);
  about = path;
  about_number = fd;
  EXPECT(open_at(fd, FOLLOW, path, CREAT, FD_WRITE, &opened), REFUSED, ISDIR);
  EXPECT(open_at(fd, 0, path, CREAT | EXCL, FD_WRITE, &opened), REFUSED, ISDIR, EXIST);
  EXPECT(open_at(fd, 0, path, TRUNC, FD_WRITE, &opened), REFUSED, ISDIR);
  EXPECT(path_create_directory(fd, P(path)), REFUSED_DOTS);
  EXPECT(path_remove_directory(fd, P(path)), REFUSED_DOTS);
  EXPECT(path_unlink_file(fd, P(path)), REFUSED_DOTS);
  EXPECT(path_symlink(P("file"), fd, P(path)), REFUSED_DOTS);
  EXPECT(path_link(fd, 0, P(path), work, P("stolen")), REFUSED_DOTS);
  EXPECT(path_link(work, 0, P("file"), fd, P(path)), REFUSED_DOTS);
  EXPECT(path_rename(fd, P(path), work, P("stolen")), REFUSED_DOTS);
  EXPECT(path_rename(work, P("file"), fd, P(path)), REFUSED_DOTS);
  EXPECT(path_rename(work, P("sub"), fd, P(path)), REFUSED_DOTS);
  about = "";
}

static void decoy(uint32_t fd, const char *path) {
  uint32_t opened;
  look(fd, path);
  about = path;
  about_number = fd;
  EXPECT(open_at(fd, FOLLOW, path, CREAT, FD_WRITE, &opened), REFUSED);
  EXPECT(open_at(fd, 0, path, CREAT | EXCL, FD_WRITE, &opened), REFUSED);
  EXPECT(open_at(fd, 0, path, TRUNC, FD_WRITE, &opened), REFUSED);
  EXPECT(path_filestat_set_times(fd, 0, P(path), 1, 1, 5), REFUSED);
  EXPECT(path_filestat_set_times(fd, FOLLOW, P(path), 1, 1, 5), REFUSED);
  EXPECT(path_create_directory(fd, P(path)), REFUSED);
  EXPECT(path_symlink(P("file"), fd, P(path)), REFUSED);
  EXPECT(path_link(fd, 0, P(path), work, P("stolen")), REFUSED);
  EXPECT(path_link(work, 0, P("file"), fd, P(path)), REFUSED);
  EXPECT(path_rename(fd, P(path), work, P("stolen")), REFUSED);
  EXPECT(path_rename(work, P("file"), fd, P(path)), REFUSED);
  EXPECT(path_rename(work, P("sub"), fd, P(path)), REFUSED);
  EXPECT(path_remove_directory(fd, P(path)), REFUSED);
  EXPECT(path_unlink_file(fd, P(path)), REFUSED);
  about = "";
}

static void paths_out(void) {
  static const char *const ends_in_dots[] = {
    "..", "../", "..//", "./..", "./..//..", "../..", "../../../../../../../..", "sub/../..", "sub/./.././..",
    "sub/../../", "sub/../../..", "/", "//", "/.", "/..",
  };
  static const char *const decoys[] = {
    "../../secret", ".././../secret", "sub/../../../secret", "./sub/../.././../secret", "/hostile-nowhere/secret",
    "//hostile-nowhere/secret", "/../hostile-nowhere/secret", "../../../../../../../../hostile-nowhere/secret",
  };
  static const char *const real[] = {
    "../file", "../hostile.tmp/file", "../../etc/passwd", "../../../../../../../../etc/passwd", "/etc/passwd",
    "//etc/passwd", "/proc/self/root/etc/passwd", "/dev/null", "/hostile.tmp/file",
  };
  for (unsigned i = 0; i < sizeof ends_in_dots / sizeof *ends_in_dots; i++) dots(work, ends_in_dots[i]);
  for (unsigned i = 0; i < sizeof decoys / sizeof *decoys; i++) decoy(work, decoys[i]);
  for (unsigned i = 0; i < sizeof real / sizeof *real; i++) look(work, real[i]);
  dots(granted, "..");
  dots(granted, "../");
  dots(granted, "hostile.tmp/../..");
  decoy(granted, "../secret");
  decoy(granted, "hostile.tmp/../../secret");
  decoy(granted, "hostile.tmp/sub/../../../secret");
  look(granted, "/etc/passwd");
  // The folder above `work` is the granted one: its times are ours to lose.
  EXPECT(path_filestat_set_times(work, 0, P(".."), 1, 1, 5), REFUSED);
}

static void strange_paths(void) {
  uint32_t opened;
  static char longest[6000];
  // Over what isn't there, or isn't a folder, there is no way on.
  EXPECT(open_at(work, FOLLOW, "missing/../../secret", 0, FD_READ, &opened), REFUSED, NOENT);
  EXPECT(open_at(work, FOLLOW, "file/../../secret", 0, FD_READ, &opened), REFUSED, NOTDIR);
  EXPECT(open_at(work, FOLLOW, "file/..", 0, FD_READ, &opened), NOTDIR);
  EXPECT(open_at(work, FOLLOW, "file/", 0, FD_READ, &opened), NOTDIR, NOENT);
  EXPECT(open_at(work, FOLLOW, "", 0, FD_READ, &opened), NOENT, INVAL);
  static const struct { const char *bytes; uint32_t length; } broken[] = {
    { "file\0", 5 }, { "file\0/../../secret", 18 }, { "\0", 1 }, { "..\0", 3 }, { "\xff\xfe", 2 }, { "\xc0\xaf", 2 },
    { "\xc0\xae\xc0\xae/secret", 11 }, { "\xed\xa0\x80", 3 }, { "\xf4\x90\x80\x80", 4 }, { "sub/\x80", 5 },
    { "\xe2\x82", 2 },
  };
  for (unsigned i = 0; i < sizeof broken / sizeof *broken; i++) {
    about = "broken path";
    about_number = i;
    uint32_t at = A(broken[i].bytes), length = broken[i].length;
    EXPECT(path_open(work, FOLLOW, at, length, CREAT, FD_READ, 0, 0, A(&opened)), ILSEQ, INVAL);
    EXPECT(path_create_directory(work, at, length), ILSEQ, INVAL);
    EXPECT(path_rename(work, P("sub"), work, at, length), ILSEQ, INVAL);
    EXPECT(path_symlink(at, length, work, P("new")), ILSEQ, INVAL);
  }
  about = "";
  memset(longest, 'n', sizeof longest);
  EXPECT(path_create_directory(work, A(longest), 256), NAMETOOLONG);
  EXPECT(path_create_directory(work, A(longest), 4096), NAMETOOLONG);
  EXPECT(path_open(work, 0, A(longest), sizeof longest, CREAT, FD_READ, 0, 0, A(&opened)), NAMETOOLONG);
  for (unsigned i = 1; i < sizeof longest; i += 2) longest[i] = '/';
  EXPECT(path_open(work, 0, A(longest), sizeof longest, 0, FD_READ, 0, 0, A(&opened)), NAMETOOLONG);
  EXPECT(path_symlink(A(longest), sizeof longest, work, P("new")), NAMETOOLONG);
}

// `harmless`: what lies behind is a decoy, or a name that would be new.
static const struct { const char *name, *target; int harmless; } LINKS[] = {
  { "up", "../..", 0 }, { "up_secret", "../../secret", 1 }, { "dangling", "../../hostile-was-here", 1 },
  { "root", "/", 0 }, { "nowhere", "/hostile-nowhere/secret", 1 }, { "etc", "/etc/passwd", 0 },
  { "proc_root", "/proc/self/root", 0 }, { "proc_cwd", "/proc/self/cwd", 0 }, { "proc_fd", "/proc/self/fd/0", 0 }, { "chain_1", "chain_2", 1 },
  { "chain_2", "./sub/../chain_3", 1 }, { "chain_3", "up_secret", 1 }, { "through", "up/secret", 1 },
  { "inside_out", "sub/../../../secret", 1 },
};
enum { LINK_COUNT = sizeof LINKS / sizeof *LINKS };

static void try_link(uint32_t fd, const char *name, int harmless) {
  uint32_t opened;
  uint64_t stat[8];
  static char below[64];
  sprintf(below, "%s/secret", name);
  about = name;
  about_number = fd;
  EXPECT(open_at(fd, 0, name, 0, FD_READ, &opened), LOOP, REFUSED);
  EXPECT(open_at(fd, FOLLOW, name, 0, FD_READ, &opened), REFUSED);
  EXPECT(open_at(fd, FOLLOW, name, 0, 0, &opened), REFUSED);
  EXPECT(open_at(fd, FOLLOW, name, DIRECTORY, base_rights, &opened), REFUSED);
  EXPECT(open_at(fd, 0, name, CREAT | EXCL, FD_WRITE, &opened), EXIST, REFUSED);
  EXPECT(open_at(fd, 0, below, 0, FD_READ, &opened), REFUSED);
  EXPECT(path_filestat_get(fd, FOLLOW, P(name), A(stat)), REFUSED);
  EXPECT(path_filestat_get(fd, 0, P(below), A(stat)), REFUSED);
  about = "";
  if (!harmless) return;
  about = name;
  EXPECT(open_at(fd, FOLLOW, name, CREAT, FD_WRITE, &opened), REFUSED);
  EXPECT(open_at(fd, FOLLOW, name, TRUNC, FD_WRITE, &opened), REFUSED);
  EXPECT(path_filestat_set_times(fd, FOLLOW, P(name), 1, 1, 5), REFUSED);
  EXPECT(path_link(fd, FOLLOW, P(name), work, P("stolen")), REFUSED, INVAL, NOTSUP);
  about = "";
}

// Through a link to the folder that holds the granted one, where the decoy is.
static void through_link(uint32_t fd, const char *path) {
  uint32_t opened;
  about = path;
  about_number = fd;
  EXPECT(open_at(fd, 0, path, CREAT, FD_WRITE, &opened), REFUSED);
  EXPECT(path_create_directory(fd, P(path)), REFUSED);
  EXPECT(path_symlink(P("file"), fd, P(path)), REFUSED);
  EXPECT(path_link(work, 0, P("file"), fd, P(path)), REFUSED);
  EXPECT(path_rename(work, P("file"), fd, P(path)), REFUSED);
  EXPECT(path_rename(fd, P(path), work, P("stolen")), REFUSED);
  EXPECT(path_unlink_file(fd, P(path)), REFUSED);
  EXPECT(path_remove_directory(fd, P(path)), REFUSED);
  about = "";
}

static void links_out(void) {
  static char name[64];
  int made[LINK_COUNT];
  for (int i = 0; i < LINK_COUNT; i++) {
    uint32_t answer = path_symlink(P(LINKS[i].target), work, P(LINKS[i].name));
    const uint8_t expected[] = { SUCCESS, REFUSED };
    about = LINKS[i].target;
    check("path_symlink", answer, expected, LINKS[i].target[0] == '/' ? 4 : 1);
    about = "";
    made[i] = answer == SUCCESS;
  }
  for (int i = 0; i < LINK_COUNT; i++) {
    if (!made[i]) continue;
    try_link(work, LINKS[i].name, LINKS[i].harmless);
    sprintf(name, "hostile.tmp/%s", LINKS[i].name);
    try_link(granted, name, LINKS[i].harmless);
  }
  through_link(work, "up/secret");
  through_link(work, "up/hostile-was-here");
  through_link(granted, "hostile.tmp/up/secret");
  // A hard link to a link, and a link moved to where its target lies outside, are no better than the link itself.
  uint32_t opened;
  if (path_link(work, 0, P("up_secret"), work, P("hard")) == SUCCESS) {
    try_link(work, "hard", 1);
    EXPECT(path_unlink_file(work, P("hard")), SUCCESS);
  }
  EXPECT(path_symlink(P("../../file"), work, P("sub/deep/moves")), SUCCESS);
  EXPECT(open_at(work, FOLLOW, "sub/deep/moves", 0, FD_READ, &opened), SUCCESS);
  EXPECT(fd_close(opened), SUCCESS);
  EXPECT(path_rename(work, P("sub/deep/moves"), work, P("moves")), SUCCESS);
  EXPECT(open_at(work, FOLLOW, "moves", 0, FD_READ, &opened), REFUSED);
  EXPECT(path_unlink_file(work, P("moves")), SUCCESS);
  EXPECT(path_symlink(P("loop_b"), work, P("loop_a")), SUCCESS);
  EXPECT(path_symlink(P("loop_a"), work, P("loop_b")), SUCCESS);
  EXPECT(open_at(work, FOLLOW, "loop_a", 0, FD_READ, &opened), LOOP);
  EXPECT(path_unlink_file(work, P("loop_a")), SUCCESS);
  EXPECT(path_unlink_file(work, P("loop_b")), SUCCESS);
  for (int i = 0; i < LINK_COUNT; i++) {
    if (made[i]) EXPECT(path_unlink_file(work, P(LINKS[i].name)), SUCCESS);
  }
}

// A folder that is open while it is moved, replaced or removed.
static void moved_folders(void) {
  uint32_t deep, opened;
  EXPECT(open_at(work, 0, "sub/deep", DIRECTORY, base_rights, &deep), SUCCESS);
  EXPECT(open_at(deep, 0, "../deep", DIRECTORY, 0, &opened), REFUSED);
  EXPECT(path_rename(work, P("sub/deep"), work, P("shallow")), SUCCESS);
  EXPECT(open_at(deep, 0, "..", 0, 0, &opened), REFUSED);
  EXPECT(open_at(deep, 0, "../file", 0, FD_READ, &opened), REFUSED);
  EXPECT(open_at(deep, 0, "../../secret", 0, FD_READ, &opened), REFUSED);
  // An empty folder may be renamed over another; the one replaced is open still.
  EXPECT(path_create_directory(work, P("sub/other")), SUCCESS);
  EXPECT(path_rename(work, P("sub/other"), work, P("shallow")), SUCCESS);
  EXPECT(open_at(deep, 0, "..", 0, 0, &opened), REFUSED, NOENT);
  EXPECT(open_at(deep, 0, "../../secret", 0, FD_READ, &opened), REFUSED, NOENT);
  EXPECT(open_at(deep, 0, "born", CREAT, FD_WRITE, &opened), NOENT, REFUSED);
  EXPECT(path_rename(work, P("sub"), work, P("sub/inside")), INVAL);
  EXPECT(path_rename(work, P("file"), work, P("sub")), ISDIR, EXIST);
  EXPECT(path_rename(work, P("sub"), work, P("file")), NOTDIR, EXIST);
  EXPECT(fd_close(deep), SUCCESS);
  EXPECT(path_open(deep, 0, P("."), 0, 0, 0, 0, A(&opened)), BADF);
  EXPECT(path_open(deep, 0, P("../../secret"), 0, FD_READ, 0, 0, A(&opened)), BADF);
  EXPECT(path_rename(work, P("shallow"), work, P("sub/deep")), SUCCESS);
}

// Last of all, as the granted folder's number is given up for a smaller folder's: it must not open a larger one.
static void renumbered(void) {
  uint32_t sub, other, opened;
  EXPECT(open_at(work, 0, "sub", DIRECTORY, base_rights, &sub), SUCCESS);
  EXPECT(open_at(work, 0, "file", 0, FD_READ, &other), SUCCESS);
  EXPECT(fd_renumber(sub, granted), SUCCESS);
  EXPECT(fd_fdstat_get(sub, A(scratch)), BADF);
  EXPECT(open_at(granted, 0, "..", 0, 0, &opened), REFUSED);
  EXPECT(open_at(granted, 0, "../file", 0, FD_READ, &opened), REFUSED);
  EXPECT(open_at(granted, 0, "../../../secret", 0, FD_READ, &opened), REFUSED);
  EXPECT(open_at(granted, 0, "hostile.tmp", 0, 0, &opened), NOENT);
  EXPECT(open_at(granted, 0, "deep", DIRECTORY, 0, &opened), SUCCESS);
  EXPECT(fd_close(opened), SUCCESS);
  EXPECT(fd_renumber(other, granted), SUCCESS);
  EXPECT(open_at(granted, 0, "..", 0, 0, &opened), NOTDIR, BADF, NOTCAPABLE);
  EXPECT(fd_prestat_get(granted, A(scratch)), BADF);
  EXPECT(fd_close(granted), SUCCESS);
  EXPECT(open_at(granted, 0, "..", 0, 0, &opened), BADF);
}
