// services/vsock/connection.ts: one stream connection over vsock, as a Duplex.
//
// Credit (Virtio 1.3 §5.10.6.3): each side says in every packet how large its buffer is (buf_alloc) and how many bytes
// it has taken out of it (fwd_cnt, modulo 2^32); the other may have so many under way and no more. A peer that sends
// more, or has taken what was never sent, breaks the connection. What it says that it can hold is believed up to our
// own bound, as what we send waits in this process until the guest gives room.
//
// Received bytes are copied together: a peer that sends them one by one costs no more memory than its buffer.
// Elsewhere: who has which connection (vsock.ts), packets as bytes (packet.ts).

import { Duplex } from 'node:stream'
import { VSOCK_PAYLOAD_BYTES_MAX } from '../../base/limits.ts'
import {
  VIRTIO_VSOCK_OP_CREDIT_REQUEST, VIRTIO_VSOCK_OP_CREDIT_UPDATE, VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE, VIRTIO_VSOCK_SHUTDOWN_F_SEND,
  type Packet,
} from './packet.ts'

/** Bytes that a connection holds for a reader of ours, and has under way to the guest. */
export const BUFFER_BYTES_MAX = 256 * 1024
/** Received bytes lie in pieces of this size, or of their packet's. */
const PIECE_BYTES = 16 * 1024
/** A reader that has taken so much tells it, though it has nothing to send. */
const CREDIT_BYTES = BUFFER_BYTES_MAX / 4
const BOTH = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND
const NOTHING = new Uint8Array(0)

/** The owner of connections, as one of them knows it. */
export type ConnectionOwner = {
  /** False: no more data until `pump` is called; what belongs to the protocol goes all the same. */
  readonly hasRoom: boolean
  send(connection: VsockConnection, op: number, flags: number, payload: Uint8Array): void
  /** It is over: forgotten at once, or (`lingers`) when the peer has answered the shutdown. */
  over(connection: VsockConnection, lingers: boolean): void
}

type ConnectionOptions = {
  owner: ConnectionOwner; localPort: number; peerPort: number
  opened?: { resolve(): void; reject(error: Error): void }
}

type Piece = { readonly bytes: Buffer; from: number; to: number }

/** One connection. It errs with ECONNRESET when the peer breaks it off, and when it breaks the protocol. */
export class VsockConnection extends Duplex {
  readonly localPort: number
  readonly peerPort: number
  readonly #owner: ConnectionOwner
  /** Settled when the peer has answered a request of ours; undefined: the request was the peer's. */
  #opened: { resolve(): void; reject(error: Error): void } | undefined
  #pieces: Piece[] = []
  #held = 0
  /** All that was taken out, and what the peer knows of it. */
  #forwarded = 0
  #toldForwarded = 0
  #wantsMore = false
  #sent = 0
  #peerAlloc = 0
  #peerForwarded = 0
  #hasAskedCredit = false
  /** What is being written. */
  #writing: { readonly bytes: Uint8Array; at: number; readonly done: (error?: Error | null) => void } | undefined
  /** What the peer has shut: it receives no more, it sends no more. */
  #peerShut = 0
  #hasShut = false
  #hasEnded = false
  /** The peer knows nothing of it any more. */
  #isGone = false

  constructor({ owner, localPort, peerPort, opened }: ConnectionOptions) {
    super()
    this.#owner = owner
    this.localPort = localPort
    this.peerPort = peerPort
    this.#opened = opened
  }

  /** What the peer is told with every packet. */
  get forwarded(): number {
    return this.#forwarded
  }

  // ---- for the owner

  /** The last packet said how much was taken. */
  told(): void {
    this.#toldForwarded = this.#forwarded
  }

