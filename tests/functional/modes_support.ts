// tests/functional/modes_support.ts: one run of a program under one way of sharing the pCPU, and all that came of it.
//
// The guest's clocks and entropy are made up: the same in every run, so that nothing may differ, not even what it
// derives from them: hash seeds, names of temporary files, a garbage collector's sums of CPU time.

import { createHash } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { Cell, type Outcome } from '../../src/cell/cell.ts'
import type { Executable } from '../../src/cell/executable.ts'
import { HYPERCALL_NAMES, loadHypercalls } from '../../src/cell/hypercalls.ts'
import { runLibrary, type Call } from '../../src/cell/library.ts'
import { loadExecutable } from '../../src/cell/load.ts'
import { addStreams, Pcpu } from '../../src/cell/pcpu.ts'
import { loadPreemptible } from '../../src/cell/preemptible.ts'
import type { ProgramRules } from '../../src/cell/program.ts'
import { cellOf, withScheduledPcpu } from '../../src/cell/test_support.ts'
import type { Clock } from '../../src/services/clock/clock.ts'
import { InputBuffer, OutputBuffer } from '../../src/services/console/console.ts'
import type { Entropy } from '../../src/services/entropy/entropy.ts'
import { openVolume } from '../../src/services/file/volume.ts'
import { Iovecs } from '../../src/services/iovecs.ts'
import { RIGHTS_DIRECTORY, RIGHTS_FILE } from '../../src/wasi/p1/abi.ts'
import type { Turn } from '../../src/wasi/p1/context.ts'
import { Descriptors, type Entry } from '../../src/wasi/p1/descriptors.ts'
import { OwnTurn } from '../../src/wasi/p1/own_turn.ts'
import { Folder, guest } from '../support.ts'

/** A program and what it is given. */
export type Job = {
  readonly path: string
  readonly rules?: ProgramRules
  readonly args: readonly string[]
  readonly env?: readonly string[]
  readonly stdin?: string
  /** Files of a folder that is made anew for each run, by name, and the guest's name for it. */
  readonly files?: Readonly<Record<string, string | Uint8Array>>
  readonly mount?: string
  /** Folders that all runs share, read-only: the host's names by the guest's. */
  readonly shared?: Readonly<Record<string, string>>
  readonly calls?: readonly Call[]
  /** Its fuel depends on the numbers and times that the host gives its files. */
  readonly fuelVaries?: boolean
  /** Descriptors from 3 on, before the folders. */
  readonly entries?: readonly Entry[]
}

/** What came of a run. Everything but the figures is to be the same in every way. */
export type Result = {
  readonly outcome: Outcome
  readonly stdout: string
  readonly stderr: string
  /** SHA-256 of each file of its folder. */
  readonly files: Readonly<Record<string, string>>
}

/** A result, the files behind its digests, how often it had to leave, and what it executed. */
export type Run = {
  readonly result: Result
  readonly made: Readonly<Record<string, Uint8Array>>
  readonly preemptions: number; readonly fuel: number | undefined
}

/** How a program may be run. */
export type Way = { readonly translated?: 'preempt' | 'fuel'; readonly quantumNs?: number; readonly hog?: boolean }

/** A program in each of its translations, made when first wanted. */
export class Loaded {
  readonly #job: Job
  readonly #executables = new Map<string | undefined, Executable>()

