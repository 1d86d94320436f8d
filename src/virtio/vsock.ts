// virtio/vsock.ts: socket device (Virtio 1.3 §5.10): packets between the guest and the host's endpoint.
//
// Packets pass through unread but for their length and addresses: connections and credit are the endpoint's
// (services/vsock), on the other end of a stream socket, where each packet comes after its length (frames.ts). What it
// sends may be longer than a buffer of the guest's: then it arrives as several packets with the same header, which for
// a stream means the same.
//
// After a restore or a fork the guest is told that the transport was reset (event queue): all of its connections are
// over, and its address may be another one.

import { EINVAL } from '../base/errno.ts'
import { VIRTQUEUE_ROUND_MAX, VSOCK_PAYLOAD_BYTES_MAX } from '../base/limits.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { POLLIN, POLLOUT } from '../sys/libc.ts'
import { Device, type DeviceType } from './device.ts'
import { FrameReader, Sender } from './frames.ts'
import { addReadable, addWritable } from './pieces.ts'
import type { Port } from './port.ts'
import { Chain } from './queue.ts'
import type { SectionReader, SectionWriter } from './section.ts'

const VIRTIO_ID_VSOCK = 19
const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0

const RX = 0
const TX = 1
const EVENT = 2

// struct virtio_vsock_hdr
const HEADER_BYTES = 44
const H_SRC_CID = 0         // u64
const H_LEN = 24            // u32
const LENGTH_BYTES = 4

const C_RX = 0
const C_RX_BYTES = 1
const C_TX = 2
const C_TX_BYTES = 3
const C_DROPPED = 4

const SMALL_BUFFER = new GuestFault('vsock: a buffer for packets has no room for a header')
SMALL_BUFFER.stack = ''

export class Vsock extends Device {
  override readonly type: DeviceType
  override readonly fd: number
  readonly #cid: number
  readonly #chain = new Chain()
  readonly #header = new Uint8Array(HEADER_BYTES)
  readonly #headerView = new DataView(this.#header.buffer)
  #in!: FrameReader
  #out!: Sender
  // The buffer that is being filled, and how many bytes of a packet go into it.
  #filling = -1
  #piece = 0
  #isStarved = false
  #isResetDue = false

  /** `fd`: a connected stream socket that doesn't block. */
  constructor(cid: number, fd: number) {
    super()
    const config = new Uint8Array(8)
    new DataView(config.buffer).setUint32(0, cid, true)
    this.type = {
      id: VIRTIO_ID_VSOCK, name: 'vsock0', features: [], queues: [128, 128, 16], config,
      counters: ['rxPackets', 'rxBytes', 'txPackets', 'txBytes', 'dropped'],
    }
    this.#cid = cid
    this.fd = fd
  }

  override attach(port: Port): void {
    super.attach(port)
    const { bytes } = port.ram
    this.#in = new FrameReader({ memory: bytes, fd: this.fd, extra: HEADER_BYTES, bodyMax: VSOCK_PAYLOAD_BYTES_MAX })
    this.#out = new Sender(bytes, this.fd, LENGTH_BYTES + HEADER_BYTES)
  }

  override activate(): void {
    this.#isStarved = false
  }

