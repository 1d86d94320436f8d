// bench/machine_place.ts: what bench/machine.ts measures where KVM is: the same guest under our VMM and under QEMU.
//
//   node machine_place.ts boot|devices|memory '{"tools":…}'      an answer as the last line, in JSON
// QEMU is started as the issue of a small machine has it: `-M microvm` with ACPI, as Debian's kernel finds virtio-mmio
// devices in no other way, the processor of the host, and nothing else that the guest doesn't use.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { addressesOf } from '../src/services/gateway/addresses.ts'
import type { VmmMessage, VmmRequest } from './machine_vmm.ts'

/** Paths of what machine_made.ts has made. */
export type Tools = {
  readonly kernel: string; readonly initrd: string; readonly guest: string; readonly vmm: string
  readonly snapshot: string
}
export type Side = 'ours' | 'qemu'
/** What is asked for: how often, in turns. */
export type PlaceRequest = { readonly tools: Tools; readonly rounds: number; readonly words?: string }

/** One guest. Milliseconds, bytes; results by name: how many, in how many nanoseconds. */
export type Measured = {
  readonly side: Side; readonly bootMs: number; readonly runMs: number | undefined
  readonly exits: Readonly<Record<string, number>>; readonly kernelExits: Readonly<Record<string, number>>
  readonly vmmBytes: number; readonly privateBytes: number
  readonly results: Readonly<Record<string, { readonly count: number; readonly ns: number }>>
  /** The guest's time for what it did after its first result, as a part of this host's time for all of that. */
  readonly clock: number
}

const UP = 'the guest is up'
const MEMORY_MIB = 256
const DISK_BYTES = 256 * 2 ** 20
const GUEST_MS_MAX = 120_000
const PORT = 7000
const COMMAND_LINE = 'console=ttyS0 quiet panic=-1 reboot=t'
/** Figures of KVM itself that say why a guest was left. */
const KVM_COUNTERS = ['exits', 'io_exits', 'mmio_exits', 'halt_exits', 'irq_exits', 'request_irq_exits']
/** The guest's cards: at the gateway, as machine_vmm.ts has it, and at a TAP device. */
const GATEWAY_MAC = addressesOf(77, 1).mac
const TAP = 'cellarbench'
const TAP_MAC = '02:00:00:00:00:aa'
const folder = join(tmpdir(), `cellar-machine-${process.pid}`)

const RESULT = /^@([\w-]+) (\d+) (\d+)\r?\n/gm

/** A guest that runs, by its console. */
class Running {
  readonly child: ChildProcess
  readonly begun = performance.now()
  runsAt: number | undefined
  exits: Readonly<Record<string, number>> = {}
  text = ''
  /** When each result came. */
  readonly resultsAt: number[] = []
  #heard: () => void = () => {}

