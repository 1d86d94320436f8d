// cell/lifecycle_test.ts: a guest in C (guests/forkme.c, sdk/c/cellar.h) that copies and saves itself: what it says in
// the one that goes on, in each copy, and where it is restored. The host is the test.

import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import { test } from 'node:test'
import { EACCES, ESUCCESS } from '../base/errno.ts'
import { nullConsole } from '../services/console/console.ts'
import type { Descriptor } from '../services/descriptor.ts'
import { newGrant, type Asked, type EventKind } from '../services/lifecycle/lifecycle.ts'
import { consoleStream } from '../services/saved.ts'
import type { Cell } from './cell.ts'
import { Continuations } from './continuations.ts'
import { loadPreemptible } from './preemptible.ts'
import { Pcpu, type Watch } from './pcpu.ts'

const FORKME = loadPreemptible(fileURLToPath(new URL('../../guests/forkme.wasm', import.meta.url)), { stubs: [] },
  { mode: 'preempt', capture: true })
const LINE = /^(.*) generation (\w{32}) event (\w+ \d+) nonce (\w{16}) drawn (\w{16})$/

type Question = { readonly asked: Asked; readonly answer: (errno: number) => void }

/** A guest of this host: `question` gives what it asks next. */
class Hosted {
  readonly questions: Question[] = []
  readonly text = { said: '', told: '' }
  cell!: Cell
  #asks = Promise.withResolvers<Question>()

  static async start(args: readonly string[], from?: Watch['from'], event?: EventKind, number = 0): Promise<Hosted> {
    const hosted = new Hosted()
    const grant = newGrant({ id: `id-${number}`, name: 'guest', event, number })
    const request = (asked: Asked): Promise<number> => new Promise((answer) => hosted.#asks.resolve({ asked, answer }))
    const console = { stdin: nullConsole, stdout: hosted.#stream('said'), stderr: hosted.#stream('told') }
    hosted.cell = await new Pcpu().create(FORKME, { args: ['forkme', ...args], env: [] }, console,
      { lifecycle: { grant, request }, from })
    return hosted
  }

  async question(): Promise<Question> {
    const question = await this.#asks.promise
    this.#asks = Promise.withResolvers()
    return question
  }

  /** What it has said, word by word of LINE. */
  get lines(): (readonly string[] | string)[] {
    return this.text.said.trimEnd().split('\n').map((line) => LINE.exec(line)?.slice(1) ?? line)
  }

  #stream(name: 'said' | 'told'): Descriptor {
    return {
      filetype: 2, close: () => {}, grant: 'console', save: consoleStream,
      write: (iovecs) => { this.text[name] += Buffer.from(iovecs.gather()).toString(); return iovecs.total },
    }
  }
}

/** Captures a guest while it waits for an answer, lets it go on, and gives what others may start from. */
async function captured({ cell }: Hosted, continuations: Continuations): Promise<NonNullable<Watch['from']>> {
  const state = await cell.capture()
  const continuation = continuations.of(FORKME, state.frames)
  cell.goOn(continuation)
  return { state, continuation }
}

test('a guest that forks itself goes on as the parent, and each copy as the child that it is', async () => {
  const parent = await Hosted.start(['2', 'base'])
  const ended = parent.cell.run()
  const continuations = new Continuations()
  const fork = await parent.question()
  assert.deepEqual(fork.asked, { what: 'fork', count: 2 })
  const from = await captured(parent, continuations)
  const children = [await Hosted.start([], from, 'fork', 1), await Hosted.start([], from, 'fork', 2)]
  for (const { cell } of children) assert.deepEqual(await cell.run(), { kind: 'exit', code: 0 })
  fork.answer(ESUCCESS)

  const snapshot = await parent.question()
  assert.deepEqual(snapshot.asked, { what: 'snapshot', name: 'base' })
  const saved = await captured(parent, continuations)
  snapshot.answer(ESUCCESS)
  assert.deepEqual(await ended, { kind: 'exit', code: 0 })
  const restored = await Hosted.start([], saved, 'restore')
  assert.deepEqual(await restored.cell.run(), { kind: 'exit', code: 0 }, restored.text.told)

  assert.equal(parent.lines[1], 'saved')
  const all = [parent, ...children, restored].map(({ lines }) => lines[0] as readonly string[])
  assert.deepEqual(all.map((words) => `${words[0]}: ${words[2]}`), ['parent guest id-0: none 0',
    'child 1 guest id-1: fork 1', 'child 2 guest id-2: fork 2', 'restored guest id-0: restore 0'])
  const different = [1, 3, 4].map((at) => new Set(all.map((words) => words[at])).size)
  assert.deepEqual(different, [4, 1, 4], 'generations, nonces from before the fork, and what was drawn since')
})

test('a copy that was captured in a fork, but not for it, is told that it was cut short', async () => {
  const parent = await Hosted.start(['2'])
  const ended = parent.cell.run()
  const fork = await parent.question()
  const from = await captured(parent, new Continuations())
  for (const event of ['restore', 'wake', 'migrate'] as const) {
    const copy = await Hosted.start([], from, event)
    assert.deepEqual(await copy.cell.run(), { kind: 'exit', code: 2 })
    assert.equal(copy.text.told, 'forkme: fork: Interrupted system call\n')
  }
  fork.answer(ESUCCESS)
  assert.deepEqual(await ended, { kind: 'exit', code: 0 })
})

test('a guest whose host refuses gets the errno of it', async () => {
  const guest = await Hosted.start([])
  const ended = guest.cell.run()
  const { answer } = await guest.question()
  answer(EACCES)
  assert.deepEqual(await ended, { kind: 'exit', code: 2 })
  assert.equal(guest.text.told, 'forkme: fork: Permission denied\n')
})
