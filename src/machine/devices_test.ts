// machine/devices_test.ts: the device thread as a machine has it: windows, eventfds, sockets, pause, save and restore.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, test } from 'node:test'
import type { Duplex } from 'node:stream'
import { Worker } from 'node:worker_threads'
import { clearEventFd, signalEventFd } from '../sys/eventfd.ts'
import { makeRam, mapRam, unmapRam, type Mapped } from '../sys/guest_ram.ts'
import { isSupported } from '../sys/libc.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { Ring } from '../virtio/test_support.ts'
import { Windows } from '../virtio/windows.ts'
import { Devices, devicesBytes, type DevicesEvents } from './devices.ts'
import type { Sections } from './engine.ts'
import type { MachineSpec } from './spec.ts'

const skip = isSupported() ? false : 'no FFI here'
const RAM_BYTES = 4 * 1024 * 1024
const [CONSOLE, RNG, BALLOON, VSOCK, NET, BLK] = [0, 1, 2, 3, 4, 5]
const DATA = 0x1000

// A machine without vCPUs: this thread does what they would do.
class Bench {
  readonly spec: MachineSpec
  readonly peer: number
  readonly ramFd = makeRam(RAM_BYTES)
  readonly ram: Mapped
  readonly view: DataView
  readonly shared: SharedArrayBuffer
  readonly devices: Devices
  readonly windows: Windows
  readonly rings = new Map<string, Ring>()
  readonly output: Uint8Array[] = []
  readonly failures: string[] = []
  readonly agents: Duplex[] = []

  constructor(path: string, events: Partial<DevicesEvents> = {}) {
    const [peer, nic] = socketPair()
    this.peer = peer
    this.spec = {
      name: 'bench', vcpus: 2, memoryBytes: RAM_BYTES, boot: undefined, cid: 7, generation: '00'.repeat(16),
      disks: [{ path, format: 'raw', readOnly: false, serial: 'a', backingFolders: [] }],
      nics: [{ mac: '02:00:00:00:00:01', fd: nic, kind: 'stream', mtu: 1500 }],
    }
    this.ram = mapRam(this.ramFd, RAM_BYTES, false)
    this.view = new DataView(this.ram.bytes.buffer, this.ram.bytes.byteOffset, RAM_BYTES)
    this.shared = new SharedArrayBuffer(devicesBytes(this.spec))
    this.devices = new Devices({
      spec: this.spec, ram: { address: this.ram.address, sizeBytes: RAM_BYTES }, shared: this.shared,
      events: {
        console: (bytes) => this.output.push(bytes), agent: (stream) => this.agents.push(stream.on('error', () => {})),
        failed: (why) => this.failures.push(why), ...events,
      },
    })
    this.windows = new Windows(this.shared)
    open.add(this)
  }

  write(index: number, offset: number, value: number): void { this.windows.write(index, offset, 4, value) }
  read(index: number, offset: number): number { return this.windows.read(index, offset, 4) }

  // Brings device `index` up with `queues` rings.
  up(index: number, queues: number): void {
    for (const status of [0, 1, 3]) this.write(index, 0x70, status)
    for (const word of [0, 1]) {
      this.write(index, 0x14, word)
      this.write(index, 0x24, word)
      // Without EVENT_IDX, so that each answer is an interrupt.
      this.write(index, 0x20, (this.read(index, 0x10) & ~(word === 0 ? 1 << 29 : 0)) >>> 0)
    }
    this.write(index, 0x70, 0xb)
    for (let queue = 0; queue < queues; queue++) {
      const ring = new Ring(this.view, index * 4 + queue, 16)
      this.rings.set(`${index}.${queue}`, ring)
      this.write(index, 0x30, queue)
      for (const [offset, value] of [[0x38, 16], [0x80, ring.desc], [0x90, ring.avail], [0xa0, ring.used], [0x44, 1]]) {
        this.write(index, offset!, value!)
      }
    }
    this.write(index, 0x70, 0xf)
    assert.equal(this.read(index, 0x70), 0xf)
  }

  ring(index: number, queue: number): Ring { return this.rings.get(`${index}.${queue}`)! }

  // Makes a chain available, notifies as KVM would, and waits for the interrupt.
  async request(index: number, queue: number, parts: Parameters<Ring['add']>[0]): Promise<number> {
    const ring = this.ring(index, queue)
    ring.add(parts)
    signalEventFd(this.devices.kicks.find((kick) => kick.index === index && kick.queue === queue)!.fd)
    await this.interrupt(index)
    return ring.taken()[0]!.written
  }

  async interrupt(index: number): Promise<void> {
    const { fd } = this.devices.interrupts[index]!
    await until(() => clearEventFd(fd), `an interrupt of device ${index}`)
    this.write(index, 0x64, 3)
  }

  async close(): Promise<void> {
    if (!open.delete(this)) return
    await this.devices.close()
    unmapRam(this.ram)
    closeFd(this.ramFd)
    closeFd(this.peer)
  }
}

// What a test that fails leaves behind.
const open = new Set<Bench>()
afterEach(async () => {
  for (const bench of open) await bench.close()
})

