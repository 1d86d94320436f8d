// guests/hostile_values.h: what no hypercall may believe: pointers, lengths, counts, descriptors, flags, offsets.
//
// A bad pointer is answered by EFAULT and has no effect, a bad number by an errno that fits. Where several fit, each is
// taken; success is among them only where the value is harmless after all.

#define ANY_TIMES 0, 0

static uint64_t scratch[64];
static Iovec list[4];
static uint32_t moved;

// ---- Descriptors

static void bad_descriptor(uint32_t fd) {
  about = "fd";
  about_number = fd;
  list[0] = (Iovec){ A(scratch), 8 };
  EXPECT(fd_advise(fd, 0, 0, 0), BADF);
  EXPECT(fd_allocate(fd, 0, 1), BADF);
  EXPECT(fd_close(fd), BADF);
  EXPECT(fd_datasync(fd), BADF);
  EXPECT(fd_fdstat_get(fd, A(scratch)), BADF);
  EXPECT(fd_fdstat_set_flags(fd, 0), BADF);
  EXPECT(fd_fdstat_set_rights(fd, 0, 0), BADF);
  EXPECT(fd_filestat_get(fd, A(scratch)), BADF);
  EXPECT(fd_filestat_set_size(fd, 0), BADF);
  EXPECT(fd_filestat_set_times(fd, ANY_TIMES, 0), BADF);
  EXPECT(fd_pread(fd, A(list), 1, 0, A(&moved)), BADF);
  EXPECT(fd_prestat_get(fd, A(scratch)), BADF);
  EXPECT(fd_prestat_dir_name(fd, A(scratch), 8), BADF);
  EXPECT(fd_pwrite(fd, A(list), 1, 0, A(&moved)), BADF);
  EXPECT(fd_read(fd, A(list), 1, A(&moved)), BADF);
  EXPECT(fd_readdir(fd, A(scratch), 64, 0, A(&moved)), BADF);
  EXPECT(fd_renumber(fd, file), BADF);
  EXPECT(fd_renumber(file, fd), BADF);
  EXPECT(fd_renumber(fd, fd), BADF);
  EXPECT(fd_seek(fd, 0, 0, A(scratch)), BADF);
  EXPECT(fd_sync(fd), BADF);
  EXPECT(fd_tell(fd, A(scratch)), BADF);
  EXPECT(fd_write(fd, A(list), 1, A(&moved)), BADF);
  EXPECT(path_create_directory(fd, P("new")), BADF);
  EXPECT(path_filestat_get(fd, 0, P("file"), A(scratch)), BADF);
  EXPECT(path_filestat_set_times(fd, 0, P("file"), ANY_TIMES, 0), BADF);
  EXPECT(path_link(fd, 0, P("file"), work, P("new")), BADF);
  EXPECT(path_link(work, 0, P("file"), fd, P("new")), BADF);
  EXPECT(path_open(fd, 0, P("file"), 0, FD_READ, 0, 0, A(&moved)), BADF);
  EXPECT(path_readlink(fd, P("file"), A(scratch), 64, A(&moved)), BADF);
  EXPECT(path_remove_directory(fd, P("new")), BADF);
  EXPECT(path_rename(fd, P("file"), work, P("new")), BADF);
  EXPECT(path_rename(work, P("file"), fd, P("new")), BADF);
  EXPECT(path_symlink(P("file"), fd, P("new")), BADF);
  EXPECT(path_unlink_file(fd, P("file")), BADF);
  EXPECT(sock_accept(fd, 0, A(&moved)), BADF);
  EXPECT(sock_recv(fd, A(list), 1, 0, A(&moved), A(scratch)), BADF);
  EXPECT(sock_send(fd, A(list), 1, 0, A(&moved)), BADF);
  EXPECT(sock_shutdown(fd, 3), BADF);
  about = "";
}

