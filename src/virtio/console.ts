// virtio/console.ts: console with one port (Virtio 1.3 §5.3): bytes between the guest's hvc0 and a stream socket.
//
// What the guest writes goes straight from its buffers to the socket; if nobody reads there, the guest waits. Input is
// read from the socket only while the guest has given a buffer for it. Several ports, which make this device another
// protocol, are not offered.

import { VIRTIO_CONSOLE_BYTES_MAX, VIRTQUEUE_ROUND_MAX } from '../base/limits.ts'
import { EAGAIN, EINTR } from '../base/errno.ts'
import { POLLIN, POLLOUT } from '../sys/libc.ts'
import { Vectors } from '../sys/vectors.ts'
import { Device, type DeviceType } from './device.ts'
import { Sender } from './frames.ts'
import { addReadable, addWritable } from './pieces.ts'
import type { Port } from './port.ts'
import { Chain } from './queue.ts'
import type { SectionReader, SectionWriter } from './section.ts'

const VIRTIO_ID_CONSOLE = 3
const VIRTIO_CONSOLE_F_SIZE = 0

const INPUT = 0
const OUTPUT = 1
const QUEUE_SIZE = 64

const C_IN = 0
const C_OUT = 1

export class VirtioConsole extends Device {
  // struct virtio_console_config { u16 cols; u16 rows; u32 max_nr_ports; u32 emerg_wr; }
  override readonly type: DeviceType = {
    id: VIRTIO_ID_CONSOLE, name: 'console0', features: [VIRTIO_CONSOLE_F_SIZE], queues: [QUEUE_SIZE, QUEUE_SIZE],
    config: new Uint8Array(12), counters: ['inBytes', 'outBytes'],
  }
  override readonly fd: number
  readonly #chain = new Chain()
  #in!: Vectors
  #out!: Sender
  #wantsInput = false
  #isClosed = false

  /** `fd`: a connected stream socket that doesn't block. */
  constructor(fd: number) {
    super()
    this.fd = fd
  }

  override attach(port: Port): void {
    super.attach(port)
    this.#in = new Vectors(port.ram.bytes, QUEUE_SIZE, 0)
    this.#out = new Sender(port.ram.bytes, this.fd, 0)
  }

  /** Tells the guest how large the terminal is. */
  resize(columns: number, rows: number): void {
    this.port.setConfig32(0, (columns & 0xffff) | (rows & 0xffff) << 16, true)
  }

  override wanted(): number {
    return (this.#wantsInput && !this.#isClosed ? POLLIN : 0) | (this.#out.isStuck ? POLLOUT : 0)
  }

  override ready(events: number): number {
    // POLLHUP comes unasked: then read and write find out what is wrong.
    if ((events & ~POLLOUT) !== 0) this.#input()
    return this.#out.isStuck && this.#output() ? 1 << OUTPUT : 0
  }

  override serve(queue: number): boolean {
    if (queue === OUTPUT) return this.#output()
    this.#wantsInput = true
    return false
  }

  #input(): void {
    const queue = this.port.queues[INPUT]!
    const chain = this.#chain
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (!queue.pop(chain)) {
        this.#wantsInput = false
        return
      }
      this.#in.clear()
      addWritable(this.#in, chain, 0, Math.min(chain.writeBytes, VIRTIO_CONSOLE_BYTES_MAX))
      const read = this.#in.left === 0 ? 0 : this.#in.read(this.fd)
      if (read <= 0) {
        queue.unpop(1)
        if (read !== -EAGAIN && read !== -EINTR) this.#isClosed = true
        return
      }
      this.port.count(C_IN, read)
      queue.push(chain.head, read)
    }
  }

  #output(): boolean {
    const queue = this.port.queues[OUTPUT]!
    const out = this.#out
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (!out.flush()) return false
      if (out.chain >= 0) queue.push(out.chain, 0)
      out.chain = -1
      if (!queue.pop(this.#chain)) return false
      // More than that at once is more than any driver has: the rest is lost.
      const length = Math.min(this.#chain.readBytes, VIRTIO_CONSOLE_BYTES_MAX)
      addReadable(out.vectors, this.#chain, 0, length)
      out.chain = this.#chain.head
      this.port.count(C_OUT, length)
    }
    return true
  }

  override reset(): void {
    // Bytes that were on their way go on their way; nobody gets the chain back.
    this.#out.chain = -1
    this.#wantsInput = false
  }

  override held(queue: number): number {
    return queue === OUTPUT && this.#out.chain >= 0 ? 1 : 0
  }

  override save(to: SectionWriter): void {
    to.u32(this.port.config32(0))
  }

  override restore(from: SectionReader): void {
    this.port.setConfig32(0, from.u32(), false)
  }
}
