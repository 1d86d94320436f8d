// virtio/windows.ts: the register windows of a machine's devices (Virtio 1.3 §4.2.2), in memory that threads share.
//
// A vCPU that reads or writes a register does so here, in its own thread: what a register says lies in shared words,
// so that a read never waits for anybody. A write that the device must act upon (status, readiness and reset of a
// queue, the device's configuration) goes to the device thread, and the vCPU waits for it to be done (mailbox.ts).
// Notifications are an ioeventfd; one that comes here all the same is written to that eventfd.
//
// The shared words: a head of HEAD_WORDS (mailbox.ts), then WINDOW_WORDS for each device:
//   0     words named below                     128   configuration space, CONFIG_BYTES_MAX
//   16    QUEUE_WORDS for each queue            192   counters, 32 numbers of 64 bits (port.ts)
// Two vCPUs may write at once. That is the driver's mistake, and harmless: a word is never half written, and the device
// thread reads each once and checks it (queue.ts). Accesses of a wrong size, at a wrong place or at a wrong time are
// ignored and counted. Elsewhere: the device's side, with the state machine of the status (port.ts).

import { signalEventFd } from '../sys/eventfd.ts'
import { callDevice } from './mailbox.ts'

/** Words before the first window. */
export const HEAD_WORDS = 16
/** Words of a window, and how it is divided. */
export const WINDOW_WORDS = 256
export const W_DEVICE_ID = 0
export const W_FEATURES = 1             // two words
export const W_FEATURES_SEL = 3
export const W_DRIVER_FEATURES = 4      // two words
export const W_DRIVER_FEATURES_SEL = 6
export const W_QUEUE_SEL = 7
export const W_STATUS = 8
export const W_INTERRUPT = 9
export const W_GENERATION = 10
export const W_QUEUES = 11
export const W_CONFIG_BYTES = 12
export const W_IGNORED = 13
export const W_QUEUE = 16
export const W_CONFIG = 128
export const W_COUNTERS = 192
export const CONFIG_BYTES_MAX = 256
export const COUNTERS_MAX = 32

/** Words of a queue. */
export const QUEUE_WORDS = 12
export const QUEUES_MAX = 9
export const Q_MAX = 0
export const Q_SIZE = 1
export const Q_READY = 2
export const Q_DESC = 3                 // two words, as the next two
export const Q_DRIVER = 5
export const Q_DEVICE = 7
export const Q_KICK_FD = 9

/** Registers that the device thread hears of. */
export const R_STATUS = 0x070
export const R_QUEUE_READY = 0x044
export const R_QUEUE_RESET = 0x0c0
export const R_CONFIG = 0x100

export const S_DRIVER = 2
export const S_FEATURES_OK = 8

const MAGIC = 0x74726976                // "virt"
const VERSION = 2
const VENDOR = 0x6c6c6543               // "Cell"

/** Bytes of the shared memory of `devices` windows. */
export function windowsBytes(devices: number): number {
  return 4 * (HEAD_WORDS + devices * WINDOW_WORDS)
}

/** What a write to a register makes others do. */
export interface Effects {
  /** The device acts upon it; done when this returns. `queue`: what QueueSel said. */
  changed(index: number, offset: number, size: number, value: number, queue: number): void
  notify(fd: number, index: number, queue: number): void
}

/** The windows as a vCPU has them. Offsets are within a window of 4 KiB; values are unsigned. */
export class Windows {
  readonly #words: Int32Array
  readonly #bytes: Uint8Array
  readonly #devices: number
  readonly #effects: Effects

