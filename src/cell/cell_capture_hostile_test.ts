// cell/cell_capture_hostile_test.ts: a state that somebody forged is refused, or is a guest that goes wrong by itself.
//
// What a cell goes on from may come from a file. Whatever is in it, the hypervisor's own code must come to one of two
// ends: SNAPSHOT_FOREIGN, or a guest that runs and ends as guests end.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError } from '../base/errors.ts'
import { framesOf } from '../translate/frames.ts'
import { ORIGIN_HERE } from '../translate/control_words.ts'
import { programOf, runStopped, type Program } from '../../tests/captured_program.ts'
import { Pcpu } from './pcpu.ts'
import type { CellState } from './state.ts'
import { importOf } from './test_support.ts'

// Frames of four functions, with values of each kind, and references in frames, globals and a table.
const VICTIM = `(module ${importOf('proc_exit', 'i32', '')} ${importOf('poll_oneoff', 'i32 i32 i32 i32')}
  (memory (export "memory") 1 4)
  (table $t 4 8 funcref) (global $g (mut funcref) (ref.func $leaf)) (global $n (mut i64) (i64.const 5))
  (elem declare func $leaf)
  (type $sum (func (param i32 i64) (result i32)))
  (func $leaf (type $sum) (local $i i32) (local $f funcref) (local $v v128)
    (local.set $f (ref.func $leaf))
    (loop $l
      (table.set $t (i32.and (local.get $i) (i32.const 3)) (local.get $f))
      (local.set $v (i32x4.add (local.get $v) (v128.const i32x4 1 2 3 4)))
      (i32.store (i32.mul (local.get $i) (i32.const 4)) (local.get 0))
      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 6))))
    (i32.add (i32x4.extract_lane 0 (local.get $v)) (ref.is_null (local.get $f))))
  (func $middle (param $depth i32) (result i32)
    (i32.const 1) (f64.const 2.5)
    (if (result i32) (local.get $depth)
      (then (call $middle (i32.sub (local.get $depth) (i32.const 1))))
      (else (call $leaf (i32.const 9) (i64.const 3))))
    (global.set $n (i64.add (global.get $n) (i64.const 1)))
    (drop (drop)) (i32.add (i32.const 2)))
  (func (export "_start") (local $i i32)
    (table.set $t (i32.const 0) (global.get $g))
    (loop $l
      (i32.store (i32.const 64) (i32.const 1))
      (i64.store (i32.const 72) (i64.const 1000))
      (drop (call $poll_oneoff (i32.const 48) (i32.const 128) (i32.const 1) (i32.const 256)))
      (drop (call $middle (i32.const 3)))
      (drop (call_indirect $t (type $sum) (i32.const 1) (i64.const 2) (i32.const 0)))
      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 3))))
    (call $proc_exit (i32.wrap_i64 (global.get $n)))))`

const END = { kind: 'exit', code: 17 } as const

/** Runs the victim, changed at its k-th stop; how it went on: an outcome, or an error. */
async function changed(made: Program, at: number, change: (state: CellState) => CellState): Promise<unknown> {
  let stop = 0
  const pcpu = new Pcpu()
  try {
    const { outcome } = await runStopped(pcpu, made.executable, { nth: 2, nthWait: 1, most: at + 1, anew: true,
      checksMax: 3000, change: (state) => stop++ === at ? change(state) : state })
    return outcome
  } catch (error) {
    return error
  }
}

test('the victim of these tests goes on when nothing is changed', async () => {
  using made = await programOf(VICTIM)
  const found = new Set<string>()
  for (let at = 0; at < 40; at += 3) {
    assert.deepEqual(await changed(made, at, (state) => {
      for (const { func, site } of framesOf(state.frames)) found.add(`${func} ${site}`)
      return state
    }), END)
  }
  assert.ok(found.size >= 6, `frames of ${[...found].join(', ')}`)
})

/** A copy of the frames, with a change of the outermost one's trailer. */
function trailer(change: (view: DataView, end: number) => void): (state: CellState) => CellState {
  return (state) => {
    const frames = state.frames.slice()
    change(new DataView(frames.buffer), frames.length)
    return { ...state, frames }
  }
}