  override wanted(): number {
    return (this.#isStarved || this.#in.isClosed ? 0 : POLLIN) | (this.#out.isStuck ? POLLOUT : 0)
  }

  override ready(events: number): number {
    const sends = this.#out.isStuck && this.#send() ? 1 << TX : 0
    return (events & ~POLLOUT) !== 0 && this.#receive() ? sends | 1 << RX : sends
  }

  override serve(queue: number): boolean {
    if (queue === TX) return this.#send()
    if (queue === EVENT) return this.#tell()
    this.#isStarved = false
    return this.#receive()
  }

  #receive(): boolean {
    const queue = this.port.queues[RX]!
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (this.#filling >= 0) {
        if (!this.#in.fill()) return false
        queue.push(this.#filling, HEADER_BYTES + this.#piece)
        this.#filling = -1
        if (this.#in.bodyLeft === 0) this.port.count(C_RX, 1)
      }
      if (!this.#in.readHead()) return false
      if (!queue.pop(this.#chain)) {
        this.#isStarved = true
        return false
      }
      this.#place()
    }
    return true
  }

  // The popped chain becomes the place for as much of the packet as fits.
  #place(): void {
    const chain = this.#chain
    const reader = this.#in
    if (chain.writeBytes < HEADER_BYTES || (reader.bodyLeft > 0 && chain.writeBytes === HEADER_BYTES)) {
      this.port.queues[RX]!.unpop(1)
      throw SMALL_BUFFER
    }
    this.#piece = Math.min(reader.bodyLeft, chain.writeBytes - HEADER_BYTES)
    this.#header.set(reader.vectors.head.subarray(reader.extraAt, reader.extraAt + HEADER_BYTES))
    this.#headerView.setUint32(H_LEN, this.#piece, true)
    chain.scatter(this.port.ram, 0, HEADER_BYTES, this.#header)
    addWritable(reader.begin(), chain, HEADER_BYTES, HEADER_BYTES + this.#piece)
    reader.place(this.#piece)
    this.#filling = chain.head
    this.port.count(C_RX_BYTES, this.#piece)
  }

  #send(): boolean {
    const queue = this.port.queues[TX]!
    const out = this.#out
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (!out.flush()) return false
      if (out.chain >= 0) queue.push(out.chain, 0)
      out.chain = -1
      if (!queue.pop(this.#chain)) return false
      out.chain = this.#chain.head
      if (this.#packet() < 0) this.port.count(C_DROPPED, 1)
    }
    return true
  }

  // Makes the popped chain a packet to be sent; an errno if it is none of this guest's.
  #packet(): number {
    const chain = this.#chain
    const { vectors } = this.#out
    if (!chain.gather(this.port.ram, 0, HEADER_BYTES, this.#header)) return -EINVAL
    const view = this.#headerView
    const length = view.getUint32(H_LEN, true)
    if (length > VSOCK_PAYLOAD_BYTES_MAX || HEADER_BYTES + length > chain.readBytes) return -EINVAL
    if (view.getUint32(H_SRC_CID, true) !== this.#cid || view.getUint32(H_SRC_CID + 4, true) !== 0) return -EINVAL
    vectors.clear()
    vectors.headView.setUint32(0, HEADER_BYTES + length, false)
    // The header as it was checked: what is in the guest's memory may be another one by now.
    vectors.head.set(this.#header, LENGTH_BYTES)
    vectors.addHead(0, LENGTH_BYTES + HEADER_BYTES)
    addReadable(vectors, chain, HEADER_BYTES, HEADER_BYTES + length)
    this.port.count(C_TX, 1)
    this.port.count(C_TX_BYTES, length)
    return 0
  }

  #tell(): boolean {
    const queue = this.port.queues[EVENT]!
    if (!this.#isResetDue || !queue.pop(this.#chain)) return false
    this.#header.fill(0)
    this.#headerView.setUint32(0, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, true)
    const isTold = this.#chain.scatter(this.port.ram, 0, 4, this.#header)
    queue.push(this.#chain.head, isTold ? 4 : 0)
    if (isTold) this.#isResetDue = false
    return !isTold
  }

  override reset(): void {
    this.#in.abandon()
    this.#filling = -1
    this.#out.chain = -1
    this.#isResetDue = false
  }

  override held(queue: number): number {
    if (queue === RX) return this.#filling >= 0 ? 1 : 0
    return queue === TX && this.#out.chain >= 0 ? 1 : 0
  }

  override save(to: SectionWriter): void {
    to.u32(this.#cid)
  }

  override restore(from: SectionReader): void {
    // The address that it had: it has the one of its specification now, and hears of it.
    from.u32()
    this.#isResetDue = true
  }
}
