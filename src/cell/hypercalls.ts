// cell/hypercalls.ts: binds the hypercalls that a guest imports to the cell that runs it.
//
// What a hypercall costs beside its work is decided here. Each name gets a binder of its own, made from its row of the
// table: V8 then sees one call target per call site and inlines the hypercall into the import's wrapper. (One generic
// wrapper for all would make that call megamorphic.) The binder counts answers, takes new views if the memory has
// grown, and turns a GuestFault into EFAULT. With a tracer it is another binder, so that tracing costs nothing when
// off.

import { EFAULT, ERRNO_NAMES } from '../base/errno.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import { STOP, WAIT, type Context, type Hypercall } from '../wasi/p1/context.ts'
import type { Signature } from '../wasi/p1/table.ts'

/** Called for each answer when tracing: a line such as `fd_write(1, 0x10040, 1, 0x1003c) = ESUCCESS`. */
export type Tracer = (line: string) => void

/** Names in the order of their counters. */
export const HYPERCALL_NAMES = Object.keys(HYPERCALLS) as HypercallName[]

type Bound = (...args: number[]) => number
type Binder = (context: Context, counts: Uint32Array) => Bound

// Each of these files is loaded when the first guest asks for one of its calls: most programs need half of them, and
// each file costs a third of a millisecond of a guest's start.
const FILES: Record<Signature['file'], () => Promise<Record<string, unknown>>> = {
  args: () => import('../wasi/p1/args.ts'),
  clock: () => import('../wasi/p1/clock.ts'),
  fd: () => import('../wasi/p1/fd.ts'),
  filestat: () => import('../wasi/p1/filestat.ts'),
  lifecycle: () => import('../wasi/cellar/lifecycle.ts'),
  net: () => import('../wasi/cellar/net.ts'),
  path: () => import('../wasi/p1/path.ts'),
  poll: () => import('../wasi/p1/poll.ts'),
  proc: () => import('../wasi/p1/proc.ts'),
  random: () => import('../wasi/p1/random.ts'),
  readdir: () => import('../wasi/p1/readdir.ts'),
  sock: () => import('../wasi/p1/sock.ts'),
}

const binders = new Map<HypercallName, Binder>()
const implementations = new Map<HypercallName, Hypercall>()

/** Loads what implements `names`; once a thread and name. Call before `bind`. */
export async function loadHypercalls(names: readonly HypercallName[]): Promise<void> {
  for (const name of names) {
    if (binders.has(name)) continue
    const { file, params }: Signature = HYPERCALLS[name]
    const hypercall = (await FILES[file]())[name] as Hypercall
    implementations.set(name, hypercall)
    binders.set(name, makeBinder(hypercall, HYPERCALL_NAMES.indexOf(name), parameters(params)))
  }
}

/** The function to import for `name`, bound to `context`. Answers are counted in `counts[index of name]`. */
export function bind(name: HypercallName, context: Context, counts: Uint32Array, tracer?: Tracer): Bound {
  if (tracer !== undefined) return traced(name, context, counts, tracer)
  return binders.get(name)!(context, counts)
}

/** WAIT isn't an answer: the same call will be tried again. */
function makeBinder(hypercall: Hypercall, index: number, names: readonly string[]): Binder {
  const list = names.join(', ')
  const source = `return (context, counts) => (${list}) => {
    const { memory } = context
    if (memory.bytes.length === 0) memory.refresh()
    try {
      const answer = hypercall(context${names.map((name) => `, ${name}`).join('')})
      if (answer !== ${WAIT}) counts[${index}]++
      return answer
    } catch (error) {
      counts[${index}]++
      return failed(context, error)
    }
  }`
  return new Function('hypercall', 'failed', source)(hypercall, failed) as Binder
}

function traced(name: HypercallName, context: Context, counts: Uint32Array, tracer: Tracer): Bound {
  const hypercall = implementations.get(name)!
  const { params }: Signature = HYPERCALLS[name]
  const index = HYPERCALL_NAMES.indexOf(name)
  return (...args) => {
    context.memory.refresh()
    let answer
    try {
      answer = hypercall(context, ...args)
    } catch (error) {
      answer = failed(context, error)
    }
    if (answer === WAIT) return answer
    counts[index] = counts[index]! + 1
    tracer(`${name}(${shown(params, args).join(', ')})${answer === STOP ? '' : ` = ${ERRNO_NAMES[answer] ?? answer}`}`)
    return answer
  }
}

function failed(context: Context, error: unknown): number {
  context.since = -1
  if (error instanceof GuestFault) return EFAULT
  context.bug = error
  context.end = { kind: 'exit', code: 125 }
  throw error
}

/** Parameter names of the binder: an i64 is two. */
function parameters(params: Signature['params']): string[] {
  return params.flatMap((type, i) => type === 'i64' ? [`p${i}lo`, `p${i}hi`] : [`p${i}`])
}

function shown(params: Signature['params'], args: readonly number[]): string[] {
  let at = 0
  return params.map((type) => {
    const lo = args[at++]! >>> 0
    const value = type === 'i64' ? (BigInt(args[at++]! >>> 0) << 32n) | BigInt(lo) : lo
    return value < 1024 ? String(value) : `0x${value.toString(16)}`
  })
}
