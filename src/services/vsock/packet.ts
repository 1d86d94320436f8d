// services/vsock/packet.ts: packets of the socket device (Virtio 1.3 §5.10.6): struct virtio_vsock_hdr and a payload.

/** struct virtio_vsock_hdr, little-endian. */
export const HEADER_BYTES = 44
const SRC_CID = 0           // u64
const DST_CID = 8           // u64
const SRC_PORT = 16         // u32
const DST_PORT = 20         // u32
const LEN = 24              // u32
const TYPE = 28             // u16
const OP = 30               // u16
const FLAGS = 32            // u32
const BUF_ALLOC = 36        // u32
const FWD_CNT = 40          // u32

/** §5.10.6: types, operations, flags of a shutdown. */
export const VIRTIO_VSOCK_TYPE_STREAM = 1
export const VIRTIO_VSOCK_OP_REQUEST = 1
export const VIRTIO_VSOCK_OP_RESPONSE = 2
export const VIRTIO_VSOCK_OP_RST = 3
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4
export const VIRTIO_VSOCK_OP_RW = 5
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7
export const VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE = 1
export const VIRTIO_VSOCK_SHUTDOWN_F_SEND = 2

/** A packet. `payload` shares memory with what it was read from. */
export type Packet = {
  readonly srcCid: number; readonly dstCid: number; readonly srcPort: number; readonly dstPort: number
  readonly type: number; readonly op: number; readonly flags: number
  readonly bufAlloc: number; readonly fwdCnt: number; readonly payload: Uint8Array
}

/** The packet in these bytes; undefined if it is none: its length isn't what it says, a CID has more than 32 bits. */
export function readPacket(bytes: Buffer): Packet | undefined {
  if (bytes.length < HEADER_BYTES || bytes.readUInt32LE(LEN) !== bytes.length - HEADER_BYTES) return undefined
  if (bytes.readUInt32LE(SRC_CID + 4) !== 0 || bytes.readUInt32LE(DST_CID + 4) !== 0) return undefined
  return {
    srcCid: bytes.readUInt32LE(SRC_CID), dstCid: bytes.readUInt32LE(DST_CID),
    srcPort: bytes.readUInt32LE(SRC_PORT), dstPort: bytes.readUInt32LE(DST_PORT),
    type: bytes.readUInt16LE(TYPE), op: bytes.readUInt16LE(OP), flags: bytes.readUInt32LE(FLAGS),
    bufAlloc: bytes.readUInt32LE(BUF_ALLOC), fwdCnt: bytes.readUInt32LE(FWD_CNT),
    payload: bytes.subarray(HEADER_BYTES),
  }
}

/** The bytes of a packet: the payload is copied. */
export function writePacket(packet: Packet): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + packet.payload.length)
  bytes.writeUInt32LE(packet.srcCid, SRC_CID)
  bytes.writeUInt32LE(packet.dstCid, DST_CID)
  bytes.writeUInt32LE(packet.srcPort, SRC_PORT)
  bytes.writeUInt32LE(packet.dstPort, DST_PORT)
  bytes.writeUInt32LE(packet.payload.length, LEN)
  bytes.writeUInt16LE(packet.type, TYPE)
  bytes.writeUInt16LE(packet.op, OP)
  bytes.writeUInt32LE(packet.flags, FLAGS)
  bytes.writeUInt32LE(packet.bufAlloc, BUF_ALLOC)
  bytes.writeUInt32LE(packet.fwdCnt, FWD_CNT)
  bytes.set(packet.payload, HEADER_BYTES)
  return bytes
}
