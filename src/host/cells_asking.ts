// host/cells_asking.ts: what guests ask of the host by hypercalls, and the host's answers.
//
// A guest waits for the answer, and asks again under the same serial from another thread when it was moved there: that
// is joined to the question that is under way. Who asks when no host is there is told to try later, and so is who waits
// when the host goes: what it would have done may have been done (a snapshot), which the next host sees to as after any
// crash. The host counts what each guest asks for; one that asks without end it doesn't even hear.
//
// Elsewhere: the guest's side (services/lifecycle), what the host does (cells_captures.ts).

import { EAGAIN } from '../base/errno.ts'
import type { Asked } from '../services/lifecycle/lifecycle.ts'
import { Requests } from '../services/lifecycle/remote.ts'
import { Allowance } from './allowance.ts'
import type { HostLine } from './host_line.ts'
import type { GuestLaunch } from './protocol.ts'

/** So many questions of one guest, in so much time: twice what the host has an ear for (guest_requests.ts). */
const QUESTIONS_MAX = 120
const QUESTIONS_MS = 60_000

/** Whom answers are for: guests by their numbers on the stack. */
export interface Askers {
  guestOf(number: number): GuestLaunch | undefined
  told(number: number, serial: number, errno: number): void
}

/** The questions of a process's guests. */
export class Asking {
  readonly #line: HostLine
  readonly #askers: Askers
  readonly #requests = new Requests()
  /** Who waits for an answer, by the number of the question. */
  readonly #waiting = new Map<number, number>()
  readonly #allowances = new Map<number, Allowance>()
  #next = 1

  constructor(line: HostLine, askers: Askers) {
    this.#line = line
    this.#askers = askers
  }

  /** A guest asks. It waits, so it asks one thing at a time. */
  asked(number: number, { what, name, count }: Asked, serial: number): void {
    const launch = this.#askers.guestOf(number)
    if (launch === undefined) return
    const known = this.#requests.ask(number, serial)
    if (known === 'waiting') return
    if (known !== 'new') return this.#askers.told(number, serial, known)
    if (!this.#line.isConnected || !this.#allows(number)) return this.#answer(number, EAGAIN)
    const question = this.#next++
    this.#waiting.set(question, number)
    this.#line.send({ asked: question, id: launch.id, run: launch.run, what,
      ...(name === undefined ? {} : { name }), ...(count === undefined ? {} : { count }) })
  }

  /** The host has answered: an errno, 0 if it was done. */
  told(question: number, errno: number): void {
    const number = this.#waiting.get(question)
    if (number === undefined) return
    this.#waiting.delete(question)
    this.#answer(number, errno)
  }

  /** The guest is gone. */
  forget(number: number): void {
    this.#requests.forget(number)
    this.#allowances.delete(number)
    for (const [question, asker] of this.#waiting) if (asker === number) this.#waiting.delete(question)
  }

  hostGone(): void {
    for (const question of this.#waiting.keys()) this.told(question, EAGAIN)
  }

  #allows(number: number): boolean {
    let allowance = this.#allowances.get(number)
    if (allowance === undefined) this.#allowances.set(number, allowance = new Allowance(QUESTIONS_MAX, QUESTIONS_MS))
    return allowance.allow()
  }

  #answer(number: number, errno: number): void {
    const serial = this.#requests.told(number, errno)
    if (serial !== undefined) this.#askers.told(number, serial, errno)
  }
}
