// bench/machine.ts: a machine under our VMM beside the same one under QEMU, where KVM is ordinary: here or nested.
//
// Boot: the same kernel and initramfs until the guest's first line, from the start of the process, and from KVM_RUN.
// Devices: the guest's own times of its disk (the same file, in the page cache) and network, after our code has been
// compiled, which takes some seconds in an emulated host. The network's other end is a C program on the host, reached
// through our gateway, and through a TAP device. Both sides take turns: of boots the median counts, of the few rounds
// of devices the better. Nested paging: touches of memory by the guest, with and without it. Snapshots:
// machine_snapshot.ts, under KVM, and under QEMU's emulation here.
//
// A figure of requests or bytes a second is better when it is larger; all others when they are smaller. Where there is
// no KVM, no nested host or no C compiler it says so and measures nothing.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findKvm, type KvmPlace } from '../tests/machine/kvm_place.ts'
import { quote } from '../tests/machine/nested_host.ts'
import { percentile } from './guest.ts'
import { makeTools } from './machine_made.ts'
import type { Measured, PlaceRequest, Side, Tools } from './machine_place.ts'
import type { SnapshotRequest, SnapshotTimes } from './machine_snapshot.ts'
import type { Figure } from './main.ts'

const NODE = 'node --disable-warning=ExperimentalWarning --max-inlined-bytecode-size-cumulative=2500'
const BARE_NODE = 'console.log(`[${process.memoryUsage.rss()}]`)'
const RUN_MS_MAX = 400_000
const MIB = 2 ** 20
const ROUNDS = { boot: 3, devices: 2, memory: 1, snapshot: 1 }
/** What a guest has timed, as a part of the time that it took: the rest is starting programs. */
const [CLOCK_MIN, CLOCK_MAX] = [0.7, 1.02]
const NET_MS = 1000
const WARM_MS = 4000

const of = (all: readonly Measured[], side: Side, value: (one: Measured) => number): number =>
  percentile(all.filter((one) => one.side === side).map(value), 0.5)

const least = (all: readonly Measured[], side: Side): number =>
  Math.min(...all.filter((one) => one.side === side).map(({ bootMs }) => bootMs))

/** A line of a boot: what our VMM was left for, beside KVM's own counters of both. */
type Exits = Figure & { readonly reasons: object; readonly baselineReasons: object }

