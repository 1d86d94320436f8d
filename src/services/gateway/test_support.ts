// services/gateway/test_support.ts: what tests of the gateway share: a clock, chance, a wire, and a guest at its end.

import type { Duplex } from 'node:stream'
import { setImmediate as immediate } from 'node:timers/promises'
import { Random } from '../../../tests/fuzz/random.ts'
import { addressesOf, parseAddress, parseMac } from './addresses.ts'
import type { Clock } from './clock.ts'
import { Connections } from './connections.ts'
import { Gateway, type GatewayConfig, type GatewayOwner } from './gateway.ts'
import { ETHERNET_BYTES, ETHERTYPE_IPV4, IPPROTO_TCP, Packet, readPacket, Wire } from './ipv4.ts'
import { Slab, type FramePort, type FrameTaker } from './slab.ts'

type Timer = { readonly at: number; readonly order: number; readonly what: () => void }

/** Time that passes when a test says so. */
export class TestClock implements Clock {
  random: () => number
  #now = 1000
  #order = 0
  readonly #timers = new Set<Timer>()

  constructor(seed = 1) {
    const random = new Random(seed)
    this.random = () => random.bits()
  }

  now(): number { return this.#now }

  after(ms: number, what: () => void): () => void {
    const timer = { at: this.#now + ms, order: this.#order++, what }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  /** Goes on to the next timer, and calls it: false if there is none before `until`. */
  step(until = Infinity): boolean {
    let next: Timer | undefined
    for (const timer of this.#timers) {
      const isSooner = next === undefined || timer.at < next.at || (timer.at === next.at && timer.order < next.order)
      if (isSooner) next = timer
    }
    if (next === undefined || next.at > until) return false
    this.#timers.delete(next)
    this.#now = Math.max(this.#now, next.at)
    next.what()
    return true
  }

  /** So much time passes, and what is due meanwhile happens, with all that follows from it. */
  async pass(ms: number): Promise<void> {
    const until = this.#now + ms
    await settled()
    while (this.step(until)) await settled()
    this.#now = until
  }
}

/** All that is under way without time passing has come to an end. */
export async function settled(): Promise<void> {
  for (let i = 0; i < 12; i++) await immediate()
}

/** What a cable does to frames: none of it unless said. Percentages. */
export type Trouble = { readonly loss?: number; readonly twice?: number; readonly delayMs?: number }

/** One end of a cable: what is sent comes out at the other one, a little later. */
class CableEnd implements FramePort {
  slab = new Slab(70_000)
  peer!: CableEnd
  /** Every frame that came to this end, when a test wants them. */
  readonly seen: Buffer[] = []
  keeps = false
  isFull = false
  readonly #clock: Clock
  readonly #trouble: Trouble
  readonly #random: Random
  #size = 0
  #taker: FrameTaker | undefined
  #waiting: Slab[] = []
  #sizes: number[] = []
  #isPlanned = false

  constructor(clock: Clock, trouble: Trouble, random: Random) {
    this.#clock = clock
    this.#trouble = trouble
    this.#random = random
  }

  start(taker: FrameTaker): void { this.#taker = taker }
  close(): void { this.peer.#taker?.ended('') }
  flush(): void {}

  begin(size: number): number {
    this.#size = size
    return this.isFull ? -1 : 3 // An odd offset: nothing is aligned by itself.
  }

  end(): void { this.give(Buffer.from(this.slab.bytes.subarray(3, 3 + this.#size))) }

  /** Sends a frame as it is. */
  give(frame: Uint8Array): void {
    const { loss = 0, twice = 0, delayMs = 0 } = this.#trouble
    if (this.#random.chance(loss)) return
    const copies = this.#random.chance(twice) ? 2 : 1
    for (let i = 0; i < copies; i++) {
      if (delayMs === 0) this.peer.#came(frame)
      else this.#clock.after(1 + this.#random.below(delayMs), () => this.peer.#came(frame))
    }
  }

  /** There is room again. */
  makeRoom(): void {
    this.isFull = false
    this.#taker?.room()
  }

  #came(frame: Uint8Array): void {
    if (this.keeps) this.seen.push(Buffer.from(frame))
    const slab = new Slab(frame.length + 2)
    slab.bytes.set(frame, 2)
    this.#waiting.push(slab)
    this.#sizes.push(frame.length)
    if (this.#isPlanned) return
    this.#isPlanned = true
    queueMicrotask(() => {
      this.#isPlanned = false
      const sizes = this.#sizes
      this.#sizes = []
      for (const [i, one] of this.#waiting.splice(0).entries()) this.#taker?.frame(one, 2, 2 + sizes[i]!)
      this.#taker?.batch()
    })
  }
}

/** Both ends of a cable. */
export function cable(clock: Clock, trouble: Trouble = {}, seed = 1): [CableEnd, CableEnd] {
  const random = new Random(seed)
  const ends = [new CableEnd(clock, trouble, random), new CableEnd(clock, trouble, random)] as [CableEnd, CableEnd]
  ends[0].peer = ends[1]
  ends[1].peer = ends[0]
  return ends
}

/** A guest that speaks TCP, by the same code from the other side. */
export class TestGuest {
  readonly connections: Connections
  readonly wire: Wire
  readonly end: FramePort
  readonly #address: number
  readonly #packet = new Packet()

  /** `serve`: what the guest's ports lead to. */
  constructor(config: GatewayConfig, end: FramePort, clock: Clock,
    serve: (port: number) => Promise<Duplex | number> = () => Promise.resolve(14)) {
    this.end = end
    this.#address = parseAddress(config.address)!
    this.wire = new Wire(end, parseMac(config.mac)!, parseMac(config.gatewayMac)!)
    this.connections = new Connections({
      wire: this.wire, clock, mtu: config.mtu, accept: (_, port) => serve(port), refuse: () => false,
    })
    end.start({
      frame: (slab, from, to) => {
        const isOurs = slab.view.getUint16(from + 12) === ETHERTYPE_IPV4 &&
          readPacket(slab, from + ETHERNET_BYTES, to, this.#packet) === ''
        if (isOurs && this.#packet.protocol === IPPROTO_TCP) this.connections.segment(slab, this.#packet)
      },
      batch: () => this.connections.flush(), room: () => this.connections.room(), ended: () => {},
    })
  }

  connect(address: string, port: number): Promise<Duplex | number> {
    return this.connections.connect(this.#address, parseAddress(address)!, port)
  }
}

/** Guests of network 1 of the tests, by name. */
export const PEERS: Readonly<Record<string, number>> = { guest: 1, db: 2, web: 3 }

/** A configuration for one of PEERS. */
export function configOf(name = 'guest', mtu = 1500): GatewayConfig {
  const names = new Map(Object.entries(PEERS).map(([one, number]) => [addressesOf(1, number).address, one]))
  return {
    ...addressesOf(1, PEERS[name]!), mtu, hostname: name, domain: 'cellar.internal',
    peers: (one) => PEERS[one] === undefined ? undefined : addressesOf(1, PEERS[one]).address,
    nameOf: (address) => names.get(address),
  }
}

/** A gateway with a guest on a cable, and what its owner was asked. */
export function rig(owner: Partial<GatewayOwner> = {}, { trouble = {}, seed = 1, mtu = 1500, serve }: {
  trouble?: Trouble; seed?: number; mtu?: number; serve?: (port: number) => Promise<Duplex | number> } = {}) {
  const clock = new TestClock(seed)
  const [ours, theirs] = cable(clock, trouble, seed)
  const config = configOf('guest', mtu)
  const gateway = new Gateway(config, {
    dial: () => Promise.resolve(14), allows: () => false, resolve: () => Promise.resolve(44), ...owner,
  }, clock)
  gateway.attach(ours)
  const guest = new TestGuest(config, theirs, clock, serve)
  return { clock, gateway, guest, config, ours, theirs }
}
