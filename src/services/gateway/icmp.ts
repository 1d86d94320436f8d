// services/gateway/icmp.ts: ICMP (RFC 792): the gateway's answer to echo, and "unreachable" for what it can't pass on.
//
// Errors are bounded in number: a guest that floods isn't to be flooded back.

import { EACCES, EHOSTUNREACH, ENETUNREACH } from '../../base/errno.ts'
import { sumOf } from './checksum.ts'
import { IPPROTO_ICMP, IPV4_BYTES, putHeader, type Packet, type Wire } from './ipv4.ts'
import type { Slab } from './slab.ts'

const ECHO_REPLY = 0
const UNREACHABLE = 3
const ECHO = 8
const HEAD_BYTES = 8
/** Of what couldn't be passed on, its header and as many bytes are told. */
const TOLD_BYTES = 8

/** Codes of "unreachable". */
export const NET_UNREACHABLE = 0
export const HOST_UNREACHABLE = 1
export const PORT_UNREACHABLE = 3
const PROHIBITED = 13

/** The code that tells a guest of `errno`; undefined if TCP's own reset does. */
export function codeOf(errno: number): number | undefined {
  if (errno === EACCES) return PROHIBITED
  if (errno === EHOSTUNREACH) return HOST_UNREACHABLE
  return errno === ENETUNREACH ? NET_UNREACHABLE : undefined
}

/** Answers an echo request to the gateway. Returns why it isn't answered. */
export function answerEcho(slab: Slab, { source, destination, body, end }: Packet, wire: Wire):
'' | 'icmp malformed' | 'icmp unanswered' | 'output full' {
  const size = end - body
  if (size < HEAD_BYTES || sumOf(slab, body, end) !== 0xffff) return 'icmp malformed'
  if (slab.view.getUint16(body) !== ECHO << 8) return 'icmp unanswered'
  const at = wire.begin(IPPROTO_ICMP, destination, source, size)
  if (at < 0) return 'output full'
  slab.bytes.copy(wire.sink.slab.bytes, at, body, end)
  finish(wire.sink.slab, at, size, ECHO_REPLY << 8)
  wire.end()
  return ''
}

/** What is told of a packet that couldn't be passed on: its addresses, and the 8 bytes after its header. */
export type Undelivered = {
  readonly protocol: number; readonly source: number; readonly destination: number
  readonly first: number; readonly second: number
}

/** Tells the guest that it can't reach what it has sent to. */
export class Unreachables {
  readonly #wire: Wire
  readonly #gateway: number
  readonly #now: () => number
  #since = 0
  #sent = 0

  constructor(wire: Wire, gateway: number, now: () => number) {
    this.#wire = wire
    this.#gateway = gateway
    this.#now = now
  }

  /** False if there were too many of late, or there is no room. */
  send(code: number, { protocol, source, destination, first, second }: Undelivered): boolean {
    const now = this.#now()
    if (now - this.#since >= 1000) [this.#since, this.#sent] = [now, 0]
    if (this.#sent >= PER_SECOND_MAX) return false
    const size = HEAD_BYTES + IPV4_BYTES + TOLD_BYTES
    const at = this.#wire.begin(IPPROTO_ICMP, this.#gateway, source, size)
    if (at < 0) return false
    this.#sent++
    const { slab } = this.#wire.sink
    slab.view.setUint32(at + 4, 0)
    putHeader(slab.view, at + HEAD_BYTES, protocol, source, destination, TOLD_BYTES, 0)
    slab.view.setUint32(at + HEAD_BYTES + IPV4_BYTES, first)
    slab.view.setUint32(at + HEAD_BYTES + IPV4_BYTES + 4, second)
    finish(slab, at, size, UNREACHABLE << 8 | code)
    this.#wire.end()
    return true
  }
}

const PER_SECOND_MAX = 100

function finish(slab: Slab, at: number, size: number, typeAndCode: number): void {
  slab.view.setUint16(at, typeAndCode)
  slab.view.setUint16(at + 2, 0)
  slab.view.setUint16(at + 2, ~sumOf(slab, at, at + size) & 0xffff)
}
