// cell/pcpu_net.ts: the networks as one pCPU has them: the ports and the dials of its guests.
//
// Names belong to the main thread (switchboard.ts). A dial goes there as a report, and comes back as where to go: to a
// guest of this thread, whose port then gets the other end at once; to one of another thread, over the trunk that the
// main thread has laid between the two (services/net/trunk.ts); or to the outside, as a socket that the host has
// opened. What comes for a guest that hasn't got its ports yet waits for them: it is starting.

import { closeSync } from 'node:fs'
import type { MessagePort, Transferable } from 'node:worker_threads'
import { ECONNABORTED, ECONNREFUSED, EHOSTUNREACH, errnoOf } from '../base/errno.ts'
import { LISTEN_BACKLOG_MAX } from '../base/limits.ts'
import type { Dialer } from '../services/net/dialer.ts'
import { LazyConnection } from '../services/net/lazy_connection.ts'
import { linkedEnds, PipeEnd } from '../services/net/pipe_end.ts'
import { PortListener } from '../services/net/port_listener.ts'
import type { StreamListener, StreamSocket } from '../services/net/stream_socket.ts'
import { Trunk } from '../services/net/trunk.ts'
import { RIGHTS_LISTENER, RIGHTS_SOCKET } from '../wasi/p1/abi.ts'
import type { Descriptors } from '../wasi/p1/descriptors.ts'
import { announce } from './alarm.ts'

/** How long one who comes early waits for a guest to get its ports. */
const STARTING_MS_MAX = 1000

/** What a guest has of its networks from the start. `fds`: listening TCP sockets, no longer the caller's then. */
export type NetGrants = {
  readonly guest: string
  readonly ports: readonly { readonly port: number; readonly fds: readonly number[] }[]
  readonly connect: readonly { readonly name: string; readonly port: number }[]
}

/** Where a dial leads: to a guest of this pCPU (`peer` undefined) or of another, to a socket, or nowhere. */
export type Route =
  | { readonly guest: string; readonly port: number; readonly peer: number | undefined }
  | { readonly fd: number }
  | { readonly errno: number }

/** pCPU → main thread. */
export type NetReport =
  | {
    readonly net: 'dial'; readonly dial: number
    readonly guest: string; readonly name: string; readonly port: number
  }
  | { readonly net: 'granted'; readonly guest: string; readonly ports: readonly number[] }

/** Main thread → pCPU. */
export type NetCommand =
  | { readonly net: 'trunk'; readonly peer: number; readonly parity: 0 | 1; readonly port: MessagePort }
  | { readonly net: 'route'; readonly dial: number; readonly route: Route }
  | { readonly net: 'incoming'; readonly guest: string; readonly port: number; readonly fd: number }

/** How the thread is told of messages while a guest keeps it busy: its control memory, and the count of those read. */
export type OwnMail = { readonly control: SharedArrayBuffer; read(): void }

type Ports = ReadonlyMap<number, PortListener>

/** One thread's part of the networks. */
export class PcpuNet {
  readonly #post: (report: NetReport, transfer?: Transferable[]) => void
  readonly #mail: OwnMail | undefined
  readonly #guests = new Map<string, Ports>()
  /** Who waits for guests to get their ports. */
  readonly #early = new Map<string, Set<(ports: Ports | undefined) => void>>()
  #earlyCount = 0
  readonly #dials = new Map<number, { readonly guest: string; readonly answer: (route: Route) => void }>()
  readonly #trunks = new Map<number, Trunk>()
  #nextDial = 0

  constructor(post: (report: NetReport, transfer?: Transferable[]) => void, mail?: OwnMail) {
    this.#post = post
    this.#mail = mail
  }

  handle(command: NetCommand): void {
    if (command.net === 'trunk') this.#lay(command.peer, command.parity, command.port)
    else if (command.net === 'incoming') void this.#admit(command.guest, command.port, command.fd)
    else {
      const dial = this.#dials.get(command.dial)
      this.#dials.delete(command.dial)
      if (dial !== undefined) dial.answer(command.route)
      else if ('fd' in command.route) closeSync(command.route.fd)
    }
  }

