// services/gateway/tcp.ts: one end of a TCP connection (RFC 9293), as a state machine: segments, calls and time go in.
//
// What comes out goes through its `TcpLine`: segments, and word that something is to be read, written or over. Nothing
// is sent while a segment is taken in, but acknowledgements of data that came too early, which the other side counts
// (RFC 5681 §3.2): `pump` sends what is due, after a batch of segments, so that one acknowledgement stands for many.
// Times are milliseconds, whatever they count from. Sequence numbers are 32-bit integers, compared by difference.
//
// It does: windows with scaling, retransmission (RFC 6298), fast retransmit and recovery (RFC 6582), delayed
// acknowledgements, zero-window probes, bounded reassembly, and answers to blind attacks as RFC 5961 has them. It
// doesn't: urgent data, selective acknowledgements, timestamps, keepalive. Elsewhere: whose connection it is
// (connections.ts), the bytes as a stream (tcp_stream.ts).

import { ECONNREFUSED, ECONNRESET, ETIMEDOUT } from '../../base/errno.ts'
import { TCP_BUFFER_BYTES_MAX } from '../../base/limits.ts'
import { Reassembly } from './reassembly.ts'
import { Congestion, Rto } from './retransmission.ts'
import { Ring, type RingMemory } from './ring.ts'
import type { Slab } from './slab.ts'
import type { TcpLine, TcpOptions, TcpState } from './tcp_line.ts'
import { ACK, FIN, PSH, RST, SYN, type Segment } from './tcp_segment.ts'

const NEVER = Infinity
/** Windows count in units of 2^SCALE bytes: the largest one fits into 16 bits. */
export const SCALE = Math.max(0, Math.ceil(Math.log2(TCP_BUFFER_BYTES_MAX / 65_535)))
const DELAYED_ACK_MS = 40
/** So much is acknowledged at once: two segments of an ordinary Ethernet. */
const ACK_BYTES = 2920
/** Twice the life of a segment: on a wire of one machine, short. */
const TIME_WAIT_MS = 2000
/** Times that something is sent without an answer, at most: a minute and more; and of what opens a connection. */
const TRIES_MAX = 12
const SYN_TRIES_MAX = 5

