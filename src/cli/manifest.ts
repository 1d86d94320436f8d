// cli/manifest.ts: a cell, or a stack of them, described by a file (YAML), for `cellar run -f`.
//
//   program: ruby.wasm              # beside the manifest
//   args: [ruby]                    # before those of the command line
//   env: { LANG: C.UTF-8 }
//   volumes: ["data:/data:ro"]      # as --dir; relative to the manifest
//   listen: ["tcp:127.0.0.1:8080"]
//   memory: 512MiB
//   stubs: [rb-js-abi-host]         # as --stub
//   calls:                          # for a program that is a library: in place of _start
//     - call: _initialize
//     - call: "eval: func(code: string)"
//       with: ["load ${args}"]      # ${args}: the arguments as a JSON array
//   shares: 200                     # and cpu-limit, cpu-reservation: as the flags
//
// A stack has such cells by name under `cells`, and says what they share:
//
//   quantum: 1ms
//   for: 10s
//   pools: { batch: { cpu-limit: 50% } }
//   cells:
//     web: { program: server.wasm, listen: ["tcp:127.0.0.1:8080"], cpu-reservation: 25% }
//     job: { program: job.wasm, pool: batch, copies: 4 }
//
// Flags add to what the manifest grants. Paths in it are relative to it, so that it works from any folder.

import { readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { isMap, isNode, isScalar, LineCounter, parseDocument, type Document } from 'yaml'
import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import {
  COPIES_MAX, PCPUS_MAX, QUANTUM_NS_DEFAULT, QUANTUM_NS_MAX, QUANTUM_NS_MIN, SHARES_MAX, WASM_PAGE_BYTES,
  WASM_PAGES_MAX,
} from '../base/limits.ts'
import { parseCpu, parseDuration, parseSize } from '../base/units.ts'
import type { Grants } from '../cell/pcpu.ts'
import { DEFAULT_TERMS, type Terms } from '../sched/node.ts'
import { volume, type Launch } from './run.ts'
import type { StackPlan } from './stack.ts'

const argument = z.union([z.number(), z.string(), z.array(z.string())])

const cpu = (what: string, most = Infinity) =>
  z.union([z.number(), z.string()])
    .refine((value) => parseCpu(String(value)) !== undefined, 'must be a part of a pCPU above 0, such as 10% or 0.5')
    .refine((value) => (parseCpu(String(value)) ?? 0) <= most, `must be ${most} at most: a cell runs on one pCPU`)
    .optional().describe(what)

const duration = (what: string): z.ZodOptional<z.ZodString> =>
  z.string().refine((text) => (parseDuration(text) ?? 0) > 0, 'must be a duration above 0, such as 5s').optional()
    .describe(what)

const RESERVATION = 'CPU that it has whenever it wants it: a part of a pCPU, such as 25% or 0.25'

/** What a cell or a pool is given of the CPU. */
const TERMS = {
  shares: z.int().min(1).max(SHARES_MAX).optional()
    .describe(`Weight against others, 1 to ${SHARES_MAX} (default: ${DEFAULT_TERMS.shares})`),
  'cpu-reservation': cpu(RESERVATION),
  'cpu-limit': cpu('CPU that it never has more of: pCPUs, such as 10% or 1.5'),
}

/** Terms that contradict each other, as a refinement: the check, and what is said where. */
const NO_CONTRADICTION: [(terms: Part) => boolean, { path: string[]; message: string }] = [
  (terms) => part(terms['cpu-limit'], Infinity) >= part(terms['cpu-reservation'], 0),
  { path: ['cpu-limit'], message: 'must be no less than cpu-reservation' },
]

type Part = Partial<Record<'cpu-limit' | 'cpu-reservation', number | string | undefined>>

const CELL_FIELDS = {
  program: z.string().min(1).describe('The .wasm file, relative to the manifest'),
  args: z.array(z.string()).default([]).describe(
    "The program's arguments, its name first; those of the command line follow"),
  env: z.record(z.string().regex(/^[^=\0]+$/), z.string()).default({}).describe('Environment variables'),
  volumes: z.array(z.string()).default([]).describe('Folders: HOST[:GUEST][:ro], HOST relative to the manifest'),
  listen: z.array(z.string()).default([]).describe('Listening sockets: tcp:HOST:PORT'),
  memory: z.string().refine((text) => (parseSize(text) ?? 0) >= WASM_PAGE_BYTES,
    'must be a size of at least 64KiB').optional()
    .describe('Most memory that the program may have, such as 64MiB'),
  stubs: z.array(z.string()).default([]).describe('Unknown imports to bind to stubs: MODULE or MODULE.NAME'),
  calls: z.array(z.strictObject({ call: z.string().min(1), with: z.array(argument).default([]) })).min(1).optional()
    .describe('Exports to call in order, in place of _start; strings are passed as the component ABI does'),
  ...TERMS,
  'cpu-reservation': cpu(RESERVATION, 1),
  deterministic: z.boolean().optional().describe(
    'Let it leave its pCPU by a count of what it has executed: at the same places in every run'),
  unbounded: z.boolean().optional().describe(
    'Let it share a pCPU though it uses what cannot be kept within bounds, such as garbage-collected objects'),
}

/** What a cell's manifest may say. Unknown keys are errors: a typing mistake must not take a limit away. */
export const CELL_MANIFEST = z.strictObject(CELL_FIELDS).refine(...NO_CONTRADICTION)

/** What a pool may say. */
export const POOL_MANIFEST = z.strictObject(TERMS).refine(...NO_CONTRADICTION)

/** What a cell of a stack may say. */
export const STACK_CELL_MANIFEST = z.strictObject({
  ...CELL_FIELDS,
  pool: z.string().optional().describe('The pool that it is in'),
  copies: z.int().min(1).max(COPIES_MAX).default(1).describe('How many of it there are: NAME-1, NAME-2, …'),
  timeout: duration('Stop it after this time; its status is 124'),
}).refine(...NO_CONTRADICTION)

/** What a stack's manifest may say. */
export const STACK_MANIFEST = z.strictObject({
  quantum: z.string().refine((text) => {
    const ns = parseDuration(text) ?? 0
    return ns >= QUANTUM_NS_MIN && ns <= QUANTUM_NS_MAX
  }, 'must be a duration from 100us to 1s').optional()
    .describe('The longest that a cell runs while others want to (default: 1ms)'),
  pcpus: z.int().min(1).max(PCPUS_MAX).optional().describe('pCPUs (default: as many as there are processors)'),
  for: duration('Stop all cells after this time, and tell what each got'),
  pools: z.record(z.string(), POOL_MANIFEST).default({}).describe('Pools by name: what their cells have together'),
  cells: z.record(z.string().regex(/^[\w.-]{1,40}$/, 'names are of letters, digits, ".", "_" and "-"'),
    STACK_CELL_MANIFEST).refine((cells) => Object.keys(cells).length > 0, 'must have a cell at least')
    .describe('Cells by name'),
})

/** What the command line adds to a manifest. */
type Added = { readonly args: readonly string[]; readonly granted: Grants; readonly stubs: readonly string[] }

/** Reads the manifest at `path`: a cell, or a stack. Throws CellarError. */
export function readManifest(path: string, added: Added): { launch: Launch } | { stack: StackPlan } {
  const { document, lines } = parse(path)
  const value = plain(path, document)
  const refuse = (what: string, offset: number, cause: unknown): never => {
    const { line, col } = lines.linePos(offset)
    throw new CellarError('MANIFEST_INVALID', [path, `${what} (line ${line}, column ${col})`], { cause })
  }
  const check = <T>(schema: z.ZodType<T>): T => {
    const result = schema.safeParse(value)
    if (result.success) return result.data
    const [issue] = result.error.issues
    const where = issue!.path as string[]
    return refuse(`${where.join('.') || 'the whole'}: ${issue!.message}`, offsetOf(document, issue!), result.error)
  }
  if (typeof value !== 'object' || value === null || !('cells' in value)) {
    return { launch: launchOf(path, check(CELL_MANIFEST), added) }
  }
  // JavaScript takes this key for something else, and the cell would be lost.
  for (const list of ['cells', 'pools']) {
    const map = document.get(list)
    const keys = isMap(map) ? map.items.map((item) => item.key) : []
    const key = keys.find((one) => isScalar(one) && one.value === '__proto__')
    if (isNode(key)) refuse(`${list}: nothing can be called "__proto__"`, key.range?.[0] ?? 0, undefined)
  }
  const stack = check(STACK_MANIFEST)
  if (added.args.length > 0) refuse('a stack takes no arguments: write them in its cells', 0, undefined)
  const wrong = contradiction(stack)
  if (wrong !== undefined) refuse(`${wrong.path.join('.')}: ${wrong.what}`, nodeOffset(document, wrong.path), undefined)
  return { stack: stackOf(path, stack, added) }
}

/** What of a stack doesn't fit together, though each part of it could stand. */
function contradiction({ cells, pools }: z.infer<typeof STACK_MANIFEST>):
{ path: string[]; what: string } | undefined {
  const left = new Map(Object.entries(pools).map(([name, pool]) => [name, part(pool['cpu-reservation'], 0)]))
  for (const [name, cell] of Object.entries(cells)) {
    const wrong = (key: string, what: string) => ({ path: ['cells', name, key], what })
    const copied = Array.from({ length: cell.copies === 1 ? 0 : cell.copies }, (_, i) => `${name}-${i + 1}`)
    const taken = copied.find((copy) => Object.hasOwn(cells, copy))
    if (taken !== undefined) return wrong('copies', `another cell is called "${taken}"`)
    const fixed = cell.copies === 1 ? undefined : cell.listen.find((address) => !address.endsWith(':0'))
    if (fixed !== undefined) return wrong('listen', `copies can't all listen on ${fixed}: port 0 gives each its own`)
    if (cell.pool === undefined) continue
    if (!left.has(cell.pool)) return wrong('pool', `no pool is called "${cell.pool}"`)
    const rest = left.get(cell.pool)! - part(cell['cpu-reservation'], 0) * cell.copies
    // Sums of reservations such as 0.1 are off by their last bits.
    if (rest < -1e-9) return wrong('cpu-reservation', `pool "${cell.pool}" reserves less than its cells`)
    left.set(cell.pool, rest)
  }
  return undefined
}

function launchOf(path: string, manifest: z.infer<typeof CELL_MANIFEST>, { args, granted, stubs }: Added): Launch {
  const folder = dirname(resolve(path))
  const limit = manifest.memory === undefined ? WASM_PAGES_MAX
    : Math.floor(parseSize(manifest.memory)! / WASM_PAGE_BYTES)
  return {
    program: resolve(folder, manifest.program),
    grants: {
      ...granted,
      args: [...(manifest.args.length > 0 ? manifest.args : [manifest.program]), ...args],
      env: [...Object.entries(manifest.env), ...granted.env],
      volumes: [...manifest.volumes.map(volume).map((one) => ({ ...one, host: resolve(folder, one.host) })),
        ...granted.volumes ?? []],
      listen: [...manifest.listen, ...granted.listen ?? []],
      memoryPagesMax: Math.min(limit, granted.memoryPagesMax ?? WASM_PAGES_MAX),
    },
    stubs: [...manifest.stubs, ...stubs],
    ...(manifest.calls === undefined ? {} : { calls: manifest.calls.map((one) =>
      ({ ...one, with: one.with.map(fill(args)) })) }),
    ...scheduling(manifest),
  }
}

type Scheduled = z.infer<typeof POOL_MANIFEST> &
  { deterministic?: boolean | undefined; unbounded?: boolean | undefined }

/** undefined if it says nothing of it: then it needn't be translated. */
function scheduling(manifest: Scheduled): Pick<Launch, 'schedule'> {
  const { deterministic, unbounded } = manifest
  const says = [manifest.shares, manifest['cpu-limit'], manifest['cpu-reservation'], deterministic, unbounded]
  if (says.every((one) => one === undefined)) return {}
  const terms = termsOf(manifest)
  return { schedule: { terms, deterministic: deterministic ?? false, unbounded: unbounded ?? false } }
}

function termsOf(manifest: z.infer<typeof POOL_MANIFEST>): Terms {
  return {
    shares: manifest.shares ?? DEFAULT_TERMS.shares,
    reservation: part(manifest['cpu-reservation'], 0),
    limit: part(manifest['cpu-limit'], Infinity),
  }
}

function part(value: number | string | undefined, otherwise: number): number {
  return value === undefined ? otherwise : parseCpu(String(value))!
}

function stackOf(path: string, manifest: z.infer<typeof STACK_MANIFEST>, added: Added): StackPlan {
  const time = (text: string | undefined): number | undefined => text === undefined ? undefined : parseDuration(text)
  return {
    quantumNs: time(manifest.quantum) ?? QUANTUM_NS_DEFAULT,
    pcpus: manifest.pcpus,
    forNs: time(manifest.for),
    pools: new Map(Object.entries(manifest.pools).map(([name, pool]) => [name, termsOf(pool)])),
    cells: Object.entries(manifest.cells).flatMap(([name, cell]) => {
      const launch = launchOf(path, cell, added)
      const one = { launch, terms: termsOf(cell), pool: cell.pool, timeoutNs: time(cell.timeout),
        deterministic: cell.deterministic ?? false, unbounded: cell.unbounded ?? false }
      return cell.copies === 1 ? [{ name, ...one }]
        : Array.from({ length: cell.copies }, (_, i) => ({ name: `${name}-${i + 1}`, ...one }))
    }),
  }
}

function parse(path: string): { document: Document.Parsed; lines: LineCounter } {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw new CellarError('MANIFEST_INVALID', [path, (cause as Error).message], { cause })
  }
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false })
  const [error] = document.errors
  if (error === undefined) return { document, lines }
  const { line, col } = lines.linePos(error.pos[0])
  throw new CellarError('MANIFEST_INVALID', [path, `${error.message} (line ${line}, column ${col})`], { cause: error })
}

