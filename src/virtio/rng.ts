// virtio/rng.ts: entropy device (Virtio 1.3 §5.4): fills what the driver gives it with random bytes.
//
// Descriptors may overlap, so that the sum of a chain's lengths is not bounded by RAM: a request is served up to a
// limit, and the driver told how much that was. Nothing is kept, so that nothing is the same after a fork.

import { ENTROPY_BYTES_MAX } from '../base/limits.ts'
import type { Entropy } from '../services/entropy/entropy.ts'
import { Device, type DeviceType } from './device.ts'
import { Chain } from './queue.ts'

const VIRTIO_ID_RNG = 4
/** Requests of one turn: 1 MiB, some milliseconds. */
const ROUND = 16
const C_REQUESTS = 0
const C_BYTES = 1

export class Rng extends Device {
  override readonly type: DeviceType = {
    id: VIRTIO_ID_RNG, name: 'rng0', features: [], queues: [64], config: new Uint8Array(0),
    counters: ['requests', 'bytes'],
  }
  readonly #entropy: Entropy
  readonly #pool = new Uint8Array(4096)
  readonly #chain = new Chain()

  constructor(entropy: Entropy) {
    super()
    this.#entropy = entropy
  }

  override serve(queue: number): boolean {
    const { queues, ram } = this.port
    const chain = this.#chain
    for (let i = 0; i < ROUND; i++) {
      if (!queues[queue]!.pop(chain)) return false
      const length = Math.min(chain.writeBytes, ENTROPY_BYTES_MAX)
      for (let done = 0; done < length; done += this.#pool.length) {
        this.#entropy.fill(this.#pool)
        chain.scatter(ram, done, Math.min(this.#pool.length, length - done), this.#pool)
      }
      this.port.count(C_REQUESTS, 1)
      this.port.count(C_BYTES, length)
      queues[queue]!.push(chain.head, length)
    }
    // Bytes that a guest was given aren't ours to keep.
    this.#pool.fill(0)
    return true
  }
}
