// virtio/balloon.ts: memory balloon (Virtio 1.3 §5.5): RAM that the guest leaves to the host.
//
// The host says how many pages it would like (`num_pages`), the driver gives pages by their numbers (inflate) and takes
// some back (deflate), at will when it is short (DEFLATE_ON_OOM): a page that is given is returned to the system at
// once and is there again when it is touched, so that there is nothing to do for one that is taken back. Free page
// reporting is the same without a target: ranges of free memory, which the driver waits with until we have answered.
// What the driver says that it gave (`actual`) is a figure, no more.

import { BALLOON_PAGES_AT_ONCE_MAX, VIRTQUEUE_ROUND_MAX } from '../base/limits.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { Device, type DeviceType } from './device.ts'
import { Chain } from './queue.ts'
import type { SectionReader, SectionWriter } from './section.ts'

const VIRTIO_ID_BALLOON = 5
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 2
const VIRTIO_BALLOON_F_PAGE_REPORTING = 5
const PAGE_BYTES = 4096

const INFLATE = 0
const REPORTING = 2

// struct virtio_balloon_config
const NUM_PAGES = 0
const ACTUAL = 4

const C_INFLATED = 0
const C_DEFLATED = 1
const C_REPORTED = 2
const C_RETURNED = 3

const BAD_LIST = new GuestFault('balloon: a list of pages is too long or no whole number of them')
BAD_LIST.stack = ''

export class Balloon extends Device {
  override readonly type: DeviceType = {
    id: VIRTIO_ID_BALLOON, name: 'balloon0', config: new Uint8Array(16), queues: [128, 128, 128],
    features: [VIRTIO_BALLOON_F_DEFLATE_ON_OOM, VIRTIO_BALLOON_F_PAGE_REPORTING],
    counters: ['inflatedPages', 'deflatedPages', 'reportedBytes', 'returnedBytes'],
  }
  readonly #giveBack: (offset: number, length: number) => number
  readonly #chain = new Chain()
  readonly #numbers = new Uint8Array(4 * 256)
  readonly #numbersView = new DataView(this.#numbers.buffer)
  // A run of pages that lie together, to be given back in one go.
  #runStart = 0
  #runBytes = 0

  /** `giveBack`: what to do with [offset, offset + length) of RAM that the guest gave up; how much of it went. */
  constructor(giveBack: (offset: number, length: number) => number) {
    super()
    this.#giveBack = giveBack
  }

  /** Asks the guest to have `bytes` less. */
  setTarget(bytes: number): void {
    const pages = Math.floor(Math.min(Math.max(0, bytes), this.port.ram.bytes.length) / PAGE_BYTES)
    this.port.setConfig32(NUM_PAGES, pages, true)
  }

  override configure(at: number, size: number, value: number): boolean {
    if (at !== ACTUAL || size !== 4) return false
    this.port.setConfig32(ACTUAL, value, false)
    return true
  }

  override serve(queue: number): boolean {
    const { queues } = this.port
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (!queues[queue]!.pop(this.#chain)) return false
      if (queue === REPORTING) this.#reported()
      else this.#listed(queue === INFLATE)
      queues[queue]!.push(this.#chain.head, 0)
    }
    return true
  }

  // Ranges of free memory, whose content nobody needs.
  #reported(): void {
    const { offsets, lengths, readable, count } = this.#chain
    for (let i = readable; i < count; i++) {
      this.port.count(C_REPORTED, lengths[i]!)
      this.#return(offsets[i]!, lengths[i]!)
    }
  }

  // Numbers of pages, 32 bits each.
  #listed(isInflate: boolean): void {
    const { ram } = this.port
    const total = this.#chain.readBytes
    if (total % 4 !== 0 || total / 4 > BALLOON_PAGES_AT_ONCE_MAX) throw BAD_LIST
    this.port.count(isInflate ? C_INFLATED : C_DEFLATED, total / 4)
    if (!isInflate) return
    try {
      for (let done = 0; done < total; done += this.#numbers.length) {
        const length = Math.min(this.#numbers.length, total - done)
        this.#chain.gather(ram, done, length, this.#numbers)
        for (let i = 0; i < length; i += 4) {
          this.#add(ram.at(this.#numbersView.getUint32(i, true) * PAGE_BYTES, PAGE_BYTES))
        }
      }
    } finally {
      this.#flush()
    }
  }

  // Linux gives pages from high to low, or from low to high.
  #add(offset: number): void {
    if (this.#runBytes > 0 && offset === this.#runStart + this.#runBytes) {
      this.#runBytes += PAGE_BYTES
    } else if (this.#runBytes > 0 && offset === this.#runStart - PAGE_BYTES) {
      this.#runStart = offset
      this.#runBytes += PAGE_BYTES
    } else {
      this.#flush()
      this.#runStart = offset
      this.#runBytes = PAGE_BYTES
    }
  }

  #flush(): void {
    if (this.#runBytes > 0) this.#return(this.#runStart, this.#runBytes)
    this.#runBytes = 0
  }

  #return(offset: number, length: number): void {
    this.port.count(C_RETURNED, Math.max(0, this.#giveBack(offset, length)))
  }

  override reset(): void {
    this.port.setConfig32(ACTUAL, 0, false)
  }

  override save(to: SectionWriter): void {
    to.u32(this.port.config32(NUM_PAGES))
    to.u32(this.port.config32(ACTUAL))
  }

  override restore(from: SectionReader): void {
    const pages = from.u32()
    const actual = from.u32()
    if (pages > this.port.ram.bytes.length / PAGE_BYTES) from.refuse('a balloon is larger than RAM')
    this.port.setConfig32(NUM_PAGES, pages, false)
    this.port.setConfig32(ACTUAL, actual, false)
  }
}
