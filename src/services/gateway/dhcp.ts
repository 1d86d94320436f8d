// services/gateway/dhcp.ts: DHCP (RFC 2131, 2132): one lease, the guest's own address, for whoever asks from its MAC.
//
// DISCOVER is offered it, REQUEST for it is acknowledged, for another one refused, INFORM gets the options alone.
// RELEASE and DECLINE change nothing: the address is the guest's whatever it says. Option 121 isn't sent: the gateway
// is in the guest's network, and the one route goes through it.

import type { Mac } from './addresses.ts'
import type { Slab } from './slab.ts'

export const DHCP_SERVER_PORT = 67
export const DHCP_CLIENT_PORT = 68

const BOOTREQUEST = 1
const BOOTREPLY = 2
const ETHERNET = 0x0106 // hardware type 1, addresses of 6 bytes
const COOKIE = 0x6382_5363
const OPTIONS = 240
const DISCOVER = 1
const OFFER = 2
const REQUEST = 3
const ACKNOWLEDGE = 5
const REFUSE = 6
const INFORM = 8

const PAD = 0
const NETMASK = 1
const ROUTER = 3
const NAME_SERVER = 6
const HOST_NAME = 12
const DOMAIN = 15
const MTU = 26
const REQUESTED = 50
const LEASE = 51
const TYPE = 53
const SERVER = 54
const END = 255

/** The lease never changes, but a guest that was moved asks again some time. */
const LEASE_S = 24 * 3600

/** What the guest is leased. */
export type Lease = {
  readonly mac: Mac; readonly address: number; readonly gateway: number; readonly netmask: number
  readonly mtu: number; readonly hostname: string; readonly domain: string
}

/** What is to be sent back: from the server's port to the client's at `to`. */
export type DhcpReply = { readonly bytes: Buffer; readonly to: number; readonly isBroadcast: boolean }

/** The answer to the message in [from, to); undefined if it gets none. */
export function answerDhcp({ view }: Slab, from: number, to: number, lease: Lease): DhcpReply | undefined {
  if (to - from < OPTIONS || view.getUint8(from) !== BOOTREQUEST || view.getUint16(from + 1) !== ETHERNET ||
    view.getUint32(from + 236) !== COOKIE) return undefined
  if (view.getUint16(from + 28) !== lease.mac.high || view.getUint32(from + 30) !== lease.mac.low) return undefined
  const asked = readOptions(view, from + OPTIONS, to)
  if (asked === undefined || (asked.server !== 0 && asked.server !== lease.gateway)) return undefined
  const current = view.getUint32(from + 12)
  const type = answerType(asked.type, asked.requested === 0 ? current : asked.requested, lease)
  if (type === undefined) return undefined
  const bytes = Buffer.alloc(OPTIONS)
  bytes.writeUInt8(BOOTREPLY, 0)
  bytes.writeUInt16BE(ETHERNET, 1)
  bytes.writeUInt32BE(view.getUint32(from + 4), 4) // its transaction
  const flags = view.getUint16(from + 10)
  bytes.writeUInt16BE(flags, 10)
  if (type !== REFUSE) bytes.writeUInt32BE(current, 12)
  if (type !== REFUSE && asked.type !== INFORM) bytes.writeUInt32BE(lease.address, 16)
  bytes.writeUInt16BE(lease.mac.high, 28)
  bytes.writeUInt32BE(lease.mac.low, 30)
  bytes.writeUInt32BE(COOKIE, 236)
  const isBroadcast = type === REFUSE || (flags & 0x8000) !== 0
  return {
    bytes: Buffer.concat([bytes, options(type, asked.type === INFORM, lease)]), isBroadcast,
    to: isBroadcast ? 0xffff_ffff : lease.address,
  }
}

function answerType(type: number, wanted: number, { address }: Lease): number | undefined {
  if (type === DISCOVER) return OFFER
  if (type === REQUEST) return wanted === address ? ACKNOWLEDGE : REFUSE
  return type === INFORM ? ACKNOWLEDGE : undefined
}

type Asked = { type: number; requested: number; server: number }

// Undefined if an option reaches beyond the message.
function readOptions(view: DataView, from: number, to: number): Asked | undefined {
  const asked = { type: 0, requested: 0, server: 0 }
  for (let at = from; at < to;) {
    const kind = view.getUint8(at++)
    if (kind === PAD) continue
    if (kind === END) return asked
    if (at >= to) return undefined
    const size = view.getUint8(at++)
    if (at + size > to) return undefined
    if (kind === TYPE && size === 1) asked.type = view.getUint8(at)
    if (kind === REQUESTED && size === 4) asked.requested = view.getUint32(at)
    if (kind === SERVER && size === 4) asked.server = view.getUint32(at)
    at += size
  }
  return asked
}

function options(type: number, isInform: boolean, lease: Lease): Buffer {
  const number = (kind: number, value: number): number[] =>
    [kind, 4, value >>> 24, value >>> 16 & 255, value >>> 8 & 255, value & 255]
  const text = (kind: number, value: string): number[] => {
    const bytes = Buffer.from(value).subarray(0, 255)
    return bytes.length === 0 ? [] : [kind, bytes.length, ...bytes]
  }
  const head = [TYPE, 1, type, ...number(SERVER, lease.gateway)]
  if (type === REFUSE) return Buffer.from([...head, END])
  return Buffer.from([
    ...head,
    ...isInform ? [] : number(LEASE, LEASE_S),
    ...number(NETMASK, lease.netmask), ...number(ROUTER, lease.gateway), ...number(NAME_SERVER, lease.gateway),
    MTU, 2, lease.mtu >> 8, lease.mtu & 255,
    ...text(HOST_NAME, lease.hostname), ...text(DOMAIN, lease.domain), END,
  ])
}
