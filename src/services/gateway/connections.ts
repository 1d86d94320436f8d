// services/gateway/connections.ts: the TCP connections of one guest: which segment belongs to which, and when they act.
//
// A SYN of the guest is answered when it is known what it leads to: `accept` dials meanwhile, and the guest's repeated
// SYNs wait. So a guest sees "connection refused" as it would on a real network. Everything else that belongs to no
// connection is answered by a reset; so a gateway that was restored ends connections of before.
//
// Segments mark connections; `flush` hands on data and sends what is due, once for a batch. One timer is for all: it
// looks at each connection when the first deadline has come. Hot path: a segment allocates nothing.

import { EADDRNOTAVAIL, EAGAIN, ECONNABORTED, ETIMEDOUT } from '../../base/errno.ts'
import { GATEWAY_CONNECTIONS_MAX, GATEWAY_DIALS_MAX, GATEWAY_TCP_BYTES_MAX } from '../../base/limits.ts'
import type { Duplex } from 'node:stream'
import type { Clock } from './clock.ts'
import type { Undelivered } from './icmp.ts'
import { IPPROTO_TCP, IPV4_BYTES, type Packet, type Wire } from './ipv4.ts'
import { RingMemory, type Ring } from './ring.ts'
import type { Slab } from './slab.ts'
import { SCALE, Tcp } from './tcp.ts'
import type { TcpLine } from './tcp_line.ts'
import { ACK, FIN, readSegment, RST, Segment, sendSegment, SYN, TCP_BYTES, type Head } from './tcp_segment.ts'
import { join, TcpStream } from './tcp_stream.ts'

/** How long the guest may take to answer `open`: less than the host waits for it (host/dials.ts). */
const OPEN_MS_MAX = 4500
/** Ports that connections to the guest come from (RFC 6335 §6). */
const PORT_FIRST = 49_152
const PORTS = 16_384

type Options = {
  readonly wire: Wire
  readonly clock: Clock
  readonly mtu: number
  /** What a connection to this address and port leads to, or an errno. Never rejects. */
  readonly accept: (address: number, port: number) => Promise<Duplex | number>
  /** Tells the guest why it can't connect; false if a reset is to say it. */
  readonly refuse: (errno: number, what: Undelivered) => boolean
}

/** See the head of this file. */
export class Connections {
  readonly counts = { accepted: 0, opened: 0, refused: 0, failed: 0 }
  readonly wire: Wire
  readonly clock: Clock
  readonly memory = new RingMemory(GATEWAY_TCP_BYTES_MAX)
  readonly mss: number
  readonly #options: Options
  // By the sum of both addresses (one of them is the guest's, always), then by both ports: 32 bits with a sign, each.
  readonly #by = new Map<number, Map<number, Connection>>()
  readonly #segment = new Segment()
  readonly #dirty: Connection[] = []
  #blocked: Connection[] = []
  /** In TIME_WAIT: the first to go when there are too many. */
  readonly #ending = new Set<Connection>()
  #count = 0
  #dialing = 0
  #inBatch = false
  #isPlanned = false
  #timerAt = Infinity
  #cancelTimer = (): void => {}
  #pausedAt: number | undefined

  constructor(options: Options) {
    this.#options = options
    this.wire = options.wire
    this.clock = options.clock
    this.mss = options.mtu - IPV4_BYTES - TCP_BYTES
  }

