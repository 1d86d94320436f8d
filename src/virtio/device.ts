// virtio/device.ts: what a device has to say and to do; what all devices have in common is in port.ts.

import { assert } from '../base/assert.ts'
import type { Port } from './port.ts'
import type { SectionReader, SectionWriter } from './section.ts'

/** What a device is, before anything has happened. */
export type DeviceType = {
  /** The specification's number of it (§5). */
  readonly id: number
  /** For figures: 'blk0'. */
  readonly name: string
  /** Bits of its own that it offers; those in COMMON come to them. */
  readonly features: readonly number[]
  /** Features that may be accepted only together with another one. */
  readonly needs?: readonly (readonly [feature: number, needed: number])[]
  /** The largest size of each queue. */
  readonly queues: readonly number[]
  /** The configuration space at the start. */
  readonly config: Uint8Array
  /** What it counts, in the order of Port.count's numbers. */
  readonly counters: readonly string[]
}

/** A device behind a port. All calls are by one thread; whatever throws GuestFault ends in DEVICE_NEEDS_RESET. */
export abstract class Device {
  abstract readonly type: DeviceType
  /** A descriptor that it waits for, or -1. */
  readonly fd: number = -1
  #port: Port | undefined

  get port(): Port {
    assert(this.#port !== undefined, 'a device is attached')
    return this.#port
  }

  /** Once, before anything else. */
  attach(port: Port): void { this.#port = port }

  /** Serves queue `queue`. True if there is more to do at once: it is called again after the other devices. */
  abstract serve(queue: number): boolean

  /** The driver is ready: DRIVER_OK, or a restore. */
  activate(): void {}

  /** Forgets everything of the driver's. */
  reset(): void {}

  /** What it waits for of `fd` now (POLL*); 0: nothing. */
  wanted(): number { return 0 }

  /** `fd` is ready. The queues with more to do at once, as bits. */
  ready(_events: number): number { return 0 }

  /** Milliseconds until its queues are to be served by time alone, as a limit is over; negative: not at all. */
  dueMs(): number { return -1 }

  /** The driver writes to the configuration space. False: it may not. */
  configure(_at: number, _size: number, _value: number): boolean { return false }

  /** How many chains of `queue` it has taken and will take again if it is reset, or after a restore. */
  held(_queue: number): number { return 0 }

  save(_to: SectionWriter): void {}
  restore(_from: SectionReader): void {}
}