/** See the head of this file. */
export class Tcp {
  state: TcpState = 'CLOSED'
  /** When `expire` is to be called; Infinity: never. */
  get deadline(): number { return Math.min(this.#resendAt, this.#ackAt, this.#endAt) }

  readonly #line: TcpLine
  readonly #memory: RingMemory
  readonly #ourMss: number
  #mss = 536
  // What we send. `una`: not acknowledged; `next`: sent up to here; `max`: ever sent: a timeout takes `next` back.
  readonly #out: Ring
  #una: number
  #next: number
  #max: number
  #window = 0
  #windowMax = 0
  #windowSeq = 0
  #windowAck = 0
  #theirScale = -1
  /** What comes after the last byte: known once there will be no more of them. */
  #ends: number | undefined
  #congestion = new Congestion(536)
  readonly #rto = new Rto()
  #timed: number | undefined
  #timedAt = 0
  #tries = 0
  #resendAt = NEVER
  // What we receive.
  #in: Reassembly
  /** What we have allowed the other to send up to: never taken back. */
  #allowed = 0
  /** Where the other's data ends, once it has said so; and whether all of it is here. */
  #theirEnd: number | undefined
  #isEnded = false
  #unacked = 0
  #ackNow = false
  #ackAt = NEVER
  #endAt = NEVER

  constructor({ line, memory, iss, mss }: TcpOptions) {
    this.#line = line
    this.#memory = memory
    this.#ourMss = mss
    this.#out = new Ring(memory)
    this.#una = this.#next = this.#max = iss | 0
    this.#in = new Reassembly(memory, 0)
  }

  /** Bytes that came and weren't read. */
  get unread(): number { return this.#in.unread }
  /** The other side has ended, and all that it has sent is here. */
  get isEnded(): boolean { return this.#isEnded }
  /** The number that acknowledges all that is here. */
  get ack(): number { return this.#isEnded ? this.#in.next + 1 | 0 : this.#in.next }
  get mss(): number { return this.#ourMss }
  /** The scale that we offer with SYN; -1: none. */
  get scale(): number { return this.state === 'SYN_SENT' || this.#theirScale >= 0 ? SCALE : -1 }

  /** Opens actively. */
  connect(): void {
    this.state = 'SYN_SENT'
    this.#sendSyn()
  }

  /** Answers a SYN. */
  accept(syn: { seq: number; window: number; mss: number; scale: number }): void {
    this.#heardSyn(syn)
    this.state = 'SYN_RECEIVED'
    this.#sendSyn()
  }

  /** Takes what it has room for of [from, to): how many bytes. */
  write(bytes: Uint8Array, from: number, to: number): number {
    if (this.state === 'CLOSED' || this.#ends !== undefined) return 0
    const size = Math.min(to - from, TCP_BUFFER_BYTES_MAX - this.#out.length)
    if (size <= 0 || !this.#out.put(this.#out.length, bytes, from, from + size)) return 0
    this.#out.length += size
    return size
  }

  /** Nothing more will be written. */
  end(): void {
    if (this.#ends !== undefined) return
    const hasSyn = this.state === 'SYN_SENT' || this.state === 'SYN_RECEIVED'
    this.#ends = this.#una + this.#out.length + (hasSyn ? 1 : 0) | 0
  }

  /** Reads `size` bytes, which are `unread`. */
  read(target: Buffer, size: number): void {
    this.#in.take(target, size)
    if ((this.#edge() - this.#allowed | 0) >= TCP_BUFFER_BYTES_MAX / 4) this.#ackNow = true
  }

  /** Ends it at once; the other side is told. */
  abort(errno = ECONNRESET): void {
    if (this.state === 'CLOSED') return this.#in.release()
    if (this.state !== 'SYN_SENT') this.#line.send(this.#max, RST | ACK, undefined, 0, 0)
    this.#close(errno)
  }

  /** A segment of the other side. */
  segment(segment: Segment, slab: Slab): void {
    if (this.state === 'CLOSED') return
    if (this.state === 'SYN_SENT') return this.#answerToSyn(segment)
    const { seq, flags } = segment
    const size = segment.to - segment.from
    const end = seq + size + (flags & SYN ? 1 : 0) + (flags & FIN ? 1 : 0) | 0
    // Whatever lies outside the window is answered by what we expect, but a reset.
    if ((end - this.ack | 0) < 0 || (seq - this.#allowed | 0) > 0) {
      if ((flags & RST) === 0) this.#refuse(segment)
      return
    }
    if ((flags & RST) !== 0) {
      if (seq === this.ack) this.#reset()
      else this.#ackNow = true
      return
    }
    if ((flags & SYN) !== 0) return this.#refuse(segment)
    if ((flags & ACK) === 0 || !this.#acknowledge(segment, size)) return
    if (size > 0 || (flags & FIN) !== 0) this.#receive(segment, slab)
  }

  /** Sends what is due. False if there was no room for it. */
  pump(): boolean {
    if (this.state === 'CLOSED' || this.state === 'SYN_SENT' || this.state === 'SYN_RECEIVED') return true
    if (!this.#output()) return false
    if (this.#ackNow && !this.#sendAck()) return false
    // What can't be sent for want of a window is asked for again and again: the word of it may have been lost.
    if (this.#una === this.#max && this.#hasUnsent && this.#resendAt === NEVER) this.#armResend()
    return true
  }

  /** The deadline has come. */
  expire(): void {
    const now = this.#line.now()
    if (now >= this.#endAt) return this.#close(0)
    if (now >= this.#ackAt) {
      this.#ackAt = NEVER
      this.#ackNow = true
    }
    if (now >= this.#resendAt) this.#resend()
  }

  /** So much later is what was to be now: the other side stood still meanwhile. */
  postpone(ms: number): void {
    this.#resendAt += ms
    this.#ackAt += ms
    this.#endAt += ms
    this.#timed = undefined
  }

  // A SYN that comes again wants our answer again; anything else out of order is told what we expect.
  #refuse({ flags }: Segment): void {
    if (this.state === 'SYN_RECEIVED' && (flags & SYN) !== 0) this.#sendSyn()
    else this.#ackNow = true
    if (this.state === 'TIME_WAIT') this.#endAt = this.#line.now() + TIME_WAIT_MS
  }

  #answerToSyn(segment: Segment): void {
    const { flags, ack } = segment
    const isOurs = (flags & ACK) !== 0 && ack === this.#max
    if ((flags & ACK) !== 0 && !isOurs) {
      if ((flags & RST) === 0) this.#line.send(ack, RST, undefined, 0, 0)
      return
    }
    if ((flags & RST) !== 0) {
      if (isOurs) this.#close(ECONNREFUSED)
      return
    }
    if ((flags & SYN) === 0) return
    this.#heardSyn(segment)
    if (!isOurs) { // Both have opened at once.
      this.state = 'SYN_RECEIVED'
      this.#next = this.#una
      return this.#sendSyn()
    }
    this.#establish(segment)
    this.#ackNow = true
  }

  #heardSyn({ seq, window, mss, scale }: { seq: number; window: number; mss: number; scale: number }): void {
    this.#in = new Reassembly(this.#memory, seq + 1 | 0)
    this.#allowed = this.#edge()
    this.#mss = Math.min(mss, this.#ourMss)
    this.#congestion = new Congestion(this.#mss)
    this.#theirScale = scale
    this.#window = this.#windowMax = window
    this.#windowSeq = seq
  }

  #sendSyn(): void {
    const flags = this.state === 'SYN_SENT' ? SYN : SYN | ACK
    this.#line.send(this.#una, flags, undefined, 0, 0)
    this.#next = this.#max = this.#una + 1 | 0
    if (this.#resendAt === NEVER) {
      this.#armResend()
      this.#timed = this.#max
      this.#timedAt = this.#line.now()
    }
  }

  #establish({ ack, seq, window, flags }: Segment): void {
    this.state = 'ESTABLISHED'
    if (this.#timed !== undefined) this.#rto.sample(this.#line.now() - this.#timedAt)
    this.#timed = undefined
    this.#una = ack
    this.#tries = 0
    this.#resendAt = NEVER
    this.#window = this.#windowMax = (flags & SYN) !== 0 ? window : this.#scaled(window)
    this.#windowSeq = seq
    this.#windowAck = ack
    this.#line.established()
  }

  #scaled(window: number): number { return this.#theirScale > 0 ? window << this.#theirScale : window }

  // False if the segment's acknowledgement makes the rest of it worth nothing.
  #acknowledge(segment: Segment, size: number): boolean {
    const { seq, ack, flags } = segment
    if (this.state === 'SYN_RECEIVED') {
      if (ack !== this.#max) {
        this.#line.send(ack, RST, undefined, 0, 0)
        return false
      }
      this.#establish(segment)
    }
    const acked = ack - this.#una | 0
    // Of what we never sent, or so old that nobody sends it (RFC 5961 §5.2).
    if ((ack - this.#max | 0) > 0 || -acked > this.#windowMax) {
      this.#ackNow = true
      return false
    }
    if (acked < 0) return true
    const window = this.#scaled(segment.window)
    const isSame = window === this.#window
    const isClosed = this.#window === 0
    const older = this.#windowSeq - seq | 0
    if (older < 0 || (older === 0 && (ack - this.#windowAck | 0) >= 0)) {
      this.#window = window
      this.#windowMax = Math.max(this.#windowMax, window)
      this.#windowSeq = seq
      this.#windowAck = ack
      if (window === 0) this.#tries = 0 // It answers: it is there.
      else if (isClosed) this.#reopened()
    }
    if (acked > 0) this.#advance(acked)
    else if (size === 0 && isSame && (flags & FIN) === 0 && this.#una !== this.#max) {
      if (this.#congestion.duplicate(this.#una, this.#max)) this.#sendFirst()
    }
    return this.state !== 'CLOSED' as TcpState
  }

  // What was sent to a closed window was most likely thrown away.
  #reopened(): void {
    this.#next = this.#una
    this.#rto.progressed()
    if (this.#una === this.#max) this.#resendAt = NEVER
    else this.#armResend()
  }

  #advance(acked: number): void {
    const now = this.#line.now()
    if (this.#timed !== undefined && (this.#una + acked - this.#timed | 0) >= 0) {
      this.#rto.sample(now - this.#timedAt)
      this.#timed = undefined
    }
    const data = Math.min(acked, this.#out.length)
    this.#out.drop(data)
    this.#una = this.#una + acked | 0
    if ((this.#next - this.#una | 0) < 0) this.#next = this.#una
    this.#tries = 0
    this.#rto.progressed()
    const inFlight = this.#max - this.#una | 0
    if (inFlight === 0) this.#resendAt = NEVER
    else this.#armResend()
    if (this.#congestion.acknowledged(acked, this.#una, inFlight) && inFlight > 0) this.#sendFirst()
    if (this.#ends !== undefined && this.#una === (this.#ends + 1 | 0)) this.#ourEndHeard()
    if (data > 0 && this.state !== 'CLOSED') {
      this.#line.writable()
      if (this.#out.length === 0) this.#out.release()
    }
  }

  #ourEndHeard(): void {
    if (this.state === 'FIN_WAIT_1') this.state = 'FIN_WAIT_2'
    else if (this.state === 'CLOSING') this.#waitOut()
    else if (this.state === 'LAST_ACK') this.#close(0)
  }

  // Data and the other's end. What is before the window or behind it is cut off.
  #receive(segment: Segment, slab: Slab): void {
    if (this.#isEnded) {
      this.#refuse(segment)
      return
    }
    let { seq, from, to } = segment
    let isLast = (segment.flags & FIN) !== 0
    const old = this.#in.next - seq | 0
    if (old > 0) {
      from = Math.min(from + old, to)
      seq = this.#in.next
    }
    const last = this.#theirEnd ?? this.#allowed
    const beyond = (seq - last | 0) + (to - from)
    if (beyond > 0) {
      to = Math.max(from, to - beyond)
      isLast = false
    }
    if (isLast && this.#theirEnd === undefined) this.#theirEnd = seq + to - from | 0
    let advanced = 0
    if (to > from) {
      const hadHoles = this.#in.hasHoles
      advanced = this.#in.put(seq, slab.bytes, from, to)
      this.#unacked += Math.max(advanced, 0)
      if (advanced <= 0) this.#sendAck()
      else if (hadHoles || this.#unacked >= ACK_BYTES) this.#ackNow = true
      else if (this.#ackAt === NEVER) this.#ackAt = this.#line.now() + DELAYED_ACK_MS
    } else this.#ackNow = true
    if (this.#theirEnd === this.#in.next) this.#theirEndHeard()
  }

  #theirEndHeard(): void {
    this.#isEnded = true
    this.#in.forgetEarly()
    this.#ackNow = true
    if ((this.#allowed - this.ack | 0) < 0) this.#allowed = this.ack
    if (this.state === 'ESTABLISHED') this.state = 'CLOSE_WAIT'
    else if (this.state === 'FIN_WAIT_1') this.state = 'CLOSING'
    else if (this.state === 'FIN_WAIT_2') this.#waitOut()
  }

  get #hasUnsent(): boolean {
    const bytes = this.#una + this.#out.length - this.#next | 0
    return bytes > 0 || (this.#ends !== undefined && this.#next === this.#ends)
  }

  // Sends new data, and data again after a timeout, as far as both windows go.
  #output(): boolean {
    for (;;) {
      const sent = this.#next - this.#una | 0
      const unsent = this.#out.length - sent
      const isEnding = this.#ends !== undefined && unsent >= 0 && this.#next !== (this.#ends + 1 | 0)
      if (unsent <= 0 && !isEnding) return true
      const usable = Math.min(this.#window, this.#congestion.window) - sent
      const size = Math.min(unsent, this.#mss, usable)
      if (size < 0 || (size === 0 && unsent > 0)) return true
      // A small segment waits for the window to open, unless that would be for nothing (RFC 9293 §3.8.6.2.1).
      if (size < unsent && size < this.#mss && sent > 0 && size < this.#windowMax / 2) return true
      if (!this.#sendData(sent, size, isEnding && size === unsent)) return false
    }
  }

  #sendData(offset: number, size: number, isLast: boolean): boolean {
    const flags = ACK | (offset + size === this.#out.length && size > 0 ? PSH : 0) | (isLast ? FIN : 0)
    if (!this.#line.send(this.#next, flags, this.#out, offset, size)) return false
    this.#acked()
    const isNew = this.#next === this.#max
    this.#next = this.#next + size + (isLast ? 1 : 0) | 0
    if ((this.#next - this.#max | 0) > 0) this.#max = this.#next
    if (isNew && this.#timed === undefined) {
      this.#timed = this.#next
      this.#timedAt = this.#line.now()
    }
    if (this.#resendAt === NEVER) this.#armResend()
    if (isLast) {
      if (this.state === 'ESTABLISHED') this.state = 'FIN_WAIT_1'
      else if (this.state === 'CLOSE_WAIT') this.state = 'LAST_ACK'
    }
    return true
  }

  // The first of what isn't acknowledged, again. Nothing is lost if there is no room: a timeout will come.
  #sendFirst(): void {
    this.#timed = undefined
    const size = Math.min(this.#out.length, this.#mss, this.#max - this.#una | 0)
    const isLast = this.#ends !== undefined && size === this.#out.length && this.#max === (this.#ends + 1 | 0)
    this.#line.send(this.#una, ACK | (isLast ? FIN : 0), this.#out, 0, size)
    this.#armResend()
  }

  #resend(): void {
    this.#resendAt = NEVER
    this.#timed = undefined
    const hasSyn = this.state === 'SYN_SENT' || this.state === 'SYN_RECEIVED'
    if (++this.#tries > (hasSyn ? SYN_TRIES_MAX : TRIES_MAX)) return this.abort(ETIMEDOUT)
    this.#rto.expired()
    if (hasSyn) {
      this.#sendSyn()
      this.#timed = undefined
      return this.#armResend()
    }
    if (this.#window === 0) return this.#probe()
    if (this.#una === this.#max) return
    this.#congestion.expired(this.#max - this.#una | 0, this.#max)
    this.#next = this.#una
  }

  // One byte more than the window has room for, or the end: the answer tells the window.
  #probe(): void {
    const size = Math.min(this.#out.length, 1)
    const isLast = this.#ends !== undefined && size === this.#out.length
    this.#next = this.#una
    this.#sendData(0, size, isLast)
    this.#timed = undefined
    this.#armResend()
  }

  #armResend(): void { this.#resendAt = this.#line.now() + this.#rto.ms }

  #edge(): number { return this.#in.next + TCP_BUFFER_BYTES_MAX - this.#in.unread | 0 }

  /** The window that a segment tells, in its own units. It isn't opened by less than is worth a segment. */
  windowField(hasSyn: boolean): number {
    const edge = this.#edge()
    if ((edge - this.#allowed | 0) >= Math.min(this.#ourMss, TCP_BUFFER_BYTES_MAX / 2)) this.#allowed = edge
    const window = Math.max(0, this.#allowed - this.ack | 0)
    return Math.min(hasSyn || this.#theirScale < 0 ? window : window >>> SCALE, 65_535)
  }

  // From the last number ever sent: one of before, where a timeout goes on from, would be outside the other's window,
  // and both ends would correct each other forever.
  #sendAck(): boolean {
    if (!this.#line.send(this.#max, ACK, undefined, 0, 0)) {
      this.#ackNow = true
      return false
    }
    this.#acked()
    return true
  }

  #acked(): void {
    this.#ackNow = false
    this.#ackAt = NEVER
    this.#unacked = 0
  }

  #reset(): void { this.#close(this.state === 'TIME_WAIT' ? 0 : ECONNRESET) }

  #waitOut(): void {
    this.state = 'TIME_WAIT'
    this.#resendAt = NEVER
    this.#endAt = this.#line.now() + TIME_WAIT_MS
  }

  #close(errno: number): void {
    this.state = 'CLOSED'
    this.#resendAt = this.#ackAt = this.#endAt = NEVER
    this.#out.length = 0
    this.#out.release()
    // What came before the end stays for whoever reads it; after a reset it is nobody's.
    if (errno !== 0) this.#in.release()
    this.#line.closed(errno)
  }
}
