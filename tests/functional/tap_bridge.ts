// tests/functional/tap_bridge.ts: a process that carries frames between a TAP device and a stream, for tests.
//
//   ip netns exec NAME node tap_bridge.ts DEVICE      descriptor 3: the stream, each frame after its length (32 bits)
//
// It waits for both in one loop and does nothing else: what is measured through it is the gateway.

import { openSync } from 'node:fs'
import { answer, bind, POLLIN, rawAddress } from '../../src/sys/libc.ts'

const TUNSETIFF = BigInt(0x4004_54ca)
const IFF_TAP = 0x0002
const IFF_NO_PI = 0x1000
const STREAM = 3
const FRAME_BYTES_MAX = 70_000

const native = bind({
  ioctl: { arguments: ['int32', 'uint64', 'pointer'], return: 'int32' },
  poll: { arguments: ['pointer', 'uint64', 'int32'], return: 'int32' },
  read: { arguments: ['int32', 'pointer', 'uint64'], return: 'int64' },
  write: { arguments: ['int32', 'pointer', 'uint64'], return: 'int64' },
  fcntl: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
})

function memory(size: number): { bytes: Buffer; view: DataView; address: bigint } {
  const buffer = new ArrayBuffer(size)
  return { bytes: Buffer.from(buffer), view: new DataView(buffer), address: rawAddress(buffer) }
}

function must(result: number | bigint): number {
  const number = answer(Number(result))
  if (number < 0) throw new Error(`errno ${-number}`)
  return number
}

const tap = openSync('/dev/net/tun', 'r+')
const request = memory(40) // struct ifreq: the name, then its flags
request.bytes.write(process.argv[2]!)
request.view.setInt16(16, IFF_TAP | IFF_NO_PI, true)
must(native.ioctl(tap, TUNSETIFF, request.address))
must(native.fcntl(tap, 4, 0o4002)) // F_SETFL, O_RDWR | O_NONBLOCK

const out = memory(8 * FRAME_BYTES_MAX)
const held = memory(4 * FRAME_BYTES_MAX)
const fds = memory(16) // struct pollfd[2]
fds.view.setInt32(0, tap, true)
fds.view.setInt16(4, POLLIN, true)
fds.view.setInt32(8, STREAM, true)
fds.view.setInt16(12, POLLIN, true)
let inHeld = 0

function fromTap(): void {
  let used = 0
  while (used < 7 * FRAME_BYTES_MAX) {
    const size = Number(native.read(tap, out.address + BigInt(used + 4), BigInt(FRAME_BYTES_MAX)))
    if (size <= 0) break
    out.view.setUint32(used, size)
    used += 4 + size
  }
  for (let sent = 0; sent < used;) {
    sent += must(native.write(STREAM, out.address + BigInt(sent), BigInt(used - sent)))
  }
}

function toTap(): boolean {
  const came = must(native.read(STREAM, held.address + BigInt(inHeld), BigInt(held.bytes.length - inHeld)))
  inHeld += came
  let at = 0
  while (inHeld - at >= 4) {
    const size = held.view.getUint32(at)
    if (inHeld - at - 4 < size) break
    native.write(tap, held.address + BigInt(at + 4), BigInt(size)) // The device may be down: then the frame is lost.
    at += 4 + size
  }
  held.bytes.copyWithin(0, at, inHeld)
  inHeld -= at
  return came > 0
}

for (let isOpen = true; isOpen;) {
  must(native.poll(fds.address, 2n, -1))
  if (fds.view.getInt16(6, true) !== 0) fromTap()
  if (fds.view.getInt16(14, true) !== 0) isOpen = toTap()
}
