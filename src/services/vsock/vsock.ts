// services/vsock/vsock.ts: the host's endpoint of a machine's stream sockets (Virtio 1.3 §5.10.6).
//
// Packets in, packets out: nothing here knows a virtqueue or a descriptor (virtio/vsock.ts has them, line.ts the way
// there). A connection is known by its two ports. The guest may reach what somebody listens on, nothing else; a packet
// from another address than its own, or to another than ours, is dropped. Each connection holds a bounded number of
// bytes, and there is a bounded number of them, those that wait for their end among them.
//
// After a restore or a fork the guest begins anew (its device tells it so), and so do we: `reset`.

import type { Duplex } from 'node:stream'
import { BUFFER_BYTES_MAX, VsockConnection, type ConnectionOwner } from './connection.ts'
import {
  readPacket, VIRTIO_VSOCK_OP_CREDIT_UPDATE, VIRTIO_VSOCK_OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE, VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_TYPE_STREAM, writePacket, type Packet,
} from './packet.ts'

/** Connections of one machine: their buffers are 32 MB at most. */
export const CONNECTIONS_MAX = 128
/** How long a guest may take to answer: to a request, and to the end of a connection (as Linux waits for ours). */
const OPEN_MS_MAX = 5_000
const LINGER_MS_MAX = 8_000
const HOST_CID = 2
/** Our ports of connections that we open: far from any that somebody listens on. */
const PORT_FIRST = 0x4000_0000
const NOTHING = new Uint8Array(0)

export type VsockOptions = {
  /** The guest's address; packets of others are dropped. */
  readonly guestCid: number
  /** Ours, and the peer's is the guest's; the other way round for tests of two endpoints. */
  readonly isGuest?: boolean
  /** A packet for the device: its bytes are the callee's. False: no more data until `drained`. */
  send(packet: Buffer): boolean
}

/** One machine's connections. */
export class Vsock implements ConnectionOwner {
  readonly #cid: number
  readonly #peerCid: number
  readonly #send: (packet: Buffer) => boolean
  readonly #connections = new Map<string, VsockConnection>()
  /** Those that have ended, until the guest has answered. */
  readonly #lingering = new Map<string, NodeJS.Timeout>()
  readonly #listeners = new Map<number, (stream: Duplex) => void>()
  #nextPort = PORT_FIRST
  /** Packets that weren't the guest's, or none. */
  dropped = 0
  hasRoom = true

  constructor({ guestCid, isGuest = false, send }: VsockOptions) {
    this.#cid = isGuest ? guestCid : HOST_CID
    this.#peerCid = isGuest ? HOST_CID : guestCid
    this.#send = send
  }

  /** Connections, those among them that wait for their end. */
  get size(): number {
    return this.#connections.size + this.#lingering.size
  }

  /** Who connects to this port of ours. The stream is the callee's, who listens for its errors. */
  listen(port: number, accept: (stream: Duplex) => void): void {
    this.#listeners.set(port, accept)
  }

