// bench/snapshot.ts: how long it takes to save a running cell and to have another that goes on from there; and how soon
// a hibernated server answers.
//
// The cell has 64 MiB of memory, of which 16 MiB are used, half of it random (guests/standstill.c), and works all the
// time until it is stopped; it goes on when the other one is there, as if it had been moved through the disk. Each
// round has a folder of its own, so that nothing of its memory is stored yet, and reads with a store of its own, as
// another process would. "There" is when the new cell's pCPU says so: by then it is about to run. Nothing is synced to
// the disk. `.cpu` is the processor time of all threads: where others use the machine, that is the figure to look at.
//
// A hibernated server (guests/web.c) is woken by who connects to its port, on a real host: from connecting to the whole
// of the answer.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { OUTPUT_PIECE_BYTES } from '../src/base/limits.ts'
import { DEFAULT_TERMS } from '../src/sched/node.ts'
import { HYPERCALL_NAMES } from '../src/cell/hypercalls.ts'
import { loadPreemptible } from '../src/cell/preemptible.ts'
import { Stack, type Member } from '../src/cell/stack.ts'
import type { SnapshotMeta } from '../src/snapshot/format.ts'
import { SnapshotStore } from '../src/snapshot/store.ts'
import { percentile } from './guest.ts'
import { api, endHost, importGuest, startHost } from './host.ts'
import type { Figure } from './main.ts'

const [MIB, FILLED_MIB, WRITTEN_KIB] = [64, 16, 1024]
const ROUNDS = 25
const WAKES = 50
const KILLED = { kind: 'signal', signal: 9 } as const
const META: SnapshotMeta = { kind: 'cell', module: `sha256:${'0'.repeat(64)}`, guest: 'standstill', spec: null,
  createdAt: 0, cellar: '0' }
/** What is measured of each round, in milliseconds. */
type Times = Record<'capture' | 'write' | 'read' | 'restore' | 'all' | 'cpu' | 'again' | 'files', number>

export async function measure(): Promise<Figure[]> {
  return [...await saved(), ...await woken()]
}

async function saved(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  const heard = Promise.withResolvers<void>()
  const stack: Stack = new Stack({ pcpus: 2, quantumNs: 1e6, on: { output: (id, channel, bytes) => {
    heard.resolve()
    stack.credit(id, channel, bytes.length + OUTPUT_PIECE_BYTES)
  } } })
  try {
    const one = member()
    const { id } = stack.start(one, 0)
    await heard.promise
    const rounds: Times[] = []
    for (let i = -3; i < ROUNDS; i++) {
      const times = await round(stack, id, one, join(folder, String(i)))
      if (i >= 0) rounds.push(times)
      await sleep(100)
    }
    return figuresOf(rounds)
  } finally {
    await stack.close()
    rmSync(folder, { recursive: true })
  }
}

function member(): Member {
  const program = fileURLToPath(new URL('../guests/standstill.wasm', import.meta.url))
  const executable = loadPreemptible(program, { stubs: [] }, { mode: 'preempt', capture: true })
  return { name: 'standstill', executable, calls: undefined, trace: false, terms: DEFAULT_TERMS,
    grants: { args: ['standstill', String(MIB), String(FILLED_MIB), String(WRITTEN_KIB)], env: [] },
    remote: { stdin: false }, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)) }
}

async function round(stack: Stack, id: number, one: Member, folder: string): Promise<Times> {
  const store = new SnapshotStore(folder)
  const before = process.cpuUsage()
  const begun = performance.now()
  const state = await stack.capture(id)
  const captured = performance.now()
  const { digest, known } = await store.write(META, state, { durable: false })
  const written = performance.now()
  const other = new SnapshotStore(folder)
  const saved = await other.read(digest, { module: META.module })
  const read = performance.now()
  const created = Promise.withResolvers<void>()
  const restored = stack.start({ ...one, from: { state: saved.state } }, 1, () => created.resolve())
  await Promise.race([created.promise, restored.ended])
  const there = performance.now()
  const { user, system } = process.cpuUsage(before)
  stack.stop(restored.id, KILLED)
  await restored.ended
  stack.goOn(id)
  await sleep(50)
  const again = performance.now()
  const next = await stack.capture(id)
  await store.write(META, next, { durable: false, known })
  const times = { capture: captured - begun, write: written - captured, read: read - written, restore: there - read,
    all: there - begun, cpu: (user + system) / 1e3, again: performance.now() - again,
    files: filesMs(join(folder, 'baseline'), saved.state.memory!.bytes) }
  stack.goOn(id)
  rmSync(folder, { recursive: true })
  return times
}

