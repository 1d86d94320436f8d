// cell/stack_test_support.ts: stacks of our own guests, for tests.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { OUTPUT_PIECE_BYTES } from '../base/limits.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import type { Executable } from './executable.ts'
import { HYPERCALL_NAMES } from './hypercalls.ts'
import { loadPreemptible } from './preemptible.ts'
import { Stack, type Ended, type Member, type StackOptions } from './stack.ts'

const loaded = new Map<string, Executable>()

/** A guest of guests/, as a stack takes it; loaded once. */
function guest(name: string): Executable {
  let executable = loaded.get(name)
  if (executable === undefined) {
    executable = loadPreemptible(fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url)),
      { stubs: [] }, { mode: 'preempt', capture: true })
    loaded.set(name, executable)
  }
  return executable
}

/** A cell of a guest with its arguments. */
export function member([program, ...args]: [string, ...string[]], more: Partial<Member> = {}): Member {
  return {
    name: program, executable: guest(program), grants: { args: [program, ...args], env: [] }, calls: undefined,
    trace: false, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)), terms: DEFAULT_TERMS,
    remote: { stdin: false }, ...more,
  }
}

/** A stack whose cells have remote consoles, and what they have said so far. */
class Listened {
  readonly stack: Stack
  /** What each has said on stdout and stderr, by id. */
  readonly said = new Map<number, string>()
  readonly failures: unknown[] = []

  constructor(options: Partial<StackOptions> = {}) {
    this.stack = new Stack({ pcpus: 2, quantumNs: 1e6, ...options, on: { ...options.on,
      failed: (error) => { this.failures.push(error) },
      output: (id, channel, bytes) => {
        this.said.set(id, (this.said.get(id) ?? '') + Buffer.from(bytes).toString())
        this.stack.credit(id, channel, bytes.length + OUTPUT_PIECE_BYTES)
      },
      taken: (id, count) => options.on?.taken?.(id, count) } })
  }

  /** Starts a cell, on a given pCPU or any. Those that run when the stack is closed never end. */
  start(one: Member, pcpu = this.stack.admit(one)): { id: number; ended: Promise<Ended> } {
    const started = this.stack.start(one, pcpu)
    started.ended.catch(() => {})
    return started
  }

  /** What it has said once `until` holds of it. */
  async heard(id: number, until: (text: string) => boolean): Promise<string> {
    for (const end = performance.now() + HEARD_MS_MAX; ;) {
      const text = this.said.get(id) ?? ''
      if (until(text)) return text
      assert.deepEqual(this.failures, [])
      assert.ok(performance.now() < end, `it has said only ${JSON.stringify(text.slice(-300))}`)
      await sleep(2)
    }
  }
}

/** Runs `body` with a stack of two pCPUs. */
export async function withListened(
  body: (listened: Listened, stack: Stack) => Promise<void>, options: Partial<StackOptions> = {},
): Promise<void> {
  const listened = new Listened(options)
  try {
    await body(listened, listened.stack)
    assert.deepEqual(listened.failures, [])
  } finally {
    await listened.stack.close()
  }
}

const HEARD_MS_MAX = 20_000