/** The document as plain data. An alias of nothing, or aliases of aliases without end, are found only here. */
function plain(path: string, document: Document.Parsed): unknown {
  try {
    return document.toJS()
  } catch (cause) {
    if (!(cause instanceof ReferenceError)) throw cause
    throw new CellarError('MANIFEST_INVALID', [path, cause.message], { cause })
  }
}

function nodeOffset(document: Document.Parsed, path: readonly string[]): number {
  const node = document.getIn(path, true)
  return isNode(node) ? node.range?.[0] ?? 0 : 0
}

/** Where in the text an issue is: at the key if nobody knows it, else at the value. */
function offsetOf(document: Document.Parsed, issue: z.core.$ZodIssue): number {
  const at = document.getIn(issue.path, true)
  const key = issue.code === 'unrecognized_keys' && isMap(at)
    ? at.items.map((item) => item.key).find((one) => isScalar(one) && one.value === issue.keys[0]) : undefined
  const node = key ?? at
  return isNode(node) ? node.range?.[0] ?? 0 : 0
}

/** Puts the command line's arguments where an argument says ${args}. */
function fill(args: readonly string[]): (value: number | string | string[]) => number | string | string[] {
  const list = JSON.stringify(args)
  return (value) => typeof value === 'string' ? value.replaceAll('${args}', list)
    : Array.isArray(value) ? value.flatMap((item) => item === '${args}' ? args : [item]) : value
}
