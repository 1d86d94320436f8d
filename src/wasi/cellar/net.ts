// wasi/cellar/net.ts: net_connect: how a guest reaches others by name, which WASI preview 1 has no call for.
//
// The connection belongs to the guest as soon as it is there, while its vCPU still waits: one that is stopped meanwhile
// closes it as it closes all others, and what comes for one that has ended is closed at once.

import { EINTR, EINVAL, EILSEQ, EMFILE, ENETUNREACH, ESUCCESS } from '../../base/errno.ts'
import { HOST_NAME_BYTES_MAX } from '../../base/limits.ts'
import type { Dialer } from '../../services/net/dialer.ts'
import { RIGHTS_SOCKET } from '../p1/abi.ts'
import type { Context } from '../p1/context.ts'

/** Connects to `port` of who is called `name` (UTF-8, `length` bytes); the connection's number goes to `out`. */
export function net_connect(context: Context, name: number, length: number, port: number, out: number): number {
  const { dialer, memory } = context
  const size = length >>> 0
  const start = memory.check(name, size)
  memory.check(out, 4)
  if (size === 0 || size > HOST_NAME_BYTES_MAX || port < 1 || port > 65_535) return EINVAL
  if (dialer === undefined) return ENETUNREACH
  return context.awaitOperation(async () => {
    if (context.descriptors.full) return EMFILE
    let text: string
    try {
      text = UTF8.decode(memory.bytes.subarray(start, start + size))
    } catch {
      return EILSEQ
    }
    return await dialed(context, dialer, { name: text, port, out })
  })
}

async function dialed(context: Context, dialer: Dialer, to: { name: string; port: number; out: number }):
Promise<number> {
  const connection = await dialer.dial(to.name, to.port)
  if (typeof connection === 'number') return connection
  if (context.end !== undefined) {
    connection.close()
    return EINTR
  }
  const number = context.descriptors.add({ descriptor: connection, rightsBase: RIGHTS_SOCKET, rightsInheriting: 0,
    flags: 0 })
  // The memory is as it was checked: the guest's one vCPU waits.
  context.memory.setU32(to.out, number)
  return ESUCCESS
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