static void wrong_kinds(void) {
  list[0] = (Iovec){ A(scratch), 8 };
  const uint32_t no_folders[] = { file, 0 };
  for (int i = 0; i < 2; i++) {
    uint32_t fd = no_folders[i];
    about = "fd";
    about_number = fd;
    EXPECT(path_open(fd, 0, P("file"), 0, FD_READ, 0, 0, A(&moved)), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_open(fd, 0, P(".."), 0, FD_READ, 0, 0, A(&moved)), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_create_directory(fd, P("new")), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_filestat_get(fd, 0, P("."), A(scratch)), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_unlink_file(fd, P("file")), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_symlink(P("file"), fd, P("new")), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_rename(work, P("file"), fd, P("new")), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(path_link(fd, 0, P("file"), work, P("new")), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(fd_readdir(fd, A(scratch), 64, 0, A(&moved)), NOTDIR, BADF, NOTCAPABLE);
    EXPECT(fd_prestat_dir_name(fd, A(scratch), 64), NOTDIR, BADF, INVAL);
    EXPECT(fd_prestat_get(fd, A(scratch)), BADF, INVAL, NOTDIR);
  }
  const uint32_t no_sockets[] = { file, work, 0, 1 };
  for (int i = 0; i < 4; i++) {
    uint32_t fd = no_sockets[i];
    about = "fd";
    about_number = fd;
    EXPECT(sock_accept(fd, 0, A(&moved)), NOTSOCK, BADF, NOTCAPABLE);
    EXPECT(sock_recv(fd, A(list), 1, 0, A(&moved), A(scratch)), NOTSOCK, BADF, NOTCAPABLE);
    EXPECT(sock_send(fd, A(list), 1, 0, A(&moved)), NOTSOCK, BADF, NOTCAPABLE);
    EXPECT(sock_shutdown(fd, 3), NOTSOCK, BADF, NOTCAPABLE);
  }
  about = "";
  EXPECT(fd_read(work, A(list), 1, A(&moved)), ISDIR, BADF, NOTCAPABLE);
  EXPECT(fd_write(work, A(list), 1, A(&moved)), ISDIR, BADF, NOTCAPABLE);
  EXPECT(fd_pread(work, A(list), 1, 0, A(&moved)), ISDIR, BADF, NOTCAPABLE);
  EXPECT(fd_pwrite(work, A(list), 1, 0, A(&moved)), ISDIR, BADF, NOTCAPABLE);
  EXPECT(fd_seek(work, 0, 0, A(scratch)), ISDIR, BADF, NOTCAPABLE);
  EXPECT(fd_filestat_set_size(work, 0), ISDIR, BADF, NOTCAPABLE, INVAL);
  EXPECT(fd_seek(0, 0, 0, A(scratch)), SPIPE, NOTCAPABLE);
  EXPECT(fd_pread(0, A(list), 1, 0, A(&moved)), SPIPE, NOTCAPABLE);
}

// ---- Pointers

static void result_pointers(void) {
  uint32_t argc, environc, ignored;
  EXPECT(args_sizes_get(A(&argc), A(&ignored)), SUCCESS);
  EXPECT(environ_sizes_get(A(&environc), A(&ignored)), SUCCESS);
  FOR_BAD(bad, 8) {
    EXPECT(environ_get(bad, bad), FAULT, environc == 0 ? SUCCESS : FAULT);
    EXPECT(clock_res_get(1, bad), FAULT);
    EXPECT(clock_time_get(0, 0, bad), FAULT);
    EXPECT(clock_time_get(99, ~0ull, bad), FAULT, INVAL);
    EXPECT(fd_prestat_get(granted, bad), FAULT);
    EXPECT(fd_seek(file, 3, 0, bad), FAULT);
    EXPECT(fd_tell(file, bad), FAULT);
  }
  FOR_BAD(bad, 4) {
    // The list is of one pointer at least, and the program's name isn't shorter.
    if (argc > 0) EXPECT(args_get(bad, A(scratch)), FAULT);
    if (argc > 0) EXPECT(args_get(A(scratch), bad), FAULT);
    EXPECT(args_sizes_get(bad, A(&ignored)), FAULT);
    EXPECT(args_sizes_get(A(&ignored), bad), FAULT);
    EXPECT(environ_sizes_get(bad, A(&ignored)), FAULT);
    EXPECT(environ_sizes_get(A(&ignored), bad), FAULT);
    EXPECT(fd_readdir(work, A(scratch), 64, 0, bad), FAULT);
    EXPECT(path_open(work, 0, P("new"), CREAT, FD_READ, 0, 0, bad), FAULT);
  }
  FOR_BAD(bad, 24) EXPECT(fd_fdstat_get(file, bad), FAULT);
  FOR_BAD(bad, 64) {
    EXPECT(fd_filestat_get(file, bad), FAULT);
    EXPECT(path_filestat_get(work, 0, P("file"), bad), FAULT);
    EXPECT(fd_readdir(work, bad, 64, 0, A(&ignored)), FAULT);
    EXPECT(random_get(bad, 64), FAULT);
  }
  EXPECT(path_filestat_get(work, 0, P("new"), A(scratch)), NOENT);
  uint64_t offset = 99;
  EXPECT(fd_tell(file, A(&offset)), SUCCESS);
  HOLDS(offset == 0);
  EXPECT(random_get(A(scratch), 0xffffffff), FAULT);
  EXPECT(random_get(0, memory_end() + 1), FAULT);
  EXPECT(random_get(0xfffffff0, 0x20), FAULT);
  EXPECT(random_get(A(scratch), 0), SUCCESS);
  EXPECT(fd_readdir(work, A(scratch), 0xffffffff, 0, A(&ignored)), FAULT);
  EXPECT(fd_readdir(work, A(scratch), 0, 0, A(&ignored)), SUCCESS, INVAL);
  EXPECT(fd_prestat_dir_name(granted, A(scratch), 0), NAMETOOLONG, INVAL);
  EXPECT(fd_prestat_dir_name(granted, 0xfffffff0, 0x20), FAULT);
}

static void path_pointers(void) {
  // The length reaches outside, or the pointer does, or their sum wraps around.
  const uint32_t ranges[][2] = {
    { memory_end() - 3, 4 }, { memory_end(), 1 }, { 0xfffffff0, 0x20 }, { 0xffffffff, 1 }, { 0x80000000, 4 },
    { 16, 0xffffffff }, { 16, 0xfffffff0 }, { 0x7fffffff, 0x7fffffff }, { A("file"), memory_end() },
  };
  for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
    uint32_t at = ranges[i][0], length = ranges[i][1];
    about = "path at";
    about_number = at;
    EXPECT(path_create_directory(work, at, length), FAULT);
    EXPECT(path_filestat_get(work, 0, at, length, A(scratch)), FAULT);
    EXPECT(path_filestat_set_times(work, 0, at, length, ANY_TIMES, 0), FAULT);
    EXPECT(path_link(work, 0, at, length, work, P("new")), FAULT);
    EXPECT(path_link(work, 0, P("file"), work, at, length), FAULT);
    EXPECT(path_open(work, 0, at, length, CREAT, FD_READ, 0, 0, A(&moved)), FAULT);
    EXPECT(path_readlink(work, at, length, A(scratch), 64, A(&moved)), FAULT);
    EXPECT(path_readlink(work, P("link"), at, length, A(&moved)), FAULT);
    EXPECT(path_remove_directory(work, at, length), FAULT);
    EXPECT(path_rename(work, at, length, work, P("new")), FAULT);
    EXPECT(path_rename(work, P("file"), work, at, length), FAULT);
    EXPECT(path_symlink(at, length, work, P("new")), FAULT);
    EXPECT(path_symlink(P("file"), work, at, length), FAULT);
    EXPECT(path_unlink_file(work, at, length), FAULT);
    EXPECT(fd_readdir(work, at, length, 0, A(&moved)), FAULT);
  }
  about = "";
  FOR_BAD(bad, 4) EXPECT(path_readlink(work, P("link"), A(scratch), 64, bad), FAULT);
  EXPECT(path_filestat_get(work, 0, P("new"), A(scratch)), NOENT);
  EXPECT(path_filestat_get(work, 0, P("file"), A(scratch)), SUCCESS);
}

// ---- Vectors

typedef uint32_t Transfer(uint32_t iovs, uint32_t count, uint32_t result);

static uint32_t read_file(uint32_t iovs, uint32_t n, uint32_t result) { return fd_read(file, iovs, n, result); }
static uint32_t write_file(uint32_t iovs, uint32_t n, uint32_t result) { return fd_write(file, iovs, n, result); }
static uint32_t pread_file(uint32_t iovs, uint32_t n, uint32_t result) { return fd_pread(file, iovs, n, 2, result); }
static uint32_t pwrite_file(uint32_t iovs, uint32_t n, uint32_t result) { return fd_pwrite(file, iovs, n, 2, result); }
static uint32_t read_stdin(uint32_t iovs, uint32_t n, uint32_t result) { return fd_read(0, iovs, n, result); }
static uint32_t write_stdout(uint32_t iovs, uint32_t n, uint32_t result) { return fd_write(1, iovs, n, result); }

static void bad_vectors(const char *name, Transfer *transfer) {
  const uint8_t fault[] = { FAULT }, refused[] = { FAULT, INVAL };
  list[0] = (Iovec){ A(scratch), 8 };
  FOR_BAD(bad, 8) check(name, transfer(bad, 1, A(&moved)), fault, 1);
  FOR_BAD(bad, 4) check(name, transfer(A(list), 1, bad), fault, 1);
  FOR_BAD(bad, 32) {
    list[1] = (Iovec){ bad, 32 };
    check(name, transfer(A(&list[1]), 1, A(&moved)), fault, 1);
    // The first range is good: nothing may move all the same.
    check(name, transfer(A(list), 2, A(&moved)), fault, 1);
  }
  const Iovec ranges[] = {
    { A(scratch), 0xffffffff }, { 0xfffffff0, 0x20 }, { 0, 0xffffffff }, { 1, 0xffffffff }, { 0x80000000, 0x80000000 },
    { memory_end() - 1, 2 }, { 0, memory_end() + 1 },
  };
  for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
    list[1] = ranges[i];
    check(name, transfer(A(&list[1]), 1, A(&moved)), fault, 1);
    check(name, transfer(A(list), 2, A(&moved)), fault, 1);
  }
  // Lists that straddle the end of memory, or whose size times eight wraps around to something small.
  check(name, transfer(memory_end() - 8, 2, A(&moved)), fault, 1);
  check(name, transfer(memory_end() - 4, 1, A(&moved)), fault, 1);
  check(name, transfer(0xfffffff8, 2, A(&moved)), fault, 1);
  const uint32_t counts[] = { 0x20000000, 0x20000001, 0x40000001, 0x7fffffff, 0x80000000, 0x80000001, 0xffffffff };
  for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
    about = "count";
    about_number = counts[i];
    check(name, transfer(A(list), counts[i], A(&moved)), refused, 2);
  }
  about = "";
}

