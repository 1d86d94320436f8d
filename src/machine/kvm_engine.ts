// machine/kvm_engine.ts: the engine that is our own VMM: a board in KVM, a thread a vCPU, a thread for the devices.
//
// The main thread of a machine's process has this. It runs no guest code and serves no request of a device: it starts
// and stops the threads that do, takes what the serial line has sent, and reads and sets state while they rest.
//
// Order when stopping: vCPUs first, then devices, since a vCPU may wait for the device thread; when going on, the
// other way round. Elsewhere: the board (board.ts), threads (vcpu_threads.ts, devices.ts), state (board_state.ts).

import { closeSync } from 'node:fs'
import { assert } from '../base/assert.ts'
import { CellarError } from '../base/errors.ts'
import { UART_BYTES, Uart } from '../device/uart_16550.ts'
import { makeEventFd, signalEventFd } from '../sys/eventfd.ts'
import { mapRam, residentBytes, unmapRam } from '../sys/guest_ram.ts'
import { acpiTables } from './acpi.ts'
import { Board } from './board.ts'
import { restoreBoard, saveBoard } from './board_state.ts'
import { loadKernel } from './boot.ts'
import { writeBootTables } from './boot_state.ts'
import { Devices, devicesBytes } from './devices.ts'
import { watchHalts } from './halt_watch.ts'
import {
  ACPI_START, GENERATION_GSI, GENERATION_START, POWER_GSI, SERIAL_GSI, VIRTIO_MMIO_BASE, VIRTIO_MMIO_BYTES, deviceTable,
} from './layout.ts'
import { VcpuThreads } from './vcpu_threads.ts'

import type { Mapped } from '../sys/guest_ram.ts'
import type { Engine, EngineOptions, MachineEnd, MachineFigures, Sections } from './engine.ts'

/** What there is of a machine from `start` to `close`. */
type Running = {
  readonly ram: Mapped
  readonly board: Board
  readonly threads: VcpuThreads
  readonly devices: Devices
  readonly uart: Uart
  readonly interrupts: { readonly serial: number; readonly power: number; readonly generation: number }
}

/** A machine under KVM. */
export class KvmEngine implements Engine {
  readonly name = 'kvm'
  readonly #options: EngineOptions
  #running: Running | undefined
  #isPaused = false
  #hasEnded = false
  #isHeld = false
  #watch: Disposable | undefined
  // Pausing and looking at halted vCPUs take turns.
  #turn: Promise<unknown> = Promise.resolve()

  constructor(options: EngineOptions) {
    this.#options = options
  }