  constructor(job: Job) { this.#job = job }

  async get(translated: Way['translated']): Promise<Executable> {
    let executable = this.#executables.get(translated)
    if (executable !== undefined) return executable
    const { path, rules } = this.#job
    executable = translated === undefined ? loadExecutable(path, rules)
      : loadPreemptible(path, rules, { mode: translated })
    await loadHypercalls(executable.hypercalls)
    this.#executables.set(translated, executable)
    return executable
  }
}

/** Runs the job once. */
export async function runJob(job: Job, executable: Executable, way: Way): Promise<Run> {
  if (way.translated === undefined) return await runOn(new Pcpu(), new OwnTurn(), job, executable)
  let run: Run | undefined
  await withScheduledPcpu(way.quantumNs ?? 1e6, async (pcpu, dispatcher) => {
    const hog = way.hog !== true ? undefined
      : cellOf(pcpu, await hogProgram(), { args: ['spin'], turn: dispatcher.admit() })
    const hogged = hog?.run()
    run = await runOn(pcpu, dispatcher.admit(), job, executable)
    hog?.context.stop({ kind: 'signal', signal: 9 })
    await hogged
  })
  return run!
}

let spin: Executable | undefined

async function hogProgram(): Promise<Executable> {
  if (spin === undefined) {
    spin = loadPreemptible(guest('spin'))
    await loadHypercalls(spin.hypercalls)
  }
  return spin
}

async function runOn(pcpu: Pcpu, turn: Turn, job: Job, executable: Executable): Promise<Run> {
  using folder = new Folder()
  for (const [name, content] of Object.entries(job.files ?? {})) folder.write(name, content)
  const [stdin, stdout, stderr] = [new InputBuffer(), new OutputBuffer(OUTPUT_BYTES), new OutputBuffer(OUTPUT_BYTES)]
  stdin.push(Buffer.from(job.stdin ?? ''))
  stdin.end()
  const descriptors = new Descriptors()
  addStreams(descriptors, { stdin, stdout, stderr })
  for (const entry of job.entries ?? []) descriptors.add(entry)
  for (const [name, host] of Object.entries(job.shared ?? {})) descriptors.add(volume(host, name, true))
  if (job.mount !== undefined) descriptors.add(volume(folder.path, job.mount, false))
  const clock = countingClock()
  turn.cpuNs = () => clock.monotonic()
  const cell = new Cell(executable, {
    args: job.args.map(terminated), env: (job.env ?? []).map(terminated), clock, entropy: sameEntropy(),
    iovecs: new Iovecs(), descriptors, turn, control: () => pcpu.control, memoryPagesMax: 32_768,
    counts: new Uint32Array(HYPERCALL_NAMES.length),
  })
  const outcome = job.calls === undefined ? await cell.run() : await runLibrary(cell, job.path, job.calls)
  const { preemptions, fuel } = cell.usage()
  const made = job.mount === undefined ? {} : filesOf(folder)
  const files = Object.fromEntries(Object.entries(made).map(([name, bytes]) => [name, digest(bytes)]))
  return {
    preemptions, fuel, made,
    result: { outcome, stdout: stdout.take().toString(), stderr: stderr.take().toString(), files },
  }
}

function volume(host: string, name: string, readOnly: boolean): Entry {
  return { descriptor: openVolume(host, { readOnly }), rightsBase: RIGHTS_DIRECTORY, flags: 0,
    rightsInheriting: RIGHTS_DIRECTORY | RIGHTS_FILE, preopen: new TextEncoder().encode(name) }
}

function filesOf(folder: Folder): Record<string, Uint8Array> {
  return Object.fromEntries(folder.list().filter((name) => statSync(folder.at(name)).isFile())
    .map((name) => [name, readFileSync(folder.at(name))]))
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** Begins at the same time in every run, and goes on by a microsecond with each look at it. */
function countingClock(): Clock {
  let ns = 0
  const tick = (): number => { ns += 1000; return ns }
  const now = new Float64Array(2)
  return {
    resolution: 1,
    time: (id) => BigInt(tick()) + (id === 0 ? BEGIN_S * 1_000_000_000n : 0n),
    monotonic: tick,
    realtime: () => {
      tick()
      now[0] = Number(BEGIN_S) + Math.floor(ns / 1e9)
      now[1] = ns % 1e9
      return now
    },
  }
}

/** The same bytes in every run: a linear congruential generator's. */
function sameEntropy(): Entropy {
  let state = 1
  return {
    fill: (bytes) => {
      for (let i = 0; i < bytes.length; i++) {
        state = Math.imul(state, 1_103_515_245) + 12_345
        bytes[i] = state >>> 16
      }
    },
  }
}

function terminated(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\0`)
}

const OUTPUT_BYTES = 16 * 1024 * 1024
/** 2026-01-01. */
const BEGIN_S = 1_767_225_600n