static void overlaps(void) {
  static Iovec own[2];
  uint64_t ignored;
  EXPECT(fd_seek(file, 0, 0, A(&ignored)), SUCCESS);
  // The count goes where the list was.
  own[0] = (Iovec){ A(scratch), 16 };
  EXPECT(fd_read(file, A(own), 1, A(own)), SUCCESS);
  HOLDS(own[0].buf == 16);
  // The first range is the list itself: the data that lands there must not become the second range.
  own[0] = (Iovec){ A(own), 8 };
  own[1] = (Iovec){ A(scratch) + 100, 8 };
  EXPECT(fd_pread(file, A(own), 2, 0, A(&moved)), SUCCESS);
  HOLDS(moved == 16 && memcmp((char *)scratch + 100, "89abcdef", 8) == 0 && memcmp(own, "01234567", 8) == 0);
  // The second entry is overwritten while it's in use.
  own[0] = (Iovec){ A(&own[1]), 8 };
  own[1] = (Iovec){ A(scratch) + 200, 8 };
  EXPECT(fd_pread(file, A(own), 2, 0, A(&moved)), SUCCESS);
  HOLDS(moved == 16 && memcmp((char *)scratch + 200, "89abcdef", 8) == 0);
  // Both ranges are the same bytes, and so is the count.
  own[0] = own[1] = (Iovec){ A(scratch), 8 };
  EXPECT(fd_pread(file, A(own), 2, 0, A(scratch)), SUCCESS);
  HOLDS(*(uint32_t *)scratch == 16);
  EXPECT(fd_readdir(work, A(scratch), 64, 0, A(scratch)), SUCCESS, INVAL);
  EXPECT(args_sizes_get(A(scratch), A(scratch)), SUCCESS);
  // At the end of the file, so that nothing is written to address 0: every range is the whole memory.
  static Iovec everything[1024];
  for (int i = 0; i < 1024; i++) everything[i] = (Iovec){ 0, memory_end() };
  EXPECT(fd_pread(file, A(everything), 1024, 16, A(&moved)), SUCCESS, INVAL);
  EXPECT(fd_pread(file, A(list), 0, 0, A(&moved)), SUCCESS, INVAL);
}

