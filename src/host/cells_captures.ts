// host/cells_captures.ts: what the host does with guests that run: saves them, forks them, holds them, lets them go.
//
//   capture, then resume   captured → goes on → its snapshot is written while it runs → `captured`
//   capture, then hold     captured → its snapshot is written → `captured` → until `go` or `release`
//   fork                   captured → goes on, and each child from the same state → `captured`
//
// Of one guest one after the other. A guest that is held is the host's to decide on: it stays so though the host goes,
// and the next one hears of it. But a host that has gone before it was told has decided nothing: the guest goes on. So
// it does when its snapshot can't be written. Elsewhere: files (cells_snapshots.ts), the capture itself
// (cell/stack.ts).

import { isDeepStrictEqual } from 'node:util'
import { CellarError } from '../base/errors.ts'
import { nowNs } from '../base/stopwatch.ts'
import type { CellState } from '../cell/state.ts'
import type { Stack } from '../cell/stack.ts'
import type { WrittenSnapshot } from '../snapshot/store.ts'
import type { Guest } from './cells_guest.ts'
import type { Snapshots } from './cells_snapshots.ts'
import type { HealthChecks } from './health.ts'
import type { HostLine } from './host_line.ts'
import type { GuestLaunch, ToProcess, Written } from './protocol.ts'

type Capture = Extract<ToProcess, { readonly capture: string }>
type Fork = Extract<ToProcess, { readonly fork: string }>

/** What captures work with. */
export type CaptureParts = {
  readonly stack: Stack; readonly snapshots: Snapshots; readonly line: HostLine; readonly health: HealthChecks
  find(id: string, run: number): Guest | undefined
  /** Starts a child of a fork: it goes on from what is captured. */
  start(launch: GuestLaunch, saved: Promise<CellState>): void
}

/** Captures and forks of a process's guests. */
export class Captures {
  readonly #parts: CaptureParts

  constructor(parts: CaptureParts) {
    this.#parts = parts
  }

  capture(order: Capture): void {
    void this.#answer(order.capture, order.run, order.request, async (guest, isAsked) =>
      await this.#parts.snapshots.inTurn(() => this.#capture(guest, order, isAsked)))
  }

