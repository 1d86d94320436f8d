// machine/devices.ts: a machine's virtio devices as the main thread has them.
//
// The devices themselves are in a thread of their own (device_thread.ts). Between here and there: eventfds, shared
// memory with registers and counters (virtio/windows.ts), and two pairs of sockets, for the console's bytes and the
// packets of vsock. Order of calls: start → (pause → save* → resume)* → close; start leaves the devices running. vCPUs
// are stopped before the devices are, and go on after them: a vCPU may be waiting for the device thread.

import { Socket } from 'node:net'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import type { Duplex } from 'node:stream'
import { CellarError, type ErrorCode } from '../base/errors.ts'
import { VIRTIO_CONSOLE_BYTES_MAX } from '../base/limits.ts'
import { vsockOver } from '../services/vsock/line.ts'
import type { Vsock } from '../services/vsock/vsock.ts'
import { makeEventFd, signalEventFd } from '../sys/eventfd.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { threadTimeNs } from '../sys/threads.ts'
import { BLK_QUEUES_MAX } from '../virtio/blk.ts'
import type { DeviceLimits } from '../virtio/bucket.ts'
import { failDevices, M_BALLOON_PAGES, M_COMMAND, M_CONSOLE_SIZE } from '../virtio/mailbox.ts'
import { COUNTERS_MAX, HEAD_WORDS, WINDOW_WORDS, windowsBytes, W_CONFIG, W_COUNTERS, W_IGNORED } from
  '../virtio/windows.ts'
import { COMMAND_BALLOON, COMMAND_CONSOLE_SIZE, COMMAND_LEAVE } from './device_loop.ts'
import type { DeviceMessage, DeviceOrder, DeviceStart } from './device_thread.ts'
import type { Sections } from './engine.ts'
import { deviceTable, type DeviceKind } from './layout.ts'
import type { MachineSpec } from './spec.ts'

/** The port of the host's endpoint that the guest's agent connects to. */
const AGENT_PORT = 1024
const PAGE_BYTES = 4096
const BALLOON_INDEX = 2
/** le32 actual of struct virtio_balloon_config. */
const BALLOON_ACTUAL_WORD = 1

/** Bytes of the shared memory that the vCPUs' windows and the devices live in. */
export function devicesBytes(spec: Pick<MachineSpec, 'nics' | 'disks'>): number {
  return windowsBytes(deviceTable(spec).length)
}

/** What the devices tell their owner. */
export type DevicesEvents = {
  /** Output of hvc0. The bytes are the owner's. */
  console(bytes: Uint8Array): void
  /** The guest's agent has connected. */
  agent(stream: Duplex): void
  /** The device thread has ended by a bug of ours: the machine can't go on. */
  failed(why: string): void
}

/** What devices are made with. `ram`: mapped by the owner for longer than this object lives (sys/guest_ram.ts). */
export type DevicesOptions = {
  readonly spec: MachineSpec
  readonly ram: { readonly address: bigint; readonly sizeBytes: number }
  /** devicesBytes(spec) of shared memory, all zero. */
  readonly shared: SharedArrayBuffer
  readonly events: DevicesEvents
  readonly limits?: { readonly nics?: readonly DeviceLimits[]; readonly disks?: readonly DeviceLimits[] } | undefined
}

// How many queues a device has: it must be known before its thread is there, as KVM is told of the eventfds.
function queuesOf(kind: DeviceKind, vcpus: number): number {
  if (kind === 'blk') return Math.min(vcpus, BLK_QUEUES_MAX)
  return { console: 2, rng: 1, balloon: 3, vsock: 3, net: 2 }[kind]
}

/** A machine's virtio devices. */
export class Devices {
  /** The eventfd that notifications of each queue are written to (KVM_IOEVENTFD: QueueNotify, 4 bytes, `queue`). */
  readonly kicks: readonly { readonly index: number; readonly queue: number; readonly fd: number }[]
  /** For each device the eventfd that raises its interrupt (KVM_IRQFD). */
  readonly interrupts: readonly { readonly index: number; readonly fd: number }[]
  /** The host's endpoint of the guest's sockets. */
  readonly vsock: Vsock
  readonly #options: DevicesOptions
  readonly #words: Int32Array
  readonly #counters: Float64Array
  readonly #marks: Uint8Array<SharedArrayBuffer>
  readonly #bell = makeEventFd()
  readonly #terminal: Socket
  readonly #packets: Socket
  readonly #fds: { readonly console: number; readonly vsock: number }
  #names: readonly (readonly string[])[] = []
  #worker: Worker | undefined
  #gone = Promise.resolve()
  #thread = 0
  #isRunning = false
  #isEnding = false
  #waiting: PromiseWithResolvers<DeviceMessage> | undefined
  #closed: Promise<void> | undefined

