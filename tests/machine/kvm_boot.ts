// tests/machine/kvm_boot.ts: boots a machine under our VMM by hand: its console here, its exits at the end.
//
//   node tests/machine/kvm_boot.ts KERNEL [INITRD] [--append LINE] [--cpus N] [--memory MIB] [--disk FILE]…
//     [--timeout SECONDS] [--snapshot-after SECONDS] [--power-after SECONDS]
// With --snapshot-after the machine is paused then, saved, closed, and goes on from what was saved.

import { closeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { KvmEngine } from '../../src/machine/kvm_engine.ts'
import { makeRam } from '../../src/sys/guest_ram.ts'

import type { EngineOptions, MachineEnd } from '../../src/machine/engine.ts'
import type { MachineSpec } from '../../src/machine/spec.ts'

const MIB = 1024 * 1024

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    append: { type: 'string', default: 'console=ttyS0 panic=-1 quiet' }, cpus: { type: 'string', default: '1' },
    memory: { type: 'string', default: '256' }, disk: { type: 'string', multiple: true, default: [] },
    timeout: { type: 'string', default: '120' }, 'snapshot-after': { type: 'string' },
    'power-after': { type: 'string' },
  },
})
const [kernel, initrd] = positionals
const spec: MachineSpec = {
  name: 'boot', vcpus: Number(values.cpus), memoryBytes: Number(values.memory) * MIB, cid: 3,
  boot: { kernel: kernel!, initrd, commandLine: values.append }, nics: [], generation: '0123456789abcdef'.repeat(2),
  disks: values.disk.map((path, i) => ({
    path, format: path.endsWith('.qcow2') ? 'qcow2' as const : 'raw' as const, readOnly: false, serial: `disk${i}`,
    backingFolders: [],
  })),
}

const began = performance.now()
const ended = Promise.withResolvers<MachineEnd>()
const options: EngineOptions = {
  spec, ramFd: makeRam(spec.memoryBytes), isRamPrivate: false,
  events: {
    console: (bytes) => void process.stdout.write(bytes), ended: (end) => ended.resolve(end), agent: () => {},
    say: (text) => note(text),
  },
}
let engine = new KvmEngine(options)
await engine.start()
note('runs')
if (values['snapshot-after'] !== undefined) {
  await sleep(Number(values['snapshot-after']) * 1000)
  const from = await timed('pause', () => engine.pause()).then(() => timed('save', () => engine.save()))
  await engine.close()
  engine = new KvmEngine({ ...options, from })
  await timed('restore', () => engine.start())
}
if (values['power-after'] !== undefined) {
  setTimeout(() => engine.powerButton(), Number(values['power-after']) * 1000).unref()
}
const end = await Promise.race([ended.promise, sleep(Number(values.timeout) * 1000, 'time is over', { ref: false })])
note(`end ${JSON.stringify(end)}`)
await timed('pause', () => engine.pause())
note(JSON.stringify(await engine.figures(), undefined, 1))
await timed('close', () => engine.close())
closeSync(options.ramFd)

async function timed<T>(what: string, work: () => Promise<T>): Promise<T> {
  const start = performance.now()
  const result = await work()
  note(`${what}: ${(performance.now() - start).toFixed(1)} ms`)
  return result
}

function note(text: string): void {
  process.stderr.write(`[${(performance.now() - began).toFixed(0)} ms] ${text}\n`)
}
