// virtio/port.ts: the device's side of a register window: status, features, queues, interrupts (Virtio 1.3 §2, §3.1).
//
// What every device has in common is here; what one does with its requests is in a file of its own (blk.ts, net.ts, …).
// The status only moves along NEXT, one bit at a time: a driver that jumps, or takes a bit back, is ignored and
// counted. Features are looked at once, when FEATURES_OK is written, and are fixed from then on; queues begin after
// that, and are served after DRIVER_OK. A GuestFault of a queue or a device leads to DEVICE_NEEDS_RESET: nothing is
// served until the driver has written 0 to the status, which puts everything back as it was at the start.
//
// Used by the device thread alone; vCPUs see its words (windows.ts).

import { assert } from '../base/assert.ts'
import { CellarError } from '../base/errors.ts'
import { GuestFault } from '../services/guest_memory.ts'
import type { GuestRam } from '../services/guest_ram.ts'
import type { Device, DeviceType } from './device.ts'
import { Queue } from './queue.ts'
import { SectionReader, SectionWriter } from './section.ts'
import {
  CONFIG_BYTES_MAX, COUNTERS_MAX, HEAD_WORDS, Q_DESC, Q_DEVICE, Q_DRIVER, Q_KICK_FD, Q_MAX, Q_READY, Q_SIZE, QUEUES_MAX,
  QUEUE_WORDS, R_CONFIG, R_QUEUE_READY, R_QUEUE_RESET, R_STATUS, S_DRIVER, S_FEATURES_OK, WINDOW_WORDS, W_CONFIG,
  W_CONFIG_BYTES, W_COUNTERS, W_DEVICE_ID, W_DRIVER_FEATURES, W_DRIVER_FEATURES_SEL, W_FEATURES, W_FEATURES_SEL,
  W_GENERATION, W_IGNORED, W_INTERRUPT, W_QUEUE, W_QUEUES, W_QUEUE_SEL, W_STATUS,
} from './windows.ts'

const S_ACKNOWLEDGE = 1
const S_DRIVER_OK = 4
const S_NEEDS_RESET = 64
const S_FAILED = 128

// §3.1.1: the status so far → the only bit that may come next (beside FAILED, which may come at any time).
const NEXT: Readonly<Record<number, number>> = {
  0: S_ACKNOWLEDGE,
  [S_ACKNOWLEDGE]: S_DRIVER,
  [S_ACKNOWLEDGE | S_DRIVER]: S_FEATURES_OK,
  [S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK]: S_DRIVER_OK,
}
const RUNNING = S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK

/** Feature bits that belong to the rings and the transport: every device has them. */
const F_INDIRECT_DESC = 28
const F_EVENT_IDX = 29
const F_VERSION_1 = 32
const F_RING_RESET = 40
const COMMON = [F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1, F_RING_RESET]

const I_QUEUE = 1
const I_CONFIG = 2

const SECTION_VERSION = 1

/** A device's register window as the device has it. */
export class Port {
  readonly device: Device
  readonly ram: GuestRam
  readonly queues: readonly Queue[]
  readonly #words: Int32Array
  readonly #bytes: Uint8Array
  readonly #counters: Float64Array
  readonly #base: number
  readonly #signal: () => void
  #features = new Uint32Array(2)
  /** Queues to be served again, as bits. */
  pending = 0

  /** `signal` raises the interrupt; `kicks` are the eventfds of the queues, if there are any. */
  constructor(o: {
    shared: SharedArrayBuffer; index: number; ram: GuestRam; device: Device; signal: () => void
    kicks?: readonly number[]
  }) {
    const { type } = o.device
    assert(type.queues.length <= QUEUES_MAX && type.config.length <= CONFIG_BYTES_MAX, 'a window has room', type.name)
    assert(type.counters.length < COUNTERS_MAX, 'a window has room for counters', type.counters.length)
    this.device = o.device
    this.ram = o.ram
    this.#words = new Int32Array(o.shared)
    this.#base = HEAD_WORDS + o.index * WINDOW_WORDS
    this.#bytes = new Uint8Array(o.shared, 4 * (this.#base + W_CONFIG), CONFIG_BYTES_MAX)
    this.#counters = new Float64Array(o.shared, 4 * (this.#base + W_COUNTERS), COUNTERS_MAX)
    this.#signal = o.signal
    this.queues = type.queues.map((size) => new Queue(o.ram, size))
    this.#describe(type, o.kicks ?? [])
    o.device.attach(this)
  }