const FORGED: Readonly<Record<string, (state: CellState) => CellState>> = {
  'another version': (state) => ({ ...state, version: state.version + 1 }),
  'a start function that there isn\'t': (state) => ({ ...state, phase: 'start' }),
  'a global too few': (state) => ({ ...state, globals: state.globals.slice(1) }),
  'globals without end': (state) => ({ ...state, globals: new Uint8Array(1 << 20) }),
  'a table that there isn\'t': (state) => ({ ...state, tables: [{ table: 7, entries: [] }] }),
  'a table of more entries than it may have': (state) => ({ ...state, tables: [{ table: 0,
    entries: new Array<null>(9).fill(null) }] }),
  'a table of many entries': (state) => ({ ...state, tables: [{ table: 0, entries: new Array<null>(1e8) }] }),
  'a function that there isn\'t, in a table': (state) => ({ ...state, tables: [{ table: 0, entries: [1e6] }] }),
  'a function that is no number': (state) => ({ ...state, tables: [{ table: 0, entries: ['1' as never] }] }),
  'a function with a fraction': (state) => ({ ...state, tables: [{ table: 0, entries: [1.5] }] }),
  'a reference too few': (state) => ({ ...state, references: [] }),
  'a reference to nothing that there is': (state) => ({ ...state, references: state.references.map(() => -1) }),
  'references without end': (state) => ({ ...state, references: new Array<null>(2e6).fill(null) }),
  'no frames but bytes': (state) => ({ ...state, frames: Uint8Array.of(1, 2, 3) }),
  'frames that break off': (state) => ({ ...state, frames: state.frames.slice(1) }),
  'an imported function\'s frame': trailer((view, end) => view.setUint32(end - 12, 0, true)),
  'a frame of no function': trailer((view, end) => view.setUint32(end - 12, 1000, true)),
  'a frame of a hypercall that it doesn\'t import': trailer((view, end) => view.setUint32(end - 12, 0x8000_00ff, true)),
  'a site that there isn\'t': trailer((view, end) => view.setUint32(end - 8, 99, true)),
  'a memory that is larger than it may be': (state) => ({ ...state, memory: { ...state.memory!, pages: 5000 } }),
  'a wait that began in the future': (state) => ({ ...state, since: 2 ** 60 }),
  'a wait that began at no time': (state) => ({ ...state, since: NaN }),
  'a clock that is none': (state) => ({ ...state, monotonicNs: NaN }),
}

for (const [what, forge] of Object.entries(FORGED)) {
  test(`a forged state is refused: ${what}`, async () => {
    using made = await programOf(VICTIM)
    const error = await changed(made, 5, forge)
    assert.ok(error instanceof CellarError && error.code === 'SNAPSHOT_FOREIGN', `${JSON.stringify(error)} ${error}`)
  })
}

/** A frame of 40 locals around a loop. */
const WIDE = `(module ${importOf('proc_exit', 'i32', '')} (memory (export "memory") 1)
  (func $loop (local $i i32)
    (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 99)))))
  (func $wide (result i64) ${Array.from({ length: 40 }, (_, i) => `(local $l${i} i64)`).join(' ')}
    ${Array.from({ length: 40 }, (_, i) => `(local.set $l${i} (i64.load offset=${i} (i32.const 0)))`).join(' ')}
    (call $loop) (i64.const 0)
    ${Array.from({ length: 40 }, (_, i) => `(local.get $l${i}) (i64.add)`).join(' ')})
  (func (export "_start") (drop (call $wide)) (call $proc_exit (i32.const 17))))`

test('frames beyond the save area are refused, and not put', async () => {
  using made = await programOf(WIDE)
  assert.deepEqual(await changed(made, 5, (state) => state), END)
  const error = await changed(made, 5, (state) => {
    const wide = framesOf(state.frames)[1]!
    const end = framesOf(state.frames)[0]!.at
    const one = state.frames.slice(wide.at, end)
    assert.ok(one.length > 320)
    const copies = Math.ceil(64 * 1024 * 1024 / one.length)
    const frames = new Uint8Array(state.frames.length + copies * one.length)
    frames.set(state.frames.subarray(0, end))
    for (let i = 0; i < copies; i++) frames.set(one, end + i * one.length)
    frames.set(state.frames.subarray(end), end + copies * one.length)
    return { ...state, frames }
  })
  assert.ok(error instanceof CellarError && error.code === 'SNAPSHOT_FOREIGN', JSON.stringify(error))
})

