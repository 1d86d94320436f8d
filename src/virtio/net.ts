// virtio/net.ts: network card (Virtio 1.3 §5.1), one pair of queues.
//
// Frames go between the guest's buffers and a link (net_link.ts) without a copy. Large ones: the guest may leave it to
// us to cut TCP (HOST_TSO4). On a stream nothing is cut: it is offered only if the other end, which terminates TCP
// itself, takes a segment as it is (`takesSegments`). The other way it may send such segments to a guest that
// understands them (GUEST_TSO4), which is told how the segment would have been cut. A TAP device is the kernel's:
// headers pass through it untouched.
//
// Receiving: a frame has one buffer, or, with MRG_RXBUF, as many as it takes; they are popped, filled and given back
// together. Without enough of them the stream isn't read, so that its other end waits. A frame that no number of the
// guest's buffers can hold is dropped. Sending: one chain at a time is on its way; a full socket stops the queue.
//
// Hot path: no allocation. Elsewhere: what is behind the link (services/gateway).

import { NET_FRAME_BYTES_MAX, VIRTQUEUE_ROUND_MAX, VIRTQUEUE_SIZE_MAX } from '../base/limits.ts'
import { GuestFault } from '../services/guest_memory.ts'
import { POLLIN, POLLOUT } from '../sys/libc.ts'
import { setTapOffload, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 } from '../sys/tap_offload.ts'
import { Bucket, type DeviceLimits } from './bucket.ts'
import { Device, type DeviceType } from './device.ts'
import { H_FLAGS, H_GSO_SIZE, H_GSO_TYPE, H_HDR_LEN, H_NUM_BUFFERS, NET_HDR_BYTES, StreamLink, TapLink,
  type Link } from './net_link.ts'
import { addWritable } from './pieces.ts'
import type { Port } from './port.ts'
import { Chain } from './queue.ts'

const VIRTIO_ID_NET = 1
const VIRTIO_NET_F_CSUM = 0
const VIRTIO_NET_F_GUEST_CSUM = 1
const VIRTIO_NET_F_MTU = 3
const VIRTIO_NET_F_MAC = 5
const VIRTIO_NET_F_GUEST_TSO4 = 7
const VIRTIO_NET_F_GUEST_TSO6 = 8
const VIRTIO_NET_F_HOST_TSO4 = 11
const VIRTIO_NET_F_HOST_TSO6 = 12
const VIRTIO_NET_F_MRG_RXBUF = 15
const VIRTIO_NET_F_STATUS = 16

const VIRTIO_NET_S_LINK_UP = 1
const VIRTIO_NET_HDR_GSO_NONE = 0
const VIRTIO_NET_HDR_GSO_TCPV4 = 1

const RX = 0
const TX = 1

/** Ethernet's header with a VLAN tag, and without. */
const ETHERNET_BYTES = 18
const ETHERNET_BYTES_MIN = 14
const PROTOCOL_TCP = 6
/** Bytes of a frame that say whether it is TCP over IPv4, and how long its headers are. */
const PEEK_BYTES = 14 + 60 + 20

const C_RX = 0
const C_RX_BYTES = 1
const C_TX = 2
const C_TX_BYTES = 3
const C_RX_DROPPED = 4
const C_TX_DROPPED = 5
const C_THROTTLED_MS = 6

const SMALL_BUFFER = new GuestFault('net: a buffer for frames has no room for a header')
SMALL_BUFFER.stack = ''

/** What a card is. */
export type NetOptions = {
  readonly name: string; readonly mac: string; readonly mtu: number; readonly fd: number
  readonly kind: 'stream' | 'tap'
  /** The other end of the stream takes TCP segments of up to NET_FRAME_BYTES_MAX, whatever the MTU. */
  readonly takesSegments: boolean
  readonly limits?: DeviceLimits | undefined; readonly nowMs: () => number
}

