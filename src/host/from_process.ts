// host/from_process.ts: what a cell process may say, as a schema: what it says is an allegation until it is checked.
//
// The types are those of protocol.ts. Texts and lists are bounded, as a frame alone allows for megabytes of either.

import { z } from 'zod'
import { TRAP_FRAMES_MAX, WASM_PAGES_MAX } from '../base/limits.ts'
import type { FromProcess } from './protocol.ts'

const count = z.number().min(0)
const id = z.string().max(256)
const text = z.string().max(4096)
/** It is kept: what is longer is cut, as a guest may have had a hand in it. */
const words = z.string().transform((whole) => whole.slice(0, WORDS_LENGTH_MAX))
const WORDS_LENGTH_MAX = 1024

const frame = z.object({ name: words, index: z.number(), offset: z.number().optional() })
const outcome = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('exit'), code: z.number() }),
  z.object({ kind: z.literal('signal'), signal: z.int().min(0).max(255) }),
  z.object({ kind: z.literal('trap'), reason: words,
    frames: z.array(frame).max(TRAP_FRAMES_MAX) }),
  z.object({ kind: z.literal('off'), reason: words }), z.object({ kind: z.literal('crashed'), reason: words }),
  z.object({ kind: z.literal('failed'), code: text,
    values: z.array(z.union([words, z.number(), z.boolean()])).max(16) }),
])
const usage = z.object({
  startNs: z.number(), cpuNs: z.number(), wallNs: z.number(), memoryBytes: count, waits: count, preemptions: count,
  fuel: z.number().optional(), hypercalls: z.record(z.string().max(64), count),
})
const end = z.object({
  id, run: z.number(), outcome, usage: usage.optional(), startedAt: z.number().optional(), endedAt: z.number(),
  by: z.enum(['stop', 'timeout', 'unhealthy']).optional(),
})
const state = z.object({ id, run: z.number(), startedAt: z.number().optional(), healthy: z.boolean().optional(),
  ageMs: count.optional(), held: z.boolean().optional(), paused: z.boolean().optional(),
  uncapturable: words.optional() })
/** Exits by reason, counters of devices: what is kept of a machine until the next. */
const few = <T>(all: Readonly<Record<string, T>>): boolean => Object.keys(all).length <= COUNTS_MAX
const counts = z.record(z.string().max(64), count).refine(few)
const COUNTS_MAX = 128
const figures = z.object({
  ageNs: z.number(), runningNs: z.number(), runnableNs: z.number(), waitingNs: z.number(), throttledNs: z.number(),
  pausedNs: z.number(), stints: z.number(), switches: z.number(), preemptions: z.number(), memoryBytes: count,
  pcpu: count,
  throttledBy: z.enum(['itself', 'its pool']).optional(),
  waitedFor: z.array(z.tuple([id, z.number()])).max(128), hypercalls: count,
  machine: z.object({ vcpus: count, deviceNs: count, balloonBytes: count, exits: counts,
    devices: z.record(z.string().max(32), counts).refine(few) }).optional(),
})

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/)
const error = z.object({ code: text, values: z.array(z.union([words, z.number(), z.boolean()])).max(16) })
const written = z.object({ snapshot: digest, memoryBytes: count, newBytes: count, storedBytes: count, chunks: count,
  newChunks: count, stoppedNs: count, wakeInMs: count.optional() })
const transferred = z.object({ transferred: z.number(), snapshot: digest.optional(),
  missing: z.array(z.string().regex(/^[0-9a-f]{64}$/)).max(WASM_PAGES_MAX).optional(),
  error: error.optional() })

/** One message of a process. */
export const MESSAGE: z.ZodType<FromProcess> = z.union([
  z.object({ started: id, run: z.number(), startedAt: z.number(), uncapturable: words.optional() }),
  z.object({ ended: end }),
  z.object({ credit: z.number(), bytes: count }),
  z.object({ eof: z.number(), status: z.int().min(0).max(255).optional() }),
  z.object({ resolve: z.number(), id, name: text }),
  z.object({ dial: z.number(), id, name: text, port: z.int().min(0).max(65_535) }),
  z.object({ health: id, run: z.number(), healthy: z.boolean(), why: text }),
  z.object({ incoming: z.number(), errno: z.int().min(0).max(4095) }),
  z.object({ hello: z.number(), process: z.number(), project: text, pid: z.int(), guests: z.array(state),
    ends: z.array(end), engine: z.object({ name: z.enum(['kvm', 'qemu']), why: words }).optional() }),
  z.object({ figures: z.number(), guests: z.record(id, figures),
    process: z.object({ memoryBytes: count, cpuNs: count, cells: count }) }),
  z.object({ paused: id, run: z.number(), is: z.boolean() }),
  z.object({ captured: z.number(), id, written: written.optional(), error: error.optional() }),
  z.object({ released: id, run: z.number() }),
  z.object({ asked: z.number(), id, run: z.number(), what: z.enum(['snapshot', 'fork', 'hibernate']),
    name: text.optional(), count: count.optional() }),
  transferred,
  z.object({ say: z.string().max(65_536), id: id.optional() }),
]) as z.ZodType<FromProcess>
