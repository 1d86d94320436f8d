// wasi/p1/sock.ts: the four socket calls (wasi_snapshot_preview1.witx, `sock_*`).
//
// Preview 1 has no call that opens a socket: a guest gets listening sockets from its operator and connections from
// sock_accept. fd_read and fd_write work on connections, too. Every pointer is checked before anything happens, so that
// a bad one costs neither a connection nor a byte.
//
// Elsewhere: the sockets themselves (services/net), waiting (context.ts).

import { EAGAIN, EBADF, EINVAL, EMFILE, ENOTCAPABLE, ENOTCONN, ENOTSOCK, ESUCCESS } from '../../base/errno.ts'
import { FILETYPE_SOCKET_STREAM } from '../../services/descriptor.ts'
import type { Descriptor } from '../../services/descriptor.ts'
import type { StreamListener, StreamSocket } from '../../services/net/stream_socket.ts'
import {
  FDFLAGS_NONBLOCK, RIFLAGS_RECV_PEEK, RIFLAGS_RECV_WAITALL, RIGHTS_FD_READ, RIGHTS_FD_WRITE, RIGHTS_SOCKET,
  RIGHTS_SOCK_ACCEPT, RIGHTS_SOCK_SHUTDOWN, SDFLAGS_RD, SDFLAGS_WR,
} from './abi.ts'
import type { Context } from './context.ts'
import type { Entry } from './descriptors.ts'
import { wouldBlock } from './nonblock.ts'

/** Accepts a connection on the listening socket `fd`; its number goes to `out`. */
export function sock_accept(context: Context, fd: number, fdflags: number, out: number): number {
  const entry = context.descriptors.get(fd)
  const refusal = refuses(entry, RIGHTS_SOCK_ACCEPT)
  if (refusal !== ESUCCESS) return refusal
  const listener = entry!.descriptor
  if (!isListener(listener) || (fdflags & ~FDFLAGS_NONBLOCK) !== 0) return EINVAL
  context.memory.check(out, 4)
  if (listener.pollRead() < 0) return wouldBlock(context, entry!) ?? context.awaitReadable(listener)

  // The number comes first: if the cell has none left, the connection goes on waiting.
  const accepted: { -readonly [K in keyof Entry]: Entry[K] } = {
    descriptor: NUMBER_TAKEN, rightsBase: RIGHTS_SOCKET & entry!.rightsInheriting, rightsInheriting: 0, flags: fdflags,
  }
  const number = context.descriptors.add(accepted)
  if (number < 0) return EMFILE
  accepted.descriptor = listener.accept() as StreamSocket
  context.memory.setU32(out, number)
  return ESUCCESS
}

/** Receives from connection `fd` into the iovecs at `data`; the count goes to `outLength`, roflags to `outFlags`. */
export function sock_recv(
  context: Context, fd: number, data: number, dataLength: number, riflags: number, outLength: number, outFlags: number,
): number {
  const entry = context.descriptors.get(fd)
  const refusal = refuses(entry, RIGHTS_FD_READ)
  if (refusal !== ESUCCESS) return refusal
  const connection = entry!.descriptor
  if (!isConnection(connection)) return ENOTCONN
  if ((riflags & ~(RIFLAGS_RECV_PEEK | RIFLAGS_RECV_WAITALL)) !== 0) return EINVAL
  const { memory, iovecs } = context
  memory.check(outLength, 4)
  memory.check(outFlags, 2)
  if (!iovecs.load(memory, data, dataLength)) return EINVAL

  const waitAll = (riflags & RIFLAGS_RECV_WAITALL) !== 0 && (entry!.flags & FDFLAGS_NONBLOCK) === 0
  const peek = (riflags & RIFLAGS_RECV_PEEK) !== 0
  const count = waitAll ? receiveAll(context, connection, peek)
    : peek ? connection.peek(iovecs)
    : connection.recv(iovecs)
  if (count === -EAGAIN) return wouldBlock(context, entry!) ?? context.awaitReadable(connection)
  if (count < 0) return -count
  memory.setU32(outLength, count)
  memory.setU16(outFlags, 0) // A stream is never truncated.
  return ESUCCESS
}

