// device/uart_16550.ts: a serial line (PC16550D) whose registers lie in shared memory, so that any vCPU's thread can be
// the one that the guest uses it from.
//
// The other end is two rings: what the guest sends, for the main thread to take (`drain`), and what it is to receive,
// which the main thread gives (`give`). There is no speed: a byte is sent when it is written. A guest that sends more
// than is taken is slowed: it is told of room through THRE, as by a slow line, and if it writes all the same its vCPU
// waits. A vCPU that is wanted elsewhere stops waiting and leaves its byte in the other half of the ring, which is kept
// for that; only if that is full, too, bytes are dropped and counted.
//
// One lock guards the registers; it is held for some hundred nanoseconds, never while anybody waits. The interrupt is
// an edge: `interrupt` is called when the line goes from low to high (IIR has a reason and had none). Modem lines say
// that the other end is there. Not there: breaks, errors of the line, DMA modes.

import { UART_INPUT_BYTES, UART_OUTPUT_BYTES } from '../base/limits.ts'

/** What a serial line makes others do. */
export interface UartEffects {
  /** An edge on its interrupt. */
  interrupt(): void
  /** There is output, and the last `drain` found none: from now on until then there is no other call. */
  output(): void
  /** False when the thread that writes is wanted elsewhere: it waits for room no longer. */
  mayWait(): boolean
}

/** Bytes of the shared memory of a serial line. */
export const UART_BYTES = 128 + UART_OUTPUT_BYTES + UART_INPUT_BYTES

/** A serial line as one thread has it. */
export class Uart {
  readonly #words: Int32Array
  readonly #output: Uint8Array
  readonly #input: Uint8Array
  readonly #effects: UartEffects

  constructor(shared: SharedArrayBuffer, effects: UartEffects) {
    this.#words = new Int32Array(shared, 0, 32)
    this.#output = new Uint8Array(shared, 128, UART_OUTPUT_BYTES)
    this.#input = new Uint8Array(shared, 128 + UART_OUTPUT_BYTES, UART_INPUT_BYTES)
    this.#effects = effects
  }

  /** What the register `offset`, 0 to 7, says. */
  read(offset: number): number {
    this.#lock()
    const value = this.#read(offset)
    this.#unlock()
    return value
  }