  /** Gives a guest its listening sockets, then its connections. Throws CellarError, and then holds nothing. */
  async grant(descriptors: Descriptors, { guest, ports, connect }: NetGrants): Promise<void> {
    const listeners = new Map<number, PortListener>()
    const left = ports.flatMap(({ fds }) => fds)
    try {
      for (const { port, fds } of ports) {
        const sockets: StreamListener[] = []
        for (const fd of fds) {
          const { listenOn } = await import('../services/net/listener.ts')
          left.shift()
          sockets.push(await listenOn(fd))
        }
        const listener = new PortListener(sockets)
        listeners.set(port, listener)
        descriptors.add({ descriptor: listener, rightsBase: RIGHTS_LISTENER, rightsInheriting: RIGHTS_SOCKET,
          flags: 0 })
      }
    } catch (error) {
      for (const fd of left) closeSync(fd)
      throw error
    }
    const dialer = this.dialer(guest)
    for (const { name, port } of connect) {
      descriptors.add({ descriptor: new LazyConnection(() => dialer.dial(name, port)), rightsBase: RIGHTS_SOCKET,
        rightsInheriting: 0, flags: 0 })
    }
    this.#guests.set(guest, listeners)
    this.#post({ net: 'granted', guest, ports: [...listeners.keys()] })
    for (const go of this.#early.get(guest) ?? []) go(listeners)
  }

  dialer(guest: string): Dialer {
    return { dial: (name, port) => this.#dial(guest, name, port) }
  }

  /** A guest has ended: nobody reaches it any more, and what it was dialing fails. */
  release(guest: string): void {
    for (const listener of this.#guests.get(guest)?.values() ?? []) listener.close()
    this.#guests.delete(guest)
    for (const [id, dial] of this.#dials) {
      if (dial.guest !== guest) continue
      this.#dials.delete(id)
      dial.answer({ errno: ECONNABORTED })
    }
  }

  // ---- from here

  async #dial(guest: string, name: string, port: number): Promise<StreamSocket | number> {
    const dial = this.#nextDial++
    const route = await new Promise<Route>((answer) => {
      this.#dials.set(dial, { guest, answer })
      this.#post({ net: 'dial', dial, guest, name, port })
    })
    if ('errno' in route) return route.errno
    if ('fd' in route) return await socketOn(route.fd)
    if (route.peer !== undefined) {
      const trunk = this.#trunks.get(route.peer)
      return trunk === undefined ? EHOSTUNREACH : await trunk.open(route.guest, route.port, (far) => {
        const end = new PipeEnd('dials')
        end.link(far)
        return end
      })
    }
    const listener = await this.#listenerOf(route.guest, route.port)
    if (listener?.takes !== true) return ECONNREFUSED
    const [dialing, accepting] = linkedEnds()
    listener.offer(accepting)
    return dialing
  }

  #lay(peer: number, parity: 0 | 1, port: MessagePort): void {
    this.#trunks.get(peer)?.close()
    const mail = this.#mail
    this.#trunks.set(peer, new Trunk(port, {
      parity,
      mail: { control: mail?.control, read: () => mail?.read(), announce },
      accept: async (guest, port, take) => {
        const listener = await this.#listenerOf(guest, port)
        if (listener?.takes === true) listener.offer(take())
      },
    }))
  }

  // ---- to here

  async #admit(guest: string, port: number, fd: number): Promise<void> {
    const { connectionOn } = await import('../services/net/connection.ts')
    const listener = await this.#listenerOf(guest, port)
    try {
      if (listener?.takes === true) listener.offer(connectionOn(fd))
      else closeSync(fd)
    } catch {
      // It isn't a socket, and is none of ours.
    }
  }

  async #listenerOf(guest: string, port: number): Promise<PortListener | undefined> {
    return (this.#guests.get(guest) ?? await this.#granted(guest))?.get(port)
  }

  #granted(guest: string): Promise<Ports | undefined> {
    if (this.#earlyCount >= LISTEN_BACKLOG_MAX) return Promise.resolve(undefined)
    return new Promise((resolve) => {
      const waiting = this.#early.get(guest) ?? new Set()
      this.#early.set(guest, waiting)
      this.#earlyCount++
      const go = (ports: Ports | undefined): void => {
        clearTimeout(late)
        this.#earlyCount--
        waiting.delete(go)
        if (waiting.size === 0) this.#early.delete(guest)
        resolve(ports)
      }
      const late = setTimeout(go, STARTING_MS_MAX, undefined)
      waiting.add(go)
    })
  }
}

async function socketOn(fd: number): Promise<StreamSocket | number> {
  const { connectionOn } = await import('../services/net/connection.ts')
  try {
    const connection = connectionOn(fd)
    connection.start()
    return connection
  } catch (error) {
    return errnoOf(error)
  }
}
