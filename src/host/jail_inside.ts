// host/jail_inside.ts: the last wall, which a cell process puts up itself, before any guest.
//
// The launcher (jail_launch.ts) can't refuse execve, as it becomes the process by it. By now Node's own threads run:
// the filter is put before all of them, and those to come.

import { constants, openSync } from 'node:fs'
import { ERRNO_NAMES } from '../base/errno.ts'
import { installFilter, noExecFilter, type Architecture } from '../sys/seccomp.ts'
import { JAIL_VARIABLE, type Confinement } from './jail.ts'

/**
 * Takes from this process, for good, what it needed to come about: it executes no other program from now on. Which
 * walls it is within, the launcher's too, for its log; none, and nothing is done, if no launcher has started it.
 * `child`: the process that it was started to have (QEMU); it has no other.
 */
export function lockDown(child?: number): Confinement {
  const told = process.env[JAIL_VARIABLE]
  if (told === undefined) return []
  delete process.env[JAIL_VARIABLE]
  holdProc()
  const walls = JSON.parse(told) as Confinement
  const family = child === undefined ? undefined : [process.pid, child]
  const result = installFilter(noExecFilter(process.arch as Architecture, family))
  if (result >= 0) return walls
  const why = `the kernel answers ${ERRNO_NAMES[-result] ?? 'an error'}`
  return walls.map((wall) => wall.layer === 'seccomp' && wall.on ? { layer: 'seccomp', on: false, why } : wall)
}

// Landlock's rule for /proc/self is one for a folder that the kernel forgets when nobody has it open, and makes anew:
// then without the rule. Never closed.
function holdProc(): void {
  openSync('/proc/self', constants.O_RDONLY | constants.O_DIRECTORY)
}
