// cell/timers.ts: what is to be called when, on one pCPU: a binary heap by time.

/** A call that is due at `atNs`. `place` is its index in the heap, -1 when it is out. */
export type TimerEntry = { readonly atNs: number; readonly call: () => void; place: number }

/** Timers of one thread. Who keeps them looks at `nextNs` and calls `fire`. */
export class Timers {
  readonly #heap: TimerEntry[] = []

  /** When the first is due; Infinity if there is none. */
  get nextNs(): number {
    return this.#heap[0]?.atNs ?? Infinity
  }

  add(atNs: number, call: () => void): TimerEntry {
    const entry = { atNs, call, place: this.#heap.length }
    this.#heap.push(entry)
    this.#up(entry)
    return entry
  }

  /** Takes a timer back; nothing happens if it has fired. */
  remove(entry: TimerEntry): void {
    const { place } = entry
    if (place < 0) return
    entry.place = -1
    const last = this.#heap.pop()!
    if (last === entry) return
    this.#put(last, place)
    this.#up(last)
    this.#down(last)
  }

  /** Calls those that are due. */
  fire(nowNs: number): void {
    for (let first = this.#heap[0]; first !== undefined && first.atNs <= nowNs; first = this.#heap[0]) {
      this.remove(first)
      first.call()
    }
  }

  #put(entry: TimerEntry, place: number): void {
    this.#heap[place] = entry
    entry.place = place
  }

  #up(entry: TimerEntry): void {
    let { place } = entry
    while (place > 0) {
      const parent = this.#heap[place - 1 >> 1]!
      if (parent.atNs <= entry.atNs) break
      this.#put(parent, place)
      place = place - 1 >> 1
    }
    this.#put(entry, place)
  }

  #down(entry: TimerEntry): void {
    const heap = this.#heap
    let { place } = entry
    for (let child = 2 * place + 1; child < heap.length; child = 2 * place + 1) {
      if (child + 1 < heap.length && heap[child + 1]!.atNs < heap[child]!.atNs) child++
      if (heap[child]!.atNs >= entry.atNs) break
      this.#put(heap[child]!, place)
      place = child
    }
    this.#put(entry, place)
  }
}