  constructor(file: string, args: readonly string[], hasLine: boolean) {
    this.child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit', ...(hasLine ? ['ipc' as const] : [])] })
    this.child.stdout!.on('data', (bytes: Buffer) => {
      this.text += bytes.toString('latin1')
      const results = this.text.match(RESULT)?.length ?? 0
      while (this.resultsAt.length < results) this.resultsAt.push(performance.now())
      this.#heard()
    })
    this.child.on('message', (message: VmmMessage) => {
      if ('runs' in message) this.runsAt = message.runs - performance.timeOrigin
      else this.exits = message.exits
      this.#heard()
    })
    this.child.on('exit', () => this.#heard())
  }

  /** When it came to that, in milliseconds of this process. */
  async until(is: () => boolean, what: string): Promise<number> {
    const late = performance.now() + GUEST_MS_MAX
    while (!is()) {
      if (this.child.exitCode !== null || performance.now() > late) {
        throw new Error(`${this.child.spawnfile}: no ${what}: ${this.text.slice(-2000)}`)
      }
      await Promise.race([new Promise<void>((resolve) => { this.#heard = resolve }), sleep(1000)])
    }
    return performance.now()
  }

  async end(): Promise<void> {
    const gone = new Promise((resolve) => { this.child.once('close', resolve) })
    this.child.kill('SIGKILL')
    await gone
  }
}

function startOurs(tools: Tools, request: VmmRequest): Running {
  return new Running(process.execPath, ['--disable-warning=ExperimentalWarning', '--disable-sigusr1',
    '--max-inlined-bytecode-size-cumulative=2500', tools.vmm, JSON.stringify(request)], true)
}

function startQemu({ kernel, initrd }: Tools, commandLine: string, devices: readonly string[]): Running {
  return new Running('qemu-system-x86_64', ['-M', 'microvm,acpi=on,rtc=off,pit=off,pic=off', '-accel', 'kvm',
    '-cpu', 'host', '-m', String(MEMORY_MIB), '-smp', '1', '-nodefaults', '-no-user-config', '-display', 'none',
    '-serial', 'stdio', '-kernel', kernel, '-initrd', initrd, '-append', commandLine, ...devices], false)
}

/** What a process has in memory beside the guest's RAM, which is the largest mapping of at least that size. */
function memoryOf(pid: number, ramBytes: number): { vmmBytes: number; privateBytes: number } {
  let [resident, ownBytes, ram] = [0, 0, { size: 0, resident: 0, own: 0 }]
  for (const part of readFileSync(`/proc/${pid}/smaps`, 'latin1').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)) {
    const of = (name: string): number => Number(new RegExp(`^${name}: +(\\d+) kB`, 'm').exec(part)?.[1] ?? 0) * 1024
    const own = of('Private_Clean') + of('Private_Dirty')
    resident += of('Rss')
    ownBytes += own
    if (of('Size') >= ramBytes && of('Rss') > ram.resident) ram = { size: of('Size'), resident: of('Rss'), own }
  }
  return { vmmBytes: resident - ram.resident, privateBytes: ownBytes - ram.own }
}

function kernelExits(pid: number): Record<string, number> {
  const root = '/sys/kernel/debug/kvm'
  const name = existsSync(root) ? readdirSync(root).find((one) => one.startsWith(`${pid}-`)) : undefined
  return name === undefined ? {} : Object.fromEntries(KVM_COUNTERS.map((counter) =>
    [counter, Number(readFileSync(join(root, name, counter), 'latin1'))]))
}

async function measured(side: Side, running: Running): Promise<Measured> {
  const upAt = await running.until(() => running.text.includes(UP), 'boot')
  const kernel = kernelExits(running.child.pid!)
  if (side === 'ours') {
    running.child.send({})
    await running.until(() => Object.keys(running.exits).length > 0, 'figures')
  }
  await running.until(() => running.text.includes('@done'), 'end')
  await sleep(300)
  const results = Object.fromEntries([...running.text.matchAll(RESULT)].map(([, name, count, ns]) =>
    [name!, { count: Number(count), ns: Number(ns) }]))
  const ns = [...running.text.matchAll(RESULT)].slice(1).reduce((sum, [, , , one]) => sum + Number(one), 0)
  const clock = ns / 1e6 / (running.resultsAt.at(-1)! - running.resultsAt[0]!)
  const memory = memoryOf(running.child.pid!, MEMORY_MIB * 2 ** 20)
  await running.end()
  return { side, bootMs: upAt - running.begun, runMs: running.runsAt === undefined ? undefined : upAt - running.runsAt,
    exits: running.exits, kernelExits: kernel, ...memory, results, clock }
}

function oursOf(request: VmmRequest, { tools, words = '' }: PlaceRequest): VmmRequest {
  const { kernel, initrd } = tools
  return { kernel, initrd, commandLine: `${COMMAND_LINE} ${words}`, memoryBytes: MEMORY_MIB * 2 ** 20, ...request }
}

/** Boots, by turns; or memory, with what `words` says. */
async function boots(request: PlaceRequest, sides: readonly Side[]): Promise<Measured[]> {
  const found: Measured[] = []
  for (let round = 0; round < request.rounds; round++) {
    for (const side of sides) {
      const running = side === 'ours' ? startOurs(request.tools, oursOf({}, request))
        : startQemu(request.tools, `${COMMAND_LINE} ${request.words ?? ''}`, [])
      found.push(await measured(side, running))
    }
  }
  return found
}

function shell(lines: string): void {
  const { status, stderr } = spawnSync('sh', ['-c', lines], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`the TAP device: ${stderr}`)
}

async function devices(request: PlaceRequest): Promise<Measured[]> {
  const { tools } = request
  const disk = join(folder, 'disk')
  // Written, so that it is in the page cache: what is measured is not this machine's disk.
  writeFileSync(disk, new Uint8Array(DISK_BYTES).fill(7))
  const server = spawn(tools.guest, ['serve', String(PORT)], { stdio: 'ignore' })
  const socket = join(folder, 'nic')
  const gateway = startOurs(tools, { gateway: socket })
  const found: Measured[] = []
  shell(`ip tuntap add dev ${TAP} mode tap 2>/dev/null || tunctl -t ${TAP}
    ip addr add 10.99.1.1/24 dev ${TAP} && ip link set ${TAP} up`)
  try {
    await gateway.until(() => gateway.runsAt !== undefined, 'gateway')
    for (let round = 0; round < request.rounds; round++) {
      for (const side of ['ours', 'qemu'] as const) {
        const running = side === 'ours'
          ? startOurs(tools, oursOf({ disk, tap: { name: TAP, mac: TAP_MAC }, gateway: '' }, request))
          : startQemu(tools, `${COMMAND_LINE} ${request.words ?? ''}`, [
            '-drive', `if=none,id=disk,file=${disk},format=raw,cache=writeback`,
            '-device', 'virtio-blk-device,drive=disk',
            '-netdev', `stream,id=gateway,server=off,addr.type=unix,addr.path=${socket}`,
            '-device', `virtio-net-device,netdev=gateway,mac=${GATEWAY_MAC}`,
            '-netdev', `tap,id=tap,ifname=${TAP},script=no,downscript=no,vhost=off`,
            '-device', `virtio-net-device,netdev=tap,mac=${TAP_MAC}`])
        found.push(await measured(side, running))
      }
    }
  } finally {
    server.kill()
    await gateway.end()
    shell(`ip link del ${TAP} 2>/dev/null || tunctl -d ${TAP}`)
  }
  return found
}

async function main([what = '', json = '']: readonly string[]): Promise<void> {
  const request = JSON.parse(json) as PlaceRequest
  spawnSync('mount', ['-t', 'debugfs', 'debugfs', '/sys/kernel/debug'])
  mkdirSync(folder)
  try {
    const found = what === 'devices' ? await devices(request)
      : await boots(request, what === 'boot' ? ['ours', 'qemu'] : ['ours'])
    process.stdout.write(`${JSON.stringify(found)}\n`)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

if (import.meta.main) await main(process.argv.slice(2))
