// machine/engine.ts: what runs a machine: our own VMM over KVM (kvm_engine.ts), or QEMU (../qemu/qemu_engine.ts).
//
// Whoever owns an engine drives the life of its machine by these calls, in this order:
//   start → (pause → (save | resize) → resume)* → close
// RAM is a memfd that the owner has made, so that snapshots, forks and moves read and write it without the engine.
// Nothing of a machine is anywhere but in RAM, in its disks and in what `save` answers.

import type { Duplex } from 'node:stream'
import type { MachineSpec } from './spec.ts'

/** How a machine ended. `reason`: a word for the record, such as 'poweroff', 'reset', 'triple-fault', 'halted'. */
export type MachineEnd = {
  readonly kind: 'off' | 'reset' | 'crashed' | 'failed'
  readonly reason: string
}

/** Named parts of a stopped machine's state, such as 'vcpu0/regs' or 'virtio2'. Each says its own version. */
export type Sections = ReadonlyMap<string, Uint8Array>

/** What an engine tells its owner. */
export type EngineEvents = {
  /** The guest has written to its console. The bytes are the owner's. */
  console(bytes: Uint8Array): void
  /** The guest's vCPUs run no more. Once; a machine that has ended is closed. */
  ended(end: MachineEnd): void
  /** A stream to the guest's agent: when the guest has connected, and again whenever it connects anew. */
  agent(stream: Duplex): void
  /** Something for the host's log: bounded in number. */
  say(text: string): void
}

/** What became of a machine's time. Counters since its start. */
export type MachineFigures = {
  /** Nanoseconds that its vCPUs ran, and that its device threads used. */
  readonly vcpuNs: number; readonly deviceNs: number
  /** Exits by reason, in KVM's words ('KVM_EXIT_IO', …); empty under QEMU. */
  readonly exits: Readonly<Record<string, number>>
  /** Requests and bytes of its devices, such as { blk0: { reads, readBytes, writes, writtenBytes, flushes } }. */
  readonly devices: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** Bytes that the balloon has taken. */
  readonly balloonBytes: number
  /** Resident bytes of the guest's RAM. */
  readonly residentBytes: number
}

/** What an engine is made with. */
export type EngineOptions = {
  readonly spec: MachineSpec
  /** RAM: a memfd of spec.memoryBytes. The owner's to close, after `close`. */
  readonly ramFd: number
  /** Undo what others share: map RAM privately, so that writes stay this machine's (a fork's children). */
  readonly isRamPrivate: boolean
  /** /dev/kvm, which stays the owner's; undefined: an engine that needs it opens it. */
  readonly kvmFd?: number | undefined
  /** Goes on from here, in place of booting. RAM and disks are as they were then. Hostile until checked. */
  readonly from?: Sections | undefined
  readonly events: EngineEvents
}

/** A machine that runs, or is about to. */
export interface Engine {
  readonly name: 'kvm' | 'qemu'
  /** RAM as this process sees it, where that isn't what the memfd holds (isRamPrivate); good until `close`. */
  readonly ram?: Uint8Array | undefined
  /** Boots, or goes on. Rejects with CellarError for what can't be run: nothing was begun then. */
  start(): Promise<void>
  /** Input for the console. Returns how many bytes were taken; the rest is to be offered again. */
  input(bytes: Uint8Array): number
  /** Console output isn't taken for a while: a guest that writes more than a little waits, and nothing is lost. */
  holdConsole(isHeld: boolean): void
  /** Resolves when no vCPU runs and no request of a device is under way; new ones wait. */
  pause(): Promise<void>
  resume(): Promise<void>
  /** While paused. What the guest has written to its disks is in their files when it resolves. */
  save(): Promise<Sections>
  /** While paused: from now on it remembers which pages are written, if it can (true). */
  watchWrites(): boolean
  /** While paused: the pages (4 KiB, by their number in RAM) written since `watchWrites`, as bits. The watch ends. */
  takeWritten(): Uint8Array
  /** Presses the power button: a guest that hears it goes down by itself. */
  powerButton(): void
  /** Asks the guest to leave this much memory to the host (balloon). What it gives is in the figures. */
  balloon(bytes: number): void
  figures(): Promise<MachineFigures>
  /** Ends it at once. All threads, processes and descriptors of it are gone when this resolves. */
  close(): Promise<void>
}
