// cell/balance.ts: what a stack's pCPUs tell of their loads, made into moves of its cells (sched/rebalancer.ts).
//
// Only those are moved of whom nobody notices: no connection is lost, no memory so large that the copy takes longer
// than a few quanta. The others count as what is there.

import { CellarError } from '../base/errors.ts'
import { nowNs } from '../base/stopwatch.ts'
import type { Terms } from '../sched/node.ts'
import { entitlements } from '../sched/placement.ts'
import { Rebalancer, type Seen, type SeenPcpu } from '../sched/rebalancer.ts'
import { whyNot, type Captures } from './captures.ts'
import type { LoadFigures, Told } from './pcpu_worker.ts'
import type { Member, Resident } from './resident.ts'
import { wishes } from './wishes.ts'

/** A larger memory isn't moved for the sake of balance: at some GB/s it would take tens of milliseconds. */
const MOVED_BYTES_MAX = 128 * 1024 * 1024

type Loaded = LoadFigures & { readonly resident: Resident }

/** Evens a stack's pCPUs out. */
export class Balance {
  readonly #captures: Captures
  readonly #rebalancer = new Rebalancer()
  #isMoving = false

  constructor(captures: Captures) {
    this.#captures = captures
  }

  /** Makes the moves that are due by what each pCPU has told; `sums`: what all cells of each are promised. */
  async even(
    told: readonly Told[], sums: readonly { readonly reservation: number }[],
    residentOf: (id: number) => Resident | undefined, pools: ReadonlyMap<string, Terms>,
  ): Promise<number> {
    if (this.#isMoving) return 0
    const loaded = told.map(({ loads }, pcpu) => loads.flatMap((load): Loaded[] => {
      const resident = residentOf(load.id)
      return resident?.pcpu === pcpu ? [{ ...load, resident }] : []
    }))
    this.#isMoving = true
    try {
      let count = 0
      for (const { guest, to } of this.#rebalancer.see(seen(loaded, sums, pools), nowNs())) {
        if (await this.#move(Number(guest), to)) count++
        else this.#rebalancer.failed(guest, nowNs())
      }
      return count
    } finally {
      this.#isMoving = false
    }
  }

  // What has ended, or can't be there for want of memory, is no error of anybody's.
  async #move(id: number, to: number): Promise<boolean> {
    try {
      return await this.#captures.move(id, to, true)
    } catch (error) {
      if (error instanceof CellarError) return false
      throw error
    }
  }
}

function seen(
  loaded: readonly (readonly Loaded[])[], sums: readonly { readonly reservation: number }[],
  pools: ReadonlyMap<string, Terms>,
): SeenPcpu[] {
  const all = loaded.flat()
  const due = entitlements(loaded.length, wishes(all.map(({ resident: { member: { terms, pool } }, wantedNs, forNs }) =>
    ({ terms, pool, demand: Math.min(1, wantedNs / forNs) })), pools))
  const loads = new Map(all.map(({ id }, i) => [id, due.get(String(i)) ?? 0]))
  return loaded.map((cells, id): SeenPcpu => ({ id,
    guests: cells.map((cell): Seen => ({ id: String(cell.id), load: loads.get(cell.id)!,
      reservation: cell.resident.member.terms.reservation, movable: isMovable(cell), receivedNs: cell.receivedNs })),
    reserved: Math.max(0, cells.reduce((left, { resident: { member } }) => left - member.terms.reservation,
      sums[id]!.reservation)) }))
}

function isMovable({ resident, memoryBytes }: Loaded): boolean {
  const { member, isTaken, isPaused, end } = resident
  return whyNot(member) === undefined && memoryBytes <= MOVED_BYTES_MAX && !isTaken && !isPaused && end === undefined &&
    member.label === undefined && hasNoNet(member)
}

// Who comes while it is between two pCPUs would be turned away.
function hasNoNet({ net, grants }: Member): boolean {
  return (net === undefined || (net.ports.length === 0 && net.connect.length === 0)) &&
    (grants.listen === undefined || grants.listen.length === 0)
}
