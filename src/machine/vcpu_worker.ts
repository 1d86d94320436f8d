// machine/vcpu_worker.ts: a vCPU's thread: KVM_RUN, and an answer to whatever the guest did that the kernel couldn't.
//
// Hot path: no allocation, no closures, numbers and typed arrays only. Nothing is awaited: this thread has no event
// loop from its first KVM_RUN on. It answers I/O ports (ports.ts) and the register windows of virtio devices; all else
// that it meets ends the machine, and is told to the main thread in a word. How it is stopped: vcpu_control.ts.

import { parentPort, workerData } from 'node:worker_threads'
import { EAGAIN, EINTR, ERRNO_NAMES } from '../base/errno.ts'
import * as abi from '../kvm/abi.ts'
import { viewRam } from '../sys/guest_ram.ts'
import { ioctl } from '../sys/kvm.ts'
import { threadId } from '../sys/threads.ts'
import { Windows } from '../virtio/windows.ts'
import { VIRTIO_MMIO_BASE, VIRTIO_MMIO_BYTES } from './layout.ts'
import { Ports, UNCLAIMED } from './ports.ts'
import { INTERRUPTED, QUIT, REST, RUN, UNCLAIMED_IO, UNCLAIMED_MMIO, VcpuControl } from './vcpu_control.ts'

import type { MachineEnd } from './engine.ts'

/** What a vCPU's thread is started with. */
export type VcpuStart = {
  readonly id: number
  readonly fd: number
  readonly run: { readonly address: bigint; readonly sizeBytes: number }
  readonly control: SharedArrayBuffer
  readonly uart: SharedArrayBuffer
  readonly uartInterruptFd: number
  readonly windows: SharedArrayBuffer
  readonly devices: number
}

/** What it tells the main thread. */
export type VcpuMessage =
  | { readonly kind: 'ready'; readonly thread: number }
  | { readonly kind: 'output' }
  | { readonly kind: 'end'; readonly end: MachineEnd }

class VcpuLoop {
  readonly #start: VcpuStart
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #control: VcpuControl
  readonly #counters: Float64Array
  readonly #windows: Windows
  readonly #windowsEnd: number
  readonly #ports: Ports
  #end: MachineEnd | undefined

