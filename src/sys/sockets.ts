// sys/sockets.ts: sockets that Node can't make: opened without being accepted from, and descriptors on their way.
//
// The host opens a guest's ports and gives them to the guest's cell process, which has no network of its own: a
// datagram to a Unix socket of that process carries the descriptor (SCM_RIGHTS) and eight bytes, its ticket, by which a
// later message names it. Datagrams never wait: the host's thread must not hang on a process that doesn't read. A
// socket's queue holds /proc/sys/net/unix/max_dgram_qlen of them (10, where nobody raised it); then the send fails with
// EAGAIN and is to be tried again.
//
// Nothing here is a hot path. Elsewhere: calls on files (linux_files.ts), locks (flock.ts).

import { chmodSync, rmSync } from 'node:fs'
import { isIPv6 } from 'node:net'
import { EINVAL, ENAMETOOLONG } from '../base/errno.ts'
import { DESCRIPTORS_PASSED_MAX, DESCRIPTORS_WAITING_MAX } from '../base/limits.ts'
import { Scratch, answer, bind } from './libc.ts'
import { must } from './system_error.ts'

const AF_UNIX = 1
const AF_INET = 2
const AF_INET6 = 10
const SOCK_STREAM = 1
const SOCK_DGRAM = 2
const SOCK_NONBLOCK = 0o4000
const SOCK_CLOEXEC = 0o2000000
const SOL_SOCKET = 1
const SO_REUSEADDR = 2
const SO_PEERCRED = 17
const SCM_RIGHTS = 1
const IPPROTO_IPV6 = 41
const IPV6_V6ONLY = 26
const MSG_DONTWAIT = 0x40
const F_DUPFD_CLOEXEC = 1030
const MSG_CMSG_CLOEXEC = 0x40000000

const native = bind({
  socket: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
  socketpair: { arguments: ['int32', 'int32', 'int32', 'pointer'], return: 'int32' },
  bind: { arguments: ['int32', 'pointer', 'uint32'], return: 'int32' },
  listen: { arguments: ['int32', 'int32'], return: 'int32' },
  setsockopt: { arguments: ['int32', 'int32', 'int32', 'pointer', 'uint32'], return: 'int32' },
  getsockopt: { arguments: ['int32', 'int32', 'int32', 'pointer', 'pointer'], return: 'int32' },
  getsockname: { arguments: ['int32', 'pointer', 'pointer'], return: 'int32' },
  inet_pton: { arguments: ['int32', 'pointer', 'pointer'], return: 'int32' },
  sendmsg: { arguments: ['int32', 'pointer', 'int32'], return: 'int64' },
  recvmsg: { arguments: ['int32', 'pointer', 'int32'], return: 'int64' },
  close: { arguments: ['int32'], return: 'int32' },
  fcntl: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
})

// What lies where in `scratch`.
const ADDRESS = 0           // struct sockaddr_un, _in or _in6
const ADDRESS_BYTES = 112
const LENGTH = 112          // socklen_t
const VALUE = 120           // an option's int, struct ucred, or int[2]
const MESSAGE = 136         // struct msghdr, 56 bytes
const IOVEC = 192           // struct iovec
const TICKET = 208          // the eight bytes
const CONTROL = 216         // struct cmsghdr { u64 length; int level; int type; }, then descriptors
const CONTROL_HEAD = 16
const CONTROL_BYTES = CONTROL_HEAD + 4 * DESCRIPTORS_PASSED_MAX
const TEXT = CONTROL + CONTROL_BYTES // an address as text
const TEXT_BYTES = 64

const scratch = new Scratch(TEXT + TEXT_BYTES)
const { view, bytes } = scratch
const at = (offset: number): bigint => scratch.address + BigInt(offset)

// SAFETY, for every call below: pointers are into `scratch`, which lives as long as the thread; lengths given to the
// kernel are those of the places, and pointers inside structs lead to `scratch` too.

/** sun_path of unix(7) with its final NUL. */
const UNIX_PATH_BYTES = 108

// Fills ADDRESS: its length, or a negated errno. A path that begins with "@" is abstract, as systemd writes them.
function putUnix(path: string): number {
  const text = Buffer.from(path)
  if (text.length >= UNIX_PATH_BYTES) return -ENAMETOOLONG
  if (text.length === 0 || text.includes(0)) return -EINVAL
  bytes.fill(0, ADDRESS, ADDRESS + ADDRESS_BYTES)
  view.setUint16(ADDRESS, AF_UNIX, true)
  bytes.set(text, ADDRESS + 2)
  if (text[0] !== 0x40) return 2 + text.length + 1
  bytes[ADDRESS + 2] = 0
  return 2 + text.length
}

