// sched/simulator.ts: a world of pCPUs and cells in virtual time, by seed.
//
// Every pCPU has a RunQueue; cells behave as told (they compute, sleep, wake each other); what happens is taken in the
// order of virtual time, so a run of ten seconds takes as long as its events, and the same seed gives the same run to
// the nanosecond. With every step the world checks what run_queue.ts promises (watch.ts) and throws when it is broken.

import type { Node, Terms } from './node.ts'
import { RunQueue } from './run_queue.ts'
import { Watch } from './watch.ts'

/** What a cell does with its pCPU. */
export type Behaviour =
  /** Computes for ever. */
  | { readonly kind: 'hog' }
  /** Computes for `burstNs` at each `periodNs`, counted from the end of the last burst. */
  | { readonly kind: 'sleeper'; readonly burstNs: number; readonly sleepNs: number }
  /** As a sleeper, with times drawn around the given means (exponentially). */
  | { readonly kind: 'bursty'; readonly burstNs: number; readonly sleepNs: number }
  /** Computes for `burstNs`, wakes another cell, and waits to be woken. `first`: begins without being woken. */
  | { readonly kind: 'relay'; readonly burstNs: number; readonly wakes: string; readonly first?: boolean }
  /** Computes for `burstNs` and ends. */
  | { readonly kind: 'job'; readonly burstNs: number }

/** A cell of the world. `latencies` are the times from each wake to the pCPU. */
export type SimCell = {
  readonly name: string
  readonly behaviour: Behaviour
  readonly pcpu: SimPcpu
  readonly node: Node<SimCell>
  /** Nanoseconds of computing left before it waits. */
  leftNs: number
  wokenAt: number
  readonly latencies: number[]
}

type SimPcpu = {
  readonly queue: RunQueue<SimCell>
  readonly watch: Watch
  /** When the current cell began to compute, after the switch; when it is asked to leave, and when it does. */
  computesAt: number
  askedAt: number
  leavesAt: number
  last: Node<SimCell> | undefined
}

type Event = { readonly at: number; readonly order: number; readonly run: () => void }

/** How the world is made. `lateNs`: a cell leaves up to so long after it was asked to. */
export type WorldOptions = {
  readonly seed: number
  readonly pcpus: number
  readonly quantumNs: number
  readonly switchNs?: number
  readonly lateNs?: number
}

export class World {
  readonly pcpus: SimPcpu[] = []
  readonly cells = new Map<string, SimCell>()
  readonly random: () => number
  now = 0
  /** Events and decisions so far. */
  steps = 0
  readonly #switchNs: number
  readonly #lateNs: number
  readonly #events: Event[] = []
  #order = 0

  constructor({ seed, pcpus, quantumNs, switchNs = 0, lateNs = 0 }: WorldOptions) {
    this.random = randomOf(seed)
    this.#switchNs = switchNs
    this.#lateNs = lateNs
    for (let i = 0; i < pcpus; i++) {
      const queue = new RunQueue<SimCell>({ quantumNs })
      const watch = new Watch(queue, { slackNs: lateNs + switchNs })
      this.pcpus.push({ queue, watch, computesAt: 0, askedAt: Infinity, leavesAt: Infinity, last: undefined })
    }
  }

  /** A pool on one pCPU, in its root or in another pool. */
  addPool(pcpu: number, terms: Terms, parent?: Node<SimCell>): Node<SimCell> {
    const { queue, watch } = this.pcpus[pcpu]!
    const pool = queue.addPool(parent ?? queue.root, terms, this.now)
    watch.add(pool, this.now)
    return pool
  }

  /** A cell, in the root of the pCPU or in one of its pools. It begins to behave at once. */
  addCell(name: string, pcpu: number, terms: Terms, behaviour: Behaviour, parent?: Node<SimCell>): SimCell {
    const place = this.pcpus[pcpu]!
    const latencies: number[] = []
    const cell = { name, behaviour, pcpu: place, leftNs: 0, wokenAt: -1, latencies } as unknown as SimCell
    const node = place.queue.addCell(parent ?? place.queue.root, terms, this.now, cell)
    Object.assign(cell, { node })
    place.watch.add(node, this.now)
    this.cells.set(name, cell)
    if (behaviour.kind !== 'relay' || behaviour.first === true) this.wake(cell)
    return cell
  }