  /** The guest writes `value`, 0 to 255, to the register `offset`. */
  write(offset: number, value: number): void {
    if (offset === THR) while (this.#mustWait() && this.#effects.mayWait()) this.#waitForRoom()
    this.#lock()
    const isFirst = this.#write(offset, value)
    this.#unlock()
    if (isFirst) this.#effects.output()
  }

  /** By the main thread: takes what the guest has sent. Undefined: nothing, and the next byte is announced. */
  drain(): Uint8Array | undefined {
    const words = this.#words
    const tail = words[OUT_TAIL]!
    let head = Atomics.load(words, OUT_HEAD)
    if (head === tail) {
      Atomics.store(words, NOTICED, 0)
      head = Atomics.load(words, OUT_HEAD)
      if (head === tail) return undefined
    }
    const bytes = new Uint8Array(head - tail | 0)
    for (let i = 0; i < bytes.length; i++) bytes[i] = this.#output[tail + i & OUT_MASK]!
    Atomics.store(words, OUT_TAIL, head)
    Atomics.notify(words, OUT_TAIL)
    this.#lock()
    if (words[THRE_WITHHELD] !== 0) {
      words[THRE_WITHHELD] = 0
      words[THRE_PENDING] = 1
    }
    this.#update()
    this.#unlock()
    return bytes
  }

  /** By the main thread: what the guest is to receive. How many bytes there was room for. */
  give(bytes: Uint8Array): number {
    this.#lock()
    const words = this.#words
    const head = words[IN_HEAD]!
    const count = Math.min(bytes.length, UART_INPUT_BYTES - (head - words[IN_TAIL]! | 0))
    for (let i = 0; i < count; i++) this.#input[head + i & IN_MASK] = bytes[i]!
    words[IN_HEAD] = head + count | 0
    this.#update()
    this.#unlock()
    return count
  }

  /** Bytes that were dropped because nobody took them. */
  get dropped(): number {
    return this.#words[DROPPED]! >>> 0
  }

  /** While no vCPU runs and nothing waits to be drained: registers, then what is to be received. */
  save(): Uint8Array {
    const words = this.#words
    const length = words[IN_HEAD]! - words[IN_TAIL]! | 0
    const saved = new Uint8Array(SAVED.length + length)
    SAVED.forEach((word, i) => { saved[i] = words[word]! })
    for (let i = 0; i < length; i++) saved[SAVED.length + i] = this.#input[words[IN_TAIL]! + i & IN_MASK]!
    return saved
  }

  /** False if that is nothing that `save` has made. */
  restore(saved: Uint8Array): boolean {
    const length = saved.length - SAVED.length
    if (length < 0 || length > UART_INPUT_BYTES) return false
    SAVED.forEach((word, i) => { this.#words[word] = saved[i]! })
    this.#input.set(saved.subarray(SAVED.length))
    this.#words[IN_TAIL] = 0
    this.#words[IN_HEAD] = length
    return true
  }

  #read(offset: number): number {
    const words = this.#words
    switch (offset) {
      case RBR: {
        if (this.#hasDivisor()) return words[DLL]!
        const tail = words[IN_TAIL]!
        if (tail === words[IN_HEAD]!) return 0
        words[IN_TAIL] = tail + 1 | 0
        this.#update()
        return this.#input[tail & IN_MASK]!
      }
      case IER: return this.#hasDivisor() ? words[DLM]! : words[W_IER]!
      case IIR: {
        const reason = this.#reason()
        if (reason === IIR_THRE) words[THRE_PENDING] = 0
        this.#update()
        return reason | (words[W_FCR]! & FCR_ENABLE ? IIR_FIFO : 0)
      }
      case LCR: return words[W_LCR]!
      case MCR: return words[W_MCR]!
      case LSR: return (this.#hasInput() ? LSR_DR : 0) | (this.#isFull() ? 0 : LSR_THRE | LSR_TEMT)
      case MSR: return this.#modem()
      default: return words[W_SCR]!
    }
  }

  // True if a byte was sent that the main thread must be told of.
  #write(offset: number, value: number): boolean {
    const words = this.#words
    switch (offset) {
      case THR:
        if (this.#hasDivisor()) { words[DLL] = value; return false }
        return this.#send(value)
      case IER:
        if (this.#hasDivisor()) { words[DLM] = value; return false }
        // Asking for the interrupt while the holding register is empty raises it.
        if ((value & ~words[W_IER]! & IER_THRI) !== 0) this.#offerRoom()
        words[W_IER] = value & 0xf
        this.#update()
        return false
      case FCR:
        words[W_FCR] = value & FCR_ENABLE
        if ((value & FCR_CLEAR_INPUT) !== 0) words[IN_TAIL] = words[IN_HEAD]!
        this.#update()
        return false
      case LCR: words[W_LCR] = value; return false
      case MCR: words[W_MCR] = value & 0x1f; return false
      case SCR: words[W_SCR] = value; return false
      // LSR and MSR are not to be written.
      default: return false
    }
  }

  #send(value: number): boolean {
    const words = this.#words
    words[THRE_PENDING] = 0
    let isFirst = false
    if ((words[W_MCR]! & MCR_LOOP) !== 0) {
      const head = words[IN_HEAD]!
      if ((head - words[IN_TAIL]! | 0) < UART_INPUT_BYTES) {
        this.#input[head & IN_MASK] = value
        words[IN_HEAD] = head + 1 | 0
      }
    } else if (this.#waiting() >= UART_OUTPUT_BYTES) {
      words[DROPPED] = words[DROPPED]! + 1
    } else {
      const head = words[OUT_HEAD]!
      this.#output[head & OUT_MASK] = value
      Atomics.store(words, OUT_HEAD, head + 1 | 0)
      isFirst = Atomics.exchange(words, NOTICED, 1) === 0
    }
    // The line goes down before it goes up again: each byte that is sent is an edge of its own.
    this.#update()
    this.#offerRoom()
    this.#update()
    return isFirst
  }

  #offerRoom(): void {
    this.#words[this.#isFull() ? THRE_WITHHELD : THRE_PENDING] = 1
  }

  // The highest reason for an interrupt (Table 5 of the data sheet), or IIR_NONE.
  #reason(): number {
    const words = this.#words
    if ((words[W_IER]! & IER_RDI) !== 0 && this.#hasInput()) return IIR_RDI
    if ((words[W_IER]! & IER_THRI) !== 0 && words[THRE_PENDING] !== 0) return IIR_THRE
    return IIR_NONE
  }

  #update(): void {
    const words = this.#words
    const line = this.#reason() === IIR_NONE ? 0 : 1
    if (line === 1 && words[LINE] === 0) this.#effects.interrupt()
    words[LINE] = line
  }

  #modem(): number {
    const control = this.#words[W_MCR]!
    if ((control & MCR_LOOP) === 0) return MSR_DCD | MSR_DSR | MSR_CTS
    return (control & 1 ? MSR_DSR : 0) | (control & 2 ? MSR_CTS : 0) | (control & 4 ? MSR_RI : 0) |
      (control & 8 ? MSR_DCD : 0)
  }

  #hasDivisor(): boolean { return (this.#words[W_LCR]! & LCR_DLAB) !== 0 }
  #hasInput(): boolean { return this.#words[IN_HEAD] !== this.#words[IN_TAIL] }

  #isFull(): boolean { return this.#waiting() >= OUTPUT_SOFT_BYTES }

  // How many bytes wait to be drained.
  #waiting(): number {
    return Atomics.load(this.#words, OUT_HEAD) - Atomics.load(this.#words, OUT_TAIL) | 0
  }

  #mustWait(): boolean {
    const words = this.#words
    return this.#isFull() && (words[W_LCR]! & LCR_DLAB) === 0 && (words[W_MCR]! & MCR_LOOP) === 0
  }

