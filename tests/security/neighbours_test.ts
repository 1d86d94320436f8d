// tests/security/neighbours_test.ts: what a hostile guest can't take from its neighbours on one pCPU.
//
// One neighbour computes and has three times the hostile guest's shares; another naps for 2 ms at a time. The one is to
// get what it is due and the other to go on, whatever the hostile guest does; and the operator is to see who it was.
// Everything is judged by who had how much of the pCPU, nothing by the clock on the wall: the machine may be busy.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { buffer, text } from 'node:stream/consumers'
import { test } from 'node:test'
import { Folder } from '../support.ts'
import type { Seen, Trial } from './neighbours_support.ts'

const MIB = 1024 * 1024
const WATCHED_MS = 2000
/** Parts of the pCPU's busy time: shares of 300 and 100. What the napper uses is next to nothing. */
const DUE = { computing: 3 / 4, hostile: 1 / 4 }
/** Of some 900 that it has when nobody is in its way. */
const NAPS_MIN = 60

type Case = {
  readonly what: string
  readonly trial: Omit<Trial, 'ms'>
  /** Where the cells' output goes. Default: /dev/null. */
  readonly output?: 'pipe'
  readonly freeBytes?: number
  /** Its folder is made for the trial. */
  readonly folder?: boolean
  /** What the operator sees of what it did. */
  readonly shows: (seen: Seen) => boolean
}

const CASES: readonly Case[] = [
  { what: 'never returns', trial: { hostile: 'spin' }, shows: ({ parts }) => parts.hostile.preemptions > 10 },
  {
    what: 'recurses for ever, again and again', trial: { hostile: 'recurse', again: true },
    shows: ({ ends, lastEnd }) =>
      ends > 10 && lastEnd?.kind === 'trap' && lastEnd.reason === 'call stack exhausted',
  },
  {
    what: 'grows its memory for ever', trial: { hostile: 'growmem', memoryPagesMax: 4096 },
    shows: ({ parts }) => parts.hostile.memoryBytes === 256 * MIB,
  },
  {
    what: 'fills all the memory that it can have', trial: { hostile: 'fillmem', memoryPagesMax: 16_384 },
    freeBytes: 3072 * MIB, shows: ({ parts }) => parts.hostile.memoryBytes === 1024 * MIB,
  },
  {
    what: 'floods a console that takes everything', trial: { hostile: 'flood' },
    shows: ({ hypercalls }) => hypercalls['fd_write']! > 1000,
  },
  {
    what: 'floods a console as fast as it is read', trial: { hostile: 'flood' }, output: 'pipe',
    shows: ({ hypercalls }) => hypercalls['fd_write']! > 100,
  },
  {
    what: 'opens descriptors for ever', trial: { hostile: 'openmany' }, folder: true,
    shows: ({ hypercalls }) => hypercalls['path_open']! > 1000,
  },
  {
    what: 'waits for as many timers as it is let', trial: { hostile: 'timers' },
    shows: ({ hypercalls, parts }) => hypercalls['poll_oneoff']! > 5 && parts.hostile.stints > 5,
  },
]

for (const { what, trial, output, freeBytes = 0, folder: granted = false, shows } of CASES) {
  const skip = process.availableMemory() < freeBytes && `less than ${freeBytes / MIB} MiB of memory are free`
  test(`a guest that ${what} takes nothing from its neighbours`, { skip }, async () => {
    using folder = new Folder()
    const full = { ...trial, ms: WATCHED_MS, ...(granted ? { folder: folder.path } : {}) }
    const { seen, stderr } = await watched(full, output)
    assert.ok(seen !== undefined, stderr)
    const { hostile, computing, napping } = seen.parts
    const told = `${JSON.stringify(seen.parts, undefined, 1)}\n${seen.table}`
    const busyNs = hostile.runningNs + computing.runningNs + napping.runningNs
    assert.ok(computing.runningNs >= 0.9 * DUE.computing * busyNs, `the computing neighbour gets its due: ${told}`)
    assert.ok(hostile.runningNs <= 1.15 * DUE.hostile * busyNs, `the hostile guest gets no more than its due: ${told}`)
    assert.ok(hostile.runningNs > 0 && shows(seen), `what it did is seen: ${told}`)
    assert.ok(seen.naps >= NAPS_MIN && napping.waitingNs >= 0.1 * napping.ageNs,
      `the napper goes on: ${seen.naps} naps, ${told}`)
    // Those that have ended are named no more.
    if (trial.again === true) return
    assert.ok(computing.runnableNs > 0 && computing.waitedFor.some(([name, ns]) => name === 'hostile' && ns > 0), told)
    assert.match(seen.table, /^computing .*runs {2}.*\bhostile \d/m)
  })
}

test('without protection a guest that never returns has the pCPU for itself', async () => {
  const { seen, stderr } = await watched({ hostile: 'spin', protection: false, ms: 500 })
  assert.equal(seen, undefined)
  assert.match(stderr, /the pCPU does not answer/)
})

/** Runs the trial in a process of its own; undefined if that had nothing to tell. */
async function watched(trial: Trial, output?: 'pipe'): Promise<{ seen: Seen | undefined; stderr: string }> {
  const script = `${import.meta.dirname}/neighbours_support.ts`
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', script, JSON.stringify(trial)],
    { stdio: ['ignore', output ?? 'ignore', 'pipe', 'pipe'], timeout: 30_000, killSignal: 'SIGKILL' })
  child.stdout?.resume()
  const [stderr, told] = await Promise.all([text(child.stderr!), buffer(child.stdio[3] as NodeJS.ReadableStream)])
  return { seen: told.length === 0 ? undefined : JSON.parse(told.toString()) as Seen, stderr }
}
