// services/gateway/addresses.ts: addresses of a network's guests: IPv4 and MAC, computed from two small numbers.
//
// The host gives each network of a project a number C of 0..255, and each guest in it a number n of 1..65000 that is
// nobody else's there while the guest exists (a fork's child gets its own). Everybody can compute the rest:
//
//   network  10.C.0.0/16                            netmask 255.255.0.0
//   gateway  10.C.0.1       02:ce:11:C:00:00        the same for each guest: it is at the end of each one's own wire
//   guest n  10.C.0.1 + n   02:ce:11:C:n>>8:n&255   10.C.0.2 to 10.C.253.233
//
// Networks of different projects may have the same number: no packet passes between them. IPv4 addresses are unsigned
// numbers of 32 bits everywhere in this folder; MACs are two numbers, the first 16 bits and the last 32.

/** Guests' numbers are 1 to this. */
const GUEST_NUMBER_MAX = 65_000
/** Networks' numbers are 0 to this. */
const NETWORK_NUMBER_MAX = 255

/** A MAC address as it is put into frames. */
export type Mac = { readonly high: number; readonly low: number }

export const BROADCAST_MAC: Mac = { high: 0xffff, low: 0xffff_ffff }
/** 255.255.255.255 */
export const BROADCAST_ADDRESS = 0xffff_ffff

/** What one guest's network card is configured with, in text. */
export type Addresses = {
  readonly network: string; readonly gateway: string; readonly gatewayMac: string
  readonly address: string; readonly mac: string
}

/** The addresses of guest `number` in network `network`. Throws RangeError: the numbers are the host's own. */
export function addressesOf(network: number, number: number): Addresses {
  if (!Number.isInteger(network) || network < 0 || network > NETWORK_NUMBER_MAX) {
    throw new RangeError(`Cannot address network ${network} as networks are 0 to ${NETWORK_NUMBER_MAX}`)
  }
  if (!Number.isInteger(number) || number < 1 || number > GUEST_NUMBER_MAX) {
    throw new RangeError(`Cannot address guest ${number} as guests are 1 to ${GUEST_NUMBER_MAX}`)
  }
  const base = (10 << 24 | network << 16) >>> 0
  return {
    network: `${textOf(base)}/16`, gateway: textOf(base + 1), gatewayMac: macText(network, 0),
    address: textOf(base + 1 + number), mac: macText(network, number),
  }
}

/** '10.1.0.2' of a number. */
export function textOf(address: number): string {
  return `${address >>> 24}.${address >>> 16 & 255}.${address >>> 8 & 255}.${address & 255}`
}

/** The number of '10.1.0.2'; undefined if it is no IPv4 address in four decimal parts. */
export function parseAddress(text: string): number | undefined {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text)
  if (match === null) return undefined
  let address = 0
  for (const part of match.slice(1)) {
    if (Number(part) > 255) return undefined
    address = address * 256 + Number(part)
  }
  return address
}

/** A range of addresses. */
export type Range = { readonly base: number; readonly mask: number }

/** The range of '10.1.0.0/16'; undefined if it is none. */
export function parseRange(text: string): Range | undefined {
  const [first = '', bits, more] = text.split('/')
  const address = parseAddress(first)
  if (address === undefined || more !== undefined || !/^\d{1,2}$/.test(bits ?? '')) return undefined
  if (Number(bits) > 32) return undefined
  const mask = Number(bits) === 0 ? 0 : -1 << 32 - Number(bits) >>> 0
  return { base: (address & mask) >>> 0, mask }
}

export function isIn({ base, mask }: Range, address: number): boolean {
  return (address & mask) >>> 0 === base
}

/** The MAC of '02:ce:11:01:00:02'; undefined if it is none. */
export function parseMac(text: string): Mac | undefined {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) return undefined
  const digits = text.replaceAll(':', '')
  return { high: Number.parseInt(digits.slice(0, 4), 16), low: Number.parseInt(digits.slice(4), 16) }
}

function macText(network: number, number: number): string {
  const bytes = [0x02, 0xce, 0x11, network, number >> 8, number & 255]
  return bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(':')
}

/** True if the MAC lies at `at`. */
export function isSame({ high, low }: Mac, view: DataView, at: number): boolean {
  return view.getUint16(at) === high && view.getUint32(at + 2) === low
}