  /** `effects`: the device thread by default; tests have their devices in the same thread. */
  constructor(shared: SharedArrayBuffer, effects?: Effects) {
    this.#words = new Int32Array(shared)
    this.#bytes = new Uint8Array(shared)
    this.#devices = Math.floor((this.#words.length - HEAD_WORDS) / WINDOW_WORDS)
    const words = this.#words
    this.#effects = effects ?? {
      changed(index, offset, size, value, queue) { callDevice(words, index, offset, size, value, queue) },
      notify(fd) { signalEventFd(fd) },
    }
  }

  /** What the register, or the configuration, says; 0 for what can't be read. */
  read(index: number, offset: number, size: number): number {
    if (!(index >= 0 && index < this.#devices)) return 0
    const base = HEAD_WORDS + index * WINDOW_WORDS
    if (offset >= R_CONFIG) return this.#readConfig(base, offset - R_CONFIG, size)
    if (size !== 4 || offset % 4 !== 0) return this.#ignore(base)
    const words = this.#words
    const queue = this.#queue(base)
    switch (offset) {
      case 0x000: return MAGIC
      case 0x004: return VERSION
      case 0x008: return words[base + W_DEVICE_ID]! >>> 0
      case 0x00c: return VENDOR
      case 0x010: {
        const select = words[base + W_FEATURES_SEL]! >>> 0
        return select > 1 ? 0 : words[base + W_FEATURES + select]! >>> 0
      }
      case 0x034: return queue < 0 ? 0 : words[queue + Q_MAX]! >>> 0
      case R_QUEUE_READY: return queue < 0 ? 0 : Atomics.load(words, queue + Q_READY) >>> 0
      case 0x060: return Atomics.load(words, base + W_INTERRUPT) >>> 0
      case R_STATUS: return Atomics.load(words, base + W_STATUS) >>> 0
      // Shared memory regions: there are none, which a length of all ones says.
      case 0x0b0: case 0x0b4: case 0x0b8: case 0x0bc: return 0xffffffff
      // A reset is over when the write returns.
      case R_QUEUE_RESET: return 0
      case 0x0fc: return Atomics.load(words, base + W_GENERATION) >>> 0
      default: return this.#ignore(base)
    }
  }

  /** Throws if the device thread doesn't answer: the machine has failed then. */
  write(index: number, offset: number, size: number, value: number): void {
    if (!(index >= 0 && index < this.#devices)) return
    const base = HEAD_WORDS + index * WINDOW_WORDS
    if (offset >= R_CONFIG) return this.#writeConfig(base, index, offset, size, value)
    if (size !== 4 || offset % 4 !== 0) return void this.#ignore(base)
    const words = this.#words
    switch (offset) {
      case 0x014: words[base + W_FEATURES_SEL] = value; return
      case 0x020: return this.#writeFeatures(base, value)
      case 0x024: words[base + W_DRIVER_FEATURES_SEL] = value; return
      case 0x030: words[base + W_QUEUE_SEL] = value; return
      case 0x050: return this.#notify(base, index, value >>> 0)
      case 0x064: Atomics.and(words, base + W_INTERRUPT, ~value); return
      case R_STATUS: case R_QUEUE_READY: case R_QUEUE_RESET:
        this.#effects.changed(index, offset, size, value >>> 0, words[base + W_QUEUE_SEL]! >>> 0)
        return
      // The region of shared memory that is asked for: none has a size.
      case 0x0ac: return
      default: return this.#writeQueue(base, offset, value)
    }
  }

  // Where the words of the selected queue begin, or -1.
  #queue(base: number): number {
    const select = this.#words[base + W_QUEUE_SEL]! >>> 0
    return select < this.#words[base + W_QUEUES]! ? base + W_QUEUE + select * QUEUE_WORDS : -1
  }

  #writeFeatures(base: number, value: number): void {
    const words = this.#words
    const select = words[base + W_DRIVER_FEATURES_SEL]! >>> 0
    const status = Atomics.load(words, base + W_STATUS)
    if (select > 1 || (status & (S_DRIVER | S_FEATURES_OK)) !== S_DRIVER) {
      // Linux clears words that nobody has: no mistake.
      if (select <= 1 || value !== 0) this.#ignore(base)
      return
    }
    words[base + W_DRIVER_FEATURES + select] = value
  }

  #writeQueue(base: number, offset: number, value: number): void {
    const place = QUEUE_REGISTERS[offset]
    const queue = this.#queue(base)
    // The place of a queue that is in use doesn't change.
    if (place === undefined || queue < 0 || Atomics.load(this.#words, queue + Q_READY) !== 0) {
      this.#ignore(base)
      return
    }
    this.#words[queue + place] = value
  }

  #notify(base: number, index: number, queue: number): void {
    if (queue >= this.#words[base + W_QUEUES]!) return void this.#ignore(base)
    this.#effects.notify(this.#words[base + W_QUEUE + queue * QUEUE_WORDS + Q_KICK_FD]!, index, queue)
  }

  #isConfig(base: number, at: number, size: number): boolean {
    const isNatural = (size === 1 || size === 2 || size === 4) && at % size === 0
    return isNatural && at + size <= this.#words[base + W_CONFIG_BYTES]!
  }

  #readConfig(base: number, at: number, size: number): number {
    if (!this.#isConfig(base, at, size)) return this.#ignore(base)
    const from = 4 * (base + W_CONFIG) + at
    if (size === 4) return Atomics.load(this.#words, from / 4) >>> 0
    const bytes = this.#bytes
    return size === 1 ? bytes[from]! : bytes[from]! | bytes[from + 1]! << 8
  }

  #writeConfig(base: number, index: number, offset: number, size: number, value: number): void {
    if (!this.#isConfig(base, offset - R_CONFIG, size)) return void this.#ignore(base)
    this.#effects.changed(index, offset, size, value >>> 0, 0)
  }

  #ignore(base: number): number {
    Atomics.add(this.#words, base + W_IGNORED, 1)
    return 0
  }
}

// Offset of a register → word of the selected queue.
const QUEUE_REGISTERS: Readonly<Record<number, number>> = {
  0x038: Q_SIZE, 0x080: Q_DESC, 0x084: Q_DESC + 1, 0x090: Q_DRIVER, 0x094: Q_DRIVER + 1, 0x0a0: Q_DEVICE,
  0x0a4: Q_DEVICE + 1,
}
