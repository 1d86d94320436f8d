// base/errno.ts: POSIX error names, with the numbers of WASI preview 1 (`errno` in wasi_snapshot_preview1.witx).
//
// Services answer with a count ≥ 0 or a negated errno (`-ENOENT`), never with an exception: a guest's mistake is an
// answer. Elsewhere: the kernel's own numbers are mapped to these in sys/errno_linux.ts.

/** The operation succeeded. */
export const ESUCCESS = 0
export const E2BIG = 1
export const EACCES = 2
export const EADDRINUSE = 3
export const EADDRNOTAVAIL = 4
export const EAFNOSUPPORT = 5
/** Would have to wait: ask the descriptor's wait queue, then try again. */
export const EAGAIN = 6
export const EALREADY = 7
export const EBADF = 8
export const EBADMSG = 9
export const EBUSY = 10
export const ECANCELED = 11
export const ECHILD = 12
export const ECONNABORTED = 13
export const ECONNREFUSED = 14
export const ECONNRESET = 15
export const EDEADLK = 16
export const EDESTADDRREQ = 17
export const EDOM = 18
export const EDQUOT = 19
export const EEXIST = 20
/** A pointer or length reaches outside the guest's memory. */
export const EFAULT = 21
export const EFBIG = 22
export const EHOSTUNREACH = 23
export const EIDRM = 24
/** Not UTF-8. */
export const EILSEQ = 25
export const EINPROGRESS = 26
export const EINTR = 27
export const EINVAL = 28
export const EIO = 29
export const EISCONN = 30
export const EISDIR = 31
export const ELOOP = 32
export const EMFILE = 33
export const EMLINK = 34
export const EMSGSIZE = 35
export const EMULTIHOP = 36
export const ENAMETOOLONG = 37
export const ENETDOWN = 38
export const ENETRESET = 39
export const ENETUNREACH = 40
export const ENFILE = 41
export const ENOBUFS = 42
export const ENODEV = 43
export const ENOENT = 44
export const ENOEXEC = 45
export const ENOLCK = 46
export const ENOLINK = 47
export const ENOMEM = 48
export const ENOMSG = 49
export const ENOPROTOOPT = 50
export const ENOSPC = 51
export const ENOSYS = 52
export const ENOTCONN = 53
export const ENOTDIR = 54
export const ENOTEMPTY = 55
export const ENOTRECOVERABLE = 56
export const ENOTSOCK = 57
export const ENOTSUP = 58
export const ENOTTY = 59
export const ENXIO = 60
export const EOVERFLOW = 61
export const EOWNERDEAD = 62
export const EPERM = 63
export const EPIPE = 64
export const EPROTO = 65
export const EPROTONOSUPPORT = 66
export const EPROTOTYPE = 67
export const ERANGE = 68
export const EROFS = 69
export const ESPIPE = 70
export const ESRCH = 71
export const ESTALE = 72
export const ETIMEDOUT = 73
export const ETXTBSY = 74
export const EXDEV = 75
/** The descriptor lacks the right (WASI's own; POSIX has none). */
export const ENOTCAPABLE = 76

/** errno → name, for traces and messages. */
export const ERRNO_NAMES: readonly string[] = [
  'ESUCCESS', 'E2BIG', 'EACCES', 'EADDRINUSE', 'EADDRNOTAVAIL', 'EAFNOSUPPORT', 'EAGAIN', 'EALREADY', 'EBADF',
  'EBADMSG', 'EBUSY', 'ECANCELED', 'ECHILD', 'ECONNABORTED', 'ECONNREFUSED', 'ECONNRESET', 'EDEADLK', 'EDESTADDRREQ',
  'EDOM', 'EDQUOT', 'EEXIST', 'EFAULT', 'EFBIG', 'EHOSTUNREACH', 'EIDRM', 'EILSEQ', 'EINPROGRESS', 'EINTR', 'EINVAL',
  'EIO', 'EISCONN', 'EISDIR', 'ELOOP', 'EMFILE', 'EMLINK', 'EMSGSIZE', 'EMULTIHOP', 'ENAMETOOLONG', 'ENETDOWN',
  'ENETRESET', 'ENETUNREACH', 'ENFILE', 'ENOBUFS', 'ENODEV', 'ENOENT', 'ENOEXEC', 'ENOLCK', 'ENOLINK', 'ENOMEM',
  'ENOMSG', 'ENOPROTOOPT', 'ENOSPC', 'ENOSYS', 'ENOTCONN', 'ENOTDIR', 'ENOTEMPTY', 'ENOTRECOVERABLE', 'ENOTSOCK',
  'ENOTSUP', 'ENOTTY', 'ENXIO', 'EOVERFLOW', 'EOWNERDEAD', 'EPERM', 'EPIPE', 'EPROTO', 'EPROTONOSUPPORT',
  'EPROTOTYPE', 'ERANGE', 'EROFS', 'ESPIPE', 'ESRCH', 'ESTALE', 'ETIMEDOUT', 'ETXTBSY', 'EXDEV', 'ENOTCAPABLE',
]

/** The errno of a Node system error (`error.code`, such as 'ENOENT'); EIO if it has none that we know. */
export function errnoOf(error: unknown): number {
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  if (code === 'EWOULDBLOCK') return EAGAIN
  if (code === 'EOPNOTSUPP') return ENOTSUP
  const errno = code === undefined ? -1 : ERRNO_NAMES.indexOf(code)
  return errno < 0 ? EIO : errno
}
