// host/machine_net.ts: a machine's network card in its process: the gateway behind it, and who is reached through that.
//
// The gateway (services/gateway) ends the guest's connections; each becomes a dial, which the host makes as it does for
// cells, with the same names, rules and events. Published ports are listening sockets that the host has opened; what
// comes there, and from other guests, is opened towards the guest. Another machine of its networks has a line of frames
// to it, asked for as port 0. With a TAP device of the host's there is no gateway: the kernel has the other end.

import { createServer, Socket, type Server } from 'node:net'
import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { EAGAIN, ECONNREFUSED, EHOSTUNREACH, EIO, errnoOf } from '../base/errno.ts'
import { DIALS_MAX, LISTEN_BACKLOG_MAX } from '../base/limits.ts'
import type { AgentAnswer } from '../machine/agent_line.ts'
import type { NicSpec } from '../machine/spec.ts'
import { addressesOf, parseAddress } from '../services/gateway/addresses.ts'
import { FrameStream } from '../services/gateway/frame_stream.ts'
import { Gateway } from '../services/gateway/gateway.ts'
import { closeFd, duplicateFd, socketPair, type FdReceiver } from '../sys/sockets.ts'
import { allows, parseRules, type Rule } from './egress.ts'
import type { HealthPeer } from './health.ts'
import type { HostLine } from './host_line.ts'
import type { GuestLaunch, Peer, ToProcess } from './protocol.ts'

/** The network that all guests of a project are in, as far as addresses go: 10.77.0.0/16. */
const NETWORK_NUMBER = 77
const MTU = 1500
/**
 * Every machine's own end of its wire, which has nobody else on it: a guest that was copied keeps the MAC address that
 * its driver knows, and asks for the address of its new life by DHCP.
 */
const WIRE_MAC = '02:ce:11:4d:00:01'
/** What may stand behind names of peers. */
const DOMAIN = 'cellar.internal'
/** Of port 0: a line of frames between two machines. */
const LINE_PORT = 0

type Dialled = Extract<ToProcess, { readonly dialled: number }>
type Resolved = Extract<ToProcess, { readonly resolved: number }>
type Incoming = Extract<ToProcess, { readonly incoming: string }>

type Lines = { readonly line: HostLine; readonly receiver: FdReceiver }

/** One machine's network. */
export class MachineNet {
  readonly #launch: GuestLaunch
  readonly #line: HostLine
  readonly #receiver: FdReceiver
  readonly #gateway: Gateway | undefined
  readonly #tapFd: number | undefined
  readonly #rules: readonly Rule[]
  readonly #servers: Server[] = []
  readonly #dials = new Map<number, (answer: Dialled | undefined) => void>()
  readonly #lookups = new Map<number, (answer: Resolved | undefined) => void>()
  #peers = new Map<string, Peer>()
  #names = new Map<string, string>()
  #next = 1
  #isClosed = false