  /** Connects to a port of the guest. Rejects with an Error that has a code: ECONNREFUSED, ETIMEDOUT, EMFILE. */
  async connect(port: number): Promise<Duplex> {
    if (this.size >= CONNECTIONS_MAX) {
      throw Object.assign(new Error('vsock: too many connections'), { code: 'EMFILE' })
    }
    do {
      this.#nextPort = this.#nextPort === 0xffff_fffe ? PORT_FIRST : this.#nextPort + 1
    } while (this.#has(keyOf(this.#nextPort, port)))
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const connection = this.#add(this.#nextPort, port, { resolve, reject })
    this.send(connection, VIRTIO_VSOCK_OP_REQUEST, 0, NOTHING)
    const late = setTimeout(() => connection.fail('the guest doesn\'t answer', 'ETIMEDOUT'), OPEN_MS_MAX)
    try {
      await promise
    } finally {
      clearTimeout(late)
    }
    return connection
  }

  /** A packet of the guest. What it carries is copied. */
  receive(bytes: Buffer): void {
    const packet = readPacket(bytes)
    if (packet === undefined || packet.srcCid !== this.#peerCid || packet.dstCid !== this.#cid) {
      this.dropped++
      return
    }
    const key = keyOf(packet.dstPort, packet.srcPort)
    const connection = this.#connections.get(key)
    const { op } = packet
    if (packet.type !== VIRTIO_VSOCK_TYPE_STREAM) this.#refuse(packet)
    else if (op === VIRTIO_VSOCK_OP_REQUEST) this.#accept(packet, key, connection)
    else if (connection !== undefined) connection.hear(packet)
    else if (!this.#lingering.has(key)) this.#refuse(packet)
    else if (op === VIRTIO_VSOCK_OP_RST || (op === VIRTIO_VSOCK_OP_SHUTDOWN && packet.flags === 3)) {
      // Both have ended it at one time.
      this.#forget(key)
      this.#refuse(packet)
    }
  }

  /** The device takes data again. */
  drained(): void {
    this.hasRoom = true
    for (const connection of this.#connections.values()) {
      if (!this.hasRoom) return
      connection.pump()
    }
  }

  /** The guest knows of no connection any more: all of them end with ECONNRESET. Who listens goes on. */
  reset(): void {
    for (const connection of this.#connections.values()) connection.forget()
    this.#connections.clear()
    for (const key of this.#lingering.keys()) this.#forget(key)
  }

  // ---- for connections

  send(connection: VsockConnection, op: number, flags: number, payload: Uint8Array): void {
    connection.told()
    this.#write({
      srcCid: this.#cid, dstCid: this.#peerCid, srcPort: connection.localPort, dstPort: connection.peerPort,
      type: VIRTIO_VSOCK_TYPE_STREAM, op, flags, bufAlloc: BUFFER_BYTES_MAX, fwdCnt: connection.forwarded, payload,
    })
  }

  over(connection: VsockConnection, lingers: boolean): void {
    const key = keyOf(connection.localPort, connection.peerPort)
    if (this.#connections.get(key) !== connection) return
    this.#connections.delete(key)
    if (!lingers) return
    this.#lingering.set(key, setTimeout(() => this.#forget(key), LINGER_MS_MAX).unref())
  }

  // ----

  #has(key: string): boolean {
    return this.#connections.has(key) || this.#lingering.has(key)
  }

  #forget(key: string): void {
    clearTimeout(this.#lingering.get(key))
    this.#lingering.delete(key)
  }

  #add(localPort: number, peerPort: number, opened?: { resolve(): void; reject(error: Error): void }): VsockConnection {
    const connection = new VsockConnection({ owner: this, localPort, peerPort, ...(opened && { opened }) })
    this.#connections.set(keyOf(localPort, peerPort), connection)
    return connection
  }

  #accept(packet: Packet, key: string, old: VsockConnection | undefined): void {
    // A guest that has begun anew without a word uses the port again.
    old?.forget()
    if (old !== undefined) this.#connections.delete(key)
    this.#forget(key)
    const accept = this.#listeners.get(packet.dstPort)
    if (accept === undefined || this.size >= CONNECTIONS_MAX) return this.#refuse(packet)
    const connection = this.#add(packet.dstPort, packet.srcPort)
    this.send(connection, VIRTIO_VSOCK_OP_RESPONSE, 0, NOTHING)
    // Its credit is in the request.
    connection.hear({ ...packet, op: VIRTIO_VSOCK_OP_CREDIT_UPDATE })
    accept(connection)
  }

  // A reset isn't answered by a reset.
  #refuse({ srcPort, dstPort, type, op }: Packet): void {
    if (op === VIRTIO_VSOCK_OP_RST) return
    this.#write({ srcCid: this.#cid, dstCid: this.#peerCid, srcPort: dstPort, dstPort: srcPort, type,
      op: VIRTIO_VSOCK_OP_RST, flags: 0, bufAlloc: 0, fwdCnt: 0, payload: NOTHING })
  }

  #write(packet: Packet): void {
    if (!this.#send(writePacket(packet))) this.hasRoom = false
  }
}

function keyOf(localPort: number, peerPort: number): string {
  return `${localPort}:${peerPort}`
}
