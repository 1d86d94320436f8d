// cell/captures.ts: cells of a stack that are stopped, copied, and moved to other pCPUs.
//
// What is left of a stopped cell (state.ts) is all that another thread needs to go on with it, and the cell itself goes
// on where it is by the same means: a continuation (continuations.ts). A move never loses a cell: it is first made on
// the other pCPU, paused; only when it is there is it given up here, and let go there. What is said to it between these
// two is kept (resident.ts) and said again.

import { CellarError } from '../base/errors.ts'
import { movedGrant } from '../services/lifecycle/lifecycle.ts'
import type { NetGrants } from './pcpu_net.ts'
import type { Command } from './pcpu_worker.ts'
import type { Executable } from './executable.ts'
import { drop, share } from './memory_image.ts'
import type { Ended, Member, Resident, Stopped } from './resident.ts'
import type { CellState } from './state.ts'

/** What makes the rest of a stopped cell's functions (continuations.ts). Throws CellarError SNAPSHOT_FOREIGN. */
export interface ContinuationSource {
  of(executable: Executable, frames: Uint8Array<ArrayBuffer>): WebAssembly.Module
}

/** What these need of their stack. */
export type StackLines = {
  readonly continuations: ContinuationSource
  resident(id: number): Resident | undefined
  post(pcpu: number, command: Command): void
  /** Posts a start, as of `id`. */
  launch(id: number, member: Member, pcpu: number, paused: boolean): void
  start(member: Member, pcpu: number, created?: () => void): { id: number; ended: Promise<Ended> }
  admit(member: Member): number
  count(pcpu: number, member: Member, count: 1 | -1): void
  /** Where a cell is to be reached from now on: before it is there, and where it was if nothing comes of it. */
  moved(id: number, pcpu: number): void
}

/** A copy of a cell. */
export type Child = { readonly id: number; readonly pcpu: number; readonly ended: Promise<Ended> }

/** What the owner of a cell wants to know of its copies, by their place among the members. */
export type ForkEvents = {
  /** Before anything is said to the pCPU. */
  placed?(child: number, pcpu: number): void
  created?(child: number): void
}

/** What stops the cells of one stack. */
export class Captures {
  readonly #lines: StackLines

  constructor(lines: StackLines) {
    this.#lines = lines
  }

  /** Stops a cell; it is the caller's until it goes on or is given up. `spare`: of an image that nobody needs. */
  async capture(id: number, spare?: SharedArrayBuffer): Promise<CellState> {
    return (await this.#stop(id, false, spare)).stopped.state
  }

  /** A cell that was captured goes on where it is. */
  goOn(id: number): void {
    const resident = this.#lines.resident(id)
    if (resident?.stopped === undefined) return
    this.#resume(resident, resident.stopped)
    resident.free()
  }

  /** A cell that was captured ends here, without an end: as { kind: 'moved' }. Resolves when it holds nothing. */
  async giveUp(id: number): Promise<void> {
    const resident = this.#lines.resident(id)
    if (resident?.stopped === undefined) return
    await this.#leave(resident, false)
  }

  /** Copies a cell, which goes on: its children begin where it was stopped. Throws CellarError: there are none then. */
  async fork(id: number, members: readonly Member[], events: ForkEvents = {}): Promise<Child[]> {
    // A few copy its memory while it is stopped; for many it would be stopped for long.
    const lends = members.length <= LEND_MAX
    const { resident, stopped } = await this.#stop(id, lends)
    const { memory } = stopped.state
    const image = { now: memory }
    try {
      const continuation = this.#continuation(resident, stopped)
      const places = this.#places(members)
      if (!lends) {
        this.#resume(resident, stopped)
        if (memory !== undefined) image.now = share(memory)
      }
      const from = { state: { ...stopped.state, memory: image.now, used: NOTHING_USED }, continuation }
      const arrivals: Promise<void>[] = []
      const children = members.map((member, i) => {
        const pcpu = places[i]!
        events.placed?.(i, pcpu)
        const { promise, resolve } = Promise.withResolvers<void>()
        arrivals.push(promise)
        const started = this.#lines.start({ ...member, from }, pcpu, () => { resolve(); events.created?.(i) })
        // One that never came to be is told of there.
        started.ended.then(() => resolve(), () => resolve())
        return { pcpu, ...started }
      })
      await Promise.all(arrivals)
      return children
    } finally {
      if (resident.stopped !== undefined) this.#resume(resident, stopped)
      this.#lines.post(resident.pcpu, { unlend: id })
      if (image.now !== undefined) drop(image.now)
      resident.free()
    }
  }

  /**
   * Moves a cell to another pCPU of the stack. False if it stays where it is: `lossless`, and it has what doesn't move
   * with it (connections). Throws CellarError if it can't be there: it goes on here then.
   */
  async move(id: number, to: number, lossless = false): Promise<boolean> {
    const { resident, stopped } = await this.#stop(id, true)
    const from = resident.pcpu
    try {
      if (from === to) return true
      if (lossless && stopped.state.descriptors.some(({ is }) => is.kind === 'lost')) return false
      const member = await this.#arrive(resident, stopped, to)
      await this.#leave(resident, true)
      if (this.#lines.resident(id) !== resident) this.#lines.post(to, { stop: id, end: KILLED })
      else this.#settle(resident, member, stopped, to)
      return true
    } finally {
      if (resident.stopped !== undefined) this.#resume(resident, stopped)
      this.#lines.post(from, { unlend: id })
      resident.free()
    }
  }

  async #stop(id: number, lend: boolean, spare?: SharedArrayBuffer): Promise<{ resident: Resident; stopped: Stopped }> {
    const resident = this.#lines.resident(id)
    if (resident === undefined) throw new CellarError('CAPTURE_ENDED', [`cell ${id}`])
    const why = whyNot(resident.member)
    if (why !== undefined) throw new CellarError('CAPTURE_IMPOSSIBLE', [resident.member.name, why])
    await resident.take()
    try {
      const stopped = await new Promise<Stopped>((resolve, reject) => {
        resident.capturing = { resolve, reject }
        this.#lines.post(resident.pcpu, { capture: id, lend, spare })
      })
      resident.stopped = stopped
      return { resident, stopped }
    } catch (error) {
      if (lend) this.#lines.post(resident.pcpu, { unlend: id })
      resident.free()
      throw error
    }
  }

  #continuation({ member }: Resident, { state }: Stopped): WebAssembly.Module {
    return this.#lines.continuations.of(member.executable, state.frames)
  }

