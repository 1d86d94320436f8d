// life.c: the machine itself: its end, and what has become of it while it didn't run.

#define _GNU_SOURCE
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

// Until then init has ended everything, and the agent first; a host gives a guest about 10 s.
#define FORCE_MS 8000
#define TERM_MS 2000
// A clock that is nearer than this is left alone: programs don't like it to jump.
#define CLOCK_MS 50
#define ENTROPY_BYTES_MAX 256
// <linux/random.h>
#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)

static int64_t force_at;
static int stop_how;

static int64_t now_ms(int clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return;
  if (write(fd, text, strlen(text)) < 0) errno = 0;
  close(fd);
}

// Without init: what runs is asked, then ended; what is written goes to the disks.
static void force(void) {
  kill(-1, SIGTERM);
  for (int64_t until = now_ms(CLOCK_MONOTONIC) + TERM_MS; now_ms(CLOCK_MONOTONIC) < until && kill(-1, 0) == 0;) {
    sessions_reap();
    usleep(20000);
  }
  kill(-1, SIGKILL);
  sync();
  // All filesystems become read-only.
  write_file("/proc/sysrq-trigger", "u");
  usleep(100000);
  sync();
  reboot(stop_how == STOP_REBOOT ? RB_AUTOBOOT : RB_POWER_OFF);
  // It has no way to switch off.
  reboot(RB_HALT_SYSTEM);
}

int life_wait(void) {
  if (force_at == 0) return -1;
  int64_t left = force_at - now_ms(CLOCK_MONOTONIC);
  if (left > 0) return left;
  force_at = 0;
  force();
  return -1;
}

// What process 1 is: a script of an initramfs, that nobody can ask; an init with programs that speak to it; one that
// takes signals as busybox's init does: itself, or our main.sh, whose shell is busybox, too.
static enum { NO_INIT, INIT, BUSYBOX } first_process(void) {
  char line[256] = "";
  int fd = open("/proc/1/cmdline", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || getpid() == 1) return NO_INIT;
  ssize_t got = read(fd, line, sizeof line - 1);
  close(fd);
  if (got <= 0) return NO_INIT;
  // Words end with a zero each; beyond what was read there are more.
  const char *second = line + strlen(line) + 1, *end = line + sizeof line - 1;
  const char *third = second < end ? second + strlen(second) + 1 : end;
  line[strcspn(line, " ")] = 0;
  char *slash = strrchr(line, '/'), *name = slash != NULL ? slash + 1 : line;
  if (strcmp(name, "busybox") == 0) {
    if (second < end && strcmp(second, "init") == 0) return BUSYBOX;
    return third < end && strcmp(third, "/run/cellar/etc/main.sh") == 0 ? BUSYBOX : NO_INIT;
  }
  size_t size = strlen(name);
  return strcmp(name, "systemd") == 0 || strcmp(name, "linuxrc") == 0 ||
    (size >= 4 && strcmp(name + size - 4, "init") == 0) ? INIT : NO_INIT;
}

static bool run_program(const char *name) {
  static const char *folders[] = { "/sbin", "/usr/sbin", "/bin", "/usr/bin" };
  for (int i = 0; i < 4; i++) {
    char path[64];
    snprintf(path, sizeof path, "%s/%s", folders[i], name);
    if (access(path, X_OK) != 0) continue;
    pid_t pid = fork();
    if (pid == 0) {
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, NULL);
      signal(SIGPIPE, SIG_DFL);
      setsid();
      execl(path, path, NULL);
      _exit(127);
    }
    return pid > 0;
  }
  return false;
}

// Asks process 1. Its programs may be another one's, of packages that brought theirs: busybox gets its signal from us.
static bool ask_init(const char *word) {
  int signal = stop_how == STOP_REBOOT ? SIGTERM : SIGUSR2;
  switch (first_process()) {
    case BUSYBOX:
      // What down.sh reads, where the guest has it.
      write_file("/run/cellar/stop", word);
      return kill(1, signal) == 0;
    case INIT: return run_program(word) || kill(1, signal) == 0;
    default: return false;
  }
}

int life_stop(int how) {
  if (how != STOP_POWEROFF && how != STOP_REBOOT) return EINVAL;
  const char *word = how == STOP_REBOOT ? "reboot" : "poweroff";
  if (run_hook("stop", word, NULL)) return 0;
  if (!is_guest) return ENOTSUP;
  // Asked again, it isn't put off.
  if (force_at != 0) return 0;
  stop_how = how;
  bool is_asked = ask_init(word);
  // A moment for the answer to leave.
  force_at = now_ms(CLOCK_MONOTONIC) + (is_asked ? FORCE_MS : 100);
  return 0;
}

static bool reseed(const uint8_t *bytes, size_t size) {
  struct { int bits, size; uint8_t bytes[ENTROPY_BYTES_MAX]; } entropy = { 0 };
  if (size == 0 || size > sizeof entropy.bytes) return false;
  int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  entropy.bits = size * 8;
  entropy.size = size;
  memcpy(entropy.bytes, bytes, size);
  bool done = ioctl(fd, RNDADDENTROPY, &entropy) == 0;
  // What is in the pool is used from now on, and not at the next time that it is due.
  done = ioctl(fd, RNDRESEEDCRNG) == 0 && done;
  close(fd);
  memset(&entropy, 0, sizeof entropy);
  return done;
}

static bool set_clock(uint64_t at_ms) {
  int64_t off = (int64_t)at_ms - now_ms(CLOCK_REALTIME);
  struct timespec time = { .tv_sec = at_ms / 1000, .tv_nsec = at_ms % 1000 * 1000000 };
  return at_ms != 0 && (off > CLOCK_MS || off < -CLOCK_MS) && clock_settime(CLOCK_REALTIME, &time) == 0;
}

uint32_t life_event(int kind, uint64_t at_ms, const char *hostname, const uint8_t *entropy, size_t entropy_size,
                    const char *generation) {
  static const char *names[] = { "", "fork", "restore", "wake", "migrate" };
  char variable[64];
  uint32_t did = 0;
  if (kind < EVENT_FORK || kind > EVENT_MIGRATE) return 0;
  if (is_guest) {
    if (reseed(entropy, entropy_size)) did |= DID_ENTROPY;
    if (set_clock(at_ms)) did |= DID_CLOCK;
    if (*hostname != 0 && sethostname(hostname, strlen(hostname)) == 0) did |= DID_HOSTNAME;
  }
  snprintf(variable, sizeof variable, "CELLAR_GENERATION=%s", generation);
  if (run_hook("renew", names[kind], variable)) did |= DID_RENEW;
  return did;
}
