// services/net/connection.ts: one TCP connection of a guest.
//
// A node:net socket lives on the event loop of the pCPU's thread; nothing here blocks. Two bounded buffers lie between
// it and the guest, SOCKET_BUFFER_BYTES_MAX each:
//
//   peer → kernel → [Node's stream] → #inbox → recv() → guest   full: we stop reading, the kernel's window closes
//   guest → send() → [socket.writableLength] → kernel → peer       full: -EAGAIN until half of it has left
//
// Received bytes are copied once, from the buffer the kernel wrote to into guest memory. Sent bytes go straight to the
// kernel, by a system call of ours, while none wait before them and the kernel takes them; what it doesn't take is
// copied, because it outlives the hypercall. Each buffered piece is charged PIECE_BYTES besides its own length
// (inbox.ts).
//
// The two directions end on their own (allowHalfOpen): a guest may answer after the peer's FIN. After a reset, what had
// arrived can still be read, then recv() says ECONNRESET, and send() EPIPE.
//
// close() lets go of the guest's side only: data that send() accepted still goes to the peer, for at most
// CLOSING_MS_MAX. flushed() tells when all of it has. If received data was left unread we read and drop until the
// peer's FIN, for at most LINGER_MS_MAX: closing a socket with unread data makes the kernel send a reset, and throw
// away what it has not sent yet.
//
// Elsewhere: accepting (listener.ts), flags and numbers (wasi/p1/sock.ts).

import { Socket } from 'node:net'
import { EAGAIN, ECONNRESET, ENOTCONN, EPIPE, errnoOf } from '../../base/errno.ts'
import { SOCKET_BUFFER_BYTES_MAX } from '../../base/limits.ts'
import { isSupported } from '../../sys/libc.ts'
import { OFFSET_CURRENT, writev } from '../../sys/linux_files.ts'
import { FILETYPE_SOCKET_STREAM } from '../descriptor.ts'
import type { Stat } from '../descriptor.ts'
import type { Iovecs } from '../iovecs.ts'
import { WaitQueue } from '../wait_queue.ts'
import type { Waker } from '../wait_queue.ts'
import { Inbox, PIECE_BYTES } from './inbox.ts'
import type { StreamSocket } from './stream_socket.ts'

/** A paused stream of Node still takes its high-water mark and one read, 64 KiB each: part of our limit. */
const PAUSE_BYTES = SOCKET_BUFFER_BYTES_MAX - 2 * 65_536

/** After so much the event loop must turn, though the kernel would take more: who only sends would never leave. */
const PASSED_BYTES_MAX = SOCKET_BUFFER_BYTES_MAX / 2

/** How long a closed connection may take to send what it has accepted. A peer that takes nothing is then dropped. */
const CLOSING_MS_MAX = 60_000

/** How long a closed connection waits for the peer's FIN when it left received data unread. */
const LINGER_MS_MAX = 1000

// The closed connections of this thread that are not done yet, and who waits for there being none.
const closing = new Set<Connection>()
const allClosed = new WaitQueue()

// Whether system calls can be made here: asked once, as the answer may take long.
let direct: boolean | undefined
const isDirect = (): boolean => direct ??= isSupported()

/** Resolves when every closed connection of this thread has sent what it accepted, or after `boundMs`. */
export function flushed(boundMs: number): Promise<void> {
  if (closing.size === 0) return Promise.resolve()
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer)
      allClosed.delete(done)
      resolve()
    }
    const timer = setTimeout(done, boundMs)
    allClosed.add(done)
  })
}

/** A connection on a connected socket of the process, which belongs to it from now on. Throws if it isn't a socket. */
export function connectionOn(fd: number): Connection {
  // Node knows pauseOnCreate, its types don't.
  const options = { fd, readable: true, writable: true, allowHalfOpen: true, pauseOnCreate: true }
  const socket = new Socket(options)
  socket.setNoDelay(true)
  return new Connection(socket)
}

