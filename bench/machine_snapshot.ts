// bench/machine_snapshot.ts: a machine of 128 MiB saved, gone on with, forked, moved: `node machine_snapshot.ts …`.
//
// As a machine's process does it (src/host/machine_snapshots.ts), without the host around it. The guest has filled
// 48 MiB with random numbers, changes 1 MiB all the time and says a number every two milliseconds: it is there again
// when it says the next one. A move goes to another process, which has read an earlier snapshot before; nothing is
// synced to the disk. The answer is a line of JSON: milliseconds by name, for each round.

import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Engine, EngineOptions, Sections } from '../src/machine/engine.ts'
import { KvmEngine } from '../src/machine/kvm_engine.ts'
import {
  copyRam, copyWritten, copyWrittenRam, heldCopy, putPages, takePages, type PageSource,
} from '../src/machine/pages.ts'
import type { MachineState } from '../src/machine/state.ts'
import { QemuEngine } from '../src/qemu/qemu_engine.ts'
import type { SnapshotMeta } from '../src/snapshot/format.ts'
import { SnapshotStore, type Known } from '../src/snapshot/store.ts'
import { makeRam } from '../src/sys/guest_ram.ts'

/** What is asked for. `folder`: it is the process to which a machine moves. */
export type SnapshotRequest = {
  readonly engine: 'kvm' | 'qemu'; readonly kernel: string; readonly initrd: string; readonly rounds: number
  readonly folder?: string
}

/** Milliseconds of one round. */
export type SnapshotTimes = Record<string, number>

const RAM_BYTES = 128 * 2 ** 20
const QEMU = '/usr/bin/qemu-system-x86_64'
const BOOT_MS_MAX = 120_000
/** So many numbers after the first: it has filled its memory, and our code has been compiled. */
const TICKS_FIRST = 200
const META: SnapshotMeta = { kind: 'machine', module: `sha256:${'0'.repeat(64)}`, guest: 'bench', spec: null,
  createdAt: 0, cellar: '0' }

/** A machine, and when it last spoke. */
type Machine = { readonly engine: Engine; readonly ramFd: number; said(): Promise<number>; close(): Promise<void> }

function machine(request: SnapshotRequest, more: Partial<EngineOptions> & { readonly ramFd: number }): Machine {
  let heard: ((at: number) => void) | undefined
  const options: EngineOptions = {
    spec: { name: 'bench', vcpus: 1, memoryBytes: RAM_BYTES, cid: 3, generation: '00'.repeat(16), nics: [], disks: [],
      boot: { kernel: request.kernel, initrd: request.initrd, commandLine: 'console=ttyS0 quiet panic=-1 do=ticks' } },
    isRamPrivate: false,
    events: {
      console: () => heard?.(now()), agent: (stream) => void stream.destroy(),
      ended: ({ kind, reason }) => { throw new Error(`the machine ended: ${kind}, ${reason}`) }, say: () => {},
    }, ...more,
  }
  const engine = request.engine === 'kvm' ? new KvmEngine(options)
    : new QemuEngine({ ...options, qemu: { path: QEMU, accelerator: 'tcg' } })
  return { engine, ramFd: options.ramFd,
    said: () => new Promise((resolve) => { heard = resolve }),
    close: async () => {
      heard = undefined
      await engine.close()
      closeSync(options.ramFd)
    } }
}

/** A machine that stands still since `begun`. */
type Stopped = { readonly begun: number; readonly sections: Sections; readonly ram: PageSource }

const now = (): number => performance.timeOrigin + performance.now()

// Its RAM is copied while it runs, and then what was written meanwhile, where its engine knows that.
async function stop({ engine, ramFd }: Machine): Promise<Stopped> {
  let begun = now()
  await engine.pause()
  const source = { fd: ramFd, sizeBytes: RAM_BYTES, mapped: engine.ram }
  let ram: PageSource | undefined
  if (engine.watchWrites()) {
    await engine.resume()
    ram = heldCopy(source)
    begun = now()
    await engine.pause()
  }
  const sections = await engine.save()
  return { begun, sections,
    ram: ram === undefined ? heldCopy(source) : copyWritten(source, engine.takeWritten(), ram) }
}

function stateOf({ sections, ram }: Stopped, kind: 'kvm' | 'qemu'): MachineState {
  const named = [...sections].map(([name, bytes]) => ({ name, bytes: Uint8Array.from(bytes) }))
    .sort((a, b) => a.name < b.name ? -1 : 1)
  return { memory: takePages([ram]), machine: { engine: kind, vcpus: 1, ramBytes: RAM_BYTES, sections: named,
    disks: [], generation: '00'.repeat(16) } }
}

const sectionsOf = ({ machine: { sections } }: MachineState): Sections =>
  new Map(sections.map(({ name, bytes }) => [name, bytes]))