  // A cell that nothing can go on with (its continuation would be too large) ends: stopped for ever is worse.
  #resume(resident: Resident, stopped: Stopped): void {
    resident.stopped = undefined
    try {
      const continuation = this.#continuation(resident, stopped)
      this.#lines.post(resident.pcpu, { goOn: resident.id, continuation })
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      this.#lines.post(resident.pcpu, { stop: resident.id, end: KILLED })
    }
  }

  // A pCPU for each, as if they came one after the other; all of them, or an error.
  #places(members: readonly Member[]): number[] {
    const places: number[] = []
    try {
      for (const member of members) {
        const pcpu = this.#lines.admit(member)
        this.#lines.count(pcpu, member, 1)
        places.push(pcpu)
      }
      return places
    } finally {
      places.forEach((pcpu, i) => this.#lines.count(pcpu, members[i]!, -1))
    }
  }

  // Makes the cell on the other pCPU, where it doesn't run yet. What it was started as.
  async #arrive(resident: Resident, stopped: Stopped, to: number): Promise<Member> {
    const { id, member, earlier } = resident
    const { timeoutNs, lifecycle, net } = member
    const ageNs = stopped.figures.ageNs + (earlier?.ageNs ?? 0)
    const moved: Member = { ...member,
      // What it has used is known here.
      from: { state: { ...stopped.state, used: NOTHING_USED }, stoppedAtNs: stopped.atNs,
        continuation: this.#continuation(resident, stopped) },
      timeoutNs: timeoutNs === undefined ? undefined : Math.max(1, timeoutNs - ageNs),
      lifecycle: lifecycle === undefined ? undefined : movedGrant(lifecycle),
      net: net === undefined ? undefined : await again(net) }
    this.#lines.count(to, member, 1)
    // Who wants to reach it from here on waits for it there.
    this.#lines.moved(id, to)
    try {
      await new Promise<void>((resolve, reject) => {
        resident.arriving = { pcpu: to, resolve, reject }
        this.#lines.launch(id, moved, to, true)
      })
      return { ...moved, from: undefined, timeoutNs }
    } catch (error) {
      this.#lines.count(to, member, -1)
      this.#lines.moved(id, resident.pcpu)
      // It has ended here while it was made there.
      if (this.#lines.resident(id) !== resident) this.#lines.post(to, { stop: id, end: KILLED })
      throw error
    } finally {
      resident.arriving = undefined
    }
  }

  // From here on it isn't here any more.
  async #leave(resident: Resident, isMove: boolean): Promise<void> {
    resident.stopped = undefined
    await new Promise<void>((resolve, reject) => {
      resident.leaving = { resolve, reject, isMove }
      this.#lines.post(resident.pcpu, { giveUp: resident.id })
    })
    resident.leaving = undefined
  }

  // It is there, and is told what it has missed; then it runs.
  #settle(resident: Resident, started: Member, stopped: Stopped, to: number): void {
    const { id, member: { terms }, pcpu: from } = resident
    resident.addEarlier(stopped)
    this.#lines.count(to, started, -1)
    this.#lines.count(from, resident.member, -1)
    resident.member = { ...started, terms }
    resident.pcpu = to
    this.#lines.count(to, resident.member, 1)
    const { console, end, isPaused } = resident
    for (const command of console?.replay(id) ?? []) this.#lines.post(to, command)
    if (terms !== started.terms) this.#lines.post(to, { id, terms })
    resident.isPausedThere()
    if (end !== undefined) this.#lines.post(to, { stop: id, end })
    else if (!isPaused) this.#lines.post(to, { pause: id, is: false })
  }
}

/** Why a member's cell can't be captured; undefined: it can. */
export function whyNot({ executable: { capture }, calls }: Pick<Member, 'executable' | 'calls'>): string | undefined {
  if (calls !== undefined) return 'its exports are called one after another'
  if (capture === undefined) return 'it was not made for it'
  return capture.can ? undefined : capture.why
}

// The sockets on which it listens are the other pCPU's, too: as the kernel knows them they are never closed.
async function again(net: NetGrants): Promise<NetGrants> {
  if (net.ports.every(({ fds }) => fds.length === 0)) return net
  const { duplicateFd } = await import('../sys/sockets.ts')
  return { ...net, ports: net.ports.map(({ port, fds }) => ({ port, fds: fds.map(duplicateFd) })) }
}

/** Children that copy their parent's memory itself. */
const LEND_MAX = 2
const NOTHING_USED: CellState['used'] = { cpuNs: 0, wallNs: 0, waits: 0, preemptions: 0, hypercalls: {} }
const KILLED = { kind: 'signal', signal: 9 } as const