/** A stream socket that is connected. Given out by Listener.accept(). */
export class Connection implements StreamSocket {
  readonly filetype = FILETYPE_SOCKET_STREAM
  readonly #socket: Socket

  readonly #inbox = new Inbox()
  #paused = true
  /** No more will come: the peer's FIN, or our shutdown. */
  #readEnded = false
  /** What comes is dropped: after shutdown for reading and after close. */
  #dropping = false
  /** Something was left unread or dropped: close() must wait for the peer's FIN. */
  #lingers = false

  /** Writes that Node has not called back. */
  #writes = 0
  /** What went to the kernel at once, and its charge, since we have last heard of the socket. */
  #passed = 0
  #writeEnded = false

  /** errno of the failure that ended both directions, or 0. */
  #failure = 0
  #closed = false
  #closingTimer: NodeJS.Timeout | undefined
  readonly #readable = new WaitQueue()
  readonly #writable = new WaitQueue()

  /** `socket` is paused and allows half-open; nothing is read from it before start(). */
  constructor(socket: Socket) {
    this.#socket = socket
    socket.on('data', (chunk: Buffer) => this.#receive(chunk))
    socket.on('end', () => this.#endRead())
    socket.on('error', (error) => this.#fail(errnoOf(error)))
    socket.on('close', () => this.#ended())
  }

  get unread(): number { return this.#inbox.unread }

  /** Bytes accepted from the guest that Node has not given to the kernel. */
  get unsent(): number { return this.#socket.writableLength }

  /** Begins to read from the peer. Called once, when the guest has accepted the connection. */
  start(): void {
    this.#paused = false
    this.#socket.resume()
  }

  recv(iovecs: Iovecs, from = 0): number {
    const count = this.peek(iovecs, from)
    if (count <= 0) return count
    this.#inbox.drop(count)
    if (this.#paused && this.#inbox.held <= PAUSE_BYTES / 2) {
      this.#paused = false
      this.#socket.resume()
    }
    return count
  }

  peek(iovecs: Iovecs, from = 0): number {
    if (iovecs.total <= from) return 0
    if (this.#inbox.unread > 0) return this.#inbox.copy(iovecs, from)
    if (this.#readEnded) return 0
    return this.#failure === 0 ? -EAGAIN : -this.#failure
  }

  get complete(): boolean { return this.#readEnded || this.#failure !== 0 || this.#paused }

  send(iovecs: Iovecs): number {
    if (this.#writeEnded || this.#failure !== 0 || this.#socket.destroyed) return -EPIPE
    if (iovecs.total === 0) return 0
    const room = this.#room()
    if (room <= 0) return -EAGAIN
    if (iovecs.total > room) iovecs.cut(room)
    const sent = this.#sendNow(iovecs)
    if (sent === iovecs.total) return sent
    const copy = Buffer.allocUnsafe(iovecs.total - sent)
    iovecs.gatherInto(copy, sent)
    this.#writes++
    this.#socket.write(copy, this.#written)
    return sent + copy.length
  }

  // How many bytes the kernel took at once. A failure is Node's to find, which is told the same of the next write.
  #sendNow({ memory, offsets, lengths, count, total }: Iovecs): number {
    if (this.#writes > 0 || this.#passed > PASSED_BYTES_MAX || !isDirect()) return 0
    this.#passed += total + PIECE_BYTES
    // -1 where it has none: Node closes it before anybody else can have its number.
    const fd = (this.#socket as unknown as { _handle: { fd?: number } | null })._handle?.fd ?? -1
    return fd < 0 ? 0 : Math.max(0, writev(fd, memory!.bytes, offsets, lengths, count, OFFSET_CURRENT))
  }

  read(iovecs: Iovecs): number { return this.recv(iovecs) }
  write(iovecs: Iovecs): number { return this.send(iovecs) }

  shutdown(how: { read: boolean; write: boolean }): number {
    if (this.#failure !== 0) return -ENOTCONN
    if (how.write && !this.#writeEnded) {
      this.#writeEnded = true
      this.#socket.end()
      this.#writable.notify()
    }
    if (how.read) {
      this.#drop()
      this.#endRead()
    }
    return 0
  }

  pollRead(): number {
    if (this.#inbox.unread > 0) return this.#inbox.unread
    return this.#readEnded || this.#failure !== 0 ? 0 : -EAGAIN
  }

  pollWrite(): number {
    if (this.#writeEnded || this.#failure !== 0) return 0
    const room = this.#room()
    return room > 0 ? room : -EAGAIN
  }

  hangup(): boolean { return this.#failure !== 0 || (this.#readEnded && this.#writeEnded) }

  awaitReadable(waker: Waker): void { this.#readable.add(waker) }
  awaitWritable(waker: Waker): void { this.#writable.add(waker) }

  forget(waker: Waker): void {
    this.#readable.delete(waker)
    this.#writable.delete(waker)
  }

  stat(): Stat {
    return { dev: 0n, ino: 0n, filetype: FILETYPE_SOCKET_STREAM, nlink: 1n, size: 0n, atim: 0n, mtim: 0n, ctim: 0n }
  }

  /** The guest is done with it. What was accepted is still sent: see the head of this file. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    if (this.#socket.destroyed) return
    closing.add(this)
    // Paused means that the kernel holds unread data, too.
    if (this.#inbox.unread > 0 || this.#paused) this.#lingers = true
    if (this.#lingers || this.#socket.writableLength > 0) this.#destroyIn(CLOSING_MS_MAX)
    this.#writeEnded = true
    this.#drop()
    const sent = (): void => {
      if (!this.#lingers || this.#socket.readableEnded) this.#socket.destroy()
      else this.#destroyIn(LINGER_MS_MAX)
    }
    if (this.#socket.writableFinished) sent()
    else this.#socket.once('finish', sent).end()
  }

  /** What the guest has ended is brought to its end; anything else would look like the whole to the peer. */
  leave(): void {
    if (this.#writeEnded) this.close()
    else this.reset()
  }

  /** Drops the connection with a reset: for one that the guest never accepted. */
  reset(): void {
    this.#closed = true
    this.#socket.resetAndDestroy()
  }

  // Has the kernel's data of one read.
  #receive(chunk: Buffer): void {
    this.#passed = 0
    if (this.#dropping) {
      this.#lingers = true
      return
    }
    this.#inbox.push(chunk)
    if (!this.#paused && this.#inbox.held >= PAUSE_BYTES) {
      this.#paused = true
      this.#socket.pause()
    }
    this.#readable.notify()
  }

  #endRead(): void {
    this.#readEnded = true
    this.#readable.notify()
  }

  #fail(errno: number): void {
    if (this.#failure !== 0) return
    // A write to a connection that the peer has reset fails with EPIPE; for the guest that is the same event.
    this.#failure = errno === EPIPE ? ECONNRESET : errno
    this.#readable.notify()
    this.#writable.notify()
  }

  // Node has let go of the socket: after a failure, after close(), or since both directions have ended.
  #ended(): void {
    clearTimeout(this.#closingTimer)
    if (!this.#readEnded || !this.#writeEnded) this.#fail(ECONNRESET)
    if (closing.delete(this) && closing.size === 0) allClosed.notify()
  }

  // From now on what the peer sends is read, so that its FIN or reset is noticed, and dropped.
  #drop(): void {
    this.#dropping = true
    this.#inbox.clear()
    if (this.#paused) this.start()
  }

  #destroyIn(ms: number): void {
    clearTimeout(this.#closingTimer)
    this.#closingTimer = setTimeout(() => this.#socket.destroy(), ms)
  }

  // One function for all writes of the connection. Waiters are woken at half, so that the kernel doesn't run dry.
  readonly #written = (): void => {
    this.#writes--
    this.#passed = 0
    if (this.#writable.waited && this.#room() >= SOCKET_BUFFER_BYTES_MAX / 2) this.#writable.notify()
  }

  #room(): number { return SOCKET_BUFFER_BYTES_MAX - this.#socket.writableLength - this.#writes * PIECE_BYTES }
}
