// services/gateway/ipv4.ts: Ethernet frames with IPv4 packets in them (RFC 894, RFC 791).
//
// Reading checks what a header claims against what has come. Fragments are refused: nobody here reassembles, since
// memory for packets that never become whole is the sender's to fill; TCP is told a segment size that fits, and
// larger datagrams than the MTU are lost. Options are skipped. Hot path: no allocation.

import { BROADCAST_MAC, type Mac } from './addresses.ts'
import { fold, sumOf } from './checksum.ts'
import type { FrameSink, Slab } from './slab.ts'

export const ETHERTYPE_IPV4 = 0x0800
export const ETHERTYPE_ARP = 0x0806
export const ETHERNET_BYTES = 14
export const IPV4_BYTES = 20

export const IPPROTO_ICMP = 1
export const IPPROTO_TCP = 6
export const IPPROTO_UDP = 17

const TTL = 64
const DO_NOT_FRAGMENT = 0x4000
const FRAGMENT = 0x3fff // MF and the offset

/** A packet as it lies in a slab. One is filled in anew for each packet. */
export class Packet {
  source = 0
  destination = 0
  protocol = 0
  /** Where the header begins, what it carries begins, and what it carries ends. */
  head = 0
  body = 0
  end = 0
}

/** Reads the packet that begins at `from`; what is behind its end is padding. Answers why it can't be taken. */
export function readPacket(slab: Slab, from: number, to: number, packet: Packet):
'' | 'ipv4 short' | 'ipv4 version' | 'ipv4 checksum' | 'ipv4 fragment' {
  if (to - from < IPV4_BYTES) return 'ipv4 short'
  const { view } = slab
  const first = view.getUint8(from)
  if (first >> 4 !== 4) return 'ipv4 version'
  const headBytes = (first & 15) * 4
  const size = view.getUint16(from + 2)
  if (headBytes < IPV4_BYTES || size < headBytes || size > to - from) return 'ipv4 short'
  if (sumOf(slab, from, from + headBytes) !== 0xffff) return 'ipv4 checksum'
  if ((view.getUint16(from + 6) & FRAGMENT) !== 0) return 'ipv4 fragment'
  packet.head = from
  packet.body = from + headBytes
  packet.end = from + size
  packet.protocol = view.getUint8(from + 9)
  packet.source = view.getUint32(from + 12)
  packet.destination = view.getUint32(from + 16)
  return ''
}

/** One end of the guest's cable: puts packets into frames from one MAC to the other. */
export class Wire {
  sink: FrameSink
  readonly counts = { frames: 0, bytes: 0 }
  readonly #from: Mac
  readonly #to: Mac
  #identification = 0

  constructor(sink: FrameSink, from: Mac, to: Mac) {
    this.sink = sink
    this.#from = from
    this.#to = to
  }

  /** Begins a frame that carries `size` bytes: their offset in `sink.slab`, or -1. */
  beginFrame(ethertype: number, size: number, isBroadcast = false): number {
    const at = this.sink.begin(ETHERNET_BYTES + size)
    if (at < 0) return -1
    this.counts.frames++
    this.counts.bytes += ETHERNET_BYTES + size
    const to = isBroadcast ? BROADCAST_MAC : this.#to
    const { view } = this.sink.slab
    view.setUint16(at, to.high)
    view.setUint32(at + 2, to.low)
    view.setUint16(at + 6, this.#from.high)
    view.setUint32(at + 8, this.#from.low)
    view.setUint16(at + 12, ethertype)
    return at + ETHERNET_BYTES
  }

  /** Begins a packet that carries `size` bytes: their offset in `sink.slab`, or -1. */
  begin(protocol: number, source: number, destination: number, size: number, isBroadcast = false): number {
    const at = this.beginFrame(ETHERTYPE_IPV4, IPV4_BYTES + size, isBroadcast)
    if (at < 0) return -1
    this.#identification = this.#identification + 1 & 0xffff
    putHeader(this.sink.slab.view, at, protocol, source, destination, size, this.#identification)
    return at + IPV4_BYTES
  }

  /** What was begun is built. */
  end(): void { this.sink.end() }
}

/** Writes the header of a packet that carries `size` bytes. */
export function putHeader(view: DataView, at: number, protocol: number, source: number, destination: number,
  size: number, identification: number): void {
  const total = IPV4_BYTES + size
  const sum = 0x4500 + total + identification + DO_NOT_FRAGMENT + (TTL << 8 | protocol) +
    (source >>> 16) + (source & 0xffff) + (destination >>> 16) + (destination & 0xffff)
  view.setUint16(at, 0x4500)
  view.setUint16(at + 2, total)
  view.setUint16(at + 4, identification)
  view.setUint16(at + 6, DO_NOT_FRAGMENT)
  view.setUint16(at + 8, TTL << 8 | protocol)
  view.setUint16(at + 10, ~fold(sum) & 0xffff)
  view.setUint32(at + 12, source)
  view.setUint32(at + 16, destination)
}