  fork({ fork, run, request, children }: Fork): void {
    const { promise, resolve, reject } = Promise.withResolvers<CellState>()
    // Each child tells its own end, should there be nothing to begin from.
    promise.catch(() => {})
    const parent = this.#parts.find(fork, run)?.launch
    for (const child of children) {
      this.#parts.start(child, parent === undefined || isSameProgram(child, parent) ? promise
        : Promise.reject(new CellarError('SNAPSHOT_FOREIGN', [`it is of ${parent.name}, which runs another program`])))
    }
    void this.#answer(fork, run, request, async (guest) => {
      const state = await this.#stopped(guest)
      this.#parts.stack.goOn(guest.number!)
      resolve(state)
    }, reject)
  }

  /** A guest that is held goes on. */
  go(id: string, run: number): void {
    const guest = this.#parts.find(id, run)
    if (guest !== undefined) this.#goOn(guest)
  }

  /** A guest that is held is given up. One that isn't here has been. */
  release(id: string, run: number): void {
    const { find, line, stack } = this.#parts
    const guest = find(id, run)
    if (guest === undefined) return line.send({ released: id, run })
    if (!guest.isHeld || guest.isReleased) return
    guest.isReleased = true
    // Else it is already leaving, by a stop: that is no end of it any more.
    if (guest.signal === undefined) void stack.giveUp(guest.number!)
  }

  // What the work results in is told to the host that has asked. `failed`: also what went wrong.
  async #answer(id: string, run: number, request: number,
    work: (guest: Guest, isAsked: () => boolean) => Promise<Written | void>,
    failed?: (error: CellarError) => void): Promise<void> {
    const { find, line } = this.#parts
    const host = line.connections
    const isAsked = (): boolean => line.isConnected && line.connections === host
    const guest = find(id, run)
    const doing = (guest?.work ?? Promise.resolve()).then(() => {
      // It may have ended while others were served.
      if (guest?.number === undefined || find(id, run) !== guest) {
        throw new CellarError('CAPTURE_ENDED', [nameOf(guest, id)])
      }
      return work(guest, isAsked)
    })
    if (guest !== undefined) guest.work = doing.then(() => {}, () => {})
    try {
      const written = await doing
      if (isAsked()) line.send({ captured: request, id, ...(written === undefined ? {} : { written }) })
    } catch (error) {
      const known = knownError(error, nameOf(guest, id))
      failed?.(known)
      if (isAsked()) line.send({ captured: request, id, error: { code: known.code, values: known.values } })
    }
  }

  async #capture(guest: Guest, { next, durable, spec }: Capture, isAsked: () => boolean): Promise<Written> {
    const { stack, snapshots, health } = this.#parts
    const began = nowNs()
    const state = await this.#stopped(guest)
    if (next === 'hold') {
      guest.isHeld = true
      health.rest(guest.launch.id, true)
    } else stack.goOn(guest.number!)
    const stoppedNs = nowNs() - began
    try {
      const written = await snapshots.write(guest, state, { durable, spec })
      if (next === 'resume') return tellingOf(written, state, stoppedNs)
      if (this.#parts.find(guest.launch.id, guest.launch.run) !== guest) {
        throw new CellarError('CAPTURE_ENDED', [guest.launch.name])
      }
      snapshots.forget(guest)
      if (!isAsked()) this.#goOn(guest)
      return tellingOf(written, state, nowNs() - began)
    } catch (error) {
      this.#goOn(guest)
      throw error
    }
  }

  // Captured: nothing of it runs until it is told to go on. One that was to end meanwhile ends.
  async #stopped(guest: Guest): Promise<CellState> {
    const { stack } = this.#parts
    if (guest.isHeld) throw new CellarError('CAPTURE_IMPOSSIBLE', [guest.launch.name, 'it is held, and saved already'])
    const { spare } = guest
    guest.spare = undefined
    const state = await stack.capture(guest.number!, spare)
    if (guest.signal === undefined) return state
    guest.isHeld = true
    void stack.giveUp(guest.number!)
    throw new CellarError('CAPTURE_ENDED', [guest.launch.name])
  }

  #goOn(guest: Guest): void {
    if (!guest.isHeld || guest.isReleased || guest.signal !== undefined) return
    guest.isHeld = false
    this.#parts.stack.goOn(guest.number!)
    this.#parts.health.rest(guest.launch.id, guest.isPaused)
  }
}

function isSameProgram(a: GuestLaunch, b: GuestLaunch): boolean {
  return a.module === b.module && a.deterministic === b.deterministic && a.unbounded === b.unbounded &&
    isDeepStrictEqual(a.stubs, b.stubs)
}

function nameOf(guest: Guest | undefined, id: string): string {
  return guest?.launch.name ?? id
}

// What isn't ours to explain is a bug, and the process's end.
function knownError(error: unknown, name: string): CellarError {
  if (error instanceof CellarError) return error
  if (error instanceof Error && 'syscall' in error) return new CellarError('PROCESS_LOST', [name, error.message])
  throw error
}

function tellingOf({ digest, memoryBytes, newBytes, storedBytes, chunks, newChunks }: WrittenSnapshot,
  { deadlineNs = 0, monotonicNs }: CellState, stoppedNs: number): Written {
  // 0: it was no timer that it waited for, it had something to do.
  const wakeInMs = deadlineNs === 0 ? undefined : Math.max(0, (deadlineNs - monotonicNs) / 1e6)
  return { snapshot: digest, memoryBytes, newBytes, storedBytes, chunks, newChunks, stoppedNs, wakeInMs }
}