/** What nobody can do without: the same bytes copied, written to a file, read from there, copied. */
function filesMs(path: string, bytes: SharedArrayBuffer): number {
  const begun = performance.now()
  const copy = Buffer.from(new Uint8Array(bytes))
  writeFileSync(path, copy)
  new Uint8Array(bytes).set(readFileSync(path))
  return performance.now() - begun
}

function figuresOf(rounds: readonly Times[]): Figure[] {
  const of = (time: keyof Times, p: number): number => percentile(rounds.map((one) => one[time]), p)
  const files = `a copy of the ${FILLED_MIB} MiB, in a file, read and copied`
  const all = { baseline: of('all', 0.5), baselineOf: 'all of it, p50' }
  return [
    { name: 'snapshot.all', value: of('all', 0.5), unit: 'ms, p50', baseline: of('files', 0.5), baselineOf: files },
    { name: 'snapshot.all.least', value: of('all', 0), unit: 'ms', baseline: of('files', 0), baselineOf: files },
    { name: 'snapshot.cpu', value: of('cpu', 0.5), unit: 'ms of processor time, p50', baseline: of('all', 0.5),
      baselineOf: 'the time that it takes, p50' },
    ...(['capture', 'write', 'read', 'restore'] as const).map((name) =>
      ({ name: `snapshot.${name}`, value: of(name, 0.5), unit: 'ms, p50', ...all })),
    { name: 'snapshot.incremental', value: of('again', 0.5), unit: 'ms, p50',
      baseline: percentile(rounds.map(({ capture, write }) => capture + write), 0.5),
      baselineOf: `the first snapshot; ${WRITTEN_KIB} KiB have changed` },
  ]
}

async function woken(): Promise<Figure[]> {
  const host = await startHost()
  try {
    await importGuest(host, 'web')
    type View = { readonly phase: string; readonly ports: readonly { readonly port: number }[] }
    const { ports } = await api<View>(host, 'POST', '/v1/projects/default/guests?wait=10s',
      { name: 'web', spec: { image: 'web', args: ['web', '/'], memory: '64MiB', ports: ['0:80'] } })
    const [wakes, awake]: [number[], number[]] = [[], []]
    for (let i = -5; i < WAKES; i++) {
      const { phase } = await api<View>(host, 'POST', '/v1/projects/default/guests/web/hibernate')
      if (phase !== 'hibernated') throw new Error(`The guest is ${phase}`)
      await sleep(50)
      const wake = await answerMs(ports[0]!.port)
      await sleep(50)
      const second = await answerMs(ports[0]!.port)
      if (i < 0) continue
      wakes.push(wake)
      awake.push(second)
    }
    const baselineOf = 'the same when it runs'
    return [0.5, 0.9].map((p) => ({ name: `snapshot.wake_p${p * 100}`, value: percentile(wakes, p), unit: 'ms',
      baseline: percentile(awake, p), baselineOf }))
  } finally {
    await endHost(host)
  }
}

/** A request on a connection of its own. */
function answerMs(port: number): Promise<number> {
  const begun = performance.now()
  return new Promise((resolve, reject) => {
    get({ port, host: '127.0.0.1', path: '/healthz', agent: false }, (answer) => {
      answer.resume().on('error', reject).on('end', () => {
        if (answer.statusCode === 200) resolve(performance.now() - begun)
        else reject(new Error(`The guest answers ${answer.statusCode}`))
      })
    }).on('error', reject)
  })
}
