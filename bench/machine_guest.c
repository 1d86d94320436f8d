/* bench/machine_guest.c: what bench/machine.ts lets a guest do, and time by its own clock.
 *
 *   disk DEVICE BYTES DEPTH random|sequential MS      requests past the page cache, DEPTH of them under way
 *   net ADDRESS PORT up|down|round MS [NAME]          TCP: bytes one way, or single bytes there and back
 *   serve PORT                                        the other side of `net`, on the host
 *   memory MIB                                        first touches, touches at random, forks
 *   ticks MIB                                         fills so much, then changes 1 MiB of it and says a number, every 2 ms
 *
 * Each result is a line: "@NAME COUNT NANOSECONDS".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 64
#define PAGE 4096
#define PIECE 65536

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t seed = 88172645463325252u;

static uint64_t chance(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void say(const char *name, uint64_t count, uint64_t ns) {
  printf("@%s %llu %llu\n", name, (unsigned long long)count, (unsigned long long)ns);
  fflush(stdout);
}

static int disk(char **argv) {
  int fd = open(argv[0], O_RDONLY | O_DIRECT);
  if (fd < 0) fail(argv[0]);
  uint64_t size, bytes = strtoull(argv[1], 0, 10), depth = strtoull(argv[2], 0, 10), ms = strtoull(argv[4], 0, 10);
  if (ioctl(fd, BLKGETSIZE64, &size) < 0 || depth < 1 || depth > DEPTH_MAX) fail("disk");
  int isRandom = argv[3][0] == 'r';
  uint64_t blocks = size / bytes, next = 0, done = 0;
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, depth, &context) < 0) fail("io_setup");
  static struct iocb requests[DEPTH_MAX];
  struct iocb *one[1];
  for (uint64_t i = 0; i < depth; i++) {
    void *memory;
    if (posix_memalign(&memory, PAGE, bytes)) fail("memory");
    requests[i].aio_lio_opcode = IOCB_CMD_PREAD;
    requests[i].aio_fildes = (uint32_t)fd;
    requests[i].aio_buf = (uintptr_t)memory;
    requests[i].aio_nbytes = bytes;
    requests[i].aio_data = i;
  }
  uint64_t begun = now(), end = begun + ms * 1000000, underWay = 0;
  for (uint64_t i = 0; i < depth; i++) {
    requests[i].aio_offset = (int64_t)((isRandom ? chance() % blocks : next++ % blocks) * bytes);
    one[0] = &requests[i];
    if (syscall(SYS_io_submit, context, 1, one) != 1) fail("io_submit");
    underWay++;
  }
  while (underWay > 0) {
    struct io_event events[DEPTH_MAX];
    long count = syscall(SYS_io_getevents, context, 1, depth, events, 0);
    if (count < 1) fail("io_getevents");
    int isOver = now() >= end;
    for (long i = 0; i < count; i++) {
      if (events[i].res != (int64_t)bytes) fail("read");
      done++;
      underWay--;
      if (isOver) continue;
      struct iocb *request = &requests[events[i].data];
      request->aio_offset = (int64_t)((isRandom ? chance() % blocks : next++ % blocks) * bytes);
      one[0] = request;
      if (syscall(SYS_io_submit, context, 1, one) != 1) fail("io_submit");
      underWay++;
    }
  }
  char name[64];
  snprintf(name, sizeof name, "disk-%s-%llu-%llu", argv[3], (unsigned long long)bytes, (unsigned long long)depth);
  say(name, done, now() - begun);
  return 0;
}

static char piece[PIECE];

/* Writes until then: how many bytes. */
static uint64_t put(int fd, uint64_t end) {
  uint64_t sent = 0;
  while (now() < end) {
    ssize_t n = write(fd, piece, PIECE);
    if (n <= 0) break;
    sent += (uint64_t)n;
  }
  shutdown(fd, SHUT_WR);
  return sent;
}

static uint64_t take(int fd) {
  uint64_t taken = 0;
  for (;;) {
    ssize_t n = read(fd, piece, PIECE);
    if (n < 0) fail("read");
    if (n == 0) return taken;
    taken += (uint64_t)n;
  }
}