  constructor(options: DevicesOptions) {
    this.#options = options
    const { spec, ram, shared, events } = options
    this.#words = new Int32Array(shared)
    this.#marks = new Uint8Array(new SharedArrayBuffer(Math.ceil(ram.sizeBytes / PAGE_BYTES / 8)))
    this.#counters = new Float64Array(shared, 0, Math.floor(shared.byteLength / 8))
    const places = deviceTable(spec)
    this.kicks = places.flatMap(({ index, kind }) =>
      Array.from({ length: queuesOf(kind, spec.vcpus) }, (_, queue) => ({ index, queue, fd: makeEventFd() })))
    this.interrupts = places.map(({ index }) => ({ index, fd: makeEventFd() }))
    const [consoleHere, consoleThere] = socketPair()
    const [vsockHere, vsockThere] = socketPair()
    this.#fds = { console: consoleThere, vsock: vsockThere }
    this.#terminal = new Socket({ fd: consoleHere })
    this.#terminal.on('data', (bytes: Buffer) => events.console(bytes))
    this.#terminal.on('error', () => {})
    this.#packets = new Socket({ fd: vsockHere })
    this.vsock = vsockOver(this.#packets, spec.cid)
    this.vsock.listen(AGENT_PORT, (stream) => events.agent(stream))
  }

  /** Starts them, or goes on from a snapshot's sections. Rejects with CellarError for what can't be had. */
  async start(from?: Sections): Promise<void> {
    const { spec, ram, shared, limits } = this.#options
    const places = deviceTable(spec)
    const sections = from === undefined ? undefined : places.map(({ index }) => {
      const section = from.get(`virtio${index}`)
      if (section === undefined) throw new CellarError('SNAPSHOT_FOREIGN', ['it has fewer devices'])
      return section
    })
    if (from?.has(`virtio${places.length}`) === true) throw new CellarError('SNAPSHOT_FOREIGN', ['it has more devices'])
    const start: DeviceStart = {
      spec: { nics: spec.nics, disks: spec.disks, cid: spec.cid, vcpus: spec.vcpus }, ram, shared, bell: this.#bell,
      marks: this.#marks.buffer,
      kicks: places.map(({ index }) => this.kicks.filter((kick) => kick.index === index).map(({ fd }) => fd)),
      interrupts: this.interrupts.map(({ fd }) => fd),
      consoleFd: this.#fds.console, vsockFd: this.#fds.vsock,
      limits: { nics: limits?.nics ?? [], disks: limits?.disks ?? [] }, from: sections,
    }
    const worker = new Worker(new URL('./device_thread.ts', import.meta.url), { env: SHARE_ENV, workerData: start })
    this.#worker = worker
    this.#waiting = Promise.withResolvers()
    const gone = Promise.withResolvers<void>()
    this.#gone = gone.promise
    worker.on('message', (message: DeviceMessage) => {
      this.#waiting?.resolve(message)
      this.#waiting = undefined
    })
    worker.on('error', (error) => this.#fail((error as Error).message))
    worker.on('exit', () => {
      this.#thread = 0
      this.#fail('its device thread has ended')
      gone.resolve()
    })
    const message = await this.#waiting.promise
    if (message.kind === 'refused') {
      this.#isEnding = true
      throw new CellarError(message.code as ErrorCode, message.values as never)
    }
    if (message.kind !== 'ready') throw new Error(`The device thread begins with "${message.kind}"`)
    this.#thread = message.thread
    this.#names = message.counters
    this.resume()
  }

  #fail(why: string): void {
    if (this.#isEnding) return
    this.#isEnding = true
    failDevices(this.#words)
    this.#waiting?.reject(new Error(why))
    this.#options.events.failed(why)
  }

  #command(bit: number): void {
    Atomics.or(this.#words, M_COMMAND, bit)
    signalEventFd(this.#bell)
  }

  /** Gives an order, and resolves with the answer. */
  async #order(order: DeviceOrder): Promise<DeviceMessage> {
    this.#waiting = Promise.withResolvers()
    this.#worker!.postMessage(order)
    return this.#waiting.promise
  }

  /** Resolves when nothing of the devices is under way. The vCPUs have stopped before. */
  /** Output of hvc0 waits, or comes again. */
  holdConsole(isHeld: boolean): void {
    if (isHeld) this.#terminal.pause()
    else this.#terminal.resume()
  }

  /** While paused: which pages of RAM they have written since the last call, as bits. */
  takeMarks(): Uint8Array {
    const marks = Uint8Array.from(this.#marks)
    this.#marks.fill(0)
    return marks
  }

  async pause(): Promise<void> {
    if (!this.#isRunning) return
    this.#isRunning = false
    this.#waiting = Promise.withResolvers()
    const left = this.#waiting.promise
    this.#command(COMMAND_LEAVE)
    await left
  }

  resume(): void {
    if (this.#isRunning) return
    this.#isRunning = true
    this.#worker!.postMessage('run' satisfies DeviceOrder)
  }

  /** While paused: a section for each device. */
  async save(): Promise<Sections> {
    const message = await this.#order('save')
    if (message.kind !== 'saved') throw new Error(`The device thread answers "${message.kind}"`)
    return new Map(message.sections.map((bytes, i) => [`virtio${i}`, bytes]))
  }

  /** Asks the guest to leave `bytes` of its RAM. */
  setBalloon(bytes: number): void {
    Atomics.store(this.#words, M_BALLOON_PAGES, Math.min(Math.floor(bytes / PAGE_BYTES), 0x7fff_ffff))
    this.#command(COMMAND_BALLOON)
  }

  /** Input for hvc0. Returns how many bytes were taken. */
  input(bytes: Uint8Array): number {
    const room = Math.max(0, VIRTIO_CONSOLE_BYTES_MAX - this.#terminal.writableLength)
    const taken = bytes.subarray(0, room)
    if (taken.length > 0) this.#terminal.write(Buffer.from(taken))
    return taken.length
  }

  resizeConsole(columns: number, rows: number): void {
    Atomics.store(this.#words, M_CONSOLE_SIZE, (columns & 0xffff) | (rows & 0xffff) << 16)
    this.#command(COMMAND_CONSOLE_SIZE)
  }

  /** Counters of each device; what the balloon has; nanoseconds that the device thread has used. */
  figures(): { devices: Record<string, Record<string, number>>; balloonBytes: number; deviceNs: number } {
    const devices: Record<string, Record<string, number>> = {}
    this.#names.forEach(([name, ...counters], index) => {
      const base = HEAD_WORDS + index * WINDOW_WORDS
      const from = (base + W_COUNTERS) / 2
      const figures: Record<string, number> = {}
      counters.forEach((counter, i) => { figures[counter] = this.#counters[from + i]! })
      figures['ignoredAccesses'] = this.#words[base + W_IGNORED]! >>> 0
      figures['faults'] = this.#counters[from + COUNTERS_MAX - 1]!
      devices[name!] = figures
    })
    const actual = this.#words[HEAD_WORDS + BALLOON_INDEX * WINDOW_WORDS + W_CONFIG + BALLOON_ACTUAL_WORD]! >>> 0
    return {
      devices, balloonBytes: Math.min(actual * PAGE_BYTES, this.#options.ram.sizeBytes),
      deviceNs: this.#thread === 0 ? 0 : Math.max(0, threadTimeNs(this.#thread)),
    }
  }

  /** Ends them, in whatever state they are. Their descriptors, those of the network cards too, are closed then. */
  close(): Promise<void> {
    return this.#closed ??= this.#close()
  }

  async #close(): Promise<void> {
    const worker = this.#worker
    if (worker !== undefined && !this.#isEnding) {
      await this.pause()
      this.#isEnding = true
      worker.postMessage('end' satisfies DeviceOrder)
    }
    this.#isEnding = true
    // A vCPU that waits still does so for nobody.
    failDevices(this.#words)
    await this.#gone
    this.#terminal.destroy()
    this.#packets.destroy()
    for (const { fd } of [...this.kicks, ...this.interrupts]) closeFd(fd)
    for (const fd of [this.#bell, this.#fds.console, this.#fds.vsock]) closeFd(fd)
    for (const { fd } of this.#options.spec.nics) closeFd(fd)
  }
}