  /** Gives a node other terms, now. */
  setTerms(pcpu: number, node: Node<SimCell>, terms: Terms): void {
    const place = this.pcpus[pcpu]!
    place.watch.see(this.now)
    place.queue.setTerms(node, terms, this.now)
    place.watch.termsChanged(node, this.now)
    this.#ask(place)
  }

  /** Takes a cell out, whatever it is doing. */
  remove(cell: SimCell): void {
    const { queue, watch } = cell.pcpu
    watch.see(this.now)
    if (queue.current === cell.node) this.#stop(cell.pcpu, 'ended')
    else {
      queue.remove(cell.node, this.now)
      watch.remove(cell.node)
      this.#ask(cell.pcpu)
    }
    this.cells.delete(cell.name)
  }

  /** Keeps a cell from running until `unpause`. */
  pause(cell: SimCell): void {
    const { pcpu, node } = cell
    pcpu.watch.see(this.now)
    pcpu.queue.pause(node, this.now)
    this.#ask(pcpu)
  }

  unpause(cell: SimCell): void {
    const { pcpu, node } = cell
    pcpu.watch.see(this.now)
    pcpu.queue.unpause(node, this.now)
    this.#ask(pcpu)
  }

  /** Takes a cell to another pCPU, where it goes on with what it was about to do. One that has no pool. */
  move(cell: SimCell, to: number): void {
    const { name, node: { shares, reservation, limit }, wokenAt } = cell
    const leftNs = this.#left(cell)
    this.remove(cell)
    const place = this.pcpus[to]!
    place.watch.see(this.now)
    const node = place.queue.addCell(place.queue.root, { shares, reservation, limit }, this.now, cell)
    Object.assign(cell, { node, pcpu: place, leftNs, wokenAt })
    place.watch.add(node, this.now)
    this.cells.set(name, cell)
    if (leftNs > 0) place.queue.wake(node, this.now)
    this.#ask(place)
  }