test('functions that were added to the guest are not its to refer to: they reach the save area', async () => {
  using made = await programOf(VICTIM)
  const { capture } = made.executable
  assert.ok(capture?.can === true)
  for (let index = capture.info.poll - 1; index < capture.info.poll + 20; index++) {
    const error = await changed(made, 9, (state) => ({ ...state, tables: [{ table: 0, entries: [index] }] }))
    assert.ok(error instanceof CellarError && error.code === 'SNAPSHOT_FOREIGN', `function ${index}`)
  }
})

test('frames of another program are refused, or are a guest that goes wrong by itself', async () => {
  using made = await programOf(VICTIM)
  using other = await programOf(VICTIM.replace('(local $i i32) (local $f funcref)', '(local $i i64) (local $f funcref)')
    .replace('(func $leaf (type $sum) (local $i i64)', '(func $leaf (type $sum) (local $j i64) (local $i i32)'))
  const { states } = await runStopped(new Pcpu(), made.executable, { nth: 2 })
  for (const { frames, references } of states.slice(0, 20)) {
    check(await changed(other, 3, (state) => ({ ...state, frames, references })))
  }
})

const [FIRST, SEEDS] = (process.env['CELLAR_FRAMES_SEEDS'] ?? '1 300').split(' ').map(Number) as [number, number]

/** An end that a guest may come to, or the refusal. */
function check(end: unknown): 'refused' | 'ended' {
  if (end instanceof CellarError) {
    assert.equal(end.code, 'SNAPSHOT_FOREIGN', end.message)
    return 'refused'
  }
  assert.ok(!(end instanceof Error), `${(end as Error).stack}`)
  assert.match((end as { kind: string }).kind, /^(exit|signal|trap)$/)
  return 'ended'
}

test('whatever bits of a state are others, it is refused or goes on as a guest', { timeout: 600_000 }, async () => {
  using made = await programOf(VICTIM)
  const counts = { refused: 0, ended: 0 }
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
    let random = Math.imul(seed, 0x9e37_79b1) >>> 0
    const below = (limit: number): number => {
      random = Math.imul(random ^ random >>> 15, 0x85eb_ca6b) + 0x6d2b_79f5 >>> 0
      return random % limit
    }
    counts[check(await changed(made, below(40), (state) => mutated(state, below)))]++
  }
  assert.ok(counts.refused > SEEDS / 8 && counts.ended > SEEDS / 8, JSON.stringify(counts))
})

/** Changes a few bytes, words or references, or puts frames in another order. */
function mutated(state: CellState, below: (limit: number) => number): CellState {
  const frames = state.frames.slice()
  const globals = state.globals.slice()
  const references: (number | null)[] = [...state.references]
  const tables = state.tables.map(({ table, entries }) => ({ table, entries: [...entries] }))
  let { since } = state
  let bytes = frames
  for (let count = 1 + below(4); count > 0; count--) {
    const all = framesOf(state.frames)
    switch (below(8)) {
      case 0: if (frames.length > 0) frames[below(frames.length)] = below(256); break
      case 1: if (frames.length > 0) frames[below(frames.length)]! ^= 1 << below(8); break
      case 2: {
        // The number of a function or a site.
        const frame = all[below(all.length + 1)]
        if (frame === undefined) break
        const view = new DataView(frames.buffer)
        const at = frame.at + frame.size + 4 * below(2)
        view.setUint32(at, below(3) === 0 ? (view.getUint32(at, true) ^ ORIGIN_HERE) >>> 0 : below(12), true)
        break
      }
      case 3: globals[below(globals.length)] = below(256); break
      case 4: if (references.length > 0) references[below(references.length)] = below(3) === 0 ? null : below(40)
        break
      case 5:
        for (const { entries } of tables) entries[below(entries.length)] = below(3) === 0 ? null : below(40)
        break
      case 6: since = [-1, 0, NaN, Infinity, 2 ** 60, -5][below(6)]!; break
      default: {
        // Frames in another order, some twice, some not at all.
        const pieces = all.map(({ at, size }) => frames.slice(at, at + size + 12)).reverse()
        for (let i = pieces.length === 0 ? 0 : 1 + below(3); i > 0; i--) {
          pieces[below(pieces.length)] = pieces[below(pieces.length)]!
        }
        bytes = Uint8Array.from(Buffer.concat(pieces))
      }
    }
  }
  return { ...state, frames: bytes, globals, references, tables, since }
}