/** A machine that goes on from a state, and when it first spoke. */
async function goOn(request: SnapshotRequest, state: MachineState): Promise<{ at: number; one: Machine }> {
  const ramFd = makeRam(RAM_BYTES)
  putPages(state.memory, 0, { fd: ramFd, sizeBytes: RAM_BYTES })
  const one = machine(request, { ramFd, from: sectionsOf(state) })
  const said = one.said()
  await one.engine.start()
  return { at: await said, one }
}

async function saved(request: SnapshotRequest, one: Machine, folder: string): Promise<SnapshotTimes> {
  const store = new SnapshotStore(folder)
  const begun = now()
  const stopped = await stop(one)
  await one.engine.resume()
  const resumed = now()
  const state = stateOf(stopped, request.engine)
  const { digest } = await store.write(META, state, { durable: false })
  const written = now()
  const read = await new SnapshotStore(folder).readMachine(digest, { module: META.module })
  const hasRead = now()
  const { at, one: other } = await goOn(request, read.state)
  await other.close()
  return { all: at - begun, stopped: resumed - stopped.begun, write: written - resumed, read: hasRead - written,
    restore: at - hasRead, mib: state.memory.present.length / 16 }
}

async function forked(request: SnapshotRequest, one: Machine): Promise<SnapshotTimes> {
  const { engine } = one
  const ramFd = makeRam(RAM_BYTES)
  const begun = now()
  await engine.pause()
  const source = { fd: one.ramFd, sizeBytes: RAM_BYTES, mapped: engine.ram }
  const isWatched = engine.watchWrites()
  let stopped = begun
  if (isWatched) {
    await engine.resume()
    copyRam(source, ramFd)
    stopped = now()
    await engine.pause()
  }
  const sections = await engine.save()
  if (isWatched) copyWrittenRam(source, engine.takeWritten(), ramFd)
  else copyRam(source, ramFd)
  await engine.resume()
  const resumed = now()
  const child = machine(request, { ramFd, from: sections, isRamPrivate: true })
  const said = child.said()
  await child.engine.start()
  const at = await said
  await child.close()
  return { fork: at - begun, forkStopped: resumed - stopped }
}

// The other process reads earlier snapshots while the machine runs on, and what has changed since when it stands.
async function moved(request: SnapshotRequest, one: Machine, folder: string): Promise<SnapshotTimes> {
  const store = new SnapshotStore(folder)
  const other = spawn(process.execPath, [...process.execArgv, process.argv[1]!, JSON.stringify({ ...request, folder })],
    { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  let known: Known | undefined
  for (let i = 0; i < 2; i++) {
    const stopped = await stop(one)
    await one.engine.resume()
    const written = await store.write(META, stateOf(stopped, request.engine), { durable: false, known })
    known = written.known
    await answerOf(other, { digest: written.digest })
  }
  const stopped = await stop(one)
  const copied = now()
  const { digest } = await store.write(META, stateOf(stopped, request.engine), { durable: false, known })
  const written = now()
  const there = await answerOf(other, { digest, isLast: true })
  await one.engine.resume()
  return { downtime: there - stopped.begun, downtimeCopy: copied - stopped.begun, downtimeWrite: written - copied,
    downtimeThere: there - written }
}

function answerOf(other: ChildProcess, message: object): Promise<number> {
  other.send(message)
  return new Promise((resolve, reject) => {
    other.once('message', (at) => resolve(at as number)).once('exit', () => reject(new Error('it has gone')))
  })
}

/** The process to which a machine moves: it reads what it is told of, and runs the last. */
function receive(request: SnapshotRequest, folder: string): void {
  let before: Known | undefined
  const tell = process.send!.bind(process)
  process.on('message', (message: { digest: string; isLast?: boolean }) => void (async () => {
    const { state, known } = await new SnapshotStore(folder)
      .readMachine(message.digest, { module: META.module }, before)
    before = known
    if (message.isLast !== true) return void tell(0)
    const { at, one } = await goOn(request, state)
    tell(at)
    await one.close()
    process.exit(0)
  })())
}

async function measure(request: SnapshotRequest): Promise<void> {
  const one = machine(request, { ramFd: makeRam(RAM_BYTES) })
  const late = setTimeout(() => { throw new Error('the guest says nothing') }, BOOT_MS_MAX)
  await one.engine.start()
  for (let i = 0; i < TICKS_FIRST; i++) await one.said()
  clearTimeout(late)
  const rounds: SnapshotTimes[] = []
  for (let round = 0; round < request.rounds; round++) {
    const folder = mkdtempSync(join(tmpdir(), 'cellar-machine-'))
    try {
      rounds.push({ ...await saved(request, one, join(folder, 'a')), ...await forked(request, one),
        ...await moved(request, one, join(folder, 'b')) })
    } finally {
      rmSync(folder, { recursive: true })
    }
    await sleep(100)
  }
  await one.close()
  process.stdout.write(`${JSON.stringify(rounds)}\n`)
  process.exit(0)
}

const request = JSON.parse(process.argv[2] ?? '{}') as SnapshotRequest
if (request.folder === undefined) void measure(request)
else receive(request, request.folder)
