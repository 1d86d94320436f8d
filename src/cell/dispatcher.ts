// cell/dispatcher.ts: gives a pCPU to one vCPU after the other, as its run queue says (sched/run_queue.ts).
//
// A vCPU that leaves (it waits, or it was asked to) has its stack parked by JSPI, and its promise is what makes it go
// on. So the thread is given away by resolving a promise: the vCPU goes on in a microtask, and runs until it leaves.
// When one has left, the next is picked in another microtask: two switches, no turn of the event loop. But the event
// loop must turn for what comes from outside, so the pick waits for it whenever that hasn't happened for LOOP_NS, and
// until it has brought the messages that were announced (alarm.ts): a vCPU that is alone would leave them unread.
//
// Who runs must leave at queue.until, when a timer is due that may wake another, or when a quantum has passed in which
// I/O may have come for another: the alarm rings (alarm.ts), and translated code sees it at its next check. A vCPU that
// is alone on its pCPU isn't interrupted; who posts a message to the thread rings. With nothing to do the thread sleeps
// in the event loop, woken by I/O or the alarm.

import { nowNs } from '../base/stopwatch.ts'
import { DEFAULT_TERMS, type Node, type Terms } from '../sched/node.ts'
import { RunQueue, type Account } from '../sched/run_queue.ts'
import type { Turn } from '../wasi/p1/context.ts'
import type { Alarm } from './alarm.ts'
import { Timers } from './timers.ts'

/** The event loop turns at least so often, if somebody leaves so often. */
const LOOP_NS = 500_000

/** Who runs on one pCPU, and the turns of its vCPUs. */
export class Dispatcher {
  readonly queue: RunQueue<ScheduledTurn>
  readonly #alarm: Alarm
  readonly #timers = new Timers()
  #isPlanned = false
  #loopTurnedAt = 0
  #turns = 0

  constructor(alarm: Alarm, quantumNs: number) {
    this.#alarm = alarm
    this.queue = new RunQueue({ quantumNs, now: nowNs() })
  }

  /** A turn for a new vCPU, in a pool of the queue or its root. */
  admit(terms: Terms = DEFAULT_TERMS, pool: Node<ScheduledTurn> = this.queue.root): ScheduledTurn {
    this.#turns++
    return new ScheduledTurn(this, (turn) => this.queue.addCell(pool, terms, nowNs(), turn))
  }

  addPool(terms: Terms): Node<ScheduledTurn> {
    return this.queue.addPool(this.queue.root, terms, nowNs())
  }

  setTerms(node: Node<ScheduledTurn>, terms: Terms): void {
    this.queue.setTerms(node, terms, nowNs())
    this.#changed()
  }

  /** Calls `call` after `ns` nanoseconds, whoever runs then; the result calls that off. */
  after(ns: number, call: () => void): () => void {
    const entry = this.#timers.add(nowNs() + ns, call)
    this.#changed()
    return () => this.#timers.remove(entry)
  }

  /** Keeps a vCPU from running until `unpause`: what wakes it meanwhile is remembered. */
  pause(node: Node<ScheduledTurn>): void {
    if (this.queue.pause(node, nowNs())) this.#alarm.ring()
    this.#changed()
  }

  unpause(node: Node<ScheduledTurn>): void {
    if (this.queue.unpause(node, nowNs())) this.#alarm.ring()
    this.#changed()
  }

  account(node: Node<ScheduledTurn>): Account {
    return this.queue.account(node, nowNs())
  }

  // ---- for turns

  wake(node: Node<ScheduledTurn>): void {
    if (this.queue.wake(node, nowNs())) this.#alarm.ring()
    this.#changed()
  }

  stop(how: 'runnable' | 'waiting' | 'ended'): void {
    this.queue.stop(nowNs(), how)
    this.#plan()
  }

  remove(node: Node<ScheduledTurn>): void {
    if (this.queue.current === node) this.stop('ended')
    else this.queue.remove(node, nowNs())
  }