export async function* measure(): AsyncGenerator<Figure> {
  const found = await findKvm('bench')
  if (found.skip !== false) return say(found.skip)
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-machine-'))
  try {
    await using place = found.open()
    const tools = makeTools(place, folder)
    if (typeof tools === 'string') return say(tools)
    say(place.way)
    const words = `do=devices net=${NET_MS} warm=${WARM_MS}`
    const parts = [
      async () => bootFigures(await run(place, 'boot', { tools, rounds: ROUNDS.boot }),
        (await lineOf<number[]>(place, ['-e', BARE_NODE], tools, true))[0]!),
      async () => deviceFigures(await run(place, 'devices', { tools, rounds: ROUNDS.devices, words })),
      () => paging(place, tools), () => snapshots(place, tools),
    ]
    for (const part of parts) {
      // A busy machine may be too slow for one: the others count all the same.
      yield* await part().catch((error: Error) => {
        say(error.message)
        return []
      })
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function say(what: string): void {
  process.stderr.write(`bench: machines: ${what}\n`)
}

/** The last line of what a program says there. */
async function lineOf<T>(place: KvmPlace, words: readonly string[], tools: Tools, npt: boolean): Promise<T> {
  const { kernel, initrd, guest, vmm } = tools
  const files = [kernel, initrd, guest, join(vmm, '..')]
  const output = await place.run(`exec ${NODE} ${words.map(quote).join(' ')}`, { files, npt, timeoutMs: RUN_MS_MAX })
  const line = output.stdout.toString().trimEnd().split('\n').at(-1)!
  if (output.status === 0 && line.startsWith('[')) return JSON.parse(line) as T
  throw new Error(`bench of machines: ${output.timedOut ? 'time is over' : output.status}: ${output.stderr}`)
}

async function run(place: KvmPlace, what: string, request: PlaceRequest, npt = true): Promise<Measured[]> {
  return await lineOf(place, ['bench/machine_place.ts', what, JSON.stringify(request)], request.tools, npt)
}

function bootFigures(all: readonly Measured[], bareBytes: number): (Figure | Exits)[] {
  const qemu = { baseline: of(all, 'qemu', ({ bootMs }) => bootMs),
    baselineOf: 'qemu-system-x86_64 -M microvm -accel kvm, from the start of its process' }
  const ms = 'ms, p50'
  const [ours, theirs] = (['ours', 'qemu'] as const).map((side) => all.findLast((one) => one.side === side)!)
  const sum = Object.entries(ours!.exits).reduce((total, [name, count]) =>
    total + (name.startsWith('KVM_EXIT') ? count : 0), 0)
  const toUser = ({ io_exits = 0, mmio_exits = 0 }: Measured['kernelExits']): number => io_exits + mmio_exits
  const resident = `QEMU's, resident beside RAM, with the same guest`
  return [
    { name: 'machine.boot', value: of(all, 'ours', ({ bootMs }) => bootMs), unit: ms, ...qemu },
    { name: 'machine.boot.least', value: least(all, 'ours'), unit: 'ms', baseline: least(all, 'qemu'),
      baselineOf: qemu.baselineOf },
    { name: 'machine.boot.run', value: of(all, 'ours', ({ runMs }) => runMs!), unit: `${ms}, from KVM_RUN`, ...qemu },
    { name: 'machine.boot.exits', value: sum, unit: 'exits to the VMM until the first line', reasons: ours!.exits,
      baseline: toUser(theirs!.kernelExits), baselineOf: "QEMU's, ports and memory",
      baselineReasons: theirs!.kernelExits },
    { name: 'machine.boot.exits_all', value: ours!.kernelExits.exits ?? 0, unit: 'exits, those to KVM included',
      reasons: ours!.kernelExits, baseline: theirs!.kernelExits.exits ?? 0, baselineOf: "QEMU's",
      baselineReasons: theirs!.kernelExits },
    { name: 'machine.memory', value: of(all, 'ours', ({ vmmBytes }) => vmmBytes) / MIB, unit: 'MiB beside RAM',
      baseline: of(all, 'qemu', ({ vmmBytes }) => vmmBytes) / MIB, baselineOf: resident },
    { name: 'machine.memory.node', value: of(all, 'ours', ({ vmmBytes }) => vmmBytes) / MIB, unit: 'MiB beside RAM',
      baseline: bareBytes / MIB, baselineOf: 'a bare Node, resident' },
    { name: 'machine.memory.private', value: of(all, 'ours', ({ privateBytes }) => privateBytes) / MIB,
      unit: 'MiB beside RAM that no other process shares', baselineOf: "QEMU's",
      baseline: of(all, 'qemu', ({ privateBytes }) => privateBytes) / MIB },
  ]
}

function deviceFigures(all: readonly Measured[]): Figure[] {
  // Both sides are timed by the guest's own clock: one that runs wrong would make them as fast as it likes.
  for (const { side, clock } of all) {
    if (clock < CLOCK_MIN || clock > CLOCK_MAX) say(`the clock of a guest (${side}) is off: ${clock.toFixed(2)}`)
  }
  const names = Object.keys(all.find(({ side }) => side === 'ours')!.results).filter((name) => name !== 'done')
  return names.map((name) => {
    const [, , kind] = name.split('-')
    const isBytes = name.startsWith('net-') && !name.startsWith('net-round')
    const scale = isBytes ? 1e3 : 1e9
    const most = (side: Side): number => Math.max(...all.filter((one) => one.side === side)
      .map(({ results }) => results[name]!.count / results[name]!.ns * scale))
    return { name: `machine.${name.replaceAll('-', '.')}`, value: most('ours'),
      unit: isBytes ? 'MB/s, most' : 'a second, most', baseline: most('qemu'),
      baselineOf: kind === 'gateway' ? "QEMU's virtio-net at the same gateway, in a process of its own"
        : kind === 'tap' ? "QEMU's virtio-net at the same TAP device" : "QEMU's virtio-blk, the same raw file" }
  })
}

async function paging(place: KvmPlace, tools: Tools): Promise<Figure[]> {
  const words = 'do=memory'
  const on = await run(place, 'memory', { tools, rounds: ROUNDS.memory, words })
  const off = await run(place, 'memory', { tools, rounds: ROUNDS.memory, words }, false).catch((error: Error) => {
    say(`nested paging stays on: ${error.message}`)
    return undefined
  })
  if (off === undefined || !place.way.includes('nested')) return []
  const each = (all: readonly Measured[], name: string): number =>
    of(all, 'ours', ({ results }) => results[name]!.ns / results[name]!.count / 1e3)
  return [
    { name: 'machine.npt.boot', value: of(on, 'ours', ({ runMs }) => runMs!), unit: 'ms, from KVM_RUN',
      baseline: of(off, 'ours', ({ runMs }) => runMs!), baselineOf: 'without nested paging' },
    ...['memory-first', 'memory-fault', 'memory-touch', 'memory-fork'].map((name) => ({
      name: `machine.npt.${name.slice('memory-'.length)}`, value: each(on, name), unit: 'µs each',
      baseline: each(off, name), baselineOf: 'without nested paging' })),
  ]
}

async function snapshots(place: KvmPlace, tools: Tools): Promise<Figure[]> {
  const { kernel, initrd } = tools
  const request: SnapshotRequest = { engine: 'kvm', kernel, initrd, rounds: ROUNDS.snapshot }
  const kvm = await lineOf<SnapshotTimes[]>(place, [tools.snapshot, JSON.stringify(request)], tools, true)
  const here = spawnSync(process.execPath,
    [...process.execArgv, tools.snapshot, JSON.stringify({ ...request, engine: 'qemu' })], { encoding: 'utf8',
      timeout: RUN_MS_MAX })
  if (here.status !== 0) say(`no snapshots under QEMU: ${here.stderr}`)
  const qemu = here.status === 0 ? JSON.parse(here.stdout.trimEnd().split('\n').at(-1)!) as SnapshotTimes[] : []
  return [...snapshotFigures('kvm', kvm), ...snapshotFigures('qemu', qemu)]
}

function snapshotFigures(engine: string, rounds: readonly SnapshotTimes[]): Figure[] {
  const at = (name: string): number => percentile(rounds.map((round) => round[name]!), 0.5)
  return Object.keys(rounds[0] ?? {}).filter((name) => name !== 'mib').map((name) => ({
    name: `machine.snapshot.${engine}.${name}`, value: at(name), unit: 'ms, p50', baseline: at('all'),
    baselineOf: `saved and gone on with, ${Math.round(at('mib'))} MiB of 128 in use` }))
}
