// sys/fd_passing.ts: bytes on a connected Unix socket with a descriptor beside them (SCM_RIGHTS).
//
// Some programs that we start are given descriptors while they run, on the same stream as the words that name them:
// QEMU's `getfd`. Elsewhere: descriptors for our own processes, by datagrams (sockets.ts).

import { Scratch, answer, bind } from './libc.ts'

const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000

const native = bind({
  sendmsg: { arguments: ['int32', 'pointer', 'int32'], return: 'int64' },
})

// What lies where in the memory of a call, before the bytes themselves.
const MESSAGE = 0           // struct msghdr, 56 bytes
const IOVEC = 56            // struct iovec
const CONTROL = 72          // struct cmsghdr { u64 length; int level; int type; }, then the descriptor
const CONTROL_BYTES = 24
const DATA = CONTROL + CONTROL_BYTES

/**
 * Writes `bytes` to the connected stream socket, with a copy of `fd` beside them; never waits. How many bytes were
 * written, the descriptor with the first; or a negated errno: -EAGAIN while there is no room.
 */
export function sendWithFd(socket: number, bytes: Uint8Array, fd: number): number {
  const { address, view, bytes: memory } = new Scratch(DATA + bytes.length)
  memory.set(bytes, DATA)
  const at = (offset: number): bigint => address + BigInt(offset)
  view.setBigUint64(MESSAGE + 16, at(IOVEC), true)
  view.setBigUint64(MESSAGE + 24, 1n, true)
  view.setBigUint64(MESSAGE + 32, at(CONTROL), true)
  view.setBigUint64(MESSAGE + 40, BigInt(CONTROL_BYTES), true)
  view.setBigUint64(IOVEC, at(DATA), true)
  view.setBigUint64(IOVEC + 8, BigInt(bytes.length), true)
  view.setBigUint64(CONTROL, 20n, true)
  view.setInt32(CONTROL + 8, SOL_SOCKET, true)
  view.setInt32(CONTROL + 12, SCM_RIGHTS, true)
  view.setInt32(CONTROL + 16, fd, true)
  // SAFETY: every pointer leads into `memory`, which this function keeps until the call is over; V8 doesn't move it.
  const sent = answer(Number(native.sendmsg(socket, at(MESSAGE), MSG_DONTWAIT | MSG_NOSIGNAL)))
  memory[0] = 0
  return sent
}
