// host/dials.ts: connections that guests ask for and their own process can't make: to cells elsewhere, and outside.
//
// A guest's process has no network. It asks; the host looks whether the name is a cell of the project in a network that
// both are in, else whether the guest's rules let it out (egress.ts), makes the connection, and gives its descriptor to
// the process. Each attempt is counted, and noted as an event: a few for each guest at a time, since a hostile guest
// would fill the log otherwise. Elsewhere: cells of one process reach each other without the host
// (cell/switchboard.ts).
//
// A machine knows addresses only. Its gateway asks who has a name, and dials by name what the guest reaches by address:
// the rules and the answers are those of cells. Of another machine it may ask for port 0, which is a stream of frames
// from gateway to gateway.

import { EAGAIN, ECONNREFUSED, EIO, ETIMEDOUT } from '../base/errno.ts'
import {
  EGRESS_DIALS_MAX, EGRESS_DIALS_PROJECT_MAX, EGRESS_LOOKUPS_MAX, EGRESS_LOOKUPS_PROJECT_MAX,
} from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { addressesOf, parseRules, reach, type Rule } from './egress.ts'
import { eventOf } from './lifecycle.ts'
import { giveFd, giveSocket } from './ports.ts'
import type { ProcessHandle } from './processes.ts'
import type { GuestSpec } from './spec.ts'
import { kindOf, meets, peerOf, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'

/** How long a cell's process may take to say whether it takes a connection. */
const ANSWER_MS_MAX = 5000
/** Events of attempts, for each guest and window; those beyond are counted and told when the window ends. */
const EVENTS_MAX = 10
const WINDOW_MS = 10_000

type Asked = { readonly dial: number; readonly id: string; readonly name: string; readonly port: number }
type AskedName = { readonly resolve: number; readonly id: string; readonly name: string }
type Answer = { ticket: number } | { errno: number }
type Parts = { readonly state: State; readonly store: Store; readonly log: Log
  /** Resolves when a hibernated guest runs. Throws CellarError. */
  readonly wake: (guest: Guest) => Promise<void> }
type Window = { readonly until: number; events: number; untold: number }

/** Makes connections for guests. */
export class Dials {
  /** Attempts outside, by what became of them. */
  readonly counts = { allowed: 0, denied: 0, failed: 0 }
  readonly #parts: Parts
  readonly #waiting = new Map<number, { readonly there: ProcessHandle; readonly resolve: (errno: number) => void }>()
  readonly #windows = new Map<string, Window>()
  readonly #rules = new WeakMap<GuestSpec, readonly Rule[]>()
  #requests = 0
  #lookups = 0
  readonly #lookupsOf = new Map<string, number>()
  #underWay = 0
  /** By project: one that waits for what never answers doesn't keep the others from it. */
  readonly #underWayOf = new Map<string, number>()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** A process asks for a connection; it is answered, whatever becomes of it. */
  async dial(handle: ProcessHandle, asked: Asked): Promise<void> {
    const answer = (to: Answer): void => handle.link?.send({ dialled: asked.dial, ...to })
    const guest = this.#parts.state.guests.get(asked.id)
    // A process speaks for its own guests only; one of `exec` is not known by its id.
    if (guest === undefined || guest.handle !== handle) return answer({ errno: ECONNREFUSED })
    const { project } = guest.row
    const mine = this.#underWayOf.get(project) ?? 0
    if (this.#underWay >= EGRESS_DIALS_MAX || mine >= EGRESS_DIALS_PROJECT_MAX) return answer({ errno: EAGAIN })
    this.#underWay++
    this.#underWayOf.set(project, mine + 1)
    try {
      const peer = this.#peer(guest, asked.name)
      answer(peer === undefined ? await this.#outside(guest, handle, asked)
        : await this.#inside(peer, guest, asked.port))
    } catch (error) {
      this.#parts.log.error('cannot dial for a guest', { guest: asked.id, why: (error as Error).message })
      answer({ errno: EIO })
    } finally {
      this.#underWay--
      const left = this.#underWayOf.get(project)! - 1
      if (left > 0) this.#underWayOf.set(project, left)
      else this.#underWayOf.delete(project)
    }
  }

  /** A machine asks where a name leads, outside; it is answered, whatever becomes of it. */
  async resolve(handle: ProcessHandle, asked: AskedName): Promise<void> {
    const answer = (addresses: readonly string[]): void =>
      handle.link?.send({ resolved: asked.resolve, addresses })
    const guest = this.#parts.state.guests.get(asked.id)
    if (guest === undefined || guest.handle !== handle) return answer([])
    const { project } = guest.row
    const mine = this.#lookupsOf.get(project) ?? 0
    if (this.#lookups >= EGRESS_LOOKUPS_MAX || mine >= EGRESS_LOOKUPS_PROJECT_MAX) return answer([])
    this.#lookups++
    this.#lookupsOf.set(project, mine + 1)
    try {
      answer(await addressesOf(this.#rulesOf(guest), asked.name))
    } finally {
      this.#lookups--
      const left = this.#lookupsOf.get(project)! - 1
      if (left > 0) this.#lookupsOf.set(project, left)
      else this.#lookupsOf.delete(project)
    }
  }

  /** A process has taken a connection from another's cell, or hasn't. */
  taken(from: ProcessHandle, request: number, errno: number): void {
    const waiting = this.#waiting.get(request)
    if (waiting?.there === from) waiting.resolve(errno)
  }

  #peer(guest: Guest, name: string): Guest | undefined {
    const peer = this.#parts.state.byName(guest.row.project, name)
    return peer !== undefined && meets(guest.row, peer.row) ? peer : undefined
  }

  async #inside(peer: Guest, guest: Guest, port: number): Promise<Answer> {
    const handle = guest.handle!
    // Frames are between machines.
    if (port === 0 && (kindOf(peer.row.spec) !== 'machine' || kindOf(guest.row.spec) !== 'machine')) {
      return { errno: ECONNREFUSED }
    }
    const wakes = peer.row.phase === 'hibernated' || (peer.row.phase === 'starting' && peer.row.from !== null)
    try {
      if (wakes) await this.#parts.wake(peer)
    } catch {
      return { errno: ECONNREFUSED }
    }
    const there = peer.handle
    // One that was there finds it by itself; one that was woken there was looked for before.
    if (there?.link === undefined || (there === handle && !wakes)) return { errno: ECONNREFUSED }
    const [mine, theirs] = socketPair()
    const request = ++this.#requests
    const { promise, resolve } = Promise.withResolvers<number>()
    const timer = setTimeout(resolve, ANSWER_MS_MAX, ETIMEDOUT)
    this.#waiting.set(request, { there, resolve })
    let errno = EIO
    try {
      there.link.send({ incoming: peer.row.id, port, ticket: await giveFd(there, theirs), request,
        from: peerOf(guest) })
      errno = await promise
      return errno === 0 ? { ticket: await giveFd(handle, mine) } : { errno }
    } finally {
      clearTimeout(timer)
      this.#waiting.delete(request)
      if (errno !== 0) closeFd(mine)
    }
  }

  async #outside(guest: Guest, handle: ProcessHandle, { name, port }: Asked): Promise<Answer> {
    const attempt = await reach(this.#rulesOf(guest), name, port)
    if (!('socket' in attempt)) {
      const isDenied = attempt.why === 'denied' || attempt.why === 'not public'
      this.counts[isDenied ? 'denied' : 'failed']++
      this.#note(guest, isDenied ? 'egress.denied' : 'egress.failed', { to: `${name}:${port}`, why: attempt.why })
      return { errno: attempt.errno }
    }
    this.counts.allowed++
    this.#note(guest, 'egress.allowed', { to: `${name}:${port}`, address: attempt.address })
    return { ticket: await giveSocket(handle, attempt.socket) }
  }

  #rulesOf({ row }: Guest): readonly Rule[] {
    let rules = this.#rules.get(row.spec)
    if (rules === undefined) this.#rules.set(row.spec, rules = parseRules(row.spec.egress))
    return rules
  }

  #note(guest: Guest, kind: string, data: Record<string, unknown>): void {
    const now = performance.now()
    let window = this.#windows.get(guest.row.id)
    if (window === undefined || window.until < now) {
      const untold = window?.untold ?? 0
      window = { until: now + WINDOW_MS, events: 0, untold: 0 }
      this.#windows.set(guest.row.id, window)
      if (untold > 0) data['untold'] = untold
      if (this.#windows.size > WINDOWS_MAX) this.#windows.clear()
    }
    if (window.events++ >= EVENTS_MAX) {
      window.untold++
      return
    }
    this.#parts.store.commit((tx) => { tx.event(kind, eventOf(guest, data)) }).catch((error: unknown) => {
      this.#parts.log.error('cannot note an attempt', { why: (error as Error).message })
    })
  }
}

const WINDOWS_MAX = 10_000
