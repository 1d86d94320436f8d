// session.c: programs that the host runs here, and their input and output.
//
// A session has an input (`in`, written by us), an output and perhaps another (`out`, `err`, read by us). Behind them
// is a process: a program, on pipes or on a terminal; or this very program in a fork, reading or writing an archive;
// or, with no process of ours, whoever connected to the local socket. Both ways a writer has room and waits without.
//
// A session ends with its process: what the process wrote is in the pipe by then and is sent first. What it left
// running keeps nobody waiting. When the host closes a session, or is gone, a program gets SIGHUP as from a terminal.

#define _GNU_SOURCE
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define SESSIONS_MAX 64
#define WORDS_MAX 4096
#define PIECE_BYTES 32768
// What two pipes hold.
#define LATE_BYTES_MAX (2 * 65536)
#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct session {
  bool used;
  uint32_t id;
  // 0: there is no process. `status_fd`: an errno comes from it if the program couldn't be started.
  pid_t pid;
  int status_fd, wait_status;
  bool is_reaped, is_program, is_tty, is_socket;
  int in, out, err;
  int in_index, out_index, err_index;
  // Bytes that the host has room for, and input on its way.
  uint32_t room;
  // Read since its process has ended.
  uint32_t late;
  uint8_t input[INPUT_WINDOW_BYTES];
  uint32_t input_from, input_size;
  bool input_ends;
  uint32_t taken;
};

static struct session sessions[SESSIONS_MAX];

struct command {
  int flags, cols, rows;
  const char *user, *cwd;
  char *argv[WORDS_MAX + 1], *env[WORDS_MAX + 4];
};

static void shut(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

static struct session *find(uint32_t id) {
  for (int i = 0; i < SESSIONS_MAX; i++) if (sessions[i].used && sessions[i].id == id) return &sessions[i];
  return NULL;
}

static struct session *new_session(uint32_t id) {
  for (int i = 0; i < SESSIONS_MAX && find(id) == NULL; i++) {
    struct session *one = &sessions[i];
    if (one->used) continue;
    // All but the bytes themselves.
    uint8_t *input = one->input;
    memset(one, 0, input - (uint8_t *)one);
    one->input_from = one->input_size = one->taken = 0;
    one->input_ends = false;
    one->used = true;
    one->id = id;
    one->status_fd = one->in = one->out = one->err = -1;
    one->in_index = one->out_index = one->err_index = -1;
    one->room = OUTPUT_WINDOW_BYTES;
    return one;
  }
  return NULL;
}

static void drop(struct session *one) {
  shut(&one->in);
  shut(&one->out);
  shut(&one->err);
  shut(&one->status_fd);
  one->used = false;
}

static void send_exit(uint32_t id, int kind, uint32_t value) {
  uint8_t body[5] = { kind };
  store(body + 1, value, 4);
  send_frame(FROM_EXIT, id, body, sizeof body, NULL, 0);
}

// Nobody looks any more.
static void abandon(struct session *one) {
  if (one->pid > 0 && !one->is_reaped) kill(-one->pid, one->is_program ? SIGHUP : SIGKILL);
  drop(one);
}

void sessions_end(void) {
  for (int i = 0; i < SESSIONS_MAX; i++) if (sessions[i].used) abandon(&sessions[i]);
}

// ---- starting

static int status_of_child = -1;

// In the child: tells why it came to nothing.
static void failed(int error) {
  ssize_t sent = write(status_of_child, &error, sizeof error);
  _exit(sent == sizeof error ? 127 : 126);
}

// `name`, `uid`, each perhaps with `:group`. The groups and HOME are the user's if /etc/passwd knows it.
static void become(const char *user, char **home) {
  char name[256];
  if (strlen(user) >= sizeof name) failed(EINVAL);
  strcpy(name, user);
  char *group = strchr(name, ':'), *end;
  if (group != NULL) *group++ = 0;
  uid_t uid = strtoul(name, &end, 10);
  gid_t gid = 0;
  bool is_number = *name != 0 && *end == 0;
  struct passwd *entry = is_number ? getpwuid(uid) : getpwnam(name);
  if (entry == NULL && !is_number) failed(EINVAL);
  if (entry != NULL) uid = entry->pw_uid, gid = entry->pw_gid, *home = entry->pw_dir;
  if (group != NULL) {
    gid = strtoul(group, &end, 10);
    struct group *found = *end == 0 && *group != 0 ? NULL : getgrnam(group);
    if (found != NULL) gid = found->gr_gid;
    else if (*end != 0 || *group == 0) failed(EINVAL);
  }
  int error = entry != NULL && group == NULL ? initgroups(entry->pw_name, gid) : setgroups(1, &gid);
  if (error != 0 || setgid(gid) != 0 || setuid(uid) != 0) failed(errno);
}

static bool has_variable(char **env, const char *name) {
  for (size_t size = strlen(name); *env != NULL; env++) if (strncmp(*env, name, size) == 0) return true;
  return false;
}

static void run(struct command *command) {
  static char home_variable[4200];
  char *home = "/root", **end = command->env;
  while (*end != NULL) end++;
  if (*command->user != 0) become(command->user, &home);
  else if (getuid() != 0) home = "/";
  snprintf(home_variable, sizeof home_variable, "HOME=%s", home);
  if (!has_variable(command->env, "PATH=")) *end++ = DEFAULT_PATH;
  if (!has_variable(command->env, "HOME=")) *end++ = home_variable;
  if (command->flags & EXEC_TTY && !has_variable(command->env, "TERM=")) *end++ = "TERM=xterm";
  *end = NULL;
  if (chdir(*command->cwd != 0 ? command->cwd : "/") != 0) failed(errno);
  extern char **environ;
  environ = command->env;
  execvp(command->argv[0], command->argv);
  failed(errno);
}

// The three descriptors of a program; and the terminal's end that is ours, or ours of the pipes.
struct ends { int theirs[3], ours[3]; };

static int make_pipes(struct ends *ends) {
  for (int i = 0; i < 3; i++) {
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) != 0) return errno;
    ends->theirs[i] = pair[i == 0 ? 0 : 1];
    ends->ours[i] = pair[i == 0 ? 1 : 0];
    fcntl(ends->ours[i], F_SETFL, O_NONBLOCK);
  }
  return 0;
}