  /** The peer has sent something that belongs to this connection. */
  hear(packet: Packet): void {
    if (!this.#hearCredit(packet)) return this.fail('it has taken what was never sent')
    const { op } = packet
    if (op === VIRTIO_VSOCK_OP_RST) return this.#hearReset()
    if (this.#opened !== undefined) {
      if (op !== VIRTIO_VSOCK_OP_RESPONSE) return this.fail('it answers a request with something else')
      const { resolve } = this.#opened
      this.#opened = undefined
      resolve()
      this.pump()
    } else if (op === VIRTIO_VSOCK_OP_RW) this.#hearData(packet.payload)
    else if (op === VIRTIO_VSOCK_OP_SHUTDOWN) this.#hearShutdown(packet.flags)
    else if (op === VIRTIO_VSOCK_OP_CREDIT_UPDATE) this.pump()
    else if (op === VIRTIO_VSOCK_OP_CREDIT_REQUEST) this.#say(VIRTIO_VSOCK_OP_CREDIT_UPDATE)
    else this.fail(`it sends operation ${op}`)
  }

  /** Sends what there is room for. */
  pump(): void {
    const writing = this.#writing
    if (writing === undefined || this.#opened !== undefined) return
    while (writing.at < writing.bytes.length && this.#owner.hasRoom && !this.#isGone) {
      const credit = creditLeft(this.#peerAlloc, this.#sent, this.#peerForwarded)
      if (credit === 0) {
        if (!this.#hasAskedCredit) this.#say(VIRTIO_VSOCK_OP_CREDIT_REQUEST)
        this.#hasAskedCredit = true
        return
      }
      const end = Math.min(writing.bytes.length, writing.at + credit, writing.at + VSOCK_PAYLOAD_BYTES_MAX)
      const part = writing.bytes.subarray(writing.at, end)
      writing.at = end
      this.#sent = (this.#sent + part.length) >>> 0
      this.#hasAskedCredit = false
      this.#say(VIRTIO_VSOCK_OP_RW, 0, part)
    }
    if (writing.at < writing.bytes.length) return
    this.#writing = undefined
    writing.done()
  }

  /** Ends it: the peer is told, and so is who uses it. */
  fail(why: string, code = 'ECONNRESET'): void {
    const error = Object.assign(new Error(`vsock: ${why}`), { code })
    const opening = this.#opened
    this.#opened = undefined
    if (!this.#isGone) this.#leave(VIRTIO_VSOCK_OP_RST)
    // Nobody has an unopened one who could hear of it.
    if (opening !== undefined) this.on('error', () => {})
    opening?.reject(error)
    this.destroy(error)
  }

  /** The transport was reset: the peer knows nothing of it. */
  forget(): void {
    this.#isGone = true
    this.fail('the connection was reset')
  }

  // ---- as a Duplex

  override _read(): void {
    this.#wantsMore = true
    this.#flow()
  }

  override _write(bytes: Uint8Array, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.#isGone || (this.#peerShut & VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE) !== 0) return done(brokenPipe())
    this.#writing = { bytes, at: 0, done }
    this.pump()
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#hasShut = true
    this.#say(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_F_SEND)
    done()
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#pieces = []
    const isProper = error === null && this.#hasShut && (this.#peerShut & VIRTIO_VSOCK_SHUTDOWN_F_SEND) !== 0 &&
      this.#held === 0
    if (!this.#isGone) this.#leave(isProper ? VIRTIO_VSOCK_OP_SHUTDOWN : VIRTIO_VSOCK_OP_RST)
    const writing = this.#writing
    this.#writing = undefined
    writing?.done(error ?? brokenPipe())
    done(error)
  }

  // ----

  #say(op: number, flags = 0, payload: Uint8Array = NOTHING): void {
    if (!this.#isGone) this.#owner.send(this, op, flags, payload)
  }

  // After a shutdown of both the peer answers with a reset, and until then may send what it had under way.
  #leave(op: number): void {
    this.#say(op, op === VIRTIO_VSOCK_OP_SHUTDOWN ? BOTH : 0)
    this.#isGone = true
    this.#owner.over(this, op === VIRTIO_VSOCK_OP_SHUTDOWN)
  }

  // False if it is impossible.
  #hearCredit({ bufAlloc, fwdCnt }: Packet): boolean {
    if (((this.#sent - fwdCnt) >>> 0) > BUFFER_BYTES_MAX) return false
    this.#peerAlloc = bufAlloc
    this.#peerForwarded = fwdCnt
    if (bufAlloc > 0) this.#hasAskedCredit = this.#hasAskedCredit && creditLeft(bufAlloc, this.#sent, fwdCnt) === 0
    return true
  }

  #hearData(payload: Uint8Array): void {
    if ((this.#peerShut & VIRTIO_VSOCK_SHUTDOWN_F_SEND) !== 0) return this.fail('it sends after its end')
    if (this.#held + payload.length > BUFFER_BYTES_MAX) return this.fail('it sends more than it may')
    // Packets of nothing are nothing.
    if (payload.length === 0) return this.pump()
    this.#held += payload.length
    this.#keep(payload)
    this.#flow()
    this.pump()
  }

  #keep(payload: Uint8Array): void {
    let rest = payload
    const last = this.#pieces.at(-1)
    if (last !== undefined) {
      const part = rest.subarray(0, last.bytes.length - last.to)
      last.bytes.set(part, last.to)
      last.to += part.length
      rest = rest.subarray(part.length)
    }
    if (rest.length === 0) return
    // Who waits for it gets it at once: then nothing is put behind it.
    const bytes = Buffer.allocUnsafe(this.#wantsMore ? rest.length : Math.max(PIECE_BYTES, rest.length))
    bytes.set(rest)
    this.#pieces.push({ bytes, from: 0, to: rest.length })
  }

  #hearShutdown(flags: number): void {
    this.#peerShut |= flags & BOTH
    if ((this.#peerShut & VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE) !== 0 && this.#writing !== undefined) {
      const { done } = this.#writing
      this.#writing = undefined
      done(brokenPipe())
    }
    // It waits for nothing but this answer. What it has sent is still to be read here.
    if (this.#peerShut === BOTH && !this.#isGone) this.#leave(VIRTIO_VSOCK_OP_RST)
    this.#flow()
  }

  #hearReset(): void {
    this.#isGone = true
    this.#owner.over(this, false)
    if (this.#opened !== undefined) return this.fail('nobody listens on this port', 'ECONNREFUSED')
    // Both have said all they have.
    if (this.#hasShut && (this.#peerShut & VIRTIO_VSOCK_SHUTDOWN_F_SEND) !== 0) return
    this.fail('the guest has broken the connection off')
  }

  // To the reader, as long as it takes more.
  #flow(): void {
    while (this.#wantsMore && this.#pieces.length > 0) {
      const { bytes, from, to } = this.#pieces.shift()!
      const size = to - from
      this.#held -= size
      this.#forwarded = (this.#forwarded + size) >>> 0
      const part = bytes.subarray(from, to)
      // What waits in the stream is counted by its bytes: a piece that is mostly empty would hold far more.
      this.#wantsMore = this.push(size < bytes.length / 2 ? Buffer.from(part) : part)
    }
    if (this.#pieces.length === 0 && (this.#peerShut & VIRTIO_VSOCK_SHUTDOWN_F_SEND) !== 0) {
      if (this.#wantsMore && !this.#hasEnded) {
        this.#hasEnded = true
        this.push(null)
      }
      return
    }
    if (((this.#forwarded - this.#toldForwarded) >>> 0) >= CREDIT_BYTES) this.#say(VIRTIO_VSOCK_OP_CREDIT_UPDATE)
  }
}

/** How much may be sent: nothing to a peer that has taken its room back. All three are modulo 2^32. */
export function creditLeft(bufAlloc: number, sent: number, forwarded: number): number {
  return Math.max(0, Math.min(bufAlloc, BUFFER_BYTES_MAX) - ((sent - forwarded) >>> 0))
}

function brokenPipe(): Error {
  return Object.assign(new Error('vsock: the guest takes no more'), { code: 'EPIPE' })
}
