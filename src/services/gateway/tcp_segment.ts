// services/gateway/tcp_segment.ts: TCP's header (RFC 9293 §3.1): read from packets, and written into them.
//
// Of the options two are known: the segment size and the window's scale (RFC 7323 §2). Others are stepped over, and
// reading stops at the first that contradicts its own length. Hot path: no allocation.

import { pseudoSum, sumOf, fold } from './checksum.ts'
import { IPPROTO_TCP, type Packet, type Wire } from './ipv4.ts'
import type { Ring } from './ring.ts'
import type { Slab } from './slab.ts'

export const FIN = 1
export const SYN = 2
export const RST = 4
export const PSH = 8
export const ACK = 16

export const TCP_BYTES = 20
/** Options that we send with SYN: the segment size, the window's scale, and one to fill up. */
const SYN_OPTIONS_BYTES = 8

const OPTION_END = 0
const OPTION_NOP = 1
const OPTION_MSS = 2
const OPTION_SCALE = 3
/** RFC 7323 §2.3. */
const SCALE_MAX = 14
/** Who says nothing takes so much (RFC 9293 §3.7.1). */
const MSS_DEFAULT = 536
/** Linux's own least: who asks for segments of a byte wants us to work, not to receive. */
const MSS_MIN = 88

/** A segment as it lies in a slab. One is filled in anew for each segment. */
export class Segment {
  /** Ports of its sender and its receiver. */
  source = 0
  destination = 0
  /** Sequence numbers are 32-bit integers with a sign; their differences tell what comes first. */
  seq = 0
  ack = 0
  flags = 0
  window = 0
  mss = MSS_DEFAULT
  /** The scale of the sender's windows; -1 if it has none. */
  scale = -1
  /** Its data. */
  from = 0
  to = 0
}

/** Reads the segment in `packet`. Answers why it can't be taken. */
export function readSegment(slab: Slab, { source, destination, body, end }: Packet, segment: Segment):
'' | 'tcp short' | 'tcp checksum' {
  const size = end - body
  if (size < TCP_BYTES) return 'tcp short'
  const { view } = slab
  const headBytes = (view.getUint8(body + 12) >> 4) * 4
  if (headBytes < TCP_BYTES || headBytes > size) return 'tcp short'
  if (fold(pseudoSum(source, destination, IPPROTO_TCP, size) + sumOf(slab, body, end)) !== 0xffff) return 'tcp checksum'
  segment.source = view.getUint16(body)
  segment.destination = view.getUint16(body + 2)
  segment.seq = view.getInt32(body + 4)
  segment.ack = view.getInt32(body + 8)
  segment.flags = view.getUint8(body + 13)
  segment.window = view.getUint16(body + 14)
  segment.from = body + headBytes
  segment.to = end
  // Options matter where they may stand: with SYN.
  if ((segment.flags & SYN) !== 0) readOptions(view, body + TCP_BYTES, body + headBytes, segment)
  return ''
}

function readOptions(view: DataView, from: number, to: number, segment: Segment): void {
  segment.mss = MSS_DEFAULT
  segment.scale = -1
  for (let at = from; at < to;) {
    const kind = view.getUint8(at)
    if (kind === OPTION_END) return
    if (kind === OPTION_NOP) {
      at++
      continue
    }
    const size = at + 1 < to ? view.getUint8(at + 1) : 0
    if (size < 2 || at + size > to) return
    if (kind === OPTION_MSS && size === 4) segment.mss = Math.max(view.getUint16(at + 2), MSS_MIN)
    if (kind === OPTION_SCALE && size === 3) segment.scale = Math.min(view.getUint8(at + 2), SCALE_MAX)
    at += size
  }
}

/** What is said in a segment: filled in anew for each. */
export type Head = {
  localPort: number; remotePort: number; seq: number; ack: number; flags: number; window: number
  /** With SYN only; scale -1: no scaling. */
  mss: number; scale: number
}

/** Sends a segment with `size` bytes of `ring` from `offset` on. False if there is no room for it. */
export function sendSegment(wire: Wire, local: number, remote: number, head: Head, ring: Ring | undefined,
  offset: number, size: number): boolean {
  const headBytes = (head.flags & SYN) === 0 ? TCP_BYTES : TCP_BYTES + SYN_OPTIONS_BYTES
  const total = headBytes + size
  const at = wire.begin(IPPROTO_TCP, local, remote, total)
  if (at < 0) return false
  const { slab } = wire.sink
  const { view } = slab
  view.setUint16(at, head.localPort)
  view.setUint16(at + 2, head.remotePort)
  view.setInt32(at + 4, head.seq)
  view.setInt32(at + 8, head.ack)
  view.setUint16(at + 12, headBytes << 10 | head.flags)
  view.setUint16(at + 14, head.window)
  view.setUint32(at + 16, 0) // the checksum, and no urgent data
  if (headBytes !== TCP_BYTES) {
    view.setUint32(at + 20, OPTION_MSS << 24 | 4 << 16 | head.mss)
    view.setUint32(at + 24, head.scale < 0 ? 0x0101_0101 : OPTION_NOP << 24 | OPTION_SCALE << 16 | 3 << 8 | head.scale)
  }
  if (size > 0) ring!.copyTo(offset, size, slab.bytes, at + headBytes)
  const sum = pseudoSum(local, remote, IPPROTO_TCP, total) + sumOf(slab, at, at + total)
  view.setUint16(at + 16, ~fold(sum) & 0xffff)
  wire.end()
  return true
}
