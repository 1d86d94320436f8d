// machine/device_thread.ts: the thread that has all virtio devices of a machine.
//
// It opens the disks, makes the devices, and enters its loop (device_loop.ts), out of which the main thread calls it by
// a command in shared memory. Only outside of the loop does it read messages: what it is to do. Paused is a machine
// whose device thread stands outside of its loop. If anything here throws, the machine has failed.

import { parentPort, workerData } from 'node:worker_threads'
import { CellarError } from '../base/errors.ts'
import { openDisk } from '../services/block/open_disk.ts'
import type { Disk } from '../services/block/disk.ts'
import { hostEntropy } from '../services/entropy/entropy.ts'
import { GuestRam } from '../services/guest_ram.ts'
import { signalEventFd } from '../sys/eventfd.ts'
import { viewRam } from '../sys/guest_ram.ts'
import { punch } from '../sys/punch.ts'
import { threadId } from '../sys/threads.ts'
import { Balloon } from '../virtio/balloon.ts'
import { Blk } from '../virtio/blk.ts'
import type { DeviceLimits } from '../virtio/bucket.ts'
import { VirtioConsole } from '../virtio/console.ts'
import type { Device } from '../virtio/device.ts'
import { M_BALLOON_PAGES, M_BELL_FD, M_CONSOLE_SIZE } from '../virtio/mailbox.ts'
import { Net } from '../virtio/net.ts'
import { Port } from '../virtio/port.ts'
import { Rng } from '../virtio/rng.ts'
import { Vsock } from '../virtio/vsock.ts'
import { COMMAND_BALLOON, COMMAND_CONSOLE_SIZE, DeviceLoop } from './device_loop.ts'
import { deviceTable, type DevicePlace } from './layout.ts'
import type { MachineSpec } from './spec.ts'

/** What the thread is started with. Descriptors are the main thread's to close, after this one has ended. */
export type DeviceStart = {
  readonly spec: Pick<MachineSpec, 'nics' | 'disks' | 'cid' | 'vcpus'>
  readonly ram: { readonly address: bigint; readonly sizeBytes: number }
  /** Bits for the pages of RAM that the devices write. */
  readonly marks: SharedArrayBuffer
  readonly shared: SharedArrayBuffer
  readonly bell: number
  /** For each device the eventfds of its queues. */
  readonly kicks: readonly (readonly number[])[]
  readonly interrupts: readonly number[]
  readonly consoleFd: number
  readonly vsockFd: number
  readonly limits: { readonly nics: readonly DeviceLimits[]; readonly disks: readonly DeviceLimits[] }
  /** Sections of a snapshot to go on from, by device. */
  readonly from: readonly Uint8Array[] | undefined
}

/** What it is told, while it is outside of its loop. */
export type DeviceOrder = 'run' | 'save' | 'end'

/** What it tells. */
export type DeviceMessage =
  | { readonly kind: 'ready'; readonly thread: number; readonly counters: readonly (readonly string[])[] }
  | { readonly kind: 'refused'; readonly code: string; readonly values: readonly unknown[] }
  | { readonly kind: 'left' }
  | { readonly kind: 'saved'; readonly sections: readonly Uint8Array[] }

class DeviceThread {
  readonly #start: DeviceStart
  readonly #words: Int32Array
  readonly #disks: Disk[] = []
  readonly #ports: Port[] = []
  readonly #balloon: Balloon
  readonly #terminal: VirtioConsole
  readonly #loop: DeviceLoop

  constructor(start: DeviceStart) {
    this.#start = start
    this.#words = new Int32Array(start.shared)
    this.#words[M_BELL_FD] = start.bell
    this.#balloon = new Balloon((offset, length) => punch(start.ram.address, offset, length))
    this.#terminal = new VirtioConsole(start.consoleFd)
    const ram = new GuestRam(viewRam(start.ram.address, start.ram.sizeBytes), new Uint8Array(start.marks))
    try {
      for (const place of deviceTable(start.spec)) {
        const interrupt = start.interrupts[place.index]!
        this.#ports.push(new Port({
          shared: start.shared, index: place.index, ram, device: this.#make(place), kicks: start.kicks[place.index]!,
          signal: () => signalEventFd(interrupt),
        }))
      }
      this.#ports.forEach((port, i) => {
        if (start.from !== undefined) port.restore(`virtio${i}`, start.from[i]!)
      })
    } catch (error) {
      this.close()
      throw error
    }
    this.#loop = new DeviceLoop({ words: this.#words, bell: start.bell, ports: this.#ports, kicks: start.kicks,
      command: (bits) => this.#command(bits) })
  }

  get counters(): string[][] { return this.#ports.map(({ device }) => [device.type.name, ...device.type.counters]) }

  /** Enters the loop, until the main thread calls it out. */
  run(): void {
    this.#loop.run()
  }

  save(): Uint8Array[] {
    return this.#ports.map((port) => port.save())
  }

  close(): void {
    for (const disk of this.#disks) disk.close()
  }

  #command(bits: number): void {
    if ((bits & COMMAND_BALLOON) !== 0) {
      this.#balloon.setTarget(Atomics.load(this.#words, M_BALLOON_PAGES) * PAGE_BYTES)
    }
    if ((bits & COMMAND_CONSOLE_SIZE) !== 0) {
      const size = Atomics.load(this.#words, M_CONSOLE_SIZE)
      this.#terminal.resize(size & 0xffff, size >>> 16)
    }
  }

  #make({ kind, unit }: DevicePlace): Device {
    const { spec, limits } = this.#start
    switch (kind) {
      case 'console': return this.#terminal
      case 'rng': return new Rng(hostEntropy)
      case 'balloon': return this.#balloon
      case 'vsock': return new Vsock(spec.cid, this.#start.vsockFd)
      case 'net': return new Net({ ...spec.nics[unit]!, name: `net${unit}`, limits: limits.nics[unit], nowMs,
        // TCP ends in the gateway, which takes it as it comes (services/gateway/gateway.ts).
        takesSegments: true })
      case 'blk': {
        const { path, format, readOnly, backingFolders, serial } = spec.disks[unit]!
        const disk = openDisk(path, format, { readOnly, backingFolders })
        this.#disks.push(disk)
        return new Blk({ name: `blk${unit}`, disk, serial, queues: spec.vcpus, limits: limits.disks[unit], nowMs })
      }
    }
  }
}

const PAGE_BYTES = 4096
const nowMs = (): number => performance.now()

function tell(message: DeviceMessage): void {
  parentPort!.postMessage(message)
}

function begin(start: DeviceStart): void {
  let thread: DeviceThread
  try {
    thread = new DeviceThread(start)
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    tell({ kind: 'refused', code: error.code, values: error.values })
    return
  }
  parentPort!.on('message', (order: DeviceOrder) => {
    if (order === 'run') {
      thread.run()
      tell({ kind: 'left' })
    } else if (order === 'save') {
      tell({ kind: 'saved', sections: thread.save() })
    } else {
      thread.close()
      parentPort!.close()
    }
  })
  tell({ kind: 'ready', thread: threadId(), counters: thread.counters })
}

if (parentPort !== null) begin(workerData as DeviceStart)
