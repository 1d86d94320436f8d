// host/jail.ts: what a cell process is started through, and as whom it runs.
//
// A cell process begins as a launcher (jail_launch.ts): a Node that gives up what it has, becomes the project's user,
// and then becomes the process itself, which closes the last door from inside (jail_inside.ts). Why each wall is there
// and what it keeps from whom: docs/jail.md.
//
// A project has a user id of its own where the host is root: what it may use is a matter of the kernel's oldest checks.
// The ids have no names and no entries in any file. Elsewhere: which walls this machine has (confinement.ts).

import { closeSync, constants, fchmodSync, fchownSync, mkdirSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** A wall around a cell process. */
export type Layer =
  'uid' | 'network' | 'ipc' | 'uts' | 'no-new-privs' | 'landlock' | 'seccomp' | 'permission-model'

/** Each wall: whether it stands, and why if it doesn't. */
export type Confinement = readonly { readonly layer: Layer; readonly on: boolean; readonly why?: string }[]

/** What the launcher is told: JSON, its only argument. Paths are absolute. */
export type JailOptions = {
  /** Its own folder and the project's: to change. The blobs: to read. */
  readonly runFolder: string; readonly projectFolder: string; readonly blobFolder: string
  /** What it runs, of writeProcessCode: to read. Default: the sources. */
  readonly codeFolder?: string | undefined
  /** The user and group that it becomes; undefined: it stays who it is. */
  readonly uid?: number | undefined
  /** It is a machine process: what runs its guest. */
  readonly engine?: 'kvm' | 'qemu' | undefined
  /** What runs in place of the cell process: for a probe. Its arguments are the same. */
  readonly program?: string | undefined
}

/** The variable in which the launcher tells the process which walls it has put up: Confinement as JSON. */
export const JAIL_VARIABLE = 'CELLAR_JAIL'

/**
 * The first of the user ids of projects. systemd's documentation (UIDS-GIDS) has 0x70000000 to 0x7ffdffff as used by
 * nobody: containers' ranges end below it, and none of the ids that useradd gives is near.
 */
const UID_FIRST = 0x70000000
const UID_COUNT = 0x0ffe0000

const LAUNCHER = fileURLToPath(new URL('./jail_launch.ts', import.meta.url))

/** The user id, and group id, of the project that is number `project` of its host, from 0 on. */
export function uidOf(project: number): number {
  if (!Number.isInteger(project) || project < 0 || project >= UID_COUNT) throw new RangeError(`No uid for ${project}`)
  return UID_FIRST + project
}

/**
 * Makes the folder, for this user alone; where we aren't root, it is ours. What is there in its place must be a folder:
 * a link is refused (ENOTDIR), as a project could have put it there for us to follow. Its parent must be ours.
 */
export function ownFolder(path: string, uid: number | undefined): void {
  mkdirSync(path, { recursive: true, mode: 0o700 })
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  try {
    if (uid !== undefined && process.getuid?.() === 0) fchownSync(fd, uid, uid)
    fchmodSync(fd, 0o700)
  } finally {
    closeSync(fd)
  }
}

/** The command that starts a cell process in its jail, for child_process.spawn. The environment is all that it has. */
export function jailCommand(options: JailOptions): { file: string; args: string[]; env: Record<string, string> } {
  const flags = ['--disable-warning=ExperimentalWarning', '--disable-sigusr1']
  const launcher = options.codeFolder === undefined ? LAUNCHER : join(options.codeFolder, 'jail_launch.cjs')
  return { file: process.execPath, args: [...flags, launcher, JSON.stringify(options)], env: {} }
}
