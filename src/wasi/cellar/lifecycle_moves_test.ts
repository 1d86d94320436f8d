// wasi/cellar/lifecycle_moves_test.ts: a guest that asks its host while it is moved between the threads of its process.
//
// Moves, answers and their delivery come in any order: what is posted to a thread that the guest has left is lost. All
// the same, each request reaches the host once, and the guest gets the answer to it.

import assert from 'node:assert/strict'
import { setImmediate as turn } from 'node:timers/promises'
import { test } from 'node:test'
import fc from 'fast-check'
import { EACCES, EAGAIN, ESUCCESS } from '../../base/errno.ts'
import { movedGrant, newGrant, type Asked } from '../../services/lifecycle/lifecycle.ts'
import { RemoteLifecycle, Requests } from '../../services/lifecycle/remote.ts'
import { WAIT, type Context } from '../p1/context.ts'
import { contextOf, OUT } from '../p1/test_support.ts'
import { guest_fork } from './lifecycle.ts'

const GUEST = 7
const ERRNOS = [ESUCCESS, EACCES, EAGAIN]

/** A process with one guest: its owner's thread, and the thread that the guest is on. */
class World {
  readonly reached: Asked[] = []
  readonly answers: number[] = []
  readonly #requests = new Requests()
  #grant = newGrant({ id: 'g', name: 'n' })
  #unanswered = 0
  #lifecycle!: RemoteLifecycle
  context!: Context
  /** Answers on their way: each to the thread that the guest was on when it was posted. */
  readonly #posted: (() => void)[] = []

  constructor() {
    this.#arrive(-1)
  }

  #arrive(since: number): void {
    this.#lifecycle = new RemoteLifecycle({ ask: (guest, asked, serial) => this.#asked(guest, asked, serial) }, GUEST,
      this.#grant)
    this.context = contextOf({ lifecycle: this.#lifecycle })
    this.context.since = since
  }

  #asked(guest: number, asked: Asked, serial: number): void {
    const known = this.#requests.ask(guest, serial)
    if (known === 'new') {
      this.reached.push(asked)
      this.#unanswered++
    } else if (known !== 'waiting') this.#post(serial, known)
  }

  #post(serial: number, errno: number): void {
    const lifecycle = this.#lifecycle
    this.#posted.push(() => lifecycle.told(serial, errno))
  }

  answer(errno: number): void {
    if (this.#unanswered === 0) return
    this.#unanswered--
    const serial = this.#requests.told(GUEST, errno)
    if (serial !== undefined) this.#post(serial, errno)
  }

  async deliver(): Promise<void> {
    this.#posted.shift()?.()
    await turn()
  }

  move(): void {
    this.#grant = movedGrant(this.#grant)
    this.#arrive(this.context.since)
  }

  /** The vCPU tries its call, or goes on to the next one: true if it was answered. */
  attempt(calls: number): boolean {
    if (this.answers.length >= calls) return false
    const answer = guest_fork(this.context, this.answers.length + 1, OUT)
    if (answer === WAIT) return false
    this.answers.push(answer)
    return true
  }
}

test('each request reaches the host once and is answered, wherever its guest is moved meanwhile', async () => {
  const step = fc.oneof(fc.constant('try' as const), fc.constant('move' as const), fc.constant('deliver' as const),
    fc.constantFrom(...ERRNOS))
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 40 }), fc.integer({ min: 1, max: 4 }),
    async (steps, calls) => {
      const world = new World()
      const expected: number[] = []
      const answer = (errno: number): void => {
        if (world.reached.length > expected.length) expected.push(errno)
        world.answer(errno)
      }
      for (const one of steps) {
        if (one === 'try') world.attempt(calls)
        else if (one === 'move') world.move()
        else if (one === 'deliver') await world.deliver()
        else answer(one)
      }
      for (let i = 0; world.answers.length < calls; i++) {
        assert.ok(i < 100, 'it is answered in the end')
        world.attempt(calls)
        answer(ESUCCESS)
        await world.deliver()
      }
      assert.deepEqual(world.answers, expected)
      assert.deepEqual(world.reached.map(({ count }) => count), expected.map((_, i) => i + 1))
    }), { numRuns: 300 })
})
