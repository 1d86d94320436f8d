// wasi/p1/abi.ts: the numbers of WASI preview 1 (wasi_snapshot_preview1.witx), spelled as there.
//
// Rights are 64-bit in the ABI; all that exist lie in the low 30 bits, so that a number holds them.

export const RIGHTS_FD_DATASYNC = 1 << 0
export const RIGHTS_FD_READ = 1 << 1
export const RIGHTS_FD_SEEK = 1 << 2
export const RIGHTS_FD_FDSTAT_SET_FLAGS = 1 << 3
export const RIGHTS_FD_SYNC = 1 << 4
export const RIGHTS_FD_TELL = 1 << 5
export const RIGHTS_FD_WRITE = 1 << 6
export const RIGHTS_FD_ADVISE = 1 << 7
export const RIGHTS_FD_ALLOCATE = 1 << 8
export const RIGHTS_PATH_CREATE_DIRECTORY = 1 << 9
export const RIGHTS_PATH_CREATE_FILE = 1 << 10
export const RIGHTS_PATH_LINK_SOURCE = 1 << 11
export const RIGHTS_PATH_LINK_TARGET = 1 << 12
export const RIGHTS_PATH_OPEN = 1 << 13
export const RIGHTS_FD_READDIR = 1 << 14
export const RIGHTS_PATH_READLINK = 1 << 15
export const RIGHTS_PATH_RENAME_SOURCE = 1 << 16
export const RIGHTS_PATH_RENAME_TARGET = 1 << 17
export const RIGHTS_PATH_FILESTAT_GET = 1 << 18
export const RIGHTS_PATH_FILESTAT_SET_SIZE = 1 << 19
export const RIGHTS_PATH_FILESTAT_SET_TIMES = 1 << 20
export const RIGHTS_FD_FILESTAT_GET = 1 << 21
export const RIGHTS_FD_FILESTAT_SET_SIZE = 1 << 22
export const RIGHTS_FD_FILESTAT_SET_TIMES = 1 << 23
export const RIGHTS_PATH_SYMLINK = 1 << 24
export const RIGHTS_PATH_REMOVE_DIRECTORY = 1 << 25
export const RIGHTS_PATH_UNLINK_FILE = 1 << 26
export const RIGHTS_POLL_FD_READWRITE = 1 << 27
export const RIGHTS_SOCK_SHUTDOWN = 1 << 28
export const RIGHTS_SOCK_ACCEPT = 1 << 29
export const RIGHTS_ALL = (1 << 30) - 1

/** What a regular file can do. */
export const RIGHTS_FILE = RIGHTS_FD_DATASYNC | RIGHTS_FD_READ | RIGHTS_FD_SEEK | RIGHTS_FD_FDSTAT_SET_FLAGS |
  RIGHTS_FD_SYNC | RIGHTS_FD_TELL | RIGHTS_FD_WRITE | RIGHTS_FD_ADVISE | RIGHTS_FD_ALLOCATE | RIGHTS_FD_FILESTAT_GET |
  RIGHTS_FD_FILESTAT_SET_SIZE | RIGHTS_FD_FILESTAT_SET_TIMES | RIGHTS_POLL_FD_READWRITE
/** What a folder can do. */
export const RIGHTS_DIRECTORY = RIGHTS_FD_DATASYNC | RIGHTS_FD_FDSTAT_SET_FLAGS | RIGHTS_FD_SYNC |
  RIGHTS_PATH_CREATE_DIRECTORY | RIGHTS_PATH_CREATE_FILE | RIGHTS_PATH_LINK_SOURCE | RIGHTS_PATH_LINK_TARGET |
  RIGHTS_PATH_OPEN | RIGHTS_FD_READDIR | RIGHTS_PATH_READLINK | RIGHTS_PATH_RENAME_SOURCE | RIGHTS_PATH_RENAME_TARGET |
  RIGHTS_PATH_FILESTAT_GET | RIGHTS_PATH_FILESTAT_SET_SIZE | RIGHTS_PATH_FILESTAT_SET_TIMES | RIGHTS_FD_FILESTAT_GET |
  RIGHTS_FD_FILESTAT_SET_TIMES | RIGHTS_PATH_SYMLINK | RIGHTS_PATH_REMOVE_DIRECTORY | RIGHTS_PATH_UNLINK_FILE |
  RIGHTS_POLL_FD_READWRITE
/** What a console's stream can do. */
export const RIGHTS_STREAM = RIGHTS_FD_READ | RIGHTS_FD_WRITE | RIGHTS_FD_FDSTAT_SET_FLAGS | RIGHTS_FD_FILESTAT_GET |
  RIGHTS_POLL_FD_READWRITE
/** What a descriptor of events can do (wasi/cellar/lifecycle.ts). */
export const RIGHTS_EVENTS = RIGHTS_FD_READ | RIGHTS_FD_FDSTAT_SET_FLAGS | RIGHTS_FD_FILESTAT_GET |
  RIGHTS_POLL_FD_READWRITE
/** What a connection can do. */
export const RIGHTS_SOCKET = RIGHTS_STREAM | RIGHTS_SOCK_SHUTDOWN
/** What a listening socket can do. */
export const RIGHTS_LISTENER = RIGHTS_SOCK_ACCEPT | RIGHTS_FD_FDSTAT_SET_FLAGS | RIGHTS_FD_FILESTAT_GET |
  RIGHTS_POLL_FD_READWRITE

export const FDFLAGS_APPEND = 1 << 0
export const FDFLAGS_DSYNC = 1 << 1
export const FDFLAGS_NONBLOCK = 1 << 2
export const FDFLAGS_RSYNC = 1 << 3
export const FDFLAGS_SYNC = 1 << 4
export const FDFLAGS_ALL = 0x1f

export const OFLAGS_CREAT = 1 << 0
export const OFLAGS_DIRECTORY = 1 << 1
export const OFLAGS_EXCL = 1 << 2
export const OFLAGS_TRUNC = 1 << 3

export const LOOKUPFLAGS_SYMLINK_FOLLOW = 1 << 0

export const FSTFLAGS_ATIM = 1 << 0
export const FSTFLAGS_ATIM_NOW = 1 << 1
export const FSTFLAGS_MTIM = 1 << 2
export const FSTFLAGS_MTIM_NOW = 1 << 3

export const WHENCE_SET = 0
export const WHENCE_CUR = 1
export const WHENCE_END = 2

export const CLOCKID_REALTIME = 0
export const CLOCKID_MONOTONIC = 1
export const CLOCKID_PROCESS_CPUTIME_ID = 2
export const CLOCKID_THREAD_CPUTIME_ID = 3

export const EVENTTYPE_CLOCK = 0
export const EVENTTYPE_FD_READ = 1
export const EVENTTYPE_FD_WRITE = 2
export const SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME = 1
export const EVENTRWFLAGS_FD_READWRITE_HANGUP = 1

export const RIFLAGS_RECV_PEEK = 1 << 0
export const RIFLAGS_RECV_WAITALL = 1 << 1
export const ROFLAGS_RECV_DATA_TRUNCATED = 1 << 0
export const SDFLAGS_RD = 1 << 0
export const SDFLAGS_WR = 1 << 1

export const PREOPENTYPE_DIR = 0
