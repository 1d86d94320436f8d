// host/ports.ts: the published ports of a guest: opened by the host, shared with the guest's process.
//
// The host makes a socket listen and gives its descriptor to the process; its own stays open, so that connections wait
// in the kernel's queue while the guest is in no process. It accepts none but those that wake a hibernated guest, and
// these are handed over. The port lives and dies with the guest: a guest that runs keeps its port when the host ends.
// Low ports need a host that may open them, never a guest.

import { createServer, type Server, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { ERRNO_NAMES } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { LISTEN_BACKLOG_MAX } from '../base/limits.ts'
import { closeFd, duplicateFd, listenTcp, sendFd } from '../sys/sockets.ts'
import type { ProcessHandle } from './processes.ts'
import { throughSocket } from './run_socket.ts'
import { parsePort, type GuestSpec } from './spec.ts'

/** A published port, as it is. */
type Published = { readonly address: string; readonly port: number; readonly guest: number }

/** What one guest publishes, listening. */
export class Listening {
  readonly published: readonly Published[]
  readonly #fds: readonly number[]
  readonly #watching: Server[] = []
  #isClosed = false

  /**
   * Opens all of it or nothing. `before`: what was published of it until now: a port that the host chose stays what it
   * is. Throws PORT_IN_USE, LISTEN_FAILED.
   */
  constructor({ ports }: Pick<GuestSpec, 'ports'>, before: readonly Published[] = []) {
    const fds: number[] = []
    const published: Published[] = []
    try {
      for (const [i, text] of ports.entries()) {
        const { address, port, guest } = parsePort(text)!
        const known = port === 0 && before[i]?.guest === guest ? before[i].port : port
        const listening = listenTcp(address, known, LISTEN_BACKLOG_MAX)
        if (typeof listening === 'number') throw refusal(`${address}:${known}`, ERRNO_NAMES[-listening] ?? 'EIO')
        fds.push(listening.fd)
        published.push({ address, port: listening.port, guest })
      }
    } catch (error) {
      for (const fd of fds) closeFd(fd)
      throw error
    }
    this.#fds = fds
    this.published = published
  }

  /** Gives the sockets to a process: tickets by guest port. Throws a system error. */
  async share(handle: ProcessHandle): Promise<Map<number, number[]>> {
    const tickets = new Map<number, number[]>()
    try {
      for (const [i, { guest }] of this.published.entries()) {
        tickets.set(guest, [...tickets.get(guest) ?? [], await shareFd(handle, this.#fds[i]!)])
      }
      return tickets
    } catch (error) {
      dropPorts(handle, tickets)
      throw error
    }
  }

  /**
   * Accepts from now on, until `unwatch`: nobody else does. Not a byte is read of what comes. Several may come at once
   * even if the first of them ends it.
   */
  watch(came: (port: number, connection: Socket) => void): void {
    if (this.#isClosed || this.#watching.length > 0) return
    for (const [i, { guest }] of this.published.entries()) {
      const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (connection) => {
        connection.on('error', () => {})
        came(guest, connection)
      })
      this.#watching.push(server)
      // Such as that we have no descriptors left: who connects waits until the guest is woken otherwise.
      server.on('error', () => {})
      server.listen({ fd: duplicateFd(this.#fds[i]!), backlog: LISTEN_BACKLOG_MAX })
    }
  }

  unwatch(): void {
    for (const server of this.#watching.splice(0)) server.close()
  }

  /** Ours are closed; what a process has of them is its own. */
  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.unwatch()
    for (const fd of this.#fds) closeFd(fd)
  }
}

/** Takes back what was given for a launch that comes to nothing: else the process would hold the ports. */
export function dropPorts({ link }: ProcessHandle, tickets: ReadonlyMap<number, readonly number[]>): void {
  if (tickets.size > 0) link?.send({ drop: [...tickets.values()].flat() })
}

/** Gives a connection that Node has to a process; ours is closed: its ticket. */
export async function giveSocket(handle: ProcessHandle, socket: Socket): Promise<number> {
  try {
    return await shareFd(handle, descriptorOf(socket))
  } finally {
    // Ours only: the process has its own of the same connection by now.
    socket.destroy()
  }
}

// Node tells a socket's descriptor only so.
function descriptorOf(socket: Socket): number {
  return (socket as unknown as { _handle: { fd: number } })._handle.fd
}

/** Gives a descriptor to a process, and closes ours: its ticket. */
export async function giveFd(handle: ProcessHandle, fd: number): Promise<number> {
  try {
    return await shareFd(handle, fd)
  } finally {
    closeFd(fd)
  }
}

/** Gives a descriptor to a process; ours stays open: its ticket. */
export async function shareFd(handle: ProcessHandle, fd: number): Promise<number> {
  const ticket = handle.nextTicket++
  const until = performance.now() + GIVE_MS_MAX
  for (;;) {
    try {
      throughSocket(handle.runFolder, 'f', (path) => sendFd(path, fd, ticket))
      return ticket
    } catch (error) {
      // Few fit into the kernel's queue where nobody may make it longer: the process takes them as it reads messages.
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN' || performance.now() > until) throw error
      await sleep(GIVE_AGAIN_MS)
    }
  }
}

const GIVE_AGAIN_MS = 1
/** A process that compiles a large module reads nothing meanwhile. */
const GIVE_MS_MAX = 30_000

function refusal(address: string, code: string): CellarError {
  if (code === 'EADDRINUSE') return new CellarError('PORT_IN_USE', [address])
  return new CellarError('LISTEN_FAILED', [address, REASONS[code] ?? code])
}

const REASONS: Record<string, string> = {
  EACCES: 'the system reserves this port for the administrator',
  EADDRNOTAVAIL: 'no interface of this machine has the address',
  EAFNOSUPPORT: 'this machine has no such address family',
}
