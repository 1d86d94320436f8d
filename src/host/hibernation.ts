// host/hibernation.ts: guests on disk: how they come there, and who wakes them.
//
// A hibernated guest is saved and in no process; its memory is promised to others. Its published ports listen on, by
// the host: who connects waits, wakes it, and is handed over. It is woken, too, by a timer that it waited for, by a
// guest that connects to it, by who attaches to it, and by an operator. After a restart of the host all of that is so
// again, since its row has it. Guests whose specs allow it are hibernated when they have used no CPU for a while, and,
// those first that have used none for longest, while the machine is short of memory, or what is to start lacks it.
//
//   running ─▶ captured, held ─▶ committed ─▶ released ─▶ hibernated ─▶ (room, committed) ─▶ starting ─▶ running
//
// A crash before the commit: it goes on. After it: it is let go of when the process is found again (lifecycle.ts).
// What was saved is removed when it is committed that the guest runs.

import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { LISTEN_BACKLOG_MAX } from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import { parseDuration } from '../base/units.ts'
import { ofHost, type Capacity } from './admission.ts'
import type { Captures } from './captures.ts'
import type { GuestActions } from './guest_actions.ts'
import { eventOf, type Lifecycle } from './lifecycle.ts'
import { giveSocket, Listening } from './ports.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import { checkPhase } from './snapshot_actions.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import type { Guest, State } from './state.ts'

/** How long a wake may take until who waits for it is told that it didn't. */
const WAKE_MS_MAX = 30_000
/** How often a wake is tried, and the pause before the next try, which grows. */
const TRIES_MAX = 4
const TRY_AGAIN_MS = 50
/** How long a guest that could not be woken is left alone by those who connect. */
const AGAIN_MS = 1000
/** How often idle guests and the machine's memory are looked at. */
const LOOK_MS = 500
const PRESSURE_LOOK_MS = 2000
/** Of all memory: with less available, guests are hibernated, so many at a time. */
const AVAILABLE_PART_MIN = 0.05
const AT_ONCE = 8
/** Longer timers than Node's are begun again. */
const TIMER_MS_MAX = 2 ** 31 - 1

/** Why a guest is hibernated, or woken: for its events. */
type Why = 'asked' | 'idle' | 'memory' | 'connection' | 'timer' | 'attach' | 'itself'

type Parts = {
  readonly state: State; readonly lifecycle: Lifecycle; readonly captures: Captures; readonly files: SnapshotFiles
  readonly processes: Processes; readonly capacity: Capacity; readonly log: Log
  /** Bytes of the machine's memory that are free or can be had at once. */
  readonly availableMemory: () => number
  readonly start: GuestActions['start']
}
type Asleep = { timer: NodeJS.Timeout | undefined; readonly arrived: { port: number; connection: Socket }[] }
/** CPU that a guest had used when somebody looked last, and since when it has been so. */
type Look = { readonly run: number; readonly runningNs: number; readonly sinceMs: number }

