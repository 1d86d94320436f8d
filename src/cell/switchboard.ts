// cell/switchboard.ts: the main thread's part of the networks: who is called what, and where a dial leads.
//
// A guest is reached by its name from the guests that share a network with it; what is called otherwise is outside, and
// the host's to reach. Bytes don't pass here: two pCPUs that have something to say to each other get a trunk
// (services/net/trunk.ts), laid at the first dial between them. Elsewhere: ports and dials of a pCPU (pcpu_net.ts).

import { MessageChannel, type Transferable } from 'node:worker_threads'
import { ECONNREFUSED, ECONNRESET, ENETUNREACH } from '../base/errno.ts'
import { SOCKET_BUFFER_BYTES_MAX } from '../base/limits.ts'
import { PIECE_BYTES } from '../services/net/inbox.ts'
import { OPENING_BYTES, type Far } from '../services/net/pipe_end.ts'
import { Trunk } from '../services/net/trunk.ts'
import { announce } from './alarm.ts'
import type { NetCommand, NetReport, Route } from './pcpu_net.ts'

/** The main thread among the pCPUs. */
const MAIN = -1

/** What a switchboard is connected to. */
export type SwitchboardLines = {
  post(pcpu: number, command: NetCommand, transfer?: Transferable[]): void
  /** Asks the host for a connection to what isn't here, for guest `id`: a connected socket, or an errno. */
  outside(id: string, name: string, port: number): Promise<{ fd: number } | number>
}

/** Where a guest is. */
export type Place = { readonly name: string; readonly networks: readonly string[]; readonly pcpu: number }

type Resident = Omit<Place, 'pcpu'> & {
  readonly id: string
  pcpu: number
  /** The ports on which it listens, when that is known. */
  ports?: ReadonlySet<number>
}

/** The names of a process's guests, and the lines between its threads. */
export class Switchboard {
  readonly #lines: SwitchboardLines
  readonly #guests = new Map<string, Resident>()
  readonly #named = new Map<string, Set<Resident>>()
  /** Pairs of pCPUs that have a trunk; the main thread's own, by pCPU. */
  readonly #laid = new Set<string>()
  readonly #own = new Map<number, Trunk>()

  constructor(lines: SwitchboardLines) {
    this.#lines = lines
  }

  /** A guest is about to start: it is reached from now on. In place of one of the same id. */
  add(id: string, at: Place): void {
    this.remove(id)
    const resident: Resident = { id, ...at }
    this.#guests.set(id, resident)
    const named = this.#named.get(at.name) ?? new Set()
    this.#named.set(at.name, named.add(resident))
  }

  /** A guest is gone. */
  remove(id: string): void {
    const resident = this.#guests.get(id)
    if (resident === undefined) return
    this.#guests.delete(id)
    const named = this.#named.get(resident.name)!
    named.delete(resident)
    if (named.size === 0) this.#named.delete(resident.name)
  }

  /** A guest goes on on another pCPU: who wants to reach it waits there until it has its ports. */
  move(id: string, pcpu: number): void {
    const resident = this.#guests.get(id)
    if (resident !== undefined) resident.pcpu = pcpu
  }

  /** What a pCPU says. */
  report(pcpu: number, report: NetReport): void {
    if (report.net === 'granted') {
      const resident = this.#guests.get(report.guest)
      if (resident !== undefined) resident.ports = new Set(report.ports)
      return
    }
    const { dial, guest, name, port } = report
    void this.#routeOf(pcpu, guest, name, port).then((route) => this.#lines.post(pcpu, { net: 'route', dial, route }))
  }

  /** A connection from elsewhere for a guest's port: 0 if the guest has `fd` now, or ECONNREFUSED. */
  incoming(id: string, port: number, fd: number): number {
    const resident = this.#guests.get(id)
    if (resident === undefined || resident.ports?.has(port) === false) return ECONNREFUSED
    this.#lines.post(resident.pcpu, { net: 'incoming', guest: id, port, fd })
    return 0
  }

