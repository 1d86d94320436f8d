// wasi/p1/own_turn.ts: the turn of a vCPU whose pCPU isn't scheduled: it runs whenever it can.
//
// So cells of a pCPU take turns at hypercalls that wait. Elsewhere: turns that a scheduler gives (cell/dispatcher.ts).

import { nowNs } from '../../base/stopwatch.ts'
import type { Turn } from './context.ts'

/** See Turn. */
export class OwnTurn implements Turn {
  #runNs = 0
  #runningSince = -1
  #resume: (() => void) | undefined

  begin(): undefined {}

  enter(): void { this.#runningSince = nowNs() }

  leave(): void {
    this.#runNs += nowNs() - this.#runningSince
    this.#runningSince = -1
  }

  park(): Promise<void> {
    this.#pause()
    return new Promise((resolve) => { this.#resume = resolve })
  }

  yield(): Promise<void> {
    this.#pause()
    return AT_ONCE
  }

  // Of a vCPU that was never entered nothing is charged: tests park without running.
  #pause(): void {
    if (this.#runningSince >= 0) this.leave()
  }

  wake(): void {
    this.#resume?.()
    this.#resume = undefined
  }

  // Node's timers have 1 ms and may fire a little early, so the last millisecond is waited out turn by turn.
  after(ns: number, wake: () => void): () => void {
    if (ns < 1e6) {
      const timer = setImmediate(wake)
      return () => clearImmediate(timer)
    }
    const timer = setTimeout(wake, Math.min(Math.floor(ns / 1e6), 0x7fffffff))
    return () => clearTimeout(timer)
  }

  cpuNs(): number { return this.#runNs + (this.#runningSince < 0 ? 0 : nowNs() - this.#runningSince) }

  end(): void {}
}

const AT_ONCE = Promise.resolve()