  forget(): void {
    this.#turns--
  }

  // What the queue or the timers wait for may be something else now.
  #changed(): void {
    if (this.queue.current === undefined) this.#plan()
    else this.#arm(nowNs())
  }

  #arm(now: number): void {
    const looks = this.#turns > 1 ? now + this.queue.quantumNs : Infinity
    this.#alarm.arm(Math.min(this.queue.until, this.#timers.nextNs, looks))
  }

  #plan(): void {
    if (this.#isPlanned) return
    this.#isPlanned = true
    queueMicrotask(this.#dispatch)
  }

  readonly #dispatch = (): void => {
    this.#isPlanned = false
    const { queue } = this
    if (queue.current !== undefined) return
    const now = nowNs()
    this.#alarm.clear()
    if (now - this.#loopTurnedAt > LOOP_NS || this.#alarm.hasMail) {
      this.#isPlanned = true
      setImmediate(this.#afterLoop)
      return
    }
    this.#timers.fire(now)
    const node = queue.pick(now)
    if (node === undefined) {
      this.#alarm.wakeAt(Math.min(queue.until, this.#timers.nextNs), this.#afterLoop)
      return
    }
    this.#arm(now)
    node.owner!.go()
  }

  readonly #afterLoop = (): void => {
    this.#loopTurnedAt = nowNs()
    this.#dispatch()
  }
}

/** The turn of a vCPU that shares its pCPU as its terms say. */
export class ScheduledTurn implements Turn {
  readonly node: Node<ScheduledTurn>
  readonly #dispatcher: Dispatcher
  #go: (() => void) | undefined
  #left = true

  constructor(dispatcher: Dispatcher, join: (turn: ScheduledTurn) => Node<ScheduledTurn>) {
    this.#dispatcher = dispatcher
    this.node = join(this)
  }

  /** Gives it the pCPU: called by the dispatcher, which has picked it. */
  go(): void {
    const go = this.#go
    this.#go = undefined
    // It was unwound meanwhile: nobody is there to go on.
    if (go === undefined) return this.#dispatcher.stop('waiting')
    this.#left = false
    go()
  }

  /**
   * Lets it go on at once, whatever the queue says, for no more than to unwind its stack (cell.capture). It is paused.
   * To be called while no vCPU is on its way: from a turn of the event loop.
   */
  unwind(): void {
    const go = this.#go
    this.#go = undefined
    // What it has is nobody's quantum: there is nothing to give back.
    this.#left = true
    go?.()
  }

  begin(): Promise<void> {
    const begun = this.#promise()
    this.#dispatcher.wake(this.node)
    return begun
  }

  // Charged since it was picked.
  enter(): void {}

  leave(): void {
    if (this.#left) return
    this.#left = true
    this.#dispatcher.stop('waiting')
  }

  park(): Promise<void> {
    this.leave()
    return this.#promise()
  }

  yield(): Promise<void> {
    this.#left = true
    this.#dispatcher.stop('runnable')
    return this.#promise()
  }

  wake(): void {
    // Between two calls it waits for the next one to begin, and for nothing else.
    if (this.#go !== undefined) this.#dispatcher.wake(this.node)
  }

  after(ns: number, wake: () => void): () => void {
    if (ns > 0) return this.#dispatcher.after(ns, wake)
    // It only lets others run: awake before it parks, it yields.
    wake()
    return () => {}
  }

  cpuNs(): number {
    return this.#dispatcher.account(this.node).runningNs
  }

  end(): void {
    this.#dispatcher.remove(this.node)
  }

  /** Nothing is left to do for it on this thread. Until then others let the event loop turn, though they be alone. */
  close(): void {
    this.#dispatcher.forget()
  }

  #promise(): Promise<void> {
    return new Promise((resolve) => { this.#go = resolve })
  }
}
