// services/vsock/line.ts: packets of vsock on a stream to the thread that has the device, each after its length (u32,
// big-endian).
//
// A guest that takes no packets fills the stream. Then connections send no data, but what belongs to the protocol goes
// on: a guest may wait for such answers before it gives room again. Only when far more of that has piled up than a
// guest in its right mind causes we read no more of it.

import type { Duplex } from 'node:stream'
import { VSOCK_PAYLOAD_BYTES_MAX } from '../../base/limits.ts'
import { HEADER_BYTES } from './packet.ts'
import { Vsock } from './vsock.ts'

const PACKET_BYTES_MAX = HEADER_BYTES + VSOCK_PAYLOAD_BYTES_MAX
/** Bytes of packets that wait for the guest: data of a few connections, or answers to ten thousands of packets. */
const WAITING_BYTES_MAX = 2 * 1024 * 1024

/** The endpoint at the other end of a stream. When the stream ends, all connections do. */
export function vsockOver(stream: Duplex, guestCid: number): Vsock {
  const vsock = new Vsock({ guestCid, send: (packet) => {
    if (stream.destroyed) return true
    const head = Buffer.alloc(4)
    head.writeUInt32BE(packet.length)
    stream.write(head)
    return stream.write(packet)
  } })
  let held: Buffer = Buffer.alloc(0)
  stream.on('data', (chunk: Buffer) => {
    const bytes = held.length === 0 ? chunk : Buffer.concat([held, chunk])
    let at = 0
    while (bytes.length - at >= 4) {
      const size = bytes.readUInt32BE(at)
      // No device of ours says that.
      if (size > PACKET_BYTES_MAX) return void stream.destroy(new Error(`vsock: a packet of ${size} bytes`))
      if (bytes.length - at - 4 < size) break
      vsock.receive(bytes.subarray(at + 4, at + 4 + size))
      at += 4 + size
    }
    held = Buffer.from(bytes.subarray(at))
    if (stream.writableLength > WAITING_BYTES_MAX) stream.pause().once('drain', () => stream.resume())
  })
  stream.on('drain', () => vsock.drained())
  stream.on('error', () => {})
  stream.on('close', () => vsock.reset())
  return vsock
}
