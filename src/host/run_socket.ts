// host/run_socket.ts: reaches a socket in a run folder, and nothing that lies in its place.
//
// The folder is a cell process's own: a link there could lead to the socket of another project's process, whose
// connection to us ours would replace, or to any other socket of this machine, which we could open as root. So the
// socket is found without following a link, and used by the descriptor that found it.

import { closeSync, constants, fstatSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { O_PATH } from '../sys/linux_files.ts'

/** Calls `use` with a path that leads to the socket, as long as it runs. Throws a system error. */
export function throughSocket<T>(runFolder: string, name: 'c' | 'f', use: (path: string) => T): T {
  const fd = openSync(join(runFolder, name), O_PATH | constants.O_NOFOLLOW)
  try {
    if (!fstatSync(fd).isSocket()) {
      throw Object.assign(new Error('ENOTSOCK: a cell process has put something in place of its socket'),
        { code: 'ENOTSOCK', syscall: 'connect' })
    }
    return use(`/proc/self/fd/${fd}`)
  } finally {
    closeSync(fd)
  }
}