static int make_terminal(struct ends *ends, int cols, int rows) {
  char name[64];
  int ours = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (ours < 0) return errno;
  ends->ours[0] = ours;
  if (grantpt(ours) != 0 || unlockpt(ours) != 0 || ptsname_r(ours, name, sizeof name) != 0) return errno;
  struct winsize size = { .ws_col = cols, .ws_row = rows };
  ioctl(ours, TIOCSWINSZ, &size);
  ends->theirs[0] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  return ends->theirs[0] < 0 ? errno : 0;
}

static void in_child(struct ends *ends, bool is_tty) {
  sigset_t none;
  sigemptyset(&none);
  for (int i = 1; i < 32; i++) signal(i, SIG_DFL);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setsid();
  // What became 0, 1 or 2 by chance would be closed by another's move.
  for (int i = 0; i < 3; i++) {
    if (is_tty && i > 0) ends->theirs[i] = ends->theirs[0];
    else if ((ends->theirs[i] = fcntl(ends->theirs[i], F_DUPFD, 3)) < 0) failed(errno);
  }
  status_of_child = fcntl(status_of_child, F_DUPFD_CLOEXEC, 3);
  for (int i = 0; i < 3; i++) dup2(ends->theirs[i], i);
  for (int i = 0; i < 3; i++) if (!is_tty || i == 0) close(ends->theirs[i]);
  if (is_tty) ioctl(0, TIOCSCTTY, 0);
}

// Starts what `what` is: TO_EXEC with a command, TO_GET or TO_PUT with a path.
static void start(uint32_t id, int what, struct command *command, const char *path) {
  struct ends ends = { { -1, -1, -1 }, { -1, -1, -1 } };
  int status[2] = { -1, -1 };
  bool is_tty = what == TO_EXEC && (command->flags & EXEC_TTY) != 0;
  struct session *one = new_session(id);
  if (one == NULL) return send_exit(id, NOT_STARTED, find(id) != NULL ? EEXIST : EAGAIN);
  int error = is_tty ? make_terminal(&ends, command->cols, command->rows) : make_pipes(&ends);
  if (error == 0 && pipe2(status, O_CLOEXEC | O_NONBLOCK) != 0) error = errno;
  pid_t pid = error == 0 ? fork() : -1;
  if (error == 0 && pid < 0) error = errno;
  if (pid == 0) {
    status_of_child = status[1];
    in_child(&ends, is_tty);
    if (what == TO_EXEC) run(command);
    // The agent's own descriptors are no business of a reader of files, and to hold them would keep them open.
    for (int fd = 3; fd < 1024; fd++) if (fd != status_of_child) close(fd);
    _exit(what == TO_GET ? tar_get(path, failed) : tar_put(path, failed));
  }
  for (int i = 0; i < 3; i++) shut(&ends.theirs[i]);
  shut(&status[1]);
  one->status_fd = status[0];
  one->in = ends.ours[0];
  one->out = is_tty ? fcntl(ends.ours[0], F_DUPFD_CLOEXEC, 3) : ends.ours[1];
  one->err = ends.ours[2];
  if (error != 0) {
    drop(one);
    return send_exit(id, NOT_STARTED, error);
  }
  one->pid = pid;
  one->is_program = what == TO_EXEC;
  one->is_tty = is_tty;
  if (what == TO_GET || (what == TO_EXEC && command->flags & EXEC_NO_INPUT && !is_tty)) shut(&one->in);
}