  #waitForRoom(): void {
    const tail = Atomics.load(this.#words, OUT_TAIL)
    if (this.#isFull()) Atomics.wait(this.#words, OUT_TAIL, tail, WAIT_MS)
  }

  #lock(): void {
    while (Atomics.compareExchange(this.#words, LOCK, 0, 1) !== 0) Atomics.wait(this.#words, LOCK, 1, 1)
  }

  #unlock(): void {
    Atomics.store(this.#words, LOCK, 0)
    Atomics.notify(this.#words, LOCK, 1)
  }
}

/** How long a vCPU waits for room before it looks whether it is wanted elsewhere. */
const WAIT_MS = 20
/** The guest is told that there is no room when half of the ring is full. */
const OUTPUT_SOFT_BYTES = UART_OUTPUT_BYTES / 2
const OUT_MASK = UART_OUTPUT_BYTES - 1
const IN_MASK = UART_INPUT_BYTES - 1

// Registers, by their offset.
const RBR = 0
const THR = 0
const IER = 1
const IIR = 2
const FCR = 2
const LCR = 3
const MCR = 4
const LSR = 5
const MSR = 6
const SCR = 7

const IER_RDI = 1
const IER_THRI = 2
const IIR_NONE = 1
const IIR_THRE = 2
const IIR_RDI = 4
const IIR_FIFO = 0xc0
const FCR_ENABLE = 1
const FCR_CLEAR_INPUT = 2
const LCR_DLAB = 0x80
const MCR_LOOP = 0x10
const LSR_DR = 1
const LSR_THRE = 0x20
const LSR_TEMT = 0x40
const MSR_CTS = 0x10
const MSR_DSR = 0x20
const MSR_RI = 0x40
const MSR_DCD = 0x80

// Words of the shared memory. Heads and tails count on for ever; their low bits are places in the rings.
const LOCK = 0
const W_IER = 1
const W_LCR = 2
const W_MCR = 3
const W_SCR = 4
const W_FCR = 5
const DLL = 6
const DLM = 7
const THRE_PENDING = 8
/** The holding register is full, and the guest is to be told when it isn't. */
const THRE_WITHHELD = 9
const LINE = 10
const OUT_HEAD = 11
const OUT_TAIL = 12
const IN_HEAD = 13
const IN_TAIL = 14
/** The main thread knows that there is output. */
const NOTICED = 15
const DROPPED = 16
const SAVED = [W_IER, W_LCR, W_MCR, W_SCR, W_FCR, DLL, DLM, THRE_PENDING, LINE] as const