  constructor(launch: GuestLaunch, { line, receiver }: Lines) {
    const { machine, name } = launch
    this.#launch = launch
    this.#line = line
    this.#receiver = receiver
    this.#rules = parseRules(machine!.egress)
    this.knows(machine!.peers)
    this.#tapFd = machine!.tap === undefined ? undefined : receiver.take(machine!.tap)
    if (machine!.tap !== undefined) return
    this.#gateway = new Gateway({
      ...addressesOf(NETWORK_NUMBER, machine!.address), mac: WIRE_MAC, mtu: MTU, hostname: name, domain: DOMAIN,
      peers: (peer) => this.#addressOf(peer), nameOf: (address) => this.#names.get(address),
    }, {
      dial: async (host, port) => await this.#connect(host, port),
      allows: (host, port) => allows(this.#rules, host, port),
      resolve: async (host) => await this.#resolve(host),
      link: async (peer) => {
        const socket = this.#peers.get(peer)?.kind === 'machine' ? await this.#connect(peer, LINE_PORT) : ECONNREFUSED
        return typeof socket === 'number' ? undefined : new FrameStream(socket)
      },
    })
  }

  /** Who else is in its networks, from now on. Names are compared as DNS compares them. */
  knows(peers: readonly Peer[]): void {
    this.#peers = new Map(peers.map((peer) => [peer.name.toLowerCase(), peer]))
    this.#names = new Map(peers.map(({ name, address }) => [addressesOf(NETWORK_NUMBER, address).address, name]))
  }

  /** A card for a new engine, which owns its descriptor. */
  connect(): NicSpec[] {
    const { machine } = this.#launch
    if (this.#gateway === undefined) {
      const { mac } = addressesOf(NETWORK_NUMBER, machine!.address)
      return this.#tapFd === undefined ? [] : [{ mac, fd: duplicateFd(this.#tapFd), kind: 'tap', mtu: MTU }]
    }
    const [ours, theirs] = socketPair()
    this.#gateway.attach(new FrameStream(socketOf(ours)))
    return [{ mac: WIRE_MAC, fd: theirs, kind: 'stream', mtu: MTU }]
  }

  /** Published ports take connections from now on. */
  listen(): void {
    for (const { port, tickets } of this.#launch.ports) {
      for (const ticket of tickets) {
        const fd = this.#receiver.take(ticket)
        if (fd === undefined) continue
        if (this.#gateway === undefined) {
          closeFd(fd)
          continue
        }
        const server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (socket) => {
          void this.#enter(socket, port, undefined)
        })
        server.on('error', (error) => this.#line.send({ say: `port ${port}: ${error.message}`, id: this.#launch.id }))
        server.listen({ fd, backlog: LISTEN_BACKLOG_MAX })
        this.#servers.push(server)
      }
    }
  }

  pause(): void { this.#gateway?.pause() }
  resume(): void { this.#gateway?.resume() }

  /** A connection of another guest, or a machine's line of frames. */
  incoming({ port, ticket, request, from }: Incoming): void {
    const fd = this.#receiver.take(ticket)
    const answer = (errno: number): void => this.#line.send({ incoming: request, errno })
    if (fd === undefined || this.#gateway === undefined || this.#isClosed) {
      if (fd !== undefined) closeFd(fd)
      return answer(ECONNREFUSED)
    }
    const socket = socketOf(fd)
    if (port === LINE_PORT) {
      if (from === undefined) {
        socket.destroy()
        return answer(ECONNREFUSED)
      }
      this.#gateway.link(from.name.toLowerCase(), new FrameStream(socket))
      return answer(0)
    }
    void this.#enter(socket, port, from).then(answer)
  }

  /** A connection that a program of the guest asks its agent for. */
  async connectFor({ name, port }: { readonly name: string; readonly port: number }): Promise<AgentAnswer> {
    const stream = await this.#connect(name, port)
    return typeof stream === 'number' ? { errno: stream } : { errno: 0, stream }
  }

  async openForHealth(port: number): Promise<HealthPeer | number> {
    const stream = await this.#gateway?.open(port) ?? ECONNREFUSED
    if (typeof stream === 'number') return stream
    const peer: HealthPeer = { onData: () => {}, onEnd: () => {}, write: (bytes) => stream.write(bytes),
      close: () => void stream.destroy() }
    stream.on('data', (bytes: Buffer) => peer.onData(bytes))
    stream.on('end', () => peer.onEnd(0)).on('error', (error) => peer.onEnd(errnoOf(error) || EIO))
    return peer
  }

  /** The host has answered a dial or a question. */
  answered(message: Dialled | Resolved): void {
    if ('dialled' in message) this.#dials.get(message.dialled)?.(message)
    else this.#lookups.get(message.resolved)?.(message)
  }

  /** A new host knows nothing of what the one before was asked. */
  unanswered(): void {
    for (const answer of [...this.#dials.values(), ...this.#lookups.values()]) answer(undefined)
  }

  figures(): Readonly<Record<string, number>> {
    const figures = this.#gateway?.figures()
    if (figures === undefined) return {}
    const { names: _names, drops, ...counts } = figures
    return { ...counts, drops: Object.values(drops).reduce((sum, count) => sum + count, 0) }
  }

  close(): void {
    this.#isClosed = true
    for (const server of this.#servers.splice(0)) server.close()
    this.unanswered()
    this.#gateway?.close()
    if (this.#tapFd !== undefined) closeFd(this.#tapFd)
  }

  #addressOf(name: string): string | undefined {
    const peer = this.#peers.get(name)
    return peer === undefined ? undefined : addressesOf(NETWORK_NUMBER, peer.address).address
  }

  async #connect(host: string, port: number): Promise<Duplex | number> {
    if (!this.#line.isConnected) return EHOSTUNREACH
    if (this.#dials.size >= DIALS_MAX) return EAGAIN
    const number = this.#next++
    const { promise, resolve } = Promise.withResolvers<Dialled | undefined>()
    this.#dials.set(number, resolve)
    // Names of peers as they are written: the host compares exactly.
    const name = this.#peers.get(host)?.name ?? host
    this.#line.send({ dial: number, id: this.#launch.id, name, port })
    const answer = await promise
    this.#dials.delete(number)
    const fd = answer?.ticket === undefined ? undefined : this.#receiver.take(answer.ticket)
    return fd === undefined ? answer?.errno ?? EHOSTUNREACH : socketOf(fd)
  }

  async #resolve(name: string): Promise<readonly string[] | number> {
    if (!this.#line.isConnected || this.#lookups.size >= DIALS_MAX) return EAGAIN
    const number = this.#next++
    const { promise, resolve } = Promise.withResolvers<Resolved | undefined>()
    this.#lookups.set(number, resolve)
    this.#line.send({ resolve: number, id: this.#launch.id, name })
    const answer = await promise
    this.#lookups.delete(number)
    const addresses = answer?.addresses?.filter((address) => parseAddress(address) !== undefined) ?? []
    return addresses.length === 0 ? EHOSTUNREACH : addresses
  }

  // Joins a connection from outside to one that is opened towards the guest: 0, or an errno.
  async #enter(socket: Socket, port: number, from: Peer | undefined): Promise<number> {
    const opened = await this.#gateway!.open(port, from === undefined ? undefined : { name: from.name.toLowerCase() })
    if (typeof opened === 'number') {
      // Between guests it is a Unix socket, which has no reset: that guest is told the errno.
      if (from === undefined) socket.resetAndDestroy()
      else socket.destroy()
      return opened
    }
    void join(socket, opened)
    return 0
  }
}

function socketOf(fd: number): Socket {
  const socket = new Socket({ fd, allowHalfOpen: true, readable: true, writable: true })
  socket.on('error', () => {})
  return socket
}

// Each way until its end. What breaks one way breaks the other.
async function join(one: Duplex, other: Duplex): Promise<void> {
  const ways = [pipeline(one, other, { end: true }), pipeline(other, one, { end: true })]
  await Promise.allSettled(ways.map((way) => way.catch(() => {
    one.destroy()
    other.destroy()
  })))
}