  async start(): Promise<void> {
    const { spec, from } = this.#options
    if (spec.boot === undefined && from === undefined) throw new CellarError('MACHINE_DISK_BOOT', [spec.name])
    const running = await this.#make()
    this.#running = running
    try {
      running.threads.run()
      if (from !== undefined) signalEventFd(running.interrupts.generation)
      this.#watch = watchHalts(running.board, running.threads, {
        halted: () => this.#ended({ kind: 'off', reason: 'halted' }),
        exclusively: (look) => this.#exclusively(async () => {
          if (this.#isPaused || this.#hasEnded) return
          await running.threads.rest()
          look()
          if (!this.#hasEnded) running.threads.run()
        }),
      })
    } catch (error) {
      await this.close()
      throw error
    }
  }

  get ram(): Uint8Array | undefined {
    return this.#options.isRamPrivate ? this.#running?.ram.bytes : undefined
  }

  input(bytes: Uint8Array): number {
    return this.#running?.uart.give(bytes) ?? 0
  }

  holdConsole(isHeld: boolean): void {
    this.#isHeld = isHeld
    const running = this.#running
    running?.devices.holdConsole(isHeld)
    if (running !== undefined && !isHeld) this.#drainUntilQuiet(running.uart)
  }

  async pause(): Promise<void> {
    const running = this.#live()
    await this.#exclusively(async () => {
      if (this.#isPaused) return
      this.#isPaused = true
      await running.threads.rest()
      await running.devices.pause()
      this.#drain(running.uart)
    })
  }

  async resume(): Promise<void> {
    const running = this.#live()
    await this.#exclusively(async () => {
      if (!this.#isPaused) return
      running.devices.resume()
      for (const vcpu of running.board.vcpus) vcpu.wasPaused()
      this.#isPaused = false
      if (!this.#hasEnded) running.threads.run()
    })
  }

  async save(): Promise<Sections> {
    const { board, devices, uart } = this.#live()
    assert(this.#isPaused, 'a machine is saved while it is paused')
    const sections = saveBoard(board)
    sections.set('board/uart', uart.save())
    for (const [name, bytes] of await devices.save()) sections.set(name, bytes)
    return sections
  }

  watchWrites(): boolean {
    const { board, devices } = this.#live()
    assert(this.#isPaused, 'writes are watched from when a machine stands still')
    board.watchWrites()
    devices.takeMarks()
    return true
  }

  takeWritten(): Uint8Array {
    const { board, devices } = this.#live()
    assert(this.#isPaused, 'writes are told while a machine stands still')
    const written = board.takeWritten()
    devices.takeMarks().forEach((bits, i) => { written[i]! |= bits })
    return written
  }

  powerButton(): void {
    if (this.#running !== undefined) signalEventFd(this.#running.interrupts.power)
  }

  balloon(bytes: number): void {
    this.#running?.devices.setBalloon(bytes)
  }

  async figures(): Promise<MachineFigures> {
    const { ram, threads, devices } = this.#live()
    const ofDevices = devices.figures()
    return {
      ...ofDevices, exits: threads.control.exits(), residentBytes: residentBytes(ram),
      vcpuNs: threads.timesNs().reduce((sum, ns) => sum + ns, 0),
    }
  }

  async close(): Promise<void> {
    const running = this.#running
    if (running === undefined) return
    this.#running = undefined
    this.#hasEnded = true
    this.#watch?.[Symbol.dispose]()
    await this.#turn
    await running.threads.close()
    this.#drain(running.uart)
    await running.devices.close()
    running.board.close()
    for (const fd of Object.values(running.interrupts)) closeSync(fd)
    unmapRam(running.ram)
  }

  // Everything, with the vCPUs at rest before their first instruction.
  async #make(): Promise<Running> {
    const { spec, ramFd, isRamPrivate, from, events } = this.#options
    await using undo = new AsyncDisposableStack()
    const ram = undo.adopt(mapRam(ramFd, spec.memoryBytes, isRamPrivate), unmapRam)
    const table = deviceTable(spec)
    const entry = from === undefined ? loadKernel(ram.bytes, spec.boot!) : undefined
    if (entry !== undefined) {
      writeBootTables(ram.bytes)
      ram.bytes.set(acpiTables({ vcpus: spec.vcpus, devices: table }), ACPI_START)
    }
    ram.bytes.set(Buffer.from(spec.generation, 'hex').subarray(0, 16), GENERATION_START)
    const board = undo.adopt(new Board({ vcpus: spec.vcpus, ram, kvmFd: this.#options.kvmFd }), (made) => made.close())
    const interrupts = { serial: eventFd(undo), power: eventFd(undo), generation: eventFd(undo) }
    board.vm.irqfd(interrupts.serial, SERIAL_GSI)
    board.vm.irqfd(interrupts.power, POWER_GSI)
    board.vm.irqfd(interrupts.generation, GENERATION_GSI)

    const uartShared = new SharedArrayBuffer(UART_BYTES)
    const uart = new Uart(uartShared, {
      interrupt: () => signalEventFd(interrupts.serial), output: () => {}, mayWait: () => false,
    })
    const windows = new SharedArrayBuffer(devicesBytes(spec))
    const devices = undo.adopt(new Devices({
      spec, ram: { address: ram.address, sizeBytes: spec.memoryBytes }, shared: windows,
      events: {
        console: (bytes) => events.console(bytes), agent: (stream) => events.agent(stream),
        failed: (why) => this.#ended({ kind: 'failed', reason: why }),
      },
    }), (made) => made.close())
    for (const { index, queue, fd } of devices.kicks) {
      board.vm.ioeventfd(fd, VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_BYTES + QUEUE_NOTIFY, queue)
    }
    for (const { index, fd } of devices.interrupts) board.vm.irqfd(fd, table[index]!.gsi)

    const threads = undo.adopt(new VcpuThreads(spec.vcpus, {
      output: () => this.#drainUntilQuiet(uart), ended: (end) => this.#ended(end),
    }), (made) => made.close())
    await Promise.all([
      devices.start(from),
      threads.start(board.vcpus, {
        uart: uartShared, uartInterruptFd: interrupts.serial, windows, devices: table.length,
      }),
    ])
    // Last, as the guest's clock goes on from here.
    if (entry !== undefined) board.begin(entry)
    else this.#restore(board, uart, from!)
    undo.move()
    return { ram, board, threads, devices, uart, interrupts }
  }

  #restore(board: Board, uart: Uart, from: Sections): void {
    restoreBoard(board, from)
    if (!uart.restore(from.get('board/uart') ?? new Uint8Array(0))) {
      throw new CellarError('SNAPSHOT_DAMAGED', ['board/uart', 'its size is wrong'])
    }
    for (const vcpu of board.vcpus) vcpu.wasPaused()
  }

  // A vCPU tells of the first byte only: more are fetched as they come, a hundred times a second, until none does.
  #drainUntilQuiet(uart: Uart): void {
    if (this.#isHeld || !this.#drain(uart) || this.#hasEnded) return
    setTimeout(() => this.#drainUntilQuiet(uart), DRAIN_PERIOD_MS)
  }

  #drain(uart: Uart): boolean {
    const bytes = uart.drain()
    if (bytes !== undefined) this.#options.events.console(bytes)
    return bytes !== undefined
  }

  #ended(end: MachineEnd): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    const running = this.#running
    if (running !== undefined) this.#drain(running.uart)
    this.#options.events.ended(end)
  }

  #exclusively(work: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(work)
    this.#turn = done.catch(() => {})
    return done
  }

  #live(): Running {
    assert(this.#running !== undefined, 'the machine has been started')
    return this.#running
  }
}

function eventFd(undo: AsyncDisposableStack): number {
  return undo.adopt(makeEventFd(), closeSync)
}

/** Offset of QueueNotify in a window (Virtio 1.3 §4.2.2). */
const QUEUE_NOTIFY = 0x050
const DRAIN_PERIOD_MS = 10
