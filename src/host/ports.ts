// host/ports.ts: the published ports of a guest: opened by the host, handed to the guest's process.
//
// The host makes a socket listen and gives its descriptor away at once: it never accepts a connection itself, and the
// port lives and dies with the guest, not with the host. Low ports need a host that may open them, never a guest.

import { setTimeout as sleep } from 'node:timers/promises'
import { ERRNO_NAMES } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { LISTEN_BACKLOG_MAX } from '../base/limits.ts'
import { closeFd, listenTcp, sendFd } from '../sys/sockets.ts'
import type { ProcessHandle } from './processes.ts'
import { throughSocket } from './run_socket.ts'
import { parsePort, type GuestSpec } from './spec.ts'

/** A published port, as it is. */
type Published = { readonly address: string; readonly port: number; readonly guest: number }

/**
 * Opens what a guest publishes, all of it or nothing, for its process: tickets by guest port, and where it is
 * published. Throws CellarError.
 */
export async function openPorts({ ports }: Pick<GuestSpec, 'ports'>, handle: ProcessHandle):
Promise<{ tickets: Map<number, number[]>; published: Published[] }> {
  const opened: (Published & { readonly fd: number })[] = []
  const tickets = new Map<number, number[]>()
  try {
    for (const text of ports) {
      const { address, port, guest } = parsePort(text)!
      const listening = listenTcp(address, port, LISTEN_BACKLOG_MAX)
      if (typeof listening === 'number') throw refusal(`${address}:${port}`, ERRNO_NAMES[-listening] ?? 'EIO')
      opened.push({ address, port: listening.port, guest, fd: listening.fd })
    }
    for (const { fd, guest } of opened) {
      tickets.set(guest, [...tickets.get(guest) ?? [], await shareFd(handle, fd)])
    }
  } catch (error) {
    dropPorts(handle, tickets)
    throw error
  } finally {
    for (const { fd } of opened) closeFd(fd)
  }
  return { tickets, published: opened.map(({ address, port, guest }) => ({ address, port, guest })) }
}

/** Takes back what was given for a launch that comes to nothing: else the process would hold the ports. */
export function dropPorts({ link }: ProcessHandle, tickets: ReadonlyMap<number, readonly number[]>): void {
  if (tickets.size > 0) link?.send({ drop: [...tickets.values()].flat() })
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