static bool take_words(struct reader *body, char **words, char **room, const char *end) {
  uint32_t count = take(body, 2);
  if (count > WORDS_MAX) return false;
  for (uint32_t i = 0; i < count && !body->bad; i++) words[i] = take_text(body, room, end);
  words[count] = NULL;
  return !body->bad;
}

static void start_exec(uint32_t id, struct reader *body) {
  static struct command command;
  static char texts[BODY_BYTES_MAX + 2 * WORDS_MAX + 64];
  char *room = texts, *end = texts + sizeof texts;
  command.flags = take(body, 1);
  command.cols = take(body, 2);
  command.rows = take(body, 2);
  command.user = take_text(body, &room, end);
  command.cwd = take_text(body, &room, end);
  if (!take_words(body, command.argv, &room, end) || !take_words(body, command.env, &room, end) ||
      command.argv[0] == NULL) return send_exit(id, NOT_STARTED, EINVAL);
  start(id, TO_EXEC, &command, NULL);
}

static void start_files(uint32_t id, int what, struct reader *body) {
  static char path[BODY_BYTES_MAX];
  char *room = path;
  take_text(body, &room, path + sizeof path);
  if (body->bad || *path != '/') return send_exit(id, NOT_STARTED, EINVAL);
  start(id, what, NULL, path);
}

bool session_of_socket(uint32_t id, int fd, const char *first) {
  int other = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  struct session *one = other < 0 ? NULL : new_session(id);
  if (one == NULL) {
    shut(&other);
    return false;
  }
  one->is_socket = true;
  one->in = fd;
  one->out = other;
  one->input_size = strlen(first);
  memcpy(one->input, first, one->input_size);
  return true;
}

bool run_hook(const char *name, const char *word, const char *variable) {
  char path[512];
  if (snprintf(path, sizeof path, "%s/%s", hooks, name) >= (int)sizeof path || access(path, X_OK) != 0) return false;
  pid_t pid = fork();
  if (pid != 0) return pid > 0;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  signal(SIGPIPE, SIG_DFL);
  setsid();
  int null = open("/dev/null", O_RDWR);
  for (int i = 0; i < 3; i++) dup2(null, i);
  for (int fd = 3; fd < 1024; fd++) close(fd);
  char *env[] = { DEFAULT_PATH, (char *)variable, NULL };
  execle(path, path, word, NULL, env);
  _exit(127);
}

// ---- while it runs

static void take_input(struct session *one, struct reader *body) {
  uint32_t size = body->end - body->at, used = one->input_size;
  // Beyond what was granted: such a host can't be served.
  if (size > INPUT_WINDOW_BYTES - used) return abandon(one);
  // Nobody reads it, and the host may send more.
  if (one->in < 0) {
    uint8_t credit[4];
    store(credit, size, 4);
    if (size > 0) send_frame(FROM_CREDIT, one->id, credit, sizeof credit, NULL, 0);
    return;
  }
  for (uint32_t i = 0; i < size; i++) {
    one->input[(one->input_from + used + i) % INPUT_WINDOW_BYTES] = body->at[i];
  }
  one->input_size += size;
}

static void signal_session(struct session *one, uint32_t number) {
  if (one->pid > 0 && !one->is_reaped && number > 0 && number < 65) kill(-one->pid, number);
}

void session_frame(uint8_t kind, uint32_t id, struct reader *body) {
  if (kind == TO_EXEC) return start_exec(id, body);
  if (kind == TO_GET || kind == TO_PUT) return start_files(id, kind, body);
  struct session *one = find(id);
  // One that has just ended.
  if (one == NULL) return;
  if (kind == TO_INPUT) take_input(one, body);
  else if (kind == TO_EOF) one->input_ends = true;
  else if (kind == TO_CREDIT) {
    uint32_t bytes = take(body, 4);
    if (bytes > OUTPUT_WINDOW_BYTES || one->room + bytes > OUTPUT_WINDOW_BYTES) one->room = OUTPUT_WINDOW_BYTES;
    else one->room += bytes;
  } else if (kind == TO_SIGNAL) signal_session(one, take(body, 4));
  else if (kind == TO_RESIZE) {
    struct winsize size = { 0 };
    size.ws_col = take(body, 2);
    size.ws_row = take(body, 2);
    if (one->is_tty && !body->bad) ioctl(one->in, TIOCSWINSZ, &size);
  } else if (kind == TO_CLOSE) abandon(one);
}

