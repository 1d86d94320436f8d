// cli/run.ts: `cellar run`: one program in the foreground, no daemon.
//
// stdin, stdout, stderr and the exit status are the program's. Its pCPU is this process's main thread, since a worker
// would double the time to its first instruction; then Ctrl-C ends the process as it does any other. When the run has
// to be supervised (--timeout, --stats), the pCPU is a worker and this thread watches it (supervise.ts).

import { signals } from '../base/signals.ts'
import { CellarError } from '../base/errors.ts'
import {
  QUANTUM_NS_DEFAULT, QUANTUM_NS_MAX, QUANTUM_NS_MIN, SHARES_MAX, WASM_PAGE_BYTES, WASM_PAGES_MAX,
} from '../base/limits.ts'
import { parseCpu, parseDuration, parseSize } from '../base/units.ts'
import type { Outcome } from '../cell/cell.ts'
import type { Call } from '../cell/library.ts'
import { loadExecutable } from '../cell/load.ts'
import { flushed, Pcpu, type Grants } from '../cell/pcpu.ts'
import { StandardInput, StandardOutput } from '../services/console/stdio.ts'
import { DETACHED_ONLY, parseFlags, RUN_FLAGS, type Parsed } from './flags.ts'
import { print } from './print.ts'
import type { Terms } from '../sched/node.ts'
import type { StackPlan } from './stack.ts'

/** What is to be run, as flags or a manifest say. */
export type Launch = {
  readonly program: string
  /** For messages. */
  readonly name?: string
  readonly grants: Grants
  readonly stubs: readonly string[]
  /** Calls in place of `_start`, for a program that is a library. */
  readonly calls?: readonly Call[]
  /** Present if it is to share its pCPU by force: what it is given of it, and how it is translated. */
  readonly schedule?: { readonly terms: Terms; readonly deterministic: boolean; readonly unbounded: boolean }
}

/** Runs the program: its exit status. */
export async function run(argv: readonly string[]): Promise<number> {
  const parsed = parseFlags(argv, RUN_FLAGS)
  const { flags, rest } = parsed
  if (flags.help !== undefined) {
    print((await import('./help.ts')).helpFor(['run']))
    return 0
  }
  if (flags.from !== undefined) return await (await import('./run_from.ts')).runFrom(parsed)
  if (flags.detach !== undefined) return await (await import('./run_detached.ts')).runDetached(parsed)
  // A word that is no file is the name of an image, and that is a host's.
  if (rest[0]?.endsWith('.wasm') === false && flags.file === undefined) {
    const { isProgram } = await import('./run_detached.ts')
    if (!isProgram(rest[0])) return await (await import('./run_image.ts')).runImage(parsed)
  }
  const hosted = Object.keys(flags).find((name) => DETACHED_ONLY.includes(name))
  if (hosted !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
    [`--${hosted}`, flags[hosted as keyof typeof flags]![0]!, 'given with -d: only a guest of a host has it'])
  const timeoutNs = flags.timeout === undefined ? undefined : duration('--timeout', flags.timeout[0]!)
  if (flags.file !== undefined) {
    const { readManifest } = await import('./manifest.ts')
    const read = (): ReturnType<typeof readManifest> =>
      readManifest(flags.file![0]!, { args: rest, granted: grantsOf(parsed), stubs: flags.stub ?? [] })
    const found = read()
    if ('stack' in found) return await runStackOf(parsed, found.stack, () => (read() as typeof found).stack)
    return await runOne(parsed, found.launch, timeoutNs)
  }
  return await runOne(parsed, launchOf(parsed), timeoutNs)
}

async function runOne(parsed: Parsed<typeof RUN_FLAGS>, described: Launch, timeoutNs: number | undefined):
Promise<number> {
  const { flags } = parsed
  const launch = flags.name === undefined ? described : { ...described, name: flags.name[0]! }
  const schedule = scheduleOf(parsed, launch.schedule)
  const [stats, trace] = [flags.stats !== undefined, flags.trace !== undefined]
  if (schedule !== undefined) {
    const { runStack } = await import('./stack.ts')
    const quantumNs = flags.quantum === undefined ? QUANTUM_NS_DEFAULT : quantum(flags.quantum[0]!)
    const cell = { name: launch.name ?? launch.program, launch, pool: undefined, timeoutNs, ...schedule }
    return await runStack({ quantumNs, pcpus: 1, forNs: undefined, pools: new Map(), cells: [cell],
      single: { stats, trace } })
  }
  if (timeoutNs !== undefined || stats) {
    const { supervise } = await import('./supervise.ts')
    return await supervise(launch, { timeoutNs, stats, trace })
  }
  return await runHere(launch, trace)
}

/** A stack says all by itself. */
async function runStackOf({ flags }: Parsed<typeof RUN_FLAGS>, plan: StackPlan, reload: () => StackPlan):
Promise<number> {
  const given = Object.keys(flags).find((name) => name !== 'file' && name !== 'quantum')
  if (given !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
    [`--${given}`, flags[given as keyof typeof flags]![0]!, 'left out: a stack says it for each of its cells'])
  const { runStack } = await import('./stack.ts')
  return await runStack(flags.quantum === undefined ? plan : { ...plan, quantumNs: quantum(flags.quantum[0]!) }, reload)
}