// Fills MESSAGE: `length` bytes at `data`, to the address of `name` bytes, with `control` bytes of control.
function putMessage(name: number, data: bigint, length: number, control: number): void {
  view.setBigUint64(MESSAGE, name === 0 ? 0n : at(ADDRESS), true)
  view.setUint32(MESSAGE + 8, name, true)
  view.setBigUint64(MESSAGE + 16, at(IOVEC), true)
  view.setBigUint64(MESSAGE + 24, 1n, true)
  view.setBigUint64(MESSAGE + 32, control === 0 ? 0n : at(CONTROL), true)
  view.setBigUint64(MESSAGE + 40, BigInt(control), true)
  view.setInt32(MESSAGE + 48, 0, true)
  view.setBigUint64(IOVEC, data, true)
  view.setBigUint64(IOVEC + 8, BigInt(length), true)
}

// Sends from this thread's own socket, which is kept: a send is one system call.
let sender = -1
function senderSocket(): number {
  if (sender < 0) sender = must('socket', answer(native.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)))
  return sender
}

/**
 * Sends the descriptor `fd` with `ticket`, a whole number ≥ 0, to the FdReceiver at `path`. The caller's own `fd` stays
 * open. Throws a system error: EAGAIN while the receiver's queue is full, ENOENT or ECONNREFUSED when nobody is there.
 */
export function sendFd(path: string, fd: number, ticket: number): void {
  const name = must('sendmsg', putUnix(path), path)
  view.setBigUint64(TICKET, BigInt(ticket), true)
  view.setBigUint64(CONTROL, BigInt(CONTROL_HEAD + 4), true)
  view.setInt32(CONTROL + 8, SOL_SOCKET, true)
  view.setInt32(CONTROL + 12, SCM_RIGHTS, true)
  view.setInt32(CONTROL + 16, fd, true)
  view.setInt32(CONTROL + 20, 0, true)
  putMessage(name, at(TICKET), 8, CONTROL_HEAD + 8)
  must('sendmsg', answer(Number(native.sendmsg(senderSocket(), at(MESSAGE), MSG_DONTWAIT))), path)
}

/** Sends `text` as one datagram to the Unix socket at `path`; "@" at its front: abstract. 0, or a negated errno. */
export function sendDatagram(path: string, text: string): number {
  const name = putUnix(path)
  if (name < 0) return name
  // SAFETY: `data` isn't moved by V8, and the call is over before it goes.
  const data = new Scratch(Math.max(1, Buffer.byteLength(text)))
  data.bytes.set(Buffer.from(text))
  putMessage(name, data.address, Buffer.byteLength(text), 0)
  const sent = answer(Number(native.sendmsg(senderSocket(), at(MESSAGE), MSG_DONTWAIT)))
  return Math.min(0, sent)
}

/**
 * Makes a socket at `path`, for its owner alone, that takes what `sendFd` sends; a file that is there is replaced.
 * Throws a system error.
 */
export function openFdReceiver(path: string): FdReceiver {
  const fd = must('socket', answer(native.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)))
  try {
    rmSync(path, { force: true })
    const length = must('bind', putUnix(path), path)
    must('bind', answer(native.bind(fd, at(ADDRESS), length)), path)
    chmodSync(path, 0o600)
  } catch (error) {
    closeFd(fd)
    throw error
  }
  return new FdReceiver(fd, path)
}

/** Descriptors that were sent to a socket, each under its ticket until it is taken. */
export class FdReceiver {
  readonly #fd: number
  readonly #path: string
  readonly #waiting = new Map<number, number>()
  #isClosed = false

  constructor(fd: number, path: string) {
    this.#fd = fd
    this.#path = path
  }