export class Net extends Device {
  override readonly type: DeviceType
  override readonly fd: number
  readonly #kind: 'stream' | 'tap'
  readonly #mtu: number
  readonly #bucket: Bucket
  readonly #chain = new Chain()
  readonly #first = new Chain()
  readonly #header = new Uint8Array(NET_HDR_BYTES)
  readonly #headerView = new DataView(this.#header.buffer)
  readonly #peek = new Uint8Array(PEEK_BYTES)
  #link!: Link
  // The buffers of the frame that is being received, and what fits into each.
  readonly #heads = new Uint16Array(VIRTQUEUE_SIZE_MAX)
  readonly #rooms = new Float64Array(VIRTQUEUE_SIZE_MAX)
  #taken = 0
  #isStarved = false
  #dueMs = -1

  constructor({ name, mac, mtu, fd, kind, takesSegments, limits, nowMs }: NetOptions) {
    super()
    this.fd = fd
    this.#kind = kind
    this.#mtu = mtu
    this.#bucket = new Bucket(limits ?? {}, nowMs)
    const large = [...takesSegments || kind === 'tap' ? [VIRTIO_NET_F_HOST_TSO4] : [],
      ...kind === 'tap' ? [VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO6] : []]
    this.type = {
      id: VIRTIO_ID_NET, name, config: configOf(mac, mtu),
      features: [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, ...large],
      needs: [[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_CSUM], [VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_CSUM],
        [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_CSUM], [VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_CSUM]],
      queues: [VIRTQUEUE_SIZE_MAX, VIRTQUEUE_SIZE_MAX],
      counters: ['rxFrames', 'rxBytes', 'txFrames', 'txBytes', 'rxDropped', 'txDropped', 'throttledMs'],
    }
  }

  override attach(port: Port): void {
    super.attach(port)
    const memory = port.ram.bytes
    this.#link = this.#kind === 'stream' ? new StreamLink(memory, this.fd)
      : new TapLink(memory, this.fd, () => this.#rxMax)
  }

  override activate(): void {
    this.#isStarved = false
    if (this.#kind !== 'tap') return
    const { port } = this
    setTapOffload(this.fd, (port.has(VIRTIO_NET_F_GUEST_CSUM) ? TUN_F_CSUM : 0) |
      (port.has(VIRTIO_NET_F_GUEST_TSO4) ? TUN_F_TSO4 : 0) | (port.has(VIRTIO_NET_F_GUEST_TSO6) ? TUN_F_TSO6 : 0))
  }

  // The longest frames that the driver takes, and may send.
  get #rxMax(): number {
    const { port } = this
    return port.has(VIRTIO_NET_F_GUEST_TSO4) || port.has(VIRTIO_NET_F_GUEST_TSO6) ? NET_FRAME_BYTES_MAX
      : this.#mtu + ETHERNET_BYTES
  }
  get #txMax(): number {
    const { port } = this
    return port.has(VIRTIO_NET_F_HOST_TSO4) || port.has(VIRTIO_NET_F_HOST_TSO6) ? NET_FRAME_BYTES_MAX
      : this.#mtu + ETHERNET_BYTES
  }