  constructor(start: VcpuStart) {
    this.#start = start
    this.#bytes = viewRam(start.run.address, start.run.sizeBytes)
    this.#view = new DataView(this.#bytes.buffer, this.#bytes.byteOffset, this.#bytes.byteLength)
    this.#control = new VcpuControl(start.control)
    this.#counters = this.#control.counters(start.id)
    this.#windows = new Windows(start.windows)
    this.#windowsEnd = VIRTIO_MMIO_BASE + start.devices * VIRTIO_MMIO_BYTES
    this.#ports = new Ports({
      uart: start.uart, uartInterruptFd: start.uartInterruptFd, output: () => tell({ kind: 'output' }),
      mayWait: () => this.#control.wish(start.id) === RUN,
    })
  }

  /** Until the machine is closed. */
  run(): void {
    const { id, fd } = this.#start
    for (;;) {
      const wish = this.#control.wish(id)
      if (this.#end !== undefined && wish !== QUIT) {
        tell({ kind: 'end', end: this.#end })
        this.#end = undefined
        while (this.#control.wish(id) !== QUIT) this.#control.rest(id, this.#control.wish(id))
        return
      }
      if (wish === QUIT) return
      if (wish === REST) this.#control.rest(id, REST)
      if (this.#control.wish(id) === RUN) this.#enter(fd)
    }
  }

  // Runs the guest until the machine ends or the thread is wanted elsewhere.
  #enter(fd: number): void {
    const bytes = this.#bytes
    const counters = this.#counters
    Atomics.store(bytes, IMMEDIATE_EXIT, 0)
    // The wish may have come between a look at it and that store.
    if (this.#control.wish(this.#start.id) !== RUN) return
    while (this.#end === undefined) {
      const result = ioctl(fd, abi.KVM_RUN, 0n)
      if (result >= 0) {
        const reason = this.#view.getUint32(EXIT_REASON, true)
        counters[reason < UNCLAIMED_MMIO ? reason : abi.KVM_EXIT_UNKNOWN]! += 1
        if (reason === abi.KVM_EXIT_IO) this.#io()
        else if (reason === abi.KVM_EXIT_MMIO) this.#mmio()
        else this.#other(reason)
      } else if (result === -EINTR || result === -EAGAIN) {
        counters[INTERRUPTED]! += 1
        if (this.#control.wish(this.#start.id) !== RUN) return
        Atomics.store(bytes, IMMEDIATE_EXIT, 0)
        if (this.#control.wish(this.#start.id) !== RUN) return
      } else {
        this.#end = { kind: 'failed', reason: `KVM_RUN answers ${ERRNO_NAMES[-result] ?? result}` }
      }
    }
  }

  #io(): void {
    const view = this.#view
    const size = view.getUint8(IO.size)
    const port = view.getUint16(IO.port, true)
    const isOut = view.getUint8(IO.direction) === abi.KVM_EXIT_IO_OUT
    let at = view.getUint32(IO.data_offset, true)
    // A string instruction: many times the same port.
    for (let left = view.getUint32(IO.count, true); left > 0; left--, at += size) {
      if (isOut) this.#out(port, size, at)
      else this.#in(port, size, at)
    }
  }

  // The bus has 8 bits here: a wider access is one for each byte, each at a port of its own.
  #out(port: number, size: number, at: number): void {
    for (let i = 0; i < size; i++) {
      const outcome = this.#ports.out(port + i, this.#bytes[at + i]!)
      if (outcome === UNCLAIMED) this.#counters[UNCLAIMED_IO]! += 1
      else if (outcome !== undefined) this.#end = outcome
    }
  }

  #in(port: number, size: number, at: number): void {
    for (let i = 0; i < size; i++) {
      const value = this.#ports.in(port + i)
      if (value < 0) this.#counters[UNCLAIMED_IO]! += 1
      this.#bytes[at + i] = value
    }
  }

  #mmio(): void {
    const view = this.#view
    // A place above 2^53 loses its low bits here: it is in no window either way.
    const place = view.getUint32(MMIO.phys_addr + 4, true) * 4294967296 + view.getUint32(MMIO.phys_addr, true)
    const size = view.getUint32(MMIO.len, true)
    const isWrite = view.getUint8(MMIO.is_write) !== 0
    if (place < VIRTIO_MMIO_BASE || place >= this.#windowsEnd) {
      this.#counters[UNCLAIMED_MMIO]! += 1
      if (!isWrite) this.#bytes.fill(0xff, MMIO.data, MMIO.data + 8)
      return
    }
    const offset = place - VIRTIO_MMIO_BASE
    const index = Math.floor(offset / VIRTIO_MMIO_BYTES)
    const register = offset % VIRTIO_MMIO_BYTES
    if (!isWrite) {
      const value = this.#windows.read(index, register, size)
      view.setUint32(MMIO.data, value, true)
      view.setUint32(MMIO.data + 4, 0, true)
      return
    }
    const value = size === 1 ? view.getUint8(MMIO.data) : size === 2 ? view.getUint16(MMIO.data, true) :
      view.getUint32(MMIO.data, true)
    try {
      this.#windows.write(index, register, size, value)
    } catch (error) {
      this.#end = { kind: 'failed', reason: (error as Error).message }
    }
  }

  #other(reason: number): void {
    const view = this.#view
    switch (reason) {
      case abi.KVM_EXIT_INTR: case abi.KVM_EXIT_IRQ_WINDOW_OPEN: return
      case abi.KVM_EXIT_SHUTDOWN: this.#end = { kind: 'crashed', reason: 'triple-fault' }; return
      // Only without the kernel's interrupt controllers: nothing can wake it.
      case abi.KVM_EXIT_HLT: this.#end = { kind: 'off', reason: 'halted' }; return
      case abi.KVM_EXIT_SYSTEM_EVENT: this.#end = systemEvent(view.getUint32(SYSTEM_EVENT.type, true)); return
      case abi.KVM_EXIT_FAIL_ENTRY: {
        const why = view.getBigUint64(FAIL_ENTRY.hardware_entry_failure_reason, true)
        this.#end = { kind: 'failed', reason: `the processor can't enter the guest: 0x${why.toString(16)}` }
        return
      }
      case abi.KVM_EXIT_INTERNAL_ERROR: {
        const error = view.getUint32(INTERNAL.suberror, true)
        this.#end = { kind: 'failed', reason: INTERNAL_ERRORS[error] ?? `KVM has internal error ${error}` }
        return
      }
      default: this.#end = { kind: 'failed', reason: `KVM exits with reason ${reason}` }
    }
  }
}

function systemEvent(type: number): MachineEnd {
  switch (type) {
    case abi.KVM_SYSTEM_EVENT_SHUTDOWN: return { kind: 'off', reason: 'poweroff' }
    case abi.KVM_SYSTEM_EVENT_RESET: return { kind: 'reset', reason: 'reset' }
    case abi.KVM_SYSTEM_EVENT_CRASH: return { kind: 'crashed', reason: 'crash' }
    default: return { kind: 'failed', reason: `KVM has system event ${type}` }
  }
}

// KVM_INTERNAL_ERROR_*: 1 is an instruction that KVM would have had to emulate.
const INTERNAL_ERRORS: Readonly<Record<number, string>> = {
  1: "KVM can't emulate an instruction of the guest",
  2: 'KVM met two exceptions at once',
  3: 'KVM left the guest while it delivered an event',
  4: 'the processor left the guest for an unknown reason',
}

function tell(message: VcpuMessage): void {
  parentPort!.postMessage(message)
}

const IO = abi.kvm_run_io.at
const MMIO = abi.kvm_run_mmio.at
const INTERNAL = abi.kvm_run_internal.at
const FAIL_ENTRY = abi.kvm_run_fail_entry.at
const SYSTEM_EVENT = abi.kvm_run_system_event.at
const IMMEDIATE_EXIT = abi.kvm_run.at.immediate_exit
const EXIT_REASON = abi.kvm_run.at.exit_reason

if (parentPort !== null) {
  const loop = new VcpuLoop(workerData as VcpuStart)
  tell({ kind: 'ready', thread: threadId() })
  loop.run()
}
