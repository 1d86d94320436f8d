// services/gateway/peer_links.ts: lines to other machines of the network, for what isn't TCP: whole IPv4 packets.
//
// TCP between machines ends at each one's gateway, as it does between a machine and a cell. Datagrams and ICMP go as
// they are, over a stream between both gateways that the owner lays when it is first asked for. A packet is from its
// sender's own address: its gateway has checked that, and the receiver's checks it again, since the other process may
// have been taken over by its guest. Packets wait for a line in small number; a line that can't keep up loses some.

import { GATEWAY_LINKS_MAX, GATEWAY_WAITING_MAX } from '../../base/limits.ts'
import { IPPROTO_ICMP, IPPROTO_UDP, Packet, readPacket } from './ipv4.ts'
import type { FramePort, Slab } from './slab.ts'

/** For how long nobody is asked again for a line that isn't to be had. */
const NONE_MS = 1000

type Options = {
  /** Lays a line, or says that there is none. May reject. */
  readonly link: (name: string) => Promise<FramePort | undefined>
  readonly now: () => number
  /** The guest's own address, and a peer's. */
  readonly address: number
  readonly addressOf: (name: string) => number | undefined
  /** Gives a packet to the guest. */
  readonly deliver: (slab: Slab, packet: Packet) => void
  /** All that had come was delivered. */
  readonly delivered: () => void
  readonly dropped: (why: 'link spoofed' | 'link malformed' | 'link full') => void
}

/** `older`: the line before, which the peer may still send on. */
type Line = { port: FramePort | undefined; older: FramePort | undefined; waiting: Buffer[]; noneUntil: number }

/** See the head of this file. */
export class PeerLinks {
  readonly #options: Options
  /** By the peer's name; the one laid first is the first. */
  readonly #lines = new Map<string, Line>()
  readonly #packet = new Packet()

  constructor(options: Options) {
    this.#options = options
  }

  /** Sends a packet to a peer. False if there is no line to it: the guest may be told. */
  send(name: string, slab: Slab, { head, end }: Packet): boolean {
    let line = this.#lines.get(name)
    if (line === undefined) this.#ask(name, line = this.#add(name))
    else if (line.noneUntil > 0) {
      if (line.noneUntil > this.#options.now()) return false
      this.#ask(name, line)
    }
    if (line.port !== undefined) this.#put(line.port, slab.bytes, head, end)
    else if (line.waiting.length < GATEWAY_WAITING_MAX) line.waiting.push(Buffer.from(slab.bytes.subarray(head, end)))
    else this.#options.dropped('link full')
    return true
  }

  /** Another's gateway has laid a line to this one. */
  take(name: string, port: FramePort): void {
    const line = this.#lines.get(name) ?? this.#add(name)
    // Both may lay one at the same time: each sends on the one that it got last, and both are read. No more than these.
    line.older?.close()
    line.older = line.port
    line.port = port
    line.noneUntil = 0
    port.start({
      frame: (slab, from, to) => this.#came(name, slab, from, to),
      batch: this.#options.delivered,
      room: () => {},
      ended: () => this.#ended(name, line, port),
    })
    for (const bytes of line.waiting.splice(0)) this.#put(port, bytes, 0, bytes.length)
    port.flush()
  }

  /** What was sent goes out. */
  flush(): void { for (const { port } of this.#lines.values()) port?.flush() }

  close(): void {
    for (const [name, line] of this.#lines) this.#drop(name, line)
  }

  #add(name: string): Line {
    if (this.#lines.size >= GATEWAY_LINKS_MAX) {
      const [first, oldest] = this.#lines.entries().next().value!
      this.#drop(first, oldest)
    }
    const line: Line = { port: undefined, older: undefined, waiting: [], noneUntil: 0 }
    this.#lines.set(name, line)
    return line
  }

  #ask(name: string, line: Line): void {
    line.noneUntil = 0
    void this.#options.link(name).catch(() => undefined).then((port) => {
      const isGone = this.#lines.get(name) !== line
      if (port !== undefined && !isGone && line.port === undefined) this.take(name, port)
      else if (port !== undefined) port.close()
      else if (!isGone && line.port === undefined) {
        line.waiting.length = 0
        line.noneUntil = this.#options.now() + NONE_MS
      }
    })
  }

  #ended(name: string, line: Line, port: FramePort): void {
    if (line.older === port) line.older = undefined
    if (line.port !== port) return
    line.port = line.older
    line.older = undefined
    if (line.port === undefined) this.#forget(name, line)
  }

  #drop(name: string, line: Line): void {
    this.#forget(name, line)
    line.port?.close()
    line.older?.close()
  }

  #forget(name: string, line: Line): void { if (this.#lines.get(name) === line) this.#lines.delete(name) }

  #put(port: FramePort, bytes: Buffer, from: number, to: number): void {
    const at = port.begin(to - from)
    if (at < 0) return this.#options.dropped('link full')
    bytes.copy(port.slab.bytes, at, from, to)
    port.end()
  }

  #came(name: string, slab: Slab, from: number, to: number): void {
    const packet = this.#packet
    if (readPacket(slab, from, to, packet) !== '') return this.#options.dropped('link malformed')
    const isOurs = packet.destination === this.#options.address && packet.source === this.#options.addressOf(name)
    if (!isOurs) return this.#options.dropped('link spoofed')
    if (packet.protocol !== IPPROTO_UDP && packet.protocol !== IPPROTO_ICMP) {
      return this.#options.dropped('link malformed')
    }
    this.#options.deliver(slab, packet)
  }
}