async function until(isTrue: () => boolean, what: string): Promise<void> {
  for (const begun = performance.now(); !isTrue();) {
    assert.ok(performance.now() - begun < 10_000, `${what} comes`)
    await new Promise((resolve) => { setTimeout(resolve, 1) })
  }
}

async function withDisk(use: (path: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-devices-'))
  try {
    const path = join(folder, 'disk.raw')
    writeFileSync(path, new Uint8Array(64 * 512).fill(0x42))
    await use(path)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function diskRequest(bench: Bench, type: number, sector: number): Promise<number> {
  bench.view.setUint32(0x100, type, true)
  bench.view.setBigUint64(0x108, BigInt(sector), true)
  return bench.request(BLK, 0, [{ at: 0x100, length: 16 }, { at: DATA, length: 512, isWritable: type === 0 },
    { at: 0x200, length: 1, isWritable: true }])
}

test('the device thread serves each device by its eventfds, and counts', { skip }, () => withDisk(async (path) => {
  const bench = new Bench(path)
  await bench.devices.start()
  assert.equal(bench.read(BLK, 8), 2)
  bench.up(RNG, 1)
  assert.equal(await bench.request(RNG, 0, [{ at: DATA, length: 100, isWritable: true }]), 100)
  assert.ok(bench.ram.bytes.subarray(DATA, DATA + 100).some((byte) => byte !== 0))

  bench.up(BLK, 2)
  assert.equal(await diskRequest(bench, 0, 1), 513)
  assert.equal(bench.ram.bytes[DATA + 511], 0x42)
  bench.ram.bytes.fill(0x43, DATA, DATA + 512)
  assert.equal(await diskRequest(bench, 1, 2), 1)
  assert.equal(readFileSync(path)[1024], 0x43)

  bench.up(CONSOLE, 2)
  bench.ram.bytes.set(Buffer.from('to hvc0'), DATA)
  await bench.request(CONSOLE, 1, [{ at: DATA, length: 7 }])
  await until(() => bench.output.length > 0, 'output')
  assert.equal(Buffer.concat(bench.output).toString(), 'to hvc0')
  assert.equal(bench.devices.input(Buffer.from('typed')), 5)
  assert.equal(await bench.request(CONSOLE, 0, [{ at: DATA, length: 64, isWritable: true }]), 5)

  bench.up(BALLOON, 3)
  bench.devices.setBalloon(16 * 4096)
  await bench.interrupt(BALLOON)
  assert.equal(bench.read(BALLOON, 0x100), 16)
  bench.ram.bytes.fill(1, 0x30_0000, 0x30_1000)
  bench.view.setUint32(DATA, 0x300, true)
  await bench.request(BALLOON, 0, [{ at: DATA, length: 4 }])
  bench.write(BALLOON, 0x104, 1)
  assert.equal(bench.ram.bytes[0x30_0000], 0)

  const { devices, balloonBytes, deviceNs } = bench.devices.figures()
  assert.deepEqual(devices['rng0'], { requests: 1, bytes: 100, ignoredAccesses: 0, faults: 0 })
  assert.equal(devices['blk0']!['writtenBytes'], 512)
  assert.equal(balloonBytes, 4096)
  assert.ok(deviceNs > 0)
  assert.deepEqual(bench.failures, [])
  await bench.close()
}))

test('the guest\'s agent reaches the owner over vsock', { skip }, () => withDisk(async (path) => {
  const bench = new Bench(path)
  await bench.devices.start()
  bench.up(VSOCK, 3)
  bench.ring(VSOCK, 0).add([{ at: DATA + 0x1000, length: 4096, isWritable: true }])
  signalEventFd(bench.devices.kicks.find((kick) => kick.index === VSOCK && kick.queue === 0)!.fd)
  bench.view.setBigUint64(DATA, 7n, true)
  bench.view.setBigUint64(DATA + 8, 2n, true)
  bench.view.setUint32(DATA + 16, 5000, true)
  bench.view.setUint32(DATA + 20, 1024, true)
  bench.view.setUint32(DATA + 24, 0, true)
  bench.view.setUint16(DATA + 28, 1, true)
  bench.view.setUint16(DATA + 30, 1, true)
  await bench.request(VSOCK, 1, [{ at: DATA, length: 44 }])
  await until(() => bench.ring(VSOCK, 0).usedIndex === 1, 'an answer')
  assert.equal(bench.view.getUint16(DATA + 0x1000 + 30, true), 2, 'VIRTIO_VSOCK_OP_RESPONSE')
  assert.equal(bench.agents.length, 1)
  await bench.close()
}))

test('paused devices do nothing, and go on where they were', { skip }, () => withDisk(async (path) => {
  const bench = new Bench(path)
  await bench.devices.start()
  bench.up(RNG, 1)
  await bench.devices.pause()
  await bench.devices.pause()
  bench.ring(RNG, 0).add([{ at: DATA, length: 8, isWritable: true }])
  signalEventFd(bench.devices.kicks.find(({ index }) => index === RNG)!.fd)
  await new Promise((resolve) => { setTimeout(resolve, 30) })
  assert.equal(bench.ring(RNG, 0).usedIndex, 0)
  const first = await bench.devices.save()
  assert.deepEqual(await bench.devices.save(), first)
  bench.devices.resume()
  await bench.interrupt(RNG)
  assert.equal(bench.ring(RNG, 0).usedIndex, 1)
  await bench.close()
}))

test('a restored machine serves what its driver had made available', { skip }, () => withDisk(async (path) => {
  const first = new Bench(path)
  await first.devices.start()
  first.up(NET, 2)
  first.up(RNG, 1)
  await first.devices.pause()
  first.ring(RNG, 0).add([{ at: DATA, length: 8, isWritable: true }])
  const sections: Sections = await first.devices.save()
  assert.deepEqual([...sections.keys()], ['virtio0', 'virtio1', 'virtio2', 'virtio3', 'virtio4', 'virtio5'])
  const memory = first.ram.bytes.slice()
  await first.close()

  const second = new Bench(path)
  second.ram.bytes.set(memory)
  await second.devices.start(sections)
  await second.interrupt(RNG)
  assert.equal(second.read(NET, 0x70), 0xf)
  await second.close()

  const third = new Bench(path)
  const damaged = new Map([...sections, ['virtio1', sections.get('virtio1')!.subarray(0, 20)]])
  await assert.rejects(third.devices.start(damaged), { code: 'SNAPSHOT_DAMAGED' })
  await third.close()
  const fourth = new Bench(path)
  const fewer = new Map([['virtio0', sections.get('virtio0')!]])
  await assert.rejects(fourth.devices.start(fewer), { code: 'SNAPSHOT_FOREIGN' })
  await fourth.close()
}))

test('a disk that can\'t be opened refuses the start, and everything is closed', { skip }, async () => {
  const bench = new Bench('/nonexistent/disk.raw')
  await assert.rejects(bench.devices.start(), (error: Error & { code?: string }) => error.code!.startsWith('DISK_'))
  assert.deepEqual(bench.failures, [])
  await bench.close()
})

// A vCPU's thread: writes that the device thread must answer, and after each a look at whether it did.
const WRITER = `
  const { workerData, parentPort } = require('node:worker_threads')
  import(workerData.windows).then(({ Windows }) => {
    const windows = new Windows(workerData.shared)
    let wrong = 0
    for (let i = 0; i < 3000; i++) {
      windows.write(workerData.index, 0x70, 4, i % 2)
      if (windows.read(workerData.index, 0x70, 4) !== i % 2) wrong++
    }
    parentPort.postMessage(wrong)
  })`

test('vCPUs that write registers at the same time are all answered, each before it goes on', { skip }, () =>
  withDisk(async (path) => {
    const bench = new Bench(path)
    await bench.devices.start()
    const windows = new URL('../virtio/windows.ts', import.meta.url).href
    const answers = await Promise.all([RNG, NET, BLK].map(async (index) => {
      const worker = new Worker(WRITER, { eval: true, workerData: { shared: bench.shared, index, windows } })
      const [wrong] = await once(worker, 'message') as [number]
      await once(worker, 'exit')
      return wrong
    }))
    assert.deepEqual(answers, [0, 0, 0])
    await bench.close()
  }))

test('devices that have nothing to do use no processor time, whatever they wait for', { skip }, () =>
  withDisk(async (path) => {
    const bench = new Bench(path)
    await bench.devices.start()
    for (const [index, queues] of [[CONSOLE, 2], [RNG, 1], [BALLOON, 3], [VSOCK, 3], [NET, 2], [BLK, 2]]) {
      bench.up(index!, queues!)
      bench.ring(index!, 0).add([{ at: DATA, length: 2000, isWritable: true }])
      if (index !== BALLOON && index !== BLK) {
        signalEventFd(bench.devices.kicks.find((kick) => kick.index === index)!.fd)
      }
    }
    await new Promise((resolve) => { setTimeout(resolve, 100) })
    const before = bench.devices.figures().deviceNs
    await new Promise((resolve) => { setTimeout(resolve, 300) })
    const usedMs = (bench.devices.figures().deviceNs - before) / 1e6
    assert.ok(usedMs < 30, `${usedMs} ms in 300 ms`)
    await bench.close()
  }))

test('a register\'s write fails at once when the device thread has ended', { skip }, () =>
  withDisk(async (path) => {
    const bench = new Bench(path)
    await bench.devices.start()
    bench.write(RNG, 0x70, 1)
    await bench.devices.close()
    const begun = performance.now()
    assert.throws(() => bench.write(RNG, 0x70, 3), /device thread of the machine has ended/)
    assert.ok(performance.now() - begun < 1000)
    assert.equal(bench.read(RNG, 0x70), 1, 'reads need nobody')
    assert.deepEqual(bench.failures, [])
  }))

test('devices that were never started are closed all the same', { skip }, async () => {
  const bench = new Bench('/nonexistent/disk.raw')
  await bench.close()
})