/** Sends the iovecs at `data` through connection `fd`; how many bytes were accepted goes to `outLength`. */
export function sock_send(
  context: Context, fd: number, data: number, dataLength: number, siflags: number, outLength: number,
): number {
  const entry = context.descriptors.get(fd)
  const refusal = refuses(entry, RIGHTS_FD_WRITE)
  if (refusal !== ESUCCESS) return refusal
  const connection = entry!.descriptor
  if (!isConnection(connection)) return ENOTCONN
  if (siflags !== 0) return EINVAL
  const { memory, iovecs } = context
  memory.check(outLength, 4)
  if (!iovecs.load(memory, data, dataLength)) return EINVAL

  const count = connection.send(iovecs)
  if (count === -EAGAIN) return wouldBlock(context, entry!) ?? context.awaitWritable(connection)
  if (count < 0) return -count
  memory.setU32(outLength, count)
  return ESUCCESS
}

/** Ends receiving (SDFLAGS_RD), sending (SDFLAGS_WR) or both on the connection `fd`. */
export function sock_shutdown(context: Context, fd: number, sdflags: number): number {
  const entry = context.descriptors.get(fd)
  const refusal = refuses(entry, RIGHTS_SOCK_SHUTDOWN)
  if (refusal !== ESUCCESS) return refusal
  const connection = entry!.descriptor
  if (!isConnection(connection)) return ENOTCONN
  if (sdflags === 0 || (sdflags & ~(SDFLAGS_RD | SDFLAGS_WR)) !== 0) return EINVAL
  const result = connection.shutdown({ read: (sdflags & SDFLAGS_RD) !== 0, write: (sdflags & SDFLAGS_WR) !== 0 })
  return result < 0 ? -result : ESUCCESS
}

// RECV_WAITALL: waits until the ranges are full, or nothing more will come. What arrives is moved at once, since the
// request may be larger than the connection's buffer; how far it got is kept until the hypercall answers.
const progress = new WeakMap<StreamSocket, number>()

function receiveAll(context: Context, connection: StreamSocket, peek: boolean): number {
  const { iovecs } = context
  if (peek) return connection.unread < iovecs.total && !connection.complete ? -EAGAIN : connection.peek(iovecs)
  const before = progress.get(connection) ?? 0
  const count = connection.recv(iovecs, before)
  const done = before + Math.max(count, 0)
  // If more is wanted than came, the buffer is empty now: pollRead() tells whether the end is known.
  if (done < iovecs.total && connection.pollRead() === -EAGAIN) {
    progress.set(connection, done)
    return -EAGAIN
  }
  progress.delete(connection)
  // After a failure what has come is answered; the next call gets the error.
  return done > 0 ? done : count
}

// 0, or why `entry` isn't a socket with `rights`. Not being a socket comes before lacking the right to be used as one.
function refuses(entry: Entry | undefined, rights: number): number {
  if (entry === undefined) return EBADF
  if (entry.descriptor.filetype !== FILETYPE_SOCKET_STREAM) return ENOTSOCK
  if (entry.descriptor.lost !== undefined) return entry.descriptor.lost
  if (isListener(entry.descriptor) && rights !== RIGHTS_SOCK_ACCEPT) return ENOTCONN
  if (isConnection(entry.descriptor) && rights === RIGHTS_SOCK_ACCEPT) return EINVAL
  return (entry.rightsBase & rights) === rights ? ESUCCESS : ENOTCAPABLE
}

// By what they can do, not by class: node:net is then loaded for guests only that are granted a socket.
function isListener(descriptor: Descriptor): descriptor is StreamListener { return 'accept' in descriptor }
function isConnection(descriptor: Descriptor): descriptor is StreamSocket { return 'recv' in descriptor }

const NUMBER_TAKEN: Descriptor = { filetype: FILETYPE_SOCKET_STREAM, close: () => {} }
