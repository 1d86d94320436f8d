// guests/hostile_life.h: what hostile.c tries with Cellar's own calls: who it is, what has become of it, and copies of
// itself. Nothing here may be granted: a guest that is run in the foreground has no host to ask.

#define LIFE(name) __attribute__((import_module("cellar"), import_name(#name))) extern

LIFE(identity_get) uint32_t identity_get(uint32_t what, uint32_t buffer, uint32_t size, uint32_t length);
LIFE(generation_get) uint32_t generation_get(uint32_t generation);
LIFE(event_last) uint32_t event_last(uint32_t event);
LIFE(events_open) uint32_t events_open(uint32_t fd);
LIFE(guest_snapshot) uint32_t guest_snapshot(uint32_t name, uint32_t name_length, uint32_t restored);
LIFE(guest_fork) uint32_t guest_fork(uint32_t count, uint32_t child);
LIFE(guest_hibernate) uint32_t guest_hibernate(void);

static uint32_t life_word;
static uint8_t life_bytes[64];

static void life_pointers(void) {
  FOR_BAD(bad, 4) {
    EXPECT(identity_get(0, A(life_bytes), sizeof life_bytes, bad), FAULT);
    EXPECT(events_open(bad), FAULT);
    EXPECT(guest_fork(1, bad), FAULT);
    EXPECT(guest_snapshot(P("name"), bad), FAULT);
  }
  FOR_BAD(bad, 8) {
    EXPECT(identity_get(0, bad, 8, A(&life_word)), FAULT);
    EXPECT(guest_snapshot(bad, 8, A(&life_word)), FAULT);
  }
  FOR_BAD(bad, 16) EXPECT(generation_get(bad), FAULT);
  FOR_BAD(bad, 32) EXPECT(event_last(bad), FAULT);
  EXPECT(identity_get(1, A(life_bytes), 0xffffffff, A(&life_word)), FAULT);
  EXPECT(guest_snapshot(A("name"), 0x80000000, A(&life_word)), FAULT);
}

static void life_numbers(void) {
  const uint32_t kinds[] = { 2, 3, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff };
  for (int i = 0; i < 6; i++) EXPECT(identity_get(kinds[i], A(life_bytes), 64, A(&life_word)), INVAL);
  const uint32_t counts[] = { 0, 1001, 0x7fffffff, 0x80000000, 0xffffffff };
  for (int i = 0; i < 5; i++) EXPECT(guest_fork(counts[i], A(&life_word)), INVAL);
  memset(life_bytes, 'x', sizeof life_bytes);
  EXPECT(guest_snapshot(A(life_bytes), 41, A(&life_word)), INVAL);
  EXPECT(guest_snapshot(P("\xff\xfe"), A(&life_word)), ILSEQ);
  EXPECT(guest_snapshot(P("\xed\xa0\x80"), A(&life_word)), ILSEQ);
}

// A descriptor of events is no file, no folder and no socket, and can't be written.
static void life_events(void) {
  uint32_t events, opened;
  EXPECT(events_open(A(&events)), SUCCESS);
  Iovec one = { A(life_bytes), sizeof life_bytes };
  Iovec small = { A(life_bytes), 31 };
  EXPECT(fd_read(events, A(&small), 1, A(&life_word)), INVAL);
  EXPECT(fd_write(events, A(&one), 1, A(&life_word)), BADF, NOTCAPABLE);
  EXPECT(fd_pread(events, A(&one), 1, 0, A(&life_word)), SPIPE, NOTCAPABLE);
  EXPECT(fd_seek(events, 0, 0, A(life_bytes)), SPIPE, NOTCAPABLE);
  EXPECT(fd_readdir(events, A(life_bytes), 64, 0, A(&life_word)), NOTDIR, BADF, NOTCAPABLE);
  EXPECT(path_open(events, 0, P("x"), CREAT, FD_READ, 0, 0, A(&opened)), NOTDIR, BADF, NOTCAPABLE);
  EXPECT(sock_accept(events, 0, A(&opened)), NOTSOCK);
  EXPECT(sock_shutdown(events, 3), NOTSOCK);
  EXPECT(fd_fdstat_set_rights(events, FD_READ | FD_WRITE, 0), NOTCAPABLE);
  EXPECT(fd_close(events), SUCCESS);
  EXPECT(fd_read(events, A(&one), 1, A(&life_word)), BADF);
}

static void life(void) {
  life_pointers();
  life_numbers();
  life_events();
  EXPECT(guest_fork(1000, A(&life_word)), NOTSUP);
  EXPECT(guest_snapshot(P("name"), A(&life_word)), NOTSUP);
  EXPECT(guest_hibernate(), NOTSUP);
}