static void vectors(void) {
  bad_vectors("fd_read with a bad vector", read_file);
  bad_vectors("fd_write with a bad vector", write_file);
  bad_vectors("fd_pread with a bad vector", pread_file);
  bad_vectors("fd_pwrite with a bad vector", pwrite_file);
  bad_vectors("fd_read of stdin with a bad vector", read_stdin);
  bad_vectors("fd_write of stdout with a bad vector", write_stdout);
  uint64_t offset = 99;
  EXPECT(fd_tell(file, A(&offset)), SUCCESS);
  HOLDS(offset == 0 && size_of(file) == 16);
  overlaps();
}

// ---- Numbers

static const uint64_t EXTREMES[] = { 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 0x7ffffffffffffff0 };

static void extremes(void) {
  uint64_t result = 0;
  list[0] = (Iovec){ A(scratch), 8 };
  for (int i = 0; i < 4; i++) {
    uint64_t extreme = EXTREMES[i];
    about = "i64 with high half";
    about_number = (uint32_t)(extreme >> 32);
    EXPECT(fd_advise(file, extreme, extreme, 0), SUCCESS, INVAL, OVERFLOW, FBIG);
    EXPECT(fd_allocate(file, extreme, 1), INVAL, OVERFLOW, FBIG, NOSPC, NOTSUP);
    EXPECT(fd_allocate(file, 0, extreme), INVAL, OVERFLOW, FBIG, NOSPC, NOTSUP);
    EXPECT(fd_allocate(file, extreme, extreme), INVAL, OVERFLOW, FBIG, NOSPC, NOTSUP);
    EXPECT(fd_filestat_set_size(file, extreme), INVAL, OVERFLOW, FBIG);
    EXPECT(fd_filestat_set_times(file, extreme, extreme, 5), SUCCESS, INVAL, OVERFLOW);
    EXPECT(path_filestat_set_times(work, 0, P("file"), extreme, extreme, 5), SUCCESS, INVAL, OVERFLOW);
    EXPECT(fd_pread(file, A(list), 1, extreme, A(&moved)), SUCCESS, INVAL, OVERFLOW);
    EXPECT(fd_pwrite(file, A(list), 1, extreme, A(&moved)), INVAL, OVERFLOW, FBIG);
    EXPECT(fd_readdir(work, A(scratch), 64, extreme, A(&moved)), SUCCESS, INVAL, NOENT, OVERFLOW);
    // A seek far beyond the end is allowed; one to before the start never is.
    EXPECT(fd_seek(file, extreme, 0, A(&result)), (int64_t)extreme > 0 ? SUCCESS : INVAL, INVAL, OVERFLOW);
    EXPECT(fd_seek(file, 0, 0, A(&result)), SUCCESS);
    EXPECT(clock_time_get(1, extreme, A(&result)), SUCCESS);
  }
  about = "";
  EXPECT(fd_seek(file, (uint64_t)-1, 1, A(&result)), INVAL);
  EXPECT(fd_seek(file, (uint64_t)-17, 2, A(&result)), INVAL);
  EXPECT(fd_seek(file, 0, 1, A(&result)), SUCCESS);
  HOLDS(result == 0 && size_of(file) == 16);
  EXPECT(fd_allocate(file, 0, 0), INVAL);
}