  get open(): number { return this.#count }

  /** A packet of TCP. Answers why it was dropped. */
  segment(slab: Slab, packet: Packet): '' | 'tcp short' | 'tcp checksum' | 'tcp full' {
    const segment = this.#segment
    const fault = readSegment(slab, packet, segment)
    if (fault !== '') return fault
    const found = this.#by.get(packet.source + packet.destination | 0)?.get(segment.destination << 16 | segment.source)
    if (found === undefined || found.isReplacedBy(segment)) {
      if (found !== undefined) found.drop()
      if ((segment.flags & (SYN | ACK | RST)) === SYN) return this.#syn(packet, segment)
      this.#reset(packet, segment)
      return ''
    }
    if (found.tcp === undefined) {
      if ((segment.flags & RST) !== 0) this.forget(found)
      return ''
    }
    found.tcp.segment(segment, slab)
    this.touch(found)
    return ''
  }

  /** Connects to the guest's own port, as if from `local`. */
  connect(local: number, remote: number, port: number): Promise<TcpStream | number> {
    const first = this.clock.random() % PORTS
    if (!this.#hasRoom()) return Promise.resolve(EAGAIN)
    const sum = local + remote | 0
    let localPort = 0
    for (let i = 0; i < PORTS && localPort === 0; i++) {
      const candidate = PORT_FIRST + (first + i) % PORTS
      if (this.#by.get(sum)?.has(candidate << 16 | port) !== true) localPort = candidate
    }
    if (localPort === 0) return Promise.resolve(EADDRNOTAVAIL)
    const connection = new Connection(this, local, remote, localPort, port)
    this.#add(connection)
    const { promise, resolve } = Promise.withResolvers<TcpStream | number>()
    const cancel = this.clock.after(OPEN_MS_MAX, () => connection.tcp!.abort(ETIMEDOUT))
    connection.opening = (result) => {
      cancel()
      this.counts[typeof result === 'number' ? 'failed' : 'opened']++
      resolve(result)
    }
    connection.start().connect()
    this.touch(connection)
    return promise
  }

  /** The connection is looked at with the next flush, which comes with the end of the batch, or soon. */
  touch(connection: Connection): void {
    if (connection.isDirty) return
    connection.isDirty = true
    this.#dirty.push(connection)
    if (this.#inBatch || this.#isPlanned) return
    this.#isPlanned = true
    queueMicrotask(() => {
      this.#isPlanned = false
      if (!this.#inBatch) this.flush()
    })
  }

  /** Segments come: what they bring is handed on by the flush after the last one. */
  begin(): void { this.#inBatch = true }

  /** Hands on what has come, and sends what is due. */
  flush(): void {
    this.#inBatch = true
    let next = this.#timerAt
    for (let i = 0; i < this.#dirty.length; i++) {
      const connection = this.#dirty[i]!
      const { tcp, stream } = connection
      connection.isDirty = false
      stream?.deliver()
      if (tcp === undefined || this.#pausedAt !== undefined) continue
      if (!tcp.pump() && !connection.isBlocked) {
        connection.isBlocked = true
        this.#blocked.push(connection)
      }
      if (tcp.state === 'TIME_WAIT') this.#ending.add(connection)
      next = Math.min(next, tcp.deadline)
    }
    this.#dirty.length = 0
    this.#inBatch = false
    this.wire.sink.flush()
    if (next < this.#timerAt) this.#setTimer(next)
  }

  /** There is room in the sink again. */
  room(): void {
    const blocked = this.#blocked
    this.#blocked = []
    this.#inBatch = true
    for (const connection of blocked) {
      connection.isBlocked = false
      this.touch(connection)
    }
    this.flush()
  }

  /** The guest stands still: nothing is sent, and no time passes. */
  pause(): void {
    if (this.#pausedAt !== undefined) return
    this.#pausedAt = this.clock.now()
    this.#cancelTimer()
    this.#timerAt = Infinity
  }

  resume(): void {
    if (this.#pausedAt === undefined) return
    const ms = this.clock.now() - this.#pausedAt
    this.#pausedAt = undefined
    this.#inBatch = true
    for (const connection of this.#all()) {
      connection.tcp?.postpone(ms)
      this.touch(connection)
    }
    this.flush()
  }

  /** Resets all of them. */
  close(): void {
    for (const connection of this.#all()) connection.drop()
    this.#cancelTimer()
    this.flush()
  }

  /** A connection is no more. */
  forget(connection: Connection): void {
    const { sum, ports } = connection
    const among = this.#by.get(sum)
    if (among?.get(ports) !== connection) return
    among.delete(ports)
    if (among.size === 0) this.#by.delete(sum)
    this.#ending.delete(connection)
    this.#count--
  }

  #syn({ source, destination }: Packet, { seq, window, mss, scale, source: port, destination: localPort }: Segment):
  '' | 'tcp full' {
    if (this.#dialing >= GATEWAY_DIALS_MAX || !this.#hasRoom()) return 'tcp full'
    const connection = new Connection(this, destination, source, localPort, port)
    this.#add(connection)
    this.#dialing++
    void this.#options.accept(destination, localPort).then((to) => {
      this.#dialing--
      const isGone = !this.#has(connection)
      if (typeof to === 'number') {
        if (isGone) return
        this.counts.refused++
        this.forget(connection)
        this.#refuse(connection, seq, to)
      } else if (isGone) to.destroy()
      else {
        this.counts.accepted++
        connection.start().accept({ seq, window, mss, scale })
        join(connection.stream!, to)
        this.touch(connection)
      }
    })
    return ''
  }

  #refuse({ local, remote, localPort, remotePort }: Connection, seq: number, errno: number): void {
    const what = {
      protocol: IPPROTO_TCP, source: remote, destination: local, first: (remotePort << 16 | localPort) >>> 0,
      second: seq >>> 0,
    }
    // Who is told to try again does: its SYN comes again.
    if (errno !== EAGAIN && !this.#options.refuse(errno, what)) {
      this.#sendReset(local, remote, localPort, remotePort, 0, seq + 1 | 0, RST | ACK)
    }
    if (!this.#inBatch) this.wire.sink.flush()
  }

  // RFC 9293 §3.10.7.1.
  #reset({ source, destination }: Packet, segment: Segment): void {
    const { flags, seq, ack, from, to } = segment
    if ((flags & RST) !== 0) return
    const size = to - from + (flags & SYN ? 1 : 0) + (flags & FIN ? 1 : 0)
    const isAcking = (flags & ACK) !== 0
    this.#sendReset(destination, source, segment.destination, segment.source, isAcking ? ack : 0,
      isAcking ? 0 : seq + size | 0, isAcking ? RST : RST | ACK)
  }

  #sendReset(local: number, remote: number, localPort: number, remotePort: number, seq: number, ack: number,
    flags: number): void {
    const head = { localPort, remotePort, seq, ack, flags, window: 0, mss: 0, scale: -1 }
    sendSegment(this.wire, local, remote, head, undefined, 0, 0)
  }

  #hasRoom(): boolean {
    if (this.#count < GATEWAY_CONNECTIONS_MAX) return true
    for (const connection of this.#ending) {
      connection.drop()
      return true
    }
    return false
  }

  #add(connection: Connection): void {
    let among = this.#by.get(connection.sum)
    if (among === undefined) this.#by.set(connection.sum, among = new Map())
    among.set(connection.ports, connection)
    this.#count++
  }

  #has(connection: Connection): boolean {
    return this.#by.get(connection.sum)?.get(connection.ports) === connection
  }

  #all(): Connection[] { return [...this.#by.values()].flatMap((among) => [...among.values()]) }

  #setTimer(at: number): void {
    if (this.#pausedAt !== undefined) return
    this.#cancelTimer()
    this.#timerAt = at
    this.#cancelTimer = this.clock.after(Math.max(1, at - this.clock.now()), () => this.#expire())
  }

  #expire(): void {
    this.#timerAt = Infinity
    const now = this.clock.now()
    let next = Infinity
    this.#inBatch = true
    for (const among of this.#by.values()) {
      for (const connection of among.values()) {
        const { tcp } = connection
        if (tcp === undefined) continue
        if (tcp.deadline <= now) {
          tcp.expire()
          this.touch(connection)
        } else next = Math.min(next, tcp.deadline)
      }
    }
    if (next < Infinity) this.#setTimer(next)
    this.flush()
  }
}

/** One connection: `remote` is the guest's side. */
class Connection implements TcpLine {
  readonly local: number
  readonly remote: number
  readonly localPort: number
  readonly remotePort: number
  /** Undefined while it is being dialled. */
  tcp: Tcp | undefined
  stream: TcpStream | undefined = undefined
  isDirty = false
  isBlocked = false
  /** Who waits for it to be made. */
  opening: ((result: TcpStream | number) => void) | undefined
  readonly #all: Connections
  readonly #head: Head

  constructor(all: Connections, local: number, remote: number, localPort: number, remotePort: number) {
    this.#all = all
    this.local = local
    this.remote = remote
    this.localPort = localPort
    this.remotePort = remotePort
    this.#head = { localPort, remotePort, seq: 0, ack: 0, flags: 0, window: 0, mss: all.mss, scale: SCALE }
  }

  get sum(): number { return this.local + this.remote | 0 }
  get ports(): number { return this.localPort << 16 | this.remotePort }

  start(): Tcp {
    const { memory, mss, clock } = this.#all
    this.tcp = new Tcp({ line: this, memory, iss: clock.random(), mss })
    this.stream = new TcpStream(this.tcp, () => this.#all.touch(this))
    return this.tcp
  }

  /** True for a SYN of a new connection while the last one of the same ports waits for its end (RFC 9293 §3.10.7.4). */
  isReplacedBy({ flags, seq }: Segment): boolean {
    return this.tcp?.state === 'TIME_WAIT' && (flags & (SYN | ACK | RST)) === SYN && (seq - this.tcp.ack | 0) > 0
  }

  drop(): void {
    if (this.tcp === undefined) this.#all.forget(this)
    else this.tcp.abort(ECONNABORTED)
  }

  send(seq: number, flags: number, ring: Ring | undefined, offset: number, size: number): boolean {
    const head = this.#head
    const tcp = this.tcp!
    head.seq = seq
    head.ack = (flags & ACK) === 0 ? 0 : tcp.ack
    head.flags = flags
    head.window = tcp.windowField((flags & SYN) !== 0)
    head.scale = tcp.scale
    return sendSegment(this.#all.wire, this.local, this.remote, head, ring, offset, size)
  }

  now(): number { return this.#all.clock.now() }

  established(): void {
    this.opening?.(this.stream!)
    this.opening = undefined
  }

  writable(): void { this.stream!.fill() }

  closed(errno: number): void {
    this.#all.forget(this)
    this.opening?.(errno)
    this.opening = undefined
    this.stream!.on('error', () => {})
    this.stream!.finish(errno)
  }
}