/** All hibernated guests. */
export class Hibernation {
  readonly counts = { hibernated: 0, woken: 0 }
  readonly #parts: Parts
  readonly #asleep = new Map<Guest, Asleep>()
  readonly #looks = new WeakMap<Guest, Look>()
  readonly #looked = new WeakMap<ProcessHandle, number>()
  #looking: NodeJS.Timeout | undefined
  #isBusy = false
  #lastPressureMs = 0
  #isClosed = false

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Once all guests are found: those on disk listen again. */
  settle(): void {
    for (const guest of this.#parts.state.guests.values()) this.#sleep(guest)
    this.#looking = setInterval(() => void this.#look(), LOOK_MS).unref()
  }

  close(): void {
    this.#isClosed = true
    clearInterval(this.#looking)
    for (const [guest, { timer }] of this.#asleep) {
      clearTimeout(timer)
      guest.listening?.close()
    }
  }

  /** Saves a guest and frees its memory. Throws as a capture does, GUEST_PHASE_WRONG. */
  hibernate(guest: Guest, why: Why = 'asked'): Promise<void> {
    const { lifecycle, captures, files } = this.#parts
    return captures.alone(guest, async () => {
      lifecycle.checkStays(guest)
      if (guest.row.phase === 'hibernated') return
      checkPhase('hibernate', guest, ['running'])
      const { snapshot, wakeInMs, memoryBytes, newBytes, storedBytes } = await captures.capture(guest, 'hold', true)
      const at = Date.now()
      try {
        // It may have been stopped meanwhile.
        checkPhase('hibernate', guest, ['running'])
        await lifecycle.change(guest, { phase: 'hibernated', healthy: null, process: null,
          from: { snapshot, event: 'wake', at, sizes: { memoryBytes, newBytes, storedBytes },
            ...(wakeInMs === undefined ? {} : { wakeAt: at + wakeInMs }) } },
          (tx) => tx.event('guest.hibernated', eventOf(guest, { why, memoryBytes, newBytes })))
      } catch (error) {
        captures.goOn(guest)
        files.release(guest.row.project, snapshot)
        throw error
      }
      this.counts.hibernated++
      captures.release(guest)
      this.#sleep(guest)
    })
  }

  /** Wakes a hibernated guest: resolves when it runs. Throws what keeps it from that. */
  async wake(guest: Guest, why: Why): Promise<void> {
    const { captures, lifecycle, start } = this.#parts
    for (let tries = 1; tries <= TRIES_MAX && !this.#isClosed; tries++) {
      await captures.alone(guest, async () => {
        if (guest.row.phase !== 'hibernated') return
        lifecycle.checkStays(guest)
        await start(guest, (tx) => tx.event('guest.woken', eventOf(guest, { why })))
        this.counts.woken++
      })
      await guest.reaches(TRIED, WAKE_MS_MAX)
      if (guest.row.phase !== 'hibernated') break
      // Such as that its process was killed: another is started.
      await sleep(tries * TRY_AGAIN_MS)
    }
    const { phase, name, exit } = guest.row
    if (phase === 'starting') return
    if (phase !== 'hibernated') this.#handOver(guest)
    if (phase === 'hibernated' || phase === 'failed') {
      throw new CellarError('WAKE_FAILED', [name, exit?.reason ?? phase])
    }
  }

  /** Hibernates who may be until so much more memory can be promised, if all of them are enough for that. */
  async makeRoom(memoryBytes: number): Promise<void> {
    const { state, capacity, captures } = this.#parts
    const lacking = (): number => memoryBytes - (capacity.memoryBytes - state.promised.memoryBytes)
    if (memoryBytes === 0 || lacking() <= 0) return
    const candidates = this.#candidates().filter((guest) =>
      ofHost(guest.row.spec).memoryBytes > 0 && !captures.isBusy(guest))
    if (candidates.reduce((sum, { row }) => sum + ofHost(row.spec).memoryBytes, 0) < lacking()) return
    for (const guest of candidates) {
      if (lacking() <= 0) return
      await this.#tryTo(guest, 'memory')
    }
  }

  // ---- asleep

  // From now on it is woken by what comes for it.
  #sleep(guest: Guest): void {
    const { row } = guest
    if (this.#isClosed || row.phase !== 'hibernated' || row.move !== null || this.#asleep.has(guest)) return
    const asleep: Asleep = { timer: undefined, arrived: [] }
    this.#asleep.set(guest, asleep)
    this.#setTimer(guest, asleep)
    // What an earlier host has left held has its sockets until it is let go of.
    if (guest.releasing === undefined || guest.listening !== undefined) this.#watch(guest, asleep)
    else void guest.releasing.then(() => this.#watch(guest, asleep))
  }

  #watch(guest: Guest, asleep: Asleep): void {
    const { row } = guest
    if (this.#isClosed || this.#asleep.get(guest) !== asleep || row.phase !== 'hibernated') return
    try {
      if (row.spec.ports.length > 0) guest.listening ??= new Listening(row.spec, row.ports)
    } catch (error) {
      this.#parts.log.warn('a hibernated guest is not reached', { guest: row.id, why: (error as Error).message })
      setTimeout(() => this.#watch(guest, asleep), AGAIN_MS).unref()
    }
    guest.listening?.watch((port, connection) => {
      if (asleep.arrived.length >= LISTEN_BACKLOG_MAX) connection.destroy()
      else asleep.arrived.push({ port, connection })
      guest.listening?.unwatch()
      if (asleep.arrived.length === 1) void this.#wakeFor(guest, asleep, 'connection')
    })
  }

  #setTimer(guest: Guest, asleep: Asleep): void {
    const { from } = guest.row
    if (from === null || !('snapshot' in from) || from.wakeAt === undefined) return
    const left = Math.max(0, from.wakeAt - Date.now())
    asleep.timer = setTimeout(() => {
      if (left > TIMER_MS_MAX) this.#setTimer(guest, asleep)
      else void this.#wakeFor(guest, asleep, 'timer')
    }, Math.min(left, TIMER_MS_MAX)).unref()
  }

  // Nobody waits for the answer: who has connected is told by the end of the connection.
  async #wakeFor(guest: Guest, asleep: Asleep, why: Why): Promise<void> {
    if (this.#isClosed) return
    try {
      await this.wake(guest, why)
    } catch (error) {
      this.#parts.log.warn('cannot wake a guest', { guest: guest.row.id, why: (error as Error).message })
      for (const { connection } of asleep.arrived.splice(0)) connection.destroy()
      setTimeout(() => {
        this.#watch(guest, asleep)
        if (why === 'timer' && this.#asleep.get(guest) === asleep) this.#setTimer(guest, asleep)
      }, AGAIN_MS).unref()
    }
  }

  // It isn't on disk any more: who has connected meanwhile is given to it, if it runs.
  #handOver(guest: Guest): void {
    const asleep = this.#asleep.get(guest)
    if (asleep === undefined) return
    this.#asleep.delete(guest)
    clearTimeout(asleep.timer)
    guest.listening?.unwatch()
    for (const { port, connection } of asleep.arrived.splice(0)) {
      const { handle } = guest
      if (handle?.link === undefined) {
        connection.destroy()
        continue
      }
      giveSocket(handle, connection).then((ticket) => {
        handle.link?.send({ incoming: guest.row.id, port, ticket, request: NOBODYS })
      }, (error: unknown) => {
        this.#parts.log.warn('a connection is lost', { guest: guest.row.id, why: (error as Error).message })
      })
    }
  }

  // ---- who is hibernated without being asked

  async #look(): Promise<void> {
    // Those that were stopped, removed, or started anew; and those that somebody else has failed to wake.
    for (const [guest] of this.#asleep) {
      if (guest.row.phase !== 'hibernated' && guest.row.phase !== 'starting') this.#handOver(guest)
    }
    for (const guest of this.#parts.state.guests.values()) this.#sleep(guest)
    if (this.#isBusy) return
    this.#isBusy = true
    try {
      const isShort = this.#isShort()
      await this.#observe(isShort)
      if (isShort) await Promise.all(this.#candidates().slice(0, AT_ONCE).map((guest) => this.#tryTo(guest, 'memory')))
      const now = performance.now()
      const idle = this.#candidates().filter((guest) => {
        const look = this.#looks.get(guest)
        return look !== undefined && look.run === guest.row.run && now - look.sinceMs >= idleMsOf(guest)
      })
      await Promise.all(idle.slice(0, AT_ONCE).map((guest) => this.#tryTo(guest, 'idle')))
    } finally {
      this.#isBusy = false
    }
  }

  #isShort(): boolean {
    const now = performance.now()
    if (now - this.#lastPressureMs < PRESSURE_LOOK_MS) return false
    this.#lastPressureMs = now
    return this.#parts.availableMemory() < this.#parts.capacity.memoryBytes * AVAILABLE_PART_MIN
  }

  // Asks processes for figures, as often as the shortest time of a guest in them wants it; `all`: now.
  async #observe(all: boolean): Promise<void> {
    const byHandle = new Map<ProcessHandle, Guest[]>()
    for (const guest of this.#candidates()) {
      const { handle } = guest
      if (handle?.link === undefined || (!all && idleMsOf(guest) === Infinity)) continue
      const guests = byHandle.get(handle)
      if (guests === undefined) byHandle.set(handle, [guest])
      else guests.push(guest)
    }
    const now = performance.now()
    await Promise.all([...byHandle].map(async ([handle, guests]) => {
      const shortest = Math.min(...guests.map(idleMsOf).slice(0, SHORTEST_OF_MAX), TIMER_MS_MAX)
      if (!all && now - (this.#looked.get(handle) ?? -Infinity) < Math.min(shortest / 4, PRESSURE_LOOK_MS)) return
      this.#looked.set(handle, now)
      const answer = await handle.link?.figures().catch(() => undefined)
      for (const guest of guests) {
        const runningNs = answer?.guests[guest.row.id]?.runningNs
        if (runningNs === undefined || guest.handle !== handle) continue
        const before = this.#looks.get(guest)
        if (before?.runningNs === runningNs && before.run === guest.row.run) continue
        this.#looks.set(guest, { run: guest.row.run, runningNs, sinceMs: performance.now() })
      }
    }))
  }

  // Those that may be hibernated, and can be, the longest idle first.
  #candidates(): Guest[] {
    const since = (guest: Guest): number => this.#looks.get(guest)?.sinceMs ?? Infinity
    return [...this.#parts.state.guests.values()].filter((guest) => guest.row.spec.hibernate !== undefined &&
      guest.row.phase === 'running' && guest.row.move === null && typeof guest.uncapturable !== 'string')
      .sort((one, other) => since(one) - since(other) || 0)
  }

  // Not one that something else is done with, which may wait for the memory that is to be freed here.
  async #tryTo(guest: Guest, why: Why): Promise<void> {
    if (this.#parts.captures.isBusy(guest)) return
    try {
      await this.hibernate(guest, why)
    } catch (error) {
      // It is tried again when it has been idle for as long again.
      const look = this.#looks.get(guest)
      if (look !== undefined) this.#looks.set(guest, { ...look, sinceMs: performance.now() })
      this.#parts.log.warn('cannot hibernate a guest', { guest: guest.row.id, why: (error as Error).message })
    }
  }
}

function idleMsOf({ row: { spec: { hibernate } } }: Guest): number {
  return hibernate?.idle === undefined ? Infinity : parseDuration(hibernate.idle)! / 1e6
}

/** Phases that a wake ends in: one that came to nothing is hibernated as before. */
const TRIED = ['running', 'paused', 'hibernated', 'stopping', 'backing-off', 'exited', 'failed', 'stopped'] as const
/** A request that nobody waits for the answer of: those of dials count from 1. */
const NOBODYS = 0
const SHORTEST_OF_MAX = 10_000