  /** A connection from the main thread itself to a guest's port, as a client would make it: or an errno. */
  async open(id: string, port: number): Promise<Peer | number> {
    const resident = this.#guests.get(id)
    if (resident === undefined || resident.ports?.has(port) === false) return ECONNREFUSED
    return await this.#ownTrunk(resident.pcpu).open(id, port, (far) => new Peer(far))
  }

  /** Lets go of the main thread's own lines. */
  close(): void {
    for (const trunk of this.#own.values()) trunk.close()
    this.#own.clear()
  }

  async #routeOf(pcpu: number, id: string, name: string, port: number): Promise<Route> {
    const dialing = this.#guests.get(id)
    if (dialing === undefined) return { errno: ENETUNREACH }
    const found = this.#find(dialing, name)
    if (found === undefined) {
      const answer = await this.#lines.outside(id, name, port)
      return typeof answer === 'number' ? { errno: answer } : answer
    }
    if (found.ports?.has(port) === false) return { errno: ECONNREFUSED }
    const peer = found.pcpu === pcpu ? undefined : found.pcpu
    if (peer !== undefined) this.#lay(pcpu, peer)
    return { guest: found.id, port, peer }
  }

  #find(dialing: Resident, name: string): Resident | undefined {
    for (const one of this.#named.get(name) ?? []) {
      if (one.networks.some((network) => dialing.networks.includes(network))) return one
    }
    return undefined
  }

  // Who is reached gets its end first: what the other sends must find somebody.
  #lay(from: number, to: number): void {
    const pair = `${Math.min(from, to)} ${Math.max(from, to)}`
    if (this.#laid.has(pair)) return
    this.#laid.add(pair)
    const { port1, port2 } = new MessageChannel()
    this.#lines.post(to, { net: 'trunk', peer: from, parity: 1, port: port1 }, [port1])
    this.#lines.post(from, { net: 'trunk', peer: to, parity: 0, port: port2 }, [port2])
  }

  #ownTrunk(pcpu: number): Trunk {
    const known = this.#own.get(pcpu)
    if (known !== undefined) return known
    const { port1, port2 } = new MessageChannel()
    this.#lines.post(pcpu, { net: 'trunk', peer: MAIN, parity: 1, port: port1 }, [port1])
    const trunk = new Trunk(port2, {
      parity: 0, mail: { control: undefined, read: () => {}, announce }, accept: async () => {},
    })
    this.#own.set(pcpu, trunk)
    return trunk
  }
}

/** The main thread's end of a connection: for requests of a few bytes, whose answers are taken as they come. */
export class Peer implements Far {
  onData: (bytes: Uint8Array) => void = () => {}
  /** Once: 0 if the guest has ended its side, else an errno. */
  onEnd: (errno: number) => void = () => {}
  readonly #far: Far
  #room = OPENING_BYTES
  #ended = false
  #closed = false

  constructor(far: Far) {
    this.#far = far
  }

  /** False if nobody takes it, or it is more than the guest has room for: nothing of it is sent then. */
  write(bytes: Uint8Array): boolean {
    const charge = bytes.length + PIECE_BYTES
    if (this.#closed || charge > this.#room) return false
    this.#room -= charge
    this.#far.arrived(Buffer.from(bytes))
    return true
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#far.ended()
    this.#far.forgotten?.()
  }

  arrived(piece: Buffer): void {
    this.#far.taken(piece.length + PIECE_BYTES)
    this.onData(piece)
  }

  taken(bytes: number): void { this.#room = Math.min(this.#room + bytes, SOCKET_BUFFER_BYTES_MAX) }
  ended(): void { this.#end(0) }

  broken(): void {
    this.#closed = true
    this.#far.forgotten?.()
    this.#end(ECONNRESET)
  }

  #end(errno: number): void {
    if (this.#ended) return
    this.#ended = true
    this.onEnd(errno)
  }
}
