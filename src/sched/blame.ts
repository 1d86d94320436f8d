// sched/blame.ts: who had the pCPU while another wanted it.
//
// A matrix of nanoseconds, a row for each cell that waits for the pCPU and a column for each that has it. Filled in
// whenever time is charged, at the cost of one look at every cell; so for few cells only, and only when asked for.

import { RUNNABLE, THROTTLED, type Node } from './node.ts'

/** Cells of one pCPU that the matrix is kept for: 64 × 65 numbers, and 64 looks for each charge. */
export const BLAME_MAX = 64

/** Column of those that are gone. */
const GONE = BLAME_MAX
const COLUMNS = BLAME_MAX + 1

export class Blame<T> {
  readonly #cells: (Node<T> | undefined)[] = []
  readonly #ns = new Float64Array(BLAME_MAX * COLUMNS)

  /** Gives a cell its row; false if there is none left. */
  add(cell: Node<T>): boolean {
    const free = this.#cells.indexOf(undefined)
    const row = free === -1 ? this.#cells.length : free
    if (row === BLAME_MAX) return false
    this.#cells[row] = cell
    cell.row = row
    return true
  }

  /** Takes the row back; what others waited for the cell goes to those that are gone. */
  remove(cell: Node<T>): void {
    const ns = this.#ns
    for (let i = 0; i < this.#cells.length; i++) {
      ns[i * COLUMNS + GONE]! += ns[i * COLUMNS + cell.row]!
      ns[i * COLUMNS + cell.row] = 0
    }
    ns.fill(0, cell.row * COLUMNS, (cell.row + 1) * COLUMNS)
    this.#cells[cell.row] = undefined
    cell.row = -1
  }

  /** `running` has had the pCPU for these nanoseconds, in which nobody changed state. */
  charge(running: Node<T>, elapsedNs: number): void {
    for (const cell of this.#cells) {
      if (cell === undefined || cell.state !== RUNNABLE || isHeld(cell)) continue
      this.#ns[cell.row * COLUMNS + running.row]! += elapsedNs
    }
  }

  /** Whom the cell has waited for, and how long; undefined stands for cells that are gone. */
  of(cell: Node<T>): [by: Node<T> | undefined, ns: number][] {
    const found: [Node<T> | undefined, number][] = []
    if (cell.row === -1) return found
    for (let column = 0; column < COLUMNS; column++) {
      const ns = this.#ns[cell.row * COLUMNS + column]!
      if (ns > 0) found.push([this.#cells[column], ns])
    }
    return found.sort((a, b) => b[1] - a[1])
  }

  /** Forgets everything. */
  clear(): void {
    for (const cell of this.#cells) if (cell !== undefined) cell.row = -1
  }
}

/** A pool above is throttled: then it is its limit's fault, and nobody's. */
function isHeld(cell: Node): boolean {
  for (let pool = cell.parent; pool !== undefined; pool = pool.parent) if (pool.state === THROTTLED) return true
  return false
}