static void flags_and_ids(void) {
  uint64_t result;
  const uint32_t unknown[] = { 0x80000000, 0xffffffff, 0x7fffffff, 0x10000, 0x100, 0x80 };
  for (int i = 0; i < 6; i++) {
    uint32_t bad = unknown[i];
    about = "number";
    about_number = bad;
    EXPECT(clock_res_get(bad, A(&result)), INVAL);
    EXPECT(clock_time_get(bad, 0, A(&result)), INVAL);
    EXPECT(fd_advise(file, 0, 0, bad), INVAL);
    EXPECT(fd_fdstat_set_flags(file, bad), INVAL);
    EXPECT(fd_seek(file, 0, bad, A(&result)), INVAL);
    EXPECT(fd_filestat_set_times(file, ANY_TIMES, bad), INVAL);
    EXPECT(path_filestat_get(work, bad, P("file"), A(scratch)), INVAL);
    EXPECT(path_filestat_set_times(work, bad, P("file"), ANY_TIMES, 0), INVAL);
    EXPECT(path_filestat_set_times(work, 0, P("file"), ANY_TIMES, bad), INVAL);
    EXPECT(path_link(work, bad, P("file"), work, P("new")), INVAL);
    EXPECT(path_open(work, bad, P("file"), 0, FD_READ, 0, 0, A(&moved)), INVAL);
    EXPECT(path_open(work, 0, P("file"), bad, FD_READ, 0, 0, A(&moved)), INVAL);
    EXPECT(path_open(work, 0, P("file"), 0, FD_READ, 0, bad, A(&moved)), INVAL);
    EXPECT(proc_raise(bad), INVAL);
  }
  about = "";
  EXPECT(clock_time_get(4, 0, A(&result)), INVAL);
  EXPECT(fd_advise(file, 0, 0, 6), INVAL);
  EXPECT(fd_seek(file, 0, 3, A(&result)), INVAL);
  EXPECT(proc_raise(31), INVAL);
  // "Now" and a time exclude each other.
  EXPECT(fd_filestat_set_times(file, ANY_TIMES, 3), INVAL);
  EXPECT(fd_filestat_set_times(file, ANY_TIMES, 12), INVAL);
  EXPECT(path_filestat_set_times(work, 0, P("file"), ANY_TIMES, 15), INVAL);
  EXPECT(path_filestat_get(work, 0, P("new"), A(scratch)), NOENT);
  EXPECT(sched_yield(), SUCCESS);
  // SIGCHLD and SIGWINCH are ignored by default, signal 0 is none: the guest goes on.
  EXPECT(proc_raise(0), SUCCESS, INVAL);
  EXPECT(proc_raise(16), SUCCESS);
  EXPECT(proc_raise(27), SUCCESS);
}