  // What a cell has yet to compute before it waits.
  #left({ pcpu, node, leftNs }: SimCell): number {
    return pcpu.queue.current === node ? Math.max(1, leftNs - Math.max(0, this.now - pcpu.computesAt)) : leftNs
  }

  /** The cell has something to do. */
  wake(cell: SimCell): void {
    const { pcpu, node, behaviour } = cell
    if (this.cells.get(cell.name) !== cell || cell.leftNs > 0) return
    cell.leftNs = this.#burst(behaviour)
    cell.wokenAt = this.now
    pcpu.watch.see(this.now)
    pcpu.queue.wake(node, this.now)
    pcpu.watch.woken(node)
    this.#ask(pcpu)
  }

  /** Something of the caller's, at a time to come. */
  at(time: number, run: () => void): void {
    const event = { at: Math.max(time, this.now), order: this.#order++, run }
    const events = this.#events
    let i = events.push(event) - 1
    for (; i > 0; i = (i - 1) >> 1) {
      const parent = (i - 1) >> 1
      if (!earlier(event, events[parent]!)) break
      events[i] = events[parent]!
    }
    events[i] = event
  }

  /** Goes on until the time, and leaves the accounts as they are then. */
  run(untilNs: number): void {
    for (;;) {
      let at = this.#events[0]?.at ?? Infinity
      let pcpu: SimPcpu | undefined
      for (const candidate of this.pcpus) {
        const next = this.#next(candidate)
        if (next >= at) continue
        at = next
        pcpu = candidate
      }
      if (at > untilNs) break
      this.now = Math.max(this.now, at)
      this.steps++
      if (pcpu === undefined) this.#pop().run()
      else this.#decide(pcpu)
    }
    this.now = untilNs
    for (const { watch } of this.pcpus) watch.see(untilNs)
  }

  /** The share of one pCPU that the cell or pool has had so far. */
  share(pcpu: number, node: Node<SimCell>): number {
    return this.pcpus[pcpu]!.queue.account(node, this.now).runningNs / this.now
  }

  #next({ queue, computesAt, leavesAt }: SimPcpu): number {
    const cell = queue.current?.owner
    return cell === undefined ? queue.until : Math.min(leavesAt, computesAt + cell.leftNs)
  }

  /** The current cell is done or leaves, or nobody runs: then who is next. */
  #decide(pcpu: SimPcpu): void {
    const { queue, watch } = pcpu
    const cell = queue.current?.owner
    watch.see(this.now)
    if (cell === undefined) this.#pick(pcpu)
    else if (this.now >= pcpu.computesAt + cell.leftNs) {
      cell.leftNs = 0
      this.#stop(pcpu, cell.behaviour.kind === 'job' ? 'ended' : 'waiting')
    } else this.#stop(pcpu, 'runnable')
  }

  #stop(pcpu: SimPcpu, how: 'runnable' | 'waiting' | 'ended'): void {
    const { queue, watch } = pcpu
    const node = queue.current!
    const cell = node.owner!
    cell.leftNs -= how === 'runnable' ? Math.max(0, this.now - pcpu.computesAt) : 0
    queue.stop(this.now, how)
    if (how === 'ended') {
      watch.remove(node)
      this.cells.delete(cell.name)
    }
    const { behaviour } = cell
    if (how === 'waiting' && (behaviour.kind === 'sleeper' || behaviour.kind === 'bursty')) {
      const sleep = behaviour.kind === 'bursty' ? this.#around(behaviour.sleepNs) : behaviour.sleepNs
      this.at(this.now + sleep, () => this.wake(cell))
    }
    if (how === 'waiting' && behaviour.kind === 'relay') {
      const next = this.cells.get(behaviour.wakes)
      if (next !== undefined) this.at(this.now, () => this.wake(next))
    }
    this.#pick(pcpu)
  }

  #pick(pcpu: SimPcpu): void {
    const { queue, watch } = pcpu
    const node = queue.pick(this.now)
    watch.picked(this.now)
    if (node === undefined) return
    pcpu.computesAt = this.now + (node === pcpu.last ? 0 : this.#switchNs)
    pcpu.last = node
    pcpu.askedAt = Infinity
    const cell = node.owner!
    if (cell.wokenAt >= 0) cell.latencies.push(this.now - cell.wokenAt)
    cell.wokenAt = -1
    this.#ask(pcpu)
  }

  /** Asks the current cell to leave when the queue says so. Who has been asked leaves, sooner or later. */
  #ask(pcpu: SimPcpu): void {
    if (pcpu.queue.current === undefined || pcpu.askedAt <= this.now) return
    pcpu.askedAt = Math.max(this.now, pcpu.queue.until)
    pcpu.leavesAt = pcpu.askedAt + (this.#lateNs === 0 ? 0 : Math.floor(this.random() * this.#lateNs))
  }

  #burst(behaviour: Behaviour): number {
    if (behaviour.kind === 'hog') return Infinity
    return behaviour.kind === 'bursty' ? this.#around(behaviour.burstNs) : behaviour.burstNs
  }

  #around(meanNs: number): number {
    return 1 + Math.floor(-Math.log(1 - this.random()) * meanNs)
  }

  #pop(): Event {
    const events = this.#events
    const first = events[0]!
    const moved = events.pop()!
    if (events.length === 0) return first
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child >= events.length) break
      if (child + 1 < events.length && earlier(events[child + 1]!, events[child]!)) child++
      if (!earlier(events[child]!, moved)) break
      events[i] = events[child]!
      i = child
    }
    events[i] = moved
    return first
  }
}

function earlier(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order)
}

/** Numbers in [0, 1) that depend on the seed alone (mulberry32). */
function randomOf(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let x = Math.imul(state ^ (state >>> 15), state | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}