void sessions_watch(void) {
  bool has = has_room();
  for (int i = 0; i < SESSIONS_MAX; i++) {
    struct session *one = &sessions[i];
    one->in_index = one->out_index = one->err_index = -1;
    if (!one->used) continue;
    // A socket of which nobody has the other end says so.
    if (one->input_size > 0) one->in_index = watch(one->in, POLLOUT);
    else if (one->is_socket && one->out < 0) one->in_index = watch(one->in, 0);
    if (!has || one->room == 0) continue;
    one->out_index = watch(one->out, POLLIN);
    one->err_index = watch(one->err, POLLIN);
  }
}

static void write_input(struct session *one) {
  uint32_t size = INPUT_WINDOW_BYTES - one->input_from;
  if (size > one->input_size) size = one->input_size;
  ssize_t sent = write(one->in, one->input + one->input_from, size);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
  // It reads no more: what is left, and all that comes, is for nobody.
  if (sent < 0) {
    sent = one->input_size;
    shut(&one->in);
  }
  one->input_from = (one->input_from + sent) % INPUT_WINDOW_BYTES;
  one->input_size -= sent;
  one->taken += sent;
  if (one->taken < INPUT_WINDOW_BYTES / 4 && one->input_size > 0) return;
  uint8_t credit[4];
  store(credit, one->taken, 4);
  send_frame(FROM_CREDIT, one->id, credit, sizeof credit, NULL, 0);
  one->taken = 0;
}

static void end_input(struct session *one) {
  one->input_ends = false;
  // As somebody at the terminal would say it.
  if (one->is_tty && write(one->in, "\4", 1) == 1) return;
  if (one->is_socket) shutdown(one->in, SHUT_WR);
  if (!one->is_tty) shut(&one->in);
}

// One piece: true if there may be more.
static bool read_output(struct session *one, int *fd, int channel) {
  static uint8_t piece[PIECE_BYTES];
  if (*fd < 0 || one->room == 0 || !has_room()) return false;
  ssize_t got = read(*fd, piece, one->room < PIECE_BYTES ? one->room : PIECE_BYTES);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (got <= 0) {
    // A terminal says EIO when nobody has it open any more.
    shut(fd);
    if (one->is_socket) send_frame(FROM_EOF, one->id, NULL, 0, NULL, 0);
    return false;
  }
  uint8_t head = channel;
  one->room -= got;
  if (one->is_reaped) one->late += got;
  send_frame(FROM_OUTPUT, one->id, &head, 1, piece, got);
  return true;
}

// Nothing more comes of its process but what is in the pipes, and that only while there is room for it. What others
// write that have the pipes, too, has no end.
static void end_if_over(struct session *one) {
  while (one->late < LATE_BYTES_MAX && (read_output(one, &one->out, 1) || read_output(one, &one->err, 2))) {
    continue;
  }
  bool is_held_back = one->room == 0 || !has_room();
  struct pollfd left[2] = { { one->out, POLLIN, 0 }, { one->err, POLLIN, 0 } };
  if (is_held_back && one->late < LATE_BYTES_MAX && poll(left, 2, 0) > 0 &&
      ((left[0].revents | left[1].revents) & POLLIN)) return;
  int error;
  if (one->status_fd >= 0 && read(one->status_fd, &error, sizeof error) == sizeof error) {
    send_exit(one->id, NOT_STARTED, error);
  } else if (WIFSIGNALED(one->wait_status)) send_exit(one->id, SIGNALLED, WTERMSIG(one->wait_status));
  else send_exit(one->id, EXITED, WEXITSTATUS(one->wait_status));
  drop(one);
}

void sessions_serve(void) {
  for (int i = 0; i < SESSIONS_MAX; i++) {
    struct session *one = &sessions[i];
    if (!one->used) continue;
    if (one->input_size > 0 && revents_of(one->in_index)) write_input(one);
    else if (revents_of(one->in_index) & (POLLHUP | POLLERR)) shut(&one->in);
    if (one->input_ends && one->input_size == 0 && one->in >= 0) end_input(one);
    if (revents_of(one->out_index)) read_output(one, &one->out, 1);
    if (revents_of(one->err_index)) read_output(one, &one->err, 2);
    if (one->is_reaped) end_if_over(one);
    else if (one->is_socket && one->out < 0 && one->in < 0) {
      send_exit(one->id, EXITED, 0);
      drop(one);
    }
  }
}

void sessions_reap(void) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    for (int i = 0; i < SESSIONS_MAX; i++) {
      struct session *one = &sessions[i];
      if (!one->used || one->pid != pid || one->is_reaped) continue;
      one->is_reaped = true;
      one->wait_status = status;
    }
  }
}