  override dueMs(): number { return this.#dueMs }

  override wanted(): number {
    if (this.#dueMs >= 0) return 0
    return (this.#isStarved || this.#link.isClosed ? 0 : POLLIN) | (this.#link.isStuck ? POLLOUT : 0)
  }

  override ready(events: number): number {
    const sends = this.#link.isStuck && this.#send() ? 1 << TX : 0
    return (events & ~POLLOUT) !== 0 && this.#receive() ? sends | 1 << RX : sends
  }

  override serve(queue: number): boolean {
    // When a limit is over both directions are served.
    this.#dueMs = -1
    if (queue === TX) return this.#send()
    this.#isStarved = false
    return this.#receive()
  }

  // True if the card has done what it may for now.
  #isThrottled(): boolean {
    const waitMs = this.#bucket.waitMs()
    if (waitMs === 0) return false
    if (this.#dueMs < 0) this.port.count(C_THROTTLED_MS, waitMs)
    this.#dueMs = waitMs
    return true
  }

  #receive(): boolean {
    const link = this.#link
    const queue = this.port.queues[RX]!
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (!link.isFilling) {
        if (this.#isThrottled()) return false
        const length = link.next()
        if (length === 0) {
          if (link.isClosed) this.#linkDown()
          return false
        }
        if (!this.#place(length)) {
          if (this.#isStarved) return false
          continue
        }
      }
      const length = link.fill()
      if (length > 0) {
        this.#give(length)
        continue
      }
      if (!link.isFilling) {
        queue.unpop(this.#taken)
        this.#taken = 0
      }
      if (link.isClosed) this.#linkDown()
      return false
    }
    return true
  }

  // Takes buffers for a frame of `length` bytes. False if there are too few yet (#isStarved), or it was dropped.
  #place(length: number): boolean {
    const { port } = this
    const link = this.#link
    const queue = port.queues[RX]!
    const isMergeable = port.has(VIRTIO_NET_F_MRG_RXBUF)
    const vectors = link.begin()
    const start = link.hasHeader ? 0 : NET_HDR_BYTES
    const needed = length + NET_HDR_BYTES
    let room = 0
    let isPossible = length <= this.#rxMax
    while (isPossible && room < needed) {
      const chain = room === 0 ? this.#first : this.#chain
      if (this.#taken === queue.size || (this.#taken > 0 && !isMergeable)) {
        // As many as there are, and still too few. A TAP device's frame may be shorter than the longest.
        isPossible = link.hasHeader
        break
      }
      if (!queue.pop(chain)) {
        if (link.hasHeader && this.#taken > 0) break
        this.#giveUp()
        this.#isStarved = true
        return false
      }
      this.#heads[this.#taken] = chain.head
      this.#rooms[this.#taken++] = chain.writeBytes
      if (room === 0 && chain.writeBytes < NET_HDR_BYTES) {
        this.#giveUp()
        throw SMALL_BUFFER
      }
      // With room for the head of the next frame, which is read with this one.
      isPossible = vectors.fits(chain.count + 1)
      const from = room === 0 ? start : 0
      if (isPossible) addWritable(vectors, chain, from, Math.min(chain.writeBytes, needed - room))
      room += chain.writeBytes
    }
    if (!isPossible) {
      this.#giveUp()
      link.skip()
      port.count(C_RX_DROPPED, 1)
      return false
    }
    link.place(length)
    return true
  }

  #giveUp(): void {
    this.port.queues[RX]!.unpop(this.#taken)
    this.#taken = 0
  }

  // Gives the buffers of a frame of `length` bytes, which lies in them, to the driver; those that weren't needed stay.
  #give(length: number): void {
    const { port } = this
    const queue = port.queues[RX]!
    let used = 0
    for (let left = length + NET_HDR_BYTES; left > 0 && used < this.#taken; used++) left -= this.#rooms[used]!
    queue.unpop(this.#taken - used)
    this.#taken = 0
    if (!this.#link.hasHeader) this.#describe(length)
    this.#writeHeader(used)
    let left = length + NET_HDR_BYTES
    for (let i = 0; i < used; i++) {
      const written = Math.min(left, this.#rooms[i]!)
      queue.push(this.#heads[i]!, written)
      left -= written
    }
    port.count(C_RX, 1)
    port.count(C_RX_BYTES, length)
    this.#bucket.charge(length)
  }

  // The header in the first buffer: all of it, or the number of buffers alone.
  #writeHeader(buffers: number): void {
    this.#headerView.setUint16(H_NUM_BUFFERS, buffers, true)
    if (!this.#link.hasHeader) {
      this.#first.scatter(this.port.ram, 0, NET_HDR_BYTES, this.#header)
      return
    }
    this.#peek.set(this.#header.subarray(H_NUM_BUFFERS), 0)
    this.#first.scatter(this.port.ram, H_NUM_BUFFERS, 2, this.#peek)
  }

  // The header of a stream's frame: a long one is a TCP segment that would have been cut to the MTU.
  #describe(length: number): void {
    const view = this.#headerView
    this.#header.fill(0)
    if (length <= this.#mtu + ETHERNET_BYTES) return
    const { offsets, lengths, readable, count } = this.#first
    const { bytes } = this.port.ram
    // The headers lie in the first buffer, or it isn't worth to look for them.
    const peek = this.#peek.fill(0)
    let at = -NET_HDR_BYTES
    for (let i = readable; i < count && at < PEEK_BYTES; i++) {
      for (let j = 0; j < lengths[i]! && at < PEEK_BYTES; j++, at++) if (at >= 0) peek[at] = bytes[offsets[i]! + j]!
    }
    const ip = ETHERNET_BYTES_MIN
    const ipBytes = (peek[ip]! & 15) * 4
    if (peek[12] !== 8 || peek[13] !== 0 || peek[ip]! >> 4 !== 4 || peek[ip + 9] !== PROTOCOL_TCP) return
    const tcpBytes = (peek[ip + ipBytes + 12]! >> 4) * 4
    if (ipBytes < 20 || tcpBytes < 20) return
    view.setUint8(H_GSO_TYPE, VIRTIO_NET_HDR_GSO_TCPV4)
    view.setUint16(H_HDR_LEN, ip + ipBytes + tcpBytes, true)
    view.setUint16(H_GSO_SIZE, this.#mtu - ipBytes - tcpBytes, true)
    view.setUint8(H_FLAGS, 0)
  }

  #send(): boolean {
    const { port } = this
    const link = this.#link
    const queue = port.queues[TX]!
    for (let i = 0; i < VIRTQUEUE_ROUND_MAX; i++) {
      if (!link.flush()) return false
      if (link.chain >= 0) queue.push(link.chain, 0)
      link.chain = -1
      if (this.#isThrottled() || !queue.pop(this.#chain)) return false
      link.chain = this.#chain.head
      if (!this.#put()) port.count(C_TX_DROPPED, 1)
    }
    return true
  }

  #put(): boolean {
    const { port } = this
    const chain = this.#chain
    const length = chain.readBytes - NET_HDR_BYTES
    if (length < ETHERNET_BYTES_MIN || length > this.#txMax) return false
    chain.gather(port.ram, 0, NET_HDR_BYTES, this.#header)
    const isLarge = this.#headerView.getUint8(H_GSO_TYPE) !== VIRTIO_NET_HDR_GSO_NONE
    if (!isLarge && length > this.#mtu + ETHERNET_BYTES) return false
    if (!this.#link.put(port.ram, chain, this.#headerView)) return false
    port.count(C_TX, 1)
    port.count(C_TX_BYTES, length)
    this.#bucket.charge(length)
    return true
  }

  #linkDown(): void {
    // le16 status at 6, after the MAC.
    this.port.setConfig32(4, this.port.config32(4) & 0xffff, true)
  }

  override reset(): void {
    this.#link.abandon()
    this.#link.chain = -1
    this.#taken = 0
    this.#dueMs = -1
    this.#isStarved = false
  }

  override held(queue: number): number {
    if (queue === RX) return this.#taken
    return queue === TX && this.#link.chain >= 0 ? 1 : 0
  }

}

// struct virtio_net_config { u8 mac[6]; le16 status; le16 max_virtqueue_pairs; le16 mtu; }
function configOf(mac: string, mtu: number): Uint8Array {
  const config = new Uint8Array(12)
  config.set(mac.split(':').map((part) => parseInt(part, 16)))
  const view = new DataView(config.buffer)
  view.setUint16(6, VIRTIO_NET_S_LINK_UP, true)
  view.setUint16(8, 1, true)
  view.setUint16(10, mtu, true)
  return config
}
