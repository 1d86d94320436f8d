// cell/hypercalls_fuzz_test.ts: any hypercall with any values, in any order.
//
// A cell with a console, a folder and a listening socket gets random calls whose arguments lean towards what is
// interesting: descriptors that exist, pointers at both ends of the memory, small sizes, the extremes of i32. Memory
// holds random bytes and a few names. A guest may be one that goes on from a snapshot by some event, and a call one in
// which it was captured. Whatever comes: the answer is an errno, WAIT or STOP, and nothing is thrown.

import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { ECONNREFUSED, ENOMEM, ERRNO_NAMES } from '../base/errno.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { EVENT_KINDS, newGrant, type EventKind } from '../services/lifecycle/lifecycle.ts'
import { isSupported } from '../sys/libc.ts'
import { HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import { STOP, WAIT, type Hypercall } from '../wasi/p1/context.ts'
import type { Signature } from '../wasi/p1/table.ts'
import type { Cell } from './cell.ts'
import { HYPERCALL_NAMES, loadHypercalls } from './hypercalls.ts'
import { loadExecutable } from './load.ts'
import { Pcpu } from './pcpu.ts'
import { nullConsole } from '../services/console/console.ts'

const RUNS = 150
const CALLS_MAX = 60
const MEMORY_BYTES = 128 * 1024
const NAMES = ['file', 'sub', 'sub/file', '..', '../secret', '/etc', 'sub/../..', '.', 'new', 'link', '']

const value = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 0, max: 12 }) },
  { weight: 4, arbitrary: fc.integer({ min: 0, max: MEMORY_BYTES / 64 }).map((n) => n * 64) },
  { weight: 1, arbitrary: fc.integer({ min: MEMORY_BYTES - 64, max: MEMORY_BYTES + 64 }) },
  { weight: 1, arbitrary: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }) },
  { weight: 1, arbitrary: fc.constantFrom(-1, 0x7fffffff, -0x80000000, 0xffff, 0x10000) },
)
const call = fc.tuple(fc.constantFrom(...HYPERCALL_NAMES), fc.array(value, { minLength: 12, maxLength: 12 }),
  fc.constantFrom(-1, -1, 0, 1e9))
const event = fc.constantFrom(undefined, ...Object.keys(EVENT_KINDS) as EventKind[])

/** Fills the memory with small numbers, pointers and names, as a program's would be. */
function fill(cell: Cell, seed: number): void {
  const { view, bytes } = cell.context.memory
  let state = seed
  for (let at = 0; at + 4 <= bytes.length; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    view.setUint32(at, state % 3 === 0 ? state % MEMORY_BYTES : state % 40, true)
  }
  NAMES.forEach((name, i) => new TextEncoder().encodeInto(name, bytes.subarray(i * 64)))
}

async function answersOf(cell: Cell, calls: readonly [HypercallName, number[], since: number][]): Promise<void> {
  const implementations = new Map<HypercallName, Hypercall>()
  for (const [name, args, since] of calls) {
    const { module, file, params }: Signature = HYPERCALLS[name]
    if (!implementations.has(name)) {
      implementations.set(name, (await import(
        `../wasi/${module === 'cellar' ? 'cellar' : 'p1'}/${file}.ts`) as Record<string, Hypercall>)[name]!)
    }
    const count = params.length + params.filter((type) => type === 'i64').length
    cell.context.memory.refresh()
    if (!cell.context.hasOperation) cell.context.since = since
    let answer: number
    try {
      answer = implementations.get(name)!(cell.context, ...args.slice(0, count))
    } catch (error) {
      assert.ok(error instanceof GuestFault, `${name}(${args.slice(0, count).join(', ')}) threw ${String(error)}`)
      cell.context.since = -1
      continue
    }
    const known = answer === WAIT || answer === STOP || ERRNO_NAMES[answer] !== undefined
    assert.ok(known && !Object.is(answer, -0), `${name}(${args.slice(0, count).join(', ')}) answered ${answer}`)
    // Whatever it waits for doesn't come: the next call is made as if it had.
    cell.context.wake()
    cell.context.since = -1
  }
}

test('no sequence of hypercalls brings forth anything but answers, or reaches beyond the folder', {
  skip: isSupported() ? false : 'needs Linux and a Node with FFI',
}, async () => {
  await loadHypercalls(HYPERCALL_NAMES)
  const outside = mkdtempSync(join(tmpdir(), 'cellar-fuzz-'))
  const granted = join(outside, 'granted')
  writeFileSync(join(outside, 'secret'), 'secret')
  const executable = loadExecutable(new URL('../../guests/hello.wasm', import.meta.url).pathname)
  const streams = { stdin: nullConsole, stdout: nullConsole, stderr: nullConsole }
  const grants = {
    args: ['guest'], env: [], memoryPagesMax: MEMORY_BYTES / 65_536, listen: ['tcp:127.0.0.1:0'],
    volumes: [{ host: granted, guest: '/', readOnly: false }],
  }
  try {
    const calls = fc.array(call, { maxLength: CALLS_MAX })
    await fc.assert(fc.asyncProperty(calls, fc.nat(), event, async (calls, seed, event) => {
      rmSync(granted, { recursive: true, force: true })
      mkdirSync(join(granted, 'sub'), { recursive: true })
      writeFileSync(join(granted, 'file'), 'some bytes of a file')
      const lifecycle = event === undefined ? undefined
        : { grant: newGrant({ id: 'g', name: 'guest', event }), request: async () => ENOMEM }
      const cell = await new Pcpu().create(executable, grants, streams,
        { dialer: { dial: async () => ECONNREFUSED }, lifecycle })
      fill(cell, seed)
      try {
        await answersOf(cell, calls)
      } finally {
        cell.release()
      }
      assert.deepEqual(readdirSync(outside).toSorted(), ['granted', 'secret'])
    }), { numRuns: RUNS })
  } finally {
    rmSync(outside, { recursive: true })
  }
})
