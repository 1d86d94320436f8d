// services/gateway/arp.ts: ARP (RFC 826): the gateway answers for itself and for each of the guest's peers.
//
// All answers name the gateway's own MAC: whatever the guest sends to anybody comes here. Addresses that nobody has get
// no answer, so that the guest's own system says "host unreachable".

import { isSame, type Mac } from './addresses.ts'
import { ETHERTYPE_ARP, type Wire } from './ipv4.ts'
import type { Slab } from './slab.ts'

const ARP_BYTES = 28
const REQUEST = 1
const REPLY = 2
const ETHERNET_IPV4 = 0x0001_0800
const SIZES = 0x0604

type Asked = { readonly guest: { readonly mac: Mac; readonly address: number }; readonly mac: Mac
  /** True for addresses that are answered for. */
  readonly has: (address: number) => boolean }

/** Answers the request at `from`. Returns why it isn't answered. */
export function answerArp({ view }: Slab, from: number, to: number, wire: Wire, { guest, mac, has }: Asked):
'' | 'arp malformed' | 'arp spoofed' | 'arp unanswered' | 'output full' {
  if (to - from < ARP_BYTES || view.getUint32(from) !== ETHERNET_IPV4 || view.getUint16(from + 4) !== SIZES) {
    return 'arp malformed'
  }
  const source = view.getUint32(from + 14)
  const target = view.getUint32(from + 24)
  // A probe for its own address has no source (RFC 5227).
  if (!isSame(guest.mac, view, from + 8) || (source !== guest.address && source !== 0)) return 'arp spoofed'
  if (view.getUint16(from + 6) !== REQUEST || target === guest.address || !has(target)) return 'arp unanswered'
  const at = wire.beginFrame(ETHERTYPE_ARP, ARP_BYTES)
  if (at < 0) return 'output full'
  const reply = wire.sink.slab.view
  reply.setUint32(at, ETHERNET_IPV4)
  reply.setUint16(at + 4, SIZES)
  reply.setUint16(at + 6, REPLY)
  reply.setUint16(at + 8, mac.high)
  reply.setUint32(at + 10, mac.low)
  reply.setUint32(at + 14, target)
  reply.setUint16(at + 18, guest.mac.high)
  reply.setUint32(at + 20, guest.mac.low)
  reply.setUint32(at + 24, source)
  wire.end()
  return ''
}