static int net(int argc, char **argv) {
  struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])) };
  inet_pton(AF_INET, argv[0], &to.sin_addr);
  uint64_t ms = strtoull(argv[3], 0, 10), count = 0;
  int fd = -1, yes = 1;
  for (int tries = 0; tries < 50; tries++) {
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) break;
    close(fd);
    fd = -1;
    usleep(100000);
  }
  if (fd < 0) fail("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  char head[16] = { argv[2][0] };
  memcpy(head + 8, &ms, 8);
  if (write(fd, head, 16) != 16 || read(fd, piece, 1) != 1) fail("greeting");
  uint64_t begun = now(), end = begun + ms * 1000000;
  if (argv[2][0] == 'u') {
    count = put(fd, end);
    /* The other side closes when it has all. */
    take(fd);
  } else if (argv[2][0] == 'd') {
    if (write(fd, "g", 1) != 1) fail("down");
    count = take(fd);
  } else {
    for (; now() < end; count++) if (write(fd, "x", 1) != 1 || read(fd, piece, 1) != 1) fail("round");
  }
  char name[64];
  snprintf(name, sizeof name, "net-%s%s", argv[2], argc > 4 ? argv[4] : "");
  say(name, count, now() - begun);
  return 0;
}

static void answer(int fd) {
  char head[16];
  uint64_t ms;
  for (size_t got = 0; got < 16;) {
    ssize_t n = read(fd, head + got, 16 - got);
    if (n <= 0) return;
    got += (size_t)n;
  }
  memcpy(&ms, head + 8, 8);
  if (write(fd, "h", 1) != 1) return;
  if (head[0] == 'u') take(fd);
  else if (head[0] == 'd' && read(fd, piece, 1) == 1) put(fd, now() + ms * 1000000);
  else while (read(fd, piece, 1) == 1 && write(fd, "y", 1) == 1) { /* Until it has gone. */ }
}

static int serve(char **argv) {
  struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[0])) };
  int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 16) < 0) fail("serve");
  signal(SIGCHLD, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  say("serves", 0, 0);
  for (;;) {
    int one = accept(fd, 0, 0);
    if (one < 0) continue;
    setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (fork() == 0) {
      answer(one);
      _exit(0);
    }
    close(one);
  }
}

static int memory(char **argv) {
  uint64_t bytes = strtoull(argv[0], 0, 10) << 20, pages = bytes / PAGE, touches = 1000000, forks = 200;
  /* Small pages: what costs is the way to them. */
  char *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) fail("mmap");
  madvise(at, bytes, MADV_NOHUGEPAGE);
  for (int round = 0; round < 2; round++) {
    /* The first round takes memory that the host hasn't given yet. */
    uint64_t begun = now();
    for (uint64_t i = 0; i < pages; i++) at[i * PAGE] = 1;
    say(round == 0 ? "memory-first" : "memory-fault", pages, now() - begun);
    if (round == 0) madvise(at, bytes, MADV_DONTNEED);
  }
  uint64_t begun = now();
  for (uint64_t i = 0; i < touches; i++) at[chance() % pages * PAGE + (i & 63) * 64]++;
  say("memory-touch", touches, now() - begun);
  munmap(at, bytes - (8 << 20));
  begun = now();
  for (uint64_t i = 0; i < forks; i++) {
    int child = fork();
    if (child == 0) {
      for (uint64_t page = pages - 256; page < pages; page++) at[page * PAGE] = 2;
      _exit(0);
    }
    waitpid(child, 0, 0);
  }
  say("memory-fork", forks, now() - begun);
  return 0;
}

static _Noreturn void ticks(char **argv) {
  uint64_t bytes = strtoull(argv[0], 0, 10) << 20;
  uint64_t *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (uint64_t i = 0; i < bytes / 8; i++) at[i] = chance();
  for (uint64_t tick = 0;; tick++) {
    say("tick", tick, now());
    /* A mebibyte of it changes all the time. */
    for (uint64_t page = 0; page < 256; page++) at[page * (PAGE / 8)] = tick;
    usleep(2000);
  }
}

int main(int argc, char **argv) {
  const char *what = argc > 2 ? argv[1] : "";
  if (!strcmp(what, "disk") && argc == 7) return disk(argv + 2);
  if (!strcmp(what, "net") && argc >= 6) return net(argc - 2, argv + 2);
  if (!strcmp(what, "serve")) return serve(argv + 2);
  if (!strcmp(what, "memory")) return memory(argv + 2);
  if (!strcmp(what, "ticks")) ticks(argv + 2);
  fprintf(stderr, "machine_guest: disk | net | serve | memory | ticks\n");
  return 2;
}