static void rights(void) {
  uint32_t fd = 0, again = 0;
  uint64_t stat[3];
  EXPECT(open_at(work, 0, "file", 0, FD_READ | FD_SEEK | FD_TELL, &fd), SUCCESS);
  list[0] = (Iovec){ A(scratch), 8 };
  EXPECT(fd_write(fd, A(list), 1, A(&moved)), NOTCAPABLE, BADF, PERM);
  EXPECT(fd_filestat_set_size(fd, 0), NOTCAPABLE, BADF, INVAL);
  EXPECT(fd_fdstat_set_rights(fd, FD_READ | FD_WRITE, 0), NOTCAPABLE);
  EXPECT(fd_fdstat_set_rights(fd, ~0ull, ~0ull), NOTCAPABLE);
  EXPECT(fd_fdstat_set_rights(fd, 1ull << 63, 0), NOTCAPABLE, INVAL);
  EXPECT(fd_fdstat_set_rights(fd, 1ull << 30, 0), NOTCAPABLE, INVAL);
  EXPECT(fd_fdstat_set_rights(fd, FD_SEEK, 0), SUCCESS);
  EXPECT(fd_read(fd, A(list), 1, A(&moved)), NOTCAPABLE, BADF);
  EXPECT(fd_fdstat_set_rights(fd, FD_SEEK | FD_READ, 0), NOTCAPABLE);
  EXPECT(fd_close(fd), SUCCESS);
  // What is asked for beyond what the folder can give is refused, or not given.
  const uint64_t beyond[] = { 1ull << 63, 1ull << 30, ~0ull };
  for (int i = 0; i < 3; i++) {
    uint32_t answer = path_open(work, 0, P("file"), 0, beyond[i], beyond[i], 0, A(&again));
    const uint8_t expected[] = { SUCCESS, NOTCAPABLE, INVAL };
    check("path_open with rights beyond the folder's", answer, expected, 3);
    if (answer != SUCCESS) continue;
    EXPECT(fd_fdstat_get(again, A(stat)), SUCCESS);
    HOLDS((stat[1] & ~inheriting_rights) == 0 && (stat[2] & ~inheriting_rights) == 0);
    EXPECT(fd_close(again), SUCCESS);
  }
  HOLDS(size_of(file) == 16);
}

// ---- Waiting

// `id` is a clock's or a descriptor.
typedef struct {
  uint64_t userdata;
  uint8_t tag;
  _Alignas(8) uint32_t id;
  uint64_t timeout, precision;
  uint16_t flags;
} Subscription;
typedef struct { uint64_t userdata; uint16_t error; uint8_t type; uint64_t nbytes; uint16_t flags; } Event;

