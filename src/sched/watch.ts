// sched/watch.ts: checks, for one run queue, what run_queue.ts promises; the simulator calls it with every step.
//
// It keeps its own books from what each node has received, not from the queue's tags. For every window at once, it
// keeps the worst one that ends now: how far a limit is exceeded in it (a bucket that never goes below 0), how far a
// reservation has fallen behind in it (another one, for as long as the node wants the pCPU). Throws what is broken.

import { assert } from '../base/assert.ts'
import { ENDED, RUNNABLE, RUNNING, THROTTLED, WAITING, type Node } from './node.ts'
import type { RunQueue } from './run_queue.ts'

type Book = { at: number; runningNs: number; overNs: number; behindNs: number }

export class Watch {
  readonly #queue: RunQueue
  readonly #slackNs: number
  readonly #books = new Map<Node, Book>()
  /** Limits and reservations of these are kept watch on: few have any. */
  readonly #bounded = new Set<Node>()

  /** `slackNs`: how late a cell may leave, and how long a switch takes. */
  constructor(queue: RunQueue, { slackNs }: { slackNs: number }) {
    this.#queue = queue
    this.#slackNs = slackNs
  }

  add(node: Node, now: number): void {
    this.#books.set(node, { at: now, runningNs: 0, overNs: 0, behindNs: 0 })
    this.termsChanged(node, now)
  }

  remove(node: Node): void {
    this.#books.delete(node)
    this.#bounded.delete(node)
    this.#checkAccount(this.#queue.account(node, Infinity), 'ended')
  }

  /** The old windows are over. */
  termsChanged(node: Node, now: number): void {
    const book = this.#books.get(node)!
    book.at = now
    book.runningNs = this.#queue.account(node, now).runningNs
    book.overNs = 0
    book.behindNs = 0
    if (node.limit < 1 || node.reservation > 0) this.#bounded.add(node)
    else this.#bounded.delete(node)
  }

  /** Time has passed, in which nobody's state changed. Before each change. */
  see(now: number): void {
    for (const node of this.#bounded) this.#see(node, this.#books.get(node)!, now)
  }

  #see(node: Node, book: Book, now: number): void {
    const { runningNs } = this.#queue.account(node, now)
    const received = runningNs - book.runningNs
    const elapsed = now - book.at
    book.runningNs = runningNs
    book.at = now
    const { quantumNs } = this.#queue
    book.overNs = Math.max(0, book.overNs + received - node.limit * elapsed)
    assert(!(book.overNs > quantumNs + this.#slackNs + 1), 'a limit is exceeded by a quantum at most', book.overNs)
    book.behindNs = this.#wants(node) ? Math.max(0, book.behindNs + node.reservation * elapsed - received) : 0
    const most = 2 * depth(node) * (quantumNs + 2 * this.#slackNs) + 1
    assert(book.behindNs <= most, 'a reservation is behind by two quanta at most', book.behindNs)
  }

  /** It wants the pCPU, and no limit is in its way, nor in that of a pool above it. */
  #wants(node: Node): boolean {
    for (let at = node; at.parent !== undefined; at = at.parent) {
      if (at.state !== RUNNABLE && at.state !== RUNNING) return false
    }
    return true
  }

  woken(node: Node): void {
    assert(node.state !== WAITING && node.state !== ENDED, 'who is woken wants to run', node.state)
  }

  /** Somebody was chosen, or nobody: then nobody could have run. */
  picked(now: number): void {
    const { current, until } = this.#queue
    if (current !== undefined) {
      assert(until > now, 'who is picked has time', until - now)
      for (let at: Node = current; at.parent !== undefined; at = at.parent) {
        assert(at.state === RUNNING && at.parent.running === at, 'what runs is one path', at.state)
      }
      return
    }
    for (const node of this.#books.keys()) {
      if (!node.isPool) assert(!this.#wants(node), 'a pCPU is idle only if nobody can run')
      if (node.state === THROTTLED) assert(until <= node.release.start, 'the next to be released is waited for')
    }
  }

  /** Every nanosecond of every cell and pool, and of the pCPU, is in one account. */
  checkAccounts(now: number): void {
    let runningNs = 0
    for (const node of this.#books.keys()) {
      const account = this.#queue.account(node, now)
      this.#checkAccount(account, 'living')
      if (!node.isPool) runningNs += account.runningNs
    }
    const root = this.#queue.account(this.#queue.root, now)
    assert(runningNs <= root.runningNs, 'cells have run no longer than the pCPU', runningNs - root.runningNs)
  }

  #checkAccount(account: ReturnType<RunQueue['account']>, which: string): void {
    const { ageNs, runningNs, runnableNs, waitingNs, throttledNs, pausedNs } = account
    const sum = runningNs + runnableNs + waitingNs + throttledNs + pausedNs
    assert(sum === ageNs, `the account of a ${which} node adds up`, ageNs)
    const least = Math.min(runningNs, runnableNs, waitingNs, throttledNs, pausedNs)
    assert(least >= 0, `no account of a ${which} node is negative`, least)
  }
}

function depth(node: Node): number {
  return node.parent === undefined ? 0 : 1 + depth(node.parent)
}