  // Fills the words that say what the device is.
  #describe(type: DeviceType, kicks: readonly number[]): void {
    const words = this.#words
    words[this.#base + W_DEVICE_ID] = type.id
    for (const bit of [...COMMON, ...type.features]) words[this.#base + W_FEATURES + (bit >>> 5)]! |= 1 << (bit & 31)
    words[this.#base + W_QUEUES] = type.queues.length
    words[this.#base + W_CONFIG_BYTES] = type.config.length
    this.#bytes.set(type.config)
    type.queues.forEach((size, i) => {
      words[this.#queue(i) + Q_MAX] = size
      words[this.#queue(i) + Q_KICK_FD] = kicks[i] ?? -1
    })
  }

  #queue(queue: number): number { return this.#base + W_QUEUE + queue * QUEUE_WORDS }
  get #status(): number { return this.#words[this.#base + W_STATUS]! }
  set #status(status: number) { Atomics.store(this.#words, this.#base + W_STATUS, status) }

  /** True while the driver is ready and nothing is wrong. */
  get isRunning(): boolean { return this.#status === RUNNING }

  /** True if the driver has accepted feature `bit`. */
  has(bit: number): boolean { return (this.#features[bit >>> 5]! >>> (bit & 31) & 1) === 1 }

  /** Adds to the device's counter number `counter`. */
  count(counter: number, by: number): void { this.#counters[counter]! += by }

  /** A word of the configuration space. */
  config32(at: number): number { return Atomics.load(this.#words, this.#base + W_CONFIG + at / 4) >>> 0 }

  /** Changes a word of the configuration space, and tells the driver if `isNews`. */
  setConfig32(at: number, value: number, isNews: boolean): void {
    if (this.config32(at) === value) return
    Atomics.store(this.#words, this.#base + W_CONFIG + at / 4, value)
    if (isNews) this.#tellConfig()
  }

  /** A write to a register with an effect (windows.ts). */
  changed(offset: number, size: number, value: number, queue: number): void {
    if (offset === R_STATUS) return this.#setStatus(value)
    if (offset === R_QUEUE_READY) return this.#setReady(queue, value)
    if (offset === R_QUEUE_RESET) return this.#resetQueue(queue, value)
    if (!this.device.configure(offset - R_CONFIG, size, value)) this.#ignore()
  }

  /** Serves queue `queue`, and interrupts if the driver wants it. */
  serve(queue: number): void {
    this.pending &= ~(1 << queue)
    if (!this.isRunning || this.queues[queue]?.isReady !== true) return
    try {
      if (this.device.serve(queue)) this.pending |= 1 << queue
    } catch (error) {
      this.#caught(error)
    }
    this.#interrupt()
  }

  /** What the device waits for of its descriptor; nothing while its driver isn't ready. */
  wanted(): number { return this.isRunning ? this.device.wanted() : 0 }

  /** The device's descriptor is ready. */
  ready(events: number): void {
    if (!this.isRunning) return
    try {
      this.pending |= this.device.ready(events)
    } catch (error) {
      this.#caught(error)
    }
    this.#interrupt()
  }

  /** Serves every queue: after a restore, as notifications aren't saved. */
  serveAll(): void {
    for (let queue = 0; queue < this.queues.length; queue++) this.serve(queue)
  }

  #interrupt(): void {
    let isWanted = false
    for (let i = 0; i < this.queues.length; i++) if (this.queues[i]!.wantsInterrupt()) isWanted = true
    if (!isWanted) return
    Atomics.or(this.#words, this.#base + W_INTERRUPT, I_QUEUE)
    this.#signal()
  }

  #tellConfig(): void {
    Atomics.add(this.#words, this.#base + W_GENERATION, 1)
    if ((this.#status & S_DRIVER_OK) === 0) return
    Atomics.or(this.#words, this.#base + W_INTERRUPT, I_CONFIG)
    this.#signal()
  }

  #ignore(): void { Atomics.add(this.#words, this.#base + W_IGNORED, 1) }

  #caught(error: unknown): void {
    if (!(error instanceof GuestFault)) throw error
    this.#counters[COUNTERS_MAX - 1]! += 1
    this.#status |= S_NEEDS_RESET
    this.pending = 0
    this.#tellConfig()
  }

  #setStatus(value: number): void {
    const status = this.#status
    if (value === 0) return this.#reset()
    const added = value & ~status
    const isForward = (status & ~S_NEEDS_RESET & ~value) === 0
    if (isForward && added === S_FAILED) {
      this.#status = status | S_FAILED
      return
    }
    if (!isForward || added === 0 || added !== NEXT[status]) {
      if (value !== status) this.#ignore()
      return
    }
    if (added === S_FEATURES_OK && !this.#acceptFeatures()) return
    this.#status = status | added
    if (added === S_DRIVER_OK) this.#activate()
  }

  // Takes the driver's features; false if they can't be: the driver finds that FEATURES_OK isn't set.
  #acceptFeatures(): boolean {
    const words = this.#words
    const low = words[this.#base + W_DRIVER_FEATURES]! >>> 0
    const high = words[this.#base + W_DRIVER_FEATURES + 1]! >>> 0
    this.#features[0] = low
    this.#features[1] = high
    const { needs = [] } = this.device.type
    const isLegal = this.#isOffered && this.has(F_VERSION_1) &&
      needs.every(([bit, other]) => !this.has(bit) || this.has(other))
    if (!isLegal) this.#features.fill(0)
    return isLegal
  }

  get #isOffered(): boolean {
    const words = this.#words
    return (this.#features[0]! & ~words[this.#base + W_FEATURES]!) === 0 &&
      (this.#features[1]! & ~words[this.#base + W_FEATURES + 1]!) === 0
  }

  #activate(): void {
    try {
      this.device.activate()
    } catch (error) {
      this.#caught(error)
    }
    // What the driver made available before is served without a notification.
    this.serveAll()
  }

  #setReady(queue: number, value: number): void {
    const ring = this.queues[queue]
    if (ring === undefined || value > 1) return this.#ignore()
    if (value === 0) return this.#stopQueue(queue)
    const status = this.#status
    const mayBegin = (status & (S_FEATURES_OK | S_FAILED | S_NEEDS_RESET)) === S_FEATURES_OK &&
      ((status & S_DRIVER_OK) === 0 || this.has(F_RING_RESET))
    if (!mayBegin || ring.isReady) return this.#ignore()
    try {
      this.#enable(queue)
      Atomics.store(this.#words, this.#queue(queue) + Q_READY, 1)
    } catch (error) {
      this.#caught(error)
    }
    if (this.isRunning) this.serve(queue)
  }

  #enable(queue: number): void {
    this.queues[queue]!.enable({ ...this.#places(queue), ...this.#ringFeatures })
  }

  get #ringFeatures(): { hasIndirect: boolean; hasEventIndex: boolean } {
    return { hasIndirect: this.has(F_INDIRECT_DESC), hasEventIndex: this.has(F_EVENT_IDX) }
  }

  #places(queue: number): { size: number; desc: number; avail: number; used: number } {
    const words = this.#words
    const at = this.#queue(queue)
    const wide = (place: number): number => (words[at + place]! >>> 0) + (words[at + place + 1]! >>> 0) * 4294967296
    return { size: words[at + Q_SIZE]! >>> 0, desc: wide(Q_DESC), avail: wide(Q_DRIVER), used: wide(Q_DEVICE) }
  }

  #stopQueue(queue: number): void {
    if (!this.queues[queue]!.isReady) return
    // The device lets go of what it holds of all queues, and finds it again in the others.
    this.queues.forEach((other, i) => {
      other.unpop(this.device.held(i))
      if (i !== queue) this.pending |= 1 << i
    })
    this.device.reset()
    this.queues[queue]!.disable()
    Atomics.store(this.#words, this.#queue(queue) + Q_READY, 0)
  }

  #resetQueue(queue: number, value: number): void {
    if (value !== 1 || !this.has(F_RING_RESET) || this.queues[queue] === undefined) return this.#ignore()
    this.#stopQueue(queue)
    this.#words.fill(0, this.#queue(queue) + Q_SIZE, this.#queue(queue) + Q_KICK_FD)
  }

  #reset(): void {
    this.device.reset()
    this.pending = 0
    this.#features.fill(0)
    const words = this.#words
    for (const word of [W_FEATURES_SEL, W_DRIVER_FEATURES, W_DRIVER_FEATURES + 1, W_DRIVER_FEATURES_SEL, W_QUEUE_SEL]) {
      words[this.#base + word] = 0
    }
    this.queues.forEach((queue, i) => {
      queue.disable()
      words.fill(0, this.#queue(i) + Q_SIZE, this.#queue(i) + Q_KICK_FD)
    })
    Atomics.store(words, this.#base + W_INTERRUPT, 0)
    this.#status = 0
  }

  /** The section of the device. Only while it is paused. */
  save(): Uint8Array {
    const to = new SectionWriter()
    const words = this.#words
    to.u16(SECTION_VERSION)
    to.u16(this.device.type.id)
    for (const word of SAVED_WORDS) to.u32(words[this.#base + word]! >>> 0)
    to.u32(this.#features[0]!)
    to.u32(this.#features[1]!)
    to.u16(this.queues.length)
    this.queues.forEach((queue, i) => {
      for (let word = Q_SIZE; word < Q_KICK_FD; word++) to.u32(words[this.#queue(i) + word]! >>> 0)
      const { next, usedIndex, signalled } = queue.save(this.device.held(i))
      to.u16(next)
      to.u16(usedIndex)
      to.u16(signalled)
    })
    this.device.save(to)
    return to.finish()
  }

  /**
   * Goes on from a section that `save` has made, on a port on which nothing has happened yet. Throws CellarError
   * (SNAPSHOT_DAMAGED, SNAPSHOT_FOREIGN) for what can't have been saved here.
   */
  restore(name: string, bytes: Uint8Array): void {
    const from = new SectionReader(name, bytes)
    const words = this.#words
    if (from.u16() !== SECTION_VERSION) from.refuse('its version is unknown')
    if (from.u16() !== this.device.type.id) from.refuse('it is of another device')
    for (const word of SAVED_WORDS) words[this.#base + word] = from.u32()
    this.#features[0] = from.u32()
    this.#features[1] = from.u32()
    this.#checkStatus(from)
    if (from.u16() !== this.queues.length) {
      throw new CellarError('SNAPSHOT_FOREIGN', [`the device ${this.device.type.name} has another number of queues`])
    }
    for (let i = 0; i < this.queues.length; i++) this.#restoreQueue(from, i)
    this.device.restore(from)
    from.end()
    if (!this.isRunning) return
    this.device.activate()
    for (let i = 0; i < this.queues.length; i++) this.pending |= 1 << i
  }

  #restoreQueue(from: SectionReader, i: number): void {
    const at = this.#queue(i)
    for (let word = Q_SIZE; word < Q_KICK_FD; word++) this.#words[at + word] = from.u32()
    const [next, usedIndex, signalled] = [from.u16(), from.u16(), from.u16()]
    const ready = this.#words[at + Q_READY]!
    if (ready < 0 || ready > 1) from.refuse('a queue is neither ready nor not')
    if (ready === 1 && (this.#status & S_FEATURES_OK) === 0) from.refuse('a queue is ready too early')
    try {
      this.queues[i]!.restore({ ...this.#places(i), isReady: ready === 1, next, usedIndex, signalled },
        this.#ringFeatures)
    } catch (error) {
      if (error instanceof GuestFault) from.refuse('a queue is not in RAM')
      throw error
    }
  }

  #checkStatus(from: SectionReader): void {
    const status = this.#status & ~(S_NEEDS_RESET | S_FAILED)
    const isLegal = status === RUNNING || NEXT[status] !== undefined
    if (!isLegal || this.#status >>> 8 !== 0) from.refuse('a status is impossible')
    const isAccepted = (status & S_FEATURES_OK) !== 0
    const [low, high] = this.#features as unknown as [number, number]
    if (!isAccepted && (low !== 0 || high !== 0)) from.refuse('features are accepted too early')
    if (!isAccepted) return
    // A host that offers less than the one before can't go on.
    if (!this.#isOffered || !this.has(F_VERSION_1)) {
      throw new CellarError('SNAPSHOT_FOREIGN', [`the device ${this.device.type.name} has other features here`])
    }
  }
}

const SAVED_WORDS = [
  W_FEATURES_SEL, W_DRIVER_FEATURES, W_DRIVER_FEATURES + 1, W_DRIVER_FEATURES_SEL, W_QUEUE_SEL, W_STATUS, W_INTERRUPT,
  W_GENERATION,
]