// Both in one place: events may be asked for over their own subscriptions. The last entry is always ready.
static union { Subscription in[4]; Event out[4]; } waits;
static Event events[4];
_Static_assert(sizeof(Subscription) == 48 && sizeof(Event) == 32, "as in the witx");

static uint32_t event_error(Subscription subscription) {
  waits.in[0] = subscription;
  waits.in[0].userdata = 7;
  waits.in[1] = (Subscription){ .userdata = 8, .tag = 1, .id = file };
  uint32_t answer = poll_oneoff(A(waits.in), A(events), 2, A(&moved));
  if (answer != SUCCESS) return answer;
  for (uint32_t i = 0; i < moved; i++) {
    if (events[i].userdata == 7) return events[i].error;
  }
  return SUCCESS;
}

static void polls(void) {
  waits.in[0] = (Subscription){ .userdata = 1, .tag = 0, .id = 1 };
  FOR_BAD(bad, 48) EXPECT(poll_oneoff(bad, A(events), 1, A(&moved)), FAULT);
  FOR_BAD(bad, 32) EXPECT(poll_oneoff(A(waits.in), bad, 1, A(&moved)), FAULT);
  FOR_BAD(bad, 4) EXPECT(poll_oneoff(A(waits.in), A(events), 1, bad), FAULT);
  EXPECT(poll_oneoff(A(waits.in), A(events), 0, A(&moved)), INVAL);
  // Times 48 or 32, these wrap around to something small.
  const uint32_t counts[] = { 0x05555556, 0x08000000, 0x10000000, 0x7fffffff, 0x80000000, 0xffffffff };
  for (int i = 0; i < 6; i++) EXPECT(poll_oneoff(A(waits.in), A(events), counts[i], A(&moved)), FAULT, INVAL);
  EXPECT(event_error((Subscription){ .tag = 3 }), INVAL);
  EXPECT(event_error((Subscription){ .tag = 255 }), INVAL);
  EXPECT(event_error((Subscription){ .tag = 0, .id = 99 }), INVAL);
  EXPECT(event_error((Subscription){ .tag = 0, .id = 1, .flags = 0xfffe }), INVAL);
  EXPECT(event_error((Subscription){ .tag = 1, .id = 0xffffffff }), BADF);
  EXPECT(event_error((Subscription){ .tag = 2, .id = 0x80000000 }), BADF);
  EXPECT(event_error((Subscription){ .tag = 0, .id = 1, .timeout = ~0ull, .precision = ~0ull }), SUCCESS);
  EXPECT(event_error((Subscription){ .tag = 0, .id = 0, .timeout = ~0ull, .flags = 1 }), SUCCESS);
  // Events over the subscriptions they answer, and the count over both.
  for (int i = 0; i < 4; i++) waits.in[i] = (Subscription){ .userdata = 100 + (uint64_t)i, .tag = 1, .id = file };
  EXPECT(poll_oneoff(A(waits.in), A(waits.out), 4, A(&moved)), SUCCESS);
  HOLDS(moved == 4);
  for (uint32_t i = 0; i < 4; i++) HOLDS(waits.out[i].userdata == 100 + i && waits.out[i].error == SUCCESS);
  waits.in[0] = (Subscription){ .userdata = 1, .tag = 0, .id = 1 };
  EXPECT(poll_oneoff(A(waits.in), A(waits.out), 1, A(waits.in)), SUCCESS);
}

// A listening socket is there only if one is granted. Nobody connects, so that nothing here may wait for somebody.
static void listener(uint32_t fd) {
  FOR_BAD(bad, 4) EXPECT(sock_accept(fd, 0, bad), FAULT);
  const uint32_t unknown[] = { 0x80000000, 0xffffffff, 0x10000, 0x20 };
  for (int i = 0; i < 4; i++) EXPECT(sock_accept(fd, unknown[i], A(&moved)), INVAL);
  EXPECT(fd_fdstat_set_flags(fd, 4), SUCCESS);
  EXPECT(sock_accept(fd, 0, A(&moved)), AGAIN);
  EXPECT(path_open(fd, 0, P("."), 0, FD_READ, 0, 0, A(&moved)), NOTDIR, BADF, NOTCAPABLE);
}
