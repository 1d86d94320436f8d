// tests/security/neighbours_support.ts: a hostile guest and its two neighbours on one pCPU, as a process.
//
// A process of its own: the cells write to its stdout, their memory is its own, and where protection fails it is gone.
// Its argument is a Trial as JSON; what became of the three is written to descriptor 3 as JSON (Seen).

import { writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { HYPERCALL_NAMES } from '../../src/cell/hypercalls.ts'
import { loadExecutable } from '../../src/cell/load.ts'
import { loadPreemptible } from '../../src/cell/preemptible.ts'
import { Stack, type Ended, type Member } from '../../src/cell/stack.ts'
import { table, type Row } from '../../src/cli/top.ts'
import type { Terms } from '../../src/sched/node.ts'
import { guest } from '../support.ts'

/** What is tried. */
export type Trial = {
  /** A program of guests/, its arguments, and what it is granted. */
  readonly hostile: string
  readonly args?: readonly string[]
  readonly folder?: string
  readonly memoryPagesMax?: number
  /** It is started again and again, whenever it has ended. */
  readonly again?: boolean
  /** How long they are watched, once the hostile guest has been there for a while. */
  readonly ms: number
  /** False: it isn't translated, so that nothing takes the pCPU from it. */
  readonly protection?: boolean
}

/** What a cell had of the time in which all three were there. */
export type Part = {
  readonly runningNs: number; readonly runnableNs: number; readonly waitingNs: number; readonly ageNs: number
  readonly stints: number; readonly preemptions: number; readonly memoryBytes: number
  readonly waitedFor: readonly (readonly [name: string, ns: number])[]
}

/** What was seen. */
export type Seen = {
  readonly parts: Readonly<Record<'hostile' | 'computing' | 'napping', Part>>
  /** How often the napper woke. */
  readonly naps: number
  /** How often the hostile guest ended, how the last time, and its answered hypercalls by name. */
  readonly ends: number
  readonly lastEnd: Ended['outcome'] | undefined
  readonly hypercalls: Readonly<Record<string, number>>
  readonly elapsedNs: number
  /** The operator's table. */
  readonly table: string
}

const NAMES = ['hostile', 'computing', 'napping'] as const
type Name = typeof NAMES[number]

const SHARES: Readonly<Record<Name, number>> = { hostile: 100, computing: 300, napping: 100 }
const NAP_US = 2000
const QUANTUM_NS = 1e6
/** Until the programs are compiled and the hostile guest is at what it does for ever. */
const WARM_UP_MS = 500

class Neighbours {
  readonly #trial: Trial
  readonly #stack: Stack
  readonly #members: Readonly<Record<Name, Member>>
  readonly #names = new Map<number, Name>()
  readonly #ids = new Map<Name, number>()
  /** What ended incarnations of the hostile guest had. */
  #gone: Part = NOTHING
  #ends = 0
  #last: Ended['outcome'] | undefined
  #over = false

  constructor(trial: Trial) {
    this.#trial = trial
    this.#stack = new Stack({ pcpus: 1, quantumNs: QUANTUM_NS })
    this.#members = {
      hostile: this.#member('hostile', trial.hostile, trial.args ?? []),
      computing: this.#member('computing', 'spin', []),
      napping: this.#member('napping', 'nap', [String(NAP_US), '1000000']),
    }
  }

  async watch(): Promise<Seen> {
    for (const name of ['napping', 'computing', 'hostile'] as const) this.#start(name)
    await sleep(WARM_UP_MS)
    const [before, startedAt, counts] = [await this.#parts(), performance.now(), this.#counts()]
    await sleep(this.#trial.ms)
    const [after, now] = [await this.#parts(), this.#counts()]
    this.#over = true
    const elapsedNs = (performance.now() - startedAt) * 1e6
    if (after.computing.ageNs === before.computing.ageNs) throw new Error('the pCPU does not answer')
    const parts = Object.fromEntries(NAMES.map((name) => [name, minus(after[name], before[name])])) as Seen['parts']
    return {
      parts, naps: now.napping['poll_oneoff']! - counts.napping['poll_oneoff']!, ends: this.#ends,
      lastEnd: this.#last, hypercalls: now.hostile, elapsedNs, table: this.#table(parts, elapsedNs),
    }
  }

  #member(name: Name, program: string, args: readonly string[]): Member {
    const isHostile = name === 'hostile'
    const load = isHostile && this.#trial.protection === false ? loadExecutable : loadPreemptible
    const { folder, memoryPagesMax } = isHostile ? this.#trial : {}
    return {
      name, executable: load(guest(program)), calls: undefined, trace: false, label: `${name} | `,
      counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)),
      terms: termsOf(name), pool: undefined,
      grants: {
        args: [program, ...args], env: [],
        ...(memoryPagesMax === undefined ? {} : { memoryPagesMax }),
        ...(folder === undefined ? {} : { volumes: [{ host: folder, guest: '/data', readOnly: false }] }),
      },
    }
  }

  #start(name: Name): void {
    const { id, ended } = this.#stack.start(this.#members[name], 0)
    this.#ids.set(name, id)
    this.#names.set(id, name)
    void ended.then((end) => this.#ended(name, end), fail)
  }

  #ended(name: Name, { outcome, figures }: Ended): void {
    if (this.#over) return
    if (name !== 'hostile' || this.#trial.again !== true) fail(new Error(`${name} ended: ${JSON.stringify(outcome)}`))
    this.#gone = plus(this.#gone, { ...figures, waitedFor: this.#named(figures.waitedFor) })
    this.#ends++
    this.#last = outcome
    this.#start(name)
  }

  /** All that each cell had up to now. */
  async #parts(): Promise<Record<Name, Part>> {
    const figures = await this.#stack.figures()
    return Object.fromEntries(NAMES.map((name) => {
      const found = figures.get(this.#ids.get(name)!)
      const part = found === undefined ? NOTHING : { ...found, waitedFor: this.#named(found.waitedFor) }
      return [name, name === 'hostile' ? plus(this.#gone, part) : part]
    })) as Record<Name, Part>
  }

  #named(waitedFor: readonly (readonly [id: number, ns: number])[]): Part['waitedFor'] {
    return waitedFor.map(([id, ns]) => [this.#names.get(id)!, ns] as const)
  }

  #counts(): Record<'hostile' | 'napping', Record<string, number>> {
    const byName = ({ counts }: Member): Record<string, number> =>
      Object.fromEntries(HYPERCALL_NAMES.map((name, i) => [name, counts[i]!] as const).filter(([, n]) => n > 0))
    return { hostile: byName(this.#members.hostile), napping: byName(this.#members.napping) }
  }

  #table(parts: Seen['parts'], elapsedNs: number): string {
    const rows = NAMES.map((name): Row => {
      const { terms } = this.#members[name]
      const figures = { ...parts[name], id: 0, waitedFor: [], pausedNs: 0, throttledNs: 0, throttledBy: undefined,
        switches: 0 }
      return { name, pcpu: 0, terms, pool: undefined, figures, demand: 1, due: SHARES[name] / 500, elapsedNs,
        waitedFor: parts[name].waitedFor, end: undefined }
    })
    return table(rows, 1)
  }
}

const NOTHING: Part = { runningNs: 0, runnableNs: 0, waitingNs: 0, ageNs: 0, stints: 0, preemptions: 0, memoryBytes: 0,
  waitedFor: [] }

function termsOf(name: Name): Terms {
  return { shares: SHARES[name], reservation: 0, limit: Infinity }
}

function plus(a: Part, b: Part): Part { return combined(a, b, 1) }
function minus(a: Part, b: Part): Part { return { ...combined(a, b, -1), memoryBytes: a.memoryBytes } }

function combined(a: Part, b: Part, sign: 1 | -1): Part {
  const waited = new Map<string, number>(a.waitedFor)
  for (const [name, ns] of b.waitedFor) waited.set(name, (waited.get(name) ?? 0) + sign * ns)
  return {
    runningNs: a.runningNs + sign * b.runningNs, runnableNs: a.runnableNs + sign * b.runnableNs,
    waitingNs: a.waitingNs + sign * b.waitingNs, ageNs: a.ageNs + sign * b.ageNs,
    stints: a.stints + sign * b.stints, preemptions: a.preemptions + sign * b.preemptions, memoryBytes: b.memoryBytes,
    waitedFor: [...waited].sort((one, other) => other[1] - one[1]),
  }
}

function fail(error: unknown): never {
  process.stderr.write(`${String(error)}\n`)
  process.exit(1)
}

if (import.meta.main) {
  const seen = await new Neighbours(JSON.parse(process.argv[2]!) as Trial).watch().catch(fail)
  writeSync(3, JSON.stringify(seen))
  process.exit(0)
}
