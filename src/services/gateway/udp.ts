// services/gateway/udp.ts: UDP's header (RFC 768): read from packets, and written into them.

import { fold, pseudoSum, sumOf } from './checksum.ts'
import { IPPROTO_UDP, type Packet, type Wire } from './ipv4.ts'
import type { Slab } from './slab.ts'

export const UDP_BYTES = 8

/** A datagram as it lies in a slab. One is filled in anew for each. */
export class Datagram {
  /** Ports of its sender and its receiver. */
  source = 0
  destination = 0
  from = 0
  to = 0
}

/** Reads the datagram in `packet`. Answers why it can't be taken. */
export function readDatagram(slab: Slab, { source, destination, body, end }: Packet, datagram: Datagram):
'' | 'udp short' | 'udp checksum' {
  if (end - body < UDP_BYTES) return 'udp short'
  const { view } = slab
  const size = view.getUint16(body + 4)
  if (size < UDP_BYTES || size > end - body) return 'udp short'
  // 0: its sender made no checksum.
  if (view.getUint16(body + 6) !== 0 &&
    fold(pseudoSum(source, destination, IPPROTO_UDP, size) + sumOf(slab, body, body + size)) !== 0xffff) {
    return 'udp checksum'
  }
  datagram.source = view.getUint16(body)
  datagram.destination = view.getUint16(body + 2)
  datagram.from = body + UDP_BYTES
  datagram.to = body + size
  return ''
}

/** Who sends a datagram to whom. */
export type Ends = {
  readonly source: number; readonly sourcePort: number; readonly destination: number; readonly destinationPort: number
  readonly isBroadcast?: boolean
}

/** Sends a datagram to the guest. False if there is no room. */
export function sendDatagram(wire: Wire, ends: Ends, bytes: Uint8Array): boolean {
  const { source, destination } = ends
  const size = UDP_BYTES + bytes.length
  const at = wire.begin(IPPROTO_UDP, source, destination, size, ends.isBroadcast)
  if (at < 0) return false
  const { slab } = wire.sink
  slab.view.setUint16(at, ends.sourcePort)
  slab.view.setUint16(at + 2, ends.destinationPort)
  slab.view.setUint16(at + 4, size)
  slab.view.setUint16(at + 6, 0)
  slab.bytes.set(bytes, at + UDP_BYTES)
  const sum = fold(pseudoSum(source, destination, IPPROTO_UDP, size) + sumOf(slab, at, at + size))
  // 0 would say that there is none (RFC 768).
  slab.view.setUint16(at + 6, ~sum & 0xffff || 0xffff)
  wire.end()
  return true
}