function scheduleOf({ flags }: Parsed<typeof RUN_FLAGS>, described: Launch['schedule']): Launch['schedule'] {
  const wanted = ['shares', 'cpu-limit', 'cpu-reservation', 'quantum', 'deterministic', 'unbounded'] as const
  if (described === undefined && wanted.every((name) => flags[name] === undefined)) return undefined
  const { shares, reservation, limit } = described?.terms ?? { shares: 100, reservation: 0, limit: Infinity }
  const terms = {
    shares: flags.shares === undefined ? shares : sharesOf(flags.shares[0]!),
    reservation: flags['cpu-reservation'] === undefined ? reservation
      : cpu('--cpu-reservation', flags['cpu-reservation'][0]!),
    limit: flags['cpu-limit'] === undefined ? limit : cpu('--cpu-limit', flags['cpu-limit'][0]!),
  }
  if (terms.limit < terms.reservation) throw new CellarError('FLAG_VALUE_INVALID',
    ['--cpu-limit', flags['cpu-limit']?.[0] ?? String(terms.limit), 'no less than the reservation'])
  return { terms, deterministic: flags.deterministic !== undefined || (described?.deterministic ?? false),
    unbounded: flags.unbounded !== undefined || (described?.unbounded ?? false) }
}

function sharesOf(text: string): number {
  const shares = /^\d+$/.test(text) ? Number(text) : 0
  if (shares < 1 || shares > SHARES_MAX) throw new CellarError('FLAG_VALUE_INVALID',
    ['--shares', text, `a whole number from 1 to ${SHARES_MAX}`])
  return shares
}

function cpu(flag: string, text: string): number {
  const part = parseCpu(text)
  if (part === undefined) throw new CellarError('FLAG_VALUE_INVALID',
    [flag, text, 'a part of a pCPU above 0, such as 10% or 0.5'])
  return part
}

function quantum(text: string): number {
  const ns = duration('--quantum', text)
  if (ns < QUANTUM_NS_MIN || ns > QUANTUM_NS_MAX) throw new CellarError('FLAG_VALUE_INVALID',
    ['--quantum', text, 'a duration from 100us to 1s'])
  return ns
}

async function runHere(launch: Launch, trace: boolean): Promise<number> {
  const executable = loadExecutable(launch.program, { stubs: launch.stubs, library: launch.calls !== undefined })
  const tracer = trace ? (await import('../cell/trace.ts')).traceToStderr() : undefined
  const console = { stdin: new StandardInput(0), stdout: new StandardOutput(1), stderr: new StandardOutput(2) }
  const cell = await new Pcpu().create(executable, launch.grants, console, { tracer })
  const outcome = launch.calls === undefined ? await cell.run()
    : await (await import('../cell/library.ts')).runLibrary(cell, launch.program, launch.calls)
  await flushed(launch.grants)
  return report(launch, outcome)
}

/** Tells on stderr of a trap; the exit status of any end. */
export function report({ program, name = program }: Launch, outcome: Outcome): number {
  if (outcome.kind === 'exit') return outcome.code & 0xff
  if (outcome.kind === 'signal') return 128 + outcome.signal
  const width = Math.max(0, ...outcome.frames.map((frame) => frame.name.length))
  const frames = outcome.frames.map(({ name: called, index, offset }, i) =>
    `\n  #${String(i).padEnd(3)}${(called || '?').padEnd(Math.min(width, 60))}  function ${index}${
      offset === undefined ? '' : `, byte 0x${offset.toString(16)}`}`)
  process.stderr.write(`cellar: ${name} trapped: ${outcome.reason}${frames.join('')}\n`)
  return 128 + signals.SIGABRT
}

/** What the flags grant. */
function grantsOf({ flags }: Parsed<typeof RUN_FLAGS>): Grants {
  return {
    args: [],
    env: (flags.env ?? []).flatMap(variable),
    volumes: (flags.dir ?? []).map(volume),
    listen: flags.listen ?? [],
    memoryPagesMax: flags.memory === undefined ? WASM_PAGES_MAX : pages(flags.memory[0]!),
    ...(flags['clock-resolution'] === undefined ? {}
      : { clockResolution: duration('--clock-resolution', flags['clock-resolution'][0]!) }),
  }
}

function launchOf(parsed: Parsed<typeof RUN_FLAGS>): Launch {
  const [program] = parsed.rest
  if (program === undefined) throw new CellarError('USAGE', ['Cannot run without a program'])
  return { program, grants: { ...grantsOf(parsed), args: parsed.rest }, stubs: parsed.flags.stub ?? [] }
}

function variable(text: string): [string, string][] {
  const at = text.indexOf('=')
  if (at > 0 && !text.includes('\0')) return [[text.slice(0, at), text.slice(at + 1)]]
  if (at === 0 || text === '' || text.includes('\0')) throw new CellarError('FLAG_VALUE_INVALID',
    ['--env', text, 'K=V, or K to pass on'])
  const own = process.env[text]
  return own === undefined ? [] : [[text, own]]
}

/** HOST[:GUEST][:ro] */
export function volume(text: string): { host: string; guest: string; readOnly: boolean } {
  const parts = text.split(':')
  const readOnly = parts.length > 1 && parts.at(-1) === 'ro'
  if (readOnly) parts.pop()
  const [host = '', guest = host] = parts
  if (parts.length > 2 || host === '' || guest === '') throw new CellarError('FLAG_VALUE_INVALID',
    ['--dir', text, 'HOST[:GUEST][:ro]'])
  return { host, guest, readOnly }
}

function pages(text: string): number {
  const bytes = parseSize(text)
  const count = bytes === undefined ? 0 : Math.floor(bytes / WASM_PAGE_BYTES)
  if (count < 1) throw new CellarError('FLAG_VALUE_INVALID',
    ['--memory', text, 'a size of at least 64KiB, such as 64MiB'])
  return Math.min(count, WASM_PAGES_MAX)
}

function duration(flag: string, text: string): number {
  const ns = parseDuration(text)
  if (ns === undefined || ns < 1) throw new CellarError('FLAG_VALUE_INVALID',
    [flag, text, 'a duration above 0, such as 5s or 250ms'])
  return ns
}