  /** The descriptor that came with `ticket`, now the caller's own; undefined if none has come. Never waits. */
  take(ticket: number): number | undefined {
    if (this.#isClosed) return undefined
    while (this.#receive());
    const fd = this.#waiting.get(ticket)
    this.#waiting.delete(ticket)
    return fd
  }

  /** Closes what has come and nobody has taken. */
  clear(): void {
    if (this.#isClosed) return
    while (this.#receive());
    for (const fd of this.#waiting.values()) closeFd(fd)
    this.#waiting.clear()
  }

  /** Closes the socket and what nobody has taken. */
  close(): void {
    if (this.#isClosed) return
    this.clear()
    this.#isClosed = true
    closeFd(this.#fd)
    rmSync(this.#path, { force: true })
  }

  // Takes one datagram off the queue; false when there is none.
  #receive(): boolean {
    putMessage(0, at(TICKET), 8, CONTROL_BYTES)
    const length = answer(Number(native.recvmsg(this.#fd, at(MESSAGE), MSG_DONTWAIT | MSG_CMSG_CLOEXEC)))
    if (length < 0) return false
    const fds = receivedFds()
    const ticket = Number(view.getBigUint64(TICKET, true))
    // One descriptor for one ticket: whatever else was sent isn't ours.
    const fd = length === 8 ? fds.shift() : undefined
    for (const one of fds) closeFd(one)
    if (fd !== undefined) this.#keep(ticket, fd)
    return true
  }

  // What was sent and never asked for, such as by a host that was killed in between, goes in its order.
  #keep(ticket: number, fd: number): void {
    this.#drop(ticket)
    this.#waiting.set(ticket, fd)
    if (this.#waiting.size > DESCRIPTORS_WAITING_MAX) this.#drop(this.#waiting.keys().next().value!)
  }

  #drop(ticket: number): void {
    const fd = this.#waiting.get(ticket)
    if (fd !== undefined) closeFd(fd)
    this.#waiting.delete(ticket)
  }
}

// The descriptors in CONTROL, as recvmsg left it: they are open already, and each must be kept or closed.
function receivedFds(): number[] {
  const length = Number(view.getBigUint64(MESSAGE + 40, true))
  const fds: number[] = []
  for (let place = 0; place + CONTROL_HEAD <= length;) {
    const size = Number(view.getBigUint64(CONTROL + place, true))
    if (size < CONTROL_HEAD) break
    const isRights = view.getInt32(CONTROL + place + 8, true) === SOL_SOCKET &&
      view.getInt32(CONTROL + place + 12, true) === SCM_RIGHTS
    const end = Math.min(place + size, length)
    if (isRights) {
      for (let to = place + CONTROL_HEAD; to + 4 <= end; to += 4) fds.push(view.getInt32(CONTROL + to, true))
    }
    place += (size + 7) & ~7
  }
  return fds
}

/**
 * A TCP socket that listens on an IPv4 or IPv6 address (no names, no zones; `::` is IPv6 only) and a port, 0 for a free
 * one, and that nobody accepts from yet. Non-blocking. Its descriptor and port, or a negated errno.
 */
export function listenTcp(address: string, port: number, backlog: number): { fd: number; port: number } | number {
  const family = isIPv6(address) ? AF_INET6 : AF_INET
  const length = putInet(family, address, port)
  if (length < 0) return length
  const fd = answer(native.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0))
  if (fd < 0) return fd
  const result = listenOn(fd, family, length, backlog)
  if (result >= 0) return { fd, port: result }
  closeFd(fd)
  return result
}

// Fills ADDRESS: its length, or a negated errno.
function putInet(family: number, address: string, port: number): number {
  const text = Buffer.from(address)
  if (text.length >= TEXT_BYTES || text.includes(0) || !(port >= 0 && port <= 65_535)) return -EINVAL
  bytes.set(text, TEXT)
  bytes[TEXT + text.length] = 0
  bytes.fill(0, ADDRESS, ADDRESS + ADDRESS_BYTES)
  // struct sockaddr_in { u16 family; be16 port; be32 address; … }, _in6 { u16; be16; be32 flow; u8 address[16]; u32 }
  view.setUint16(ADDRESS, family, true)
  view.setUint16(ADDRESS + 2, port, false)
  if (native.inet_pton(family, at(TEXT), at(ADDRESS + (family === AF_INET6 ? 8 : 4))) !== 1) return -EINVAL
  return family === AF_INET6 ? 28 : 16
}

// The port, or a negated errno.
function listenOn(fd: number, family: number, length: number, backlog: number): number {
  setOption(fd, SOL_SOCKET, SO_REUSEADDR)
  if (family === AF_INET6) setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY)
  const bound = answer(native.bind(fd, at(ADDRESS), length))
  if (bound < 0) return bound
  const listens = answer(native.listen(fd, backlog))
  if (listens < 0) return listens
  view.setUint32(LENGTH, ADDRESS_BYTES, true)
  const named = answer(native.getsockname(fd, at(ADDRESS), at(LENGTH)))
  return named < 0 ? named : view.getUint16(ADDRESS + 2, false)
}

function setOption(fd: number, level: number, option: number): void {
  view.setInt32(VALUE, 1, true)
  native.setsockopt(fd, level, option, at(VALUE), 4)
}

/** close(2): 0, or a negated errno. */
export function closeFd(fd: number): number {
  return answer(native.close(fd))
}

/** Another descriptor of the same socket. Throws a system error. */
export function duplicateFd(fd: number): number {
  return must('fcntl', answer(native.fcntl(fd, F_DUPFD_CLOEXEC, 0)))
}

/** Two stream sockets that are connected to each other, non-blocking. Throws a system error. */
export function socketPair(): [number, number] {
  must('socketpair', answer(native.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, at(VALUE))))
  return [view.getInt32(VALUE, true), view.getInt32(VALUE + 4, true)]
}

/** Who connected a Unix socket, or listened on it: the kernel's word (SO_PEERCRED). Throws a system error. */
export function peerCredentials(fd: number): { pid: number; uid: number; gid: number } {
  view.setUint32(LENGTH, 12, true)
  must('getsockopt', answer(native.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, at(VALUE), at(LENGTH))))
  return {
    pid: view.getInt32(VALUE, true), uid: view.getUint32(VALUE + 4, true), gid: view.getUint32(VALUE + 8, true),
  }
}
