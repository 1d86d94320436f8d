// services/file/directory.ts: an open folder of a volume, and all that is done by path beneath it.
//
// Every path is resolved beneath this folder (resolve.ts). A call that changes a folder resolves the folder that holds
// the last name, then acts on that one name, which the kernel doesn't follow: create, remove, rename, link. A call
// about a thing opens it with O_PATH and asks the descriptor. So nothing is checked by one lookup and used by another.
//
// A volume with a quota is charged for what is created (names.ts, quota.ts), and its files may be shared with clones
// (shared_file.ts). A call that must copy a large one first answers -EAGAIN, and `takePending` has what to wait for.
//
// A folder below a volume is a root of its own: a guest that passes it on passes on nothing above it.
// A changing call on a read-only volume is answered EROFS, whatever rights the caller thinks it has.

import { EAGAIN, EEXIST, EINVAL, EIO, EISDIR, ELOOP, ENOENT, ENOTSUP, EPERM, EROFS, EXDEV } from '../../base/errno.ts'
import { LINKS_MAX } from '../../base/limits.ts'
import * as sys from '../../sys/linux_files.ts'
import { FILETYPE_DIRECTORY, FILETYPE_UNKNOWN, type Descriptor, type Stat } from '../descriptor.ts'
import type { SavedIs } from '../saved.ts'
import { filetypeOf, statOf, timesOf, type Times } from './attributes.ts'
import { File } from './file.ts'
import { HeldFd } from './held_fd.ts'
import type { Names } from './names.ts'
import { SLASH, isDots, refusePath, splitPath, withSlash } from './paths.ts'
import { Charge, type Quota } from './quota.ts'
import { openBeneath, type Resolver } from './resolve.ts'
import { isShared, makePrivate, type Later } from './shared_file.ts'
import type { VolumeRoot } from './volume_root.ts'

/** How open() opens. Whether that makes sense is checked: a folder can't be written, a trailing slash can't create. */
export type OpenHow = {
  read: boolean; write: boolean; append: boolean
  create: boolean; exclusive: boolean; truncate: boolean
  /** Only a folder will do. */
  directory: boolean
  /** Follow a symbolic link that is the last name. */
  follow: boolean
  /** Each write is on the disk before it is answered: its data, or everything. */
  sync: 'none' | 'data' | 'all'
  /** Writing is only a wish: a file that is shared with a clone isn't copied for it, but refused with EPERM. */
  wish?: boolean
}

/** Called for each entry of a folder: the cookie after it; false ends the listing. `name` is good until it returns. */
export type Visit = (next: bigint, ino: bigint, filetype: number, name: Uint8Array) => boolean

/** What all folders of a volume share. */
export type VolumeModes = {
  readOnly: boolean; resolver: Resolver; names: Names; quota?: Quota | undefined; root: VolumeRoot
}

/** An open folder. */
export class Directory implements Descriptor {
  readonly filetype = FILETYPE_DIRECTORY
  readonly #fd: number
  readonly #isRoot: boolean
  readonly #held: HeldFd
  readonly #volume: VolumeModes
  readonly #charge: Charge | undefined
  #pending: Later | undefined
  #isClosed = false

  /** Takes over the host's descriptor `fd`, a folder opened for reading, and `charge`, if it is beneath a quota. */
  constructor(fd: number, volume: VolumeModes, charge?: Charge) {
    this.#charge = charge
    this.#fd = fd
    this.#isRoot = fd === volume.root.fd
    this.#held = this.#isRoot ? volume.root.held : new HeldFd(fd)
    if (!this.#isRoot) volume.root.held.hold()
    this.#volume = volume
  }

  get grant(): 'volume' | undefined { return this.#isRoot ? 'volume' : undefined }
  granted(number: number): void { this.#volume.root.number = number }

  /** True if nothing beneath may be changed. */
  get readOnly(): boolean { return this.#volume.readOnly }

  /** Opens a regular file or a folder; anything else (device, FIFO, socket) is refused with -ENOTSUP. */
  open(path: Uint8Array, how: OpenHow): File | Directory | number {
    const refused = refusePath(path)
    if (refused !== 0) return -refused
    if (how.directory && how.create) return -EINVAL
    const { quota } = this.#volume
    if (quota === undefined) return this.#open(path, how, openFlags(how))
    // What is opened is counted before anybody can remove its last name. It is cut later, under its own lock.
    quota.lockNames()
    try {
      return this.#open(path, how, openFlags({ ...how, write: how.write || how.truncate, truncate: false }))
    } finally {
      quota.unlockNames()
    }
  }

  /** What the last call that answered -EAGAIN waits for, once. After that the call is to be repeated. */
  takePending(): Later | undefined {
    const pending = this.#pending
    this.#pending = undefined
    return pending
  }

  #open(path: Uint8Array, how: OpenHow, asked: number): File | Directory | number {
    let flags = asked
    if (this.readOnly) {
      if (how.write || how.truncate) return -EROFS
      flags &= ~(sys.O_CREAT | sys.O_EXCL)
    }
    const follow = how.follow && !how.exclusive
    let fd = this.#volume.names.open(flags, (reduced) => this.#beneath(path, reduced, 0o666),
      (act) => splitPath(path).trailing ? -EISDIR : this.#atPlace(path, follow, act))
    if (fd >= 0 && (how.write || how.truncate) && this.#volume.quota !== undefined && isSharedFd(fd)) {
      sys.close(fd)
      if (how.wish === true && !how.truncate) return -EPERM
      const made = this.#makePrivate(path, how.follow, !how.truncate)
      if (made < 0) return made
      fd = this.#beneath(path, flags & ~(sys.O_CREAT | sys.O_EXCL), 0)
      // Only somebody outside of this process can have put another shared file there.
      if (fd >= 0 && isSharedFd(fd)) {
        sys.close(fd)
        return -EIO
      }
    }
    if (this.readOnly && how.create) {
      if (fd === -ENOENT) return -EROFS
      if (fd >= 0 && how.exclusive) {
        sys.close(fd)
        return -EEXIST
      }
    }
    return fd < 0 ? fd : this.#opened(fd, how)
  }

  #opened(fd: number, how: OpenHow): File | Directory | number {
    const result = sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
    const kind = sys.statxMode() & sys.S_IFMT
    if (result === 0 && kind === sys.S_IFREG) return this.#openedFile(fd, how)
    const refused = result < 0 ? result : kind !== sys.S_IFDIR ? -ENOTSUP : how.create ? -EISDIR : 0
    if (refused === 0) return this.#openedFolder(fd)
    sys.close(fd)
    return refused
  }

  // The last statx was about `fd`.
  #openedFolder(fd: number): Directory | number {
    const { quota } = this.#volume
    if (quota === undefined) return new Directory(fd, this.#volume)
    const slot = quota.open()
    if (slot >= 0) return new Directory(fd, this.#volume, new Charge(quota, slot))
    sys.close(fd)
    return slot
  }

  // The last statx was about `fd`.
  #openedFile(fd: number, how: OpenHow): File | number {
    const { append, write } = how
    const { quota, root } = this.#volume
    const modes = { readable: how.read || !write, writable: write, append, readOnlyVolume: this.readOnly, root }
    if (quota === undefined) return new File(fd, modes)
    const slot = quota.open()
    if (slot < 0) {
      sys.close(fd)
      return slot
    }
    const file = new File(fd, { ...modes, charge: new Charge(quota, slot) })
    if (how.truncate) file.empty()
    return file
  }

  mkdir(path: Uint8Array): number {
    return this.#change(path, (folder, name) => this.#volume.names.mkdir(folder, name))
  }

  rmdir(path: Uint8Array): number {
    return this.#change(path, (folder, name) => this.#volume.names.remove(folder, name, sys.AT_REMOVEDIR))
  }

  /** Removes a name of anything but a folder. */
  unlink(path: Uint8Array): number {
    return this.#change(path, (folder, name) => this.#volume.names.remove(folder, name, 0))
  }

  /** Makes a symbolic link at `path` that holds `target`, which must be relative. */
  symlink(target: Uint8Array, path: Uint8Array): number {
    const refused = refusePath(target)
    if (refused !== 0) return -refused
    return this.#change(path, (folder, name) => this.#volume.names.symlink(target, folder, name))
  }

  /**
   * Moves `path` to `toPath` beneath `to`, in place of what is there. Both must be of writable volumes, and if one has
   * a quota, of the same: -EXDEV.
   */
  rename(path: Uint8Array, to: Directory, toPath: Uint8Array): number {
    return this.#change(path, (folder, name) => to.#change(toPath, (toFolder, toName) =>
      this.#isElsewhere(to) ? -EXDEV : this.#volume.names.rename(folder, name, toFolder, toName)))
  }

  /** Gives what is at `path` a second name; a symbolic link itself, if it is one. */
  link(path: Uint8Array, to: Directory, toPath: Uint8Array): number {
    return this.#change(path, (folder, name) => {
      // A final slash or dots mean a folder, and folders have one name. The kernel would follow a link there.
      if (name.at(-1) === SLASH || isDots(name)) {
        const stat = this.statAt(path, true)
        return typeof stat === 'number' ? stat : -EPERM
      }
      return to.#change(toPath, (toFolder, toName) => {
        if (this.#isElsewhere(to)) return -EXDEV
        return this.#wait(this.#volume.names.link(folder, name, toFolder, toName))
      })
    })
  }

  #isElsewhere(to: Directory): boolean { return this.#volume.quota !== to.#volume.quota }

  /** The target of the symbolic link at `path`, good until the next call; or a negated errno (EINVAL: not a link). */
  readlink(path: Uint8Array): Uint8Array | number {
    return this.#onPath(path, false, (fd) => {
      const length = sys.readlinkat(fd, NOTHING)
      // An empty path that isn't a link is ENOENT to the kernel.
      return length < 0 ? length === -ENOENT ? -EINVAL : length : sys.linkTarget(length)
    })
  }

  statAt(path: Uint8Array, follow: boolean): Stat | number {
    return this.#onPath(path, follow, statOf)
  }

  setTimesAt(path: Uint8Array, follow: boolean, times: Times): number {
    if (this.readOnly) return -EROFS
    const { quota } = this.#volume
    if (quota === undefined) return this.#onPath(path, follow, (fd) => timesOf(fd, times))
    quota.lockNames()
    try {
      const isSharedThere = this.#onPath(path, follow, (fd) => isSharedFd(fd) ? 1 : 0)
      const made = isSharedThere === 1 ? this.#makePrivate(path, follow, true) : isSharedThere
      return made < 0 ? made : this.#onPath(path, follow, (fd) => timesOf(fd, times))
    } finally {
      quota.unlockNames()
    }
  }

  // With the names locked: the file at `path` is shared, and then is ours alone. 0, a negated errno, or -EAGAIN.
  #makePrivate(path: Uint8Array, follow: boolean, keep: boolean): number {
    return this.#atPlace(path, follow, (folder, name) =>
      this.#wait(makePrivate(this.#volume.quota!, folder, name, keep)))
  }

  // Calls `act` with the folder and the name that `path` means, which needn't be there. With `follow` it isn't a link.
  #atPlace(path: Uint8Array, follow: boolean, act: (folder: number, name: Uint8Array) => number): number {
    let place = path
    for (let links = 0; links <= LINKS_MAX; links++) {
      const { parent, name } = splitPath(place)
      if (isDots(name)) return -EISDIR
      const folder = this.#beneath(parent.length === 0 ? DOT : parent, sys.O_PATH | sys.O_DIRECTORY, 0)
      if (folder < 0) return folder
      try {
        const length = follow ? sys.readlinkat(folder, name) : -EINVAL
        if (length < 0) return act(folder, name)
        const target = sys.linkTarget(length)
        place = Buffer.concat([parent, target])
        const refused = target[0] === SLASH ? EPERM : refusePath(place)
        if (refused !== 0) return -refused
      } finally {
        sys.close(folder)
      }
    }
    return -ELOOP
  }

  #wait(result: number | Later): number {
    if (typeof result === 'number') return result
    this.#pending = result
    return -EAGAIN
  }

  /**
   * Visits the entries from `cookie` on: 0 is the start, others are those that a visit was given, good as long as the
   * folder is open, whatever is created and removed meanwhile. `.` and `..` are among them. `room` says about how many
   * bytes the caller can use, so that the kernel isn't asked for more. 0 or a negated errno.
   */
  readdir(cookie: bigint, room: number, visit: Visit): number {
    const sought = sys.lseek(this.#fd, BigInt.asIntN(64, cookie), SEEK_SET)
    if (sought < 0) return sought
    for (;;) {
      const length = sys.getdents64(this.#fd, room)
      if (length <= 0) return length
      for (let at = 0; at < length; at += entriesView.getUint16(at + 16, true)) {
        const end = sys.entries.indexOf(0, at + 19)
        const name = sys.entries.subarray(at + 19, end)
        const kind = this.#kind(sys.entries[at + 18]!, name)
        if (!visit(entriesView.getBigUint64(at + 8, true), entriesView.getBigUint64(at, true), kind, name)) return 0
      }
    }
  }

  // d_type is the S_IF* of the mode, shifted; 0 where the file system doesn't keep it in the folder.
  #kind(type: number, name: Uint8Array): number {
    if (type !== 0) return filetypeOf(type << 12)
    if (sys.statx(this.#fd, name, sys.AT_SYMLINK_NOFOLLOW) < 0) return FILETYPE_UNKNOWN
    return filetypeOf(sys.statxMode())
  }

  stat(): Stat | number { return statOf(this.#fd) }

  setTimes(times: Times): number {
    return this.readOnly ? -EROFS : timesOf(this.#fd, times)
  }

  /** Resolved when the folder's names are on the disk: 0 or a negated errno. */
  sync(dataOnly: boolean): Promise<number> { return this.#held.sync(dataOnly) }

  save(): SavedIs {
    return this.#volume.root.save(this.#fd, this.filetype, (place) => ({ kind: 'directory', ...place }))
  }

  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#held.close()
    this.#charge?.close()
    if (!this.#isRoot) this.#volume.root.held.release()
  }

  #beneath(path: Uint8Array, flags: number, mode: number): number {
    return openBeneath(this.#volume.resolver, this.#fd, path, flags, mode)
  }

  // Has `act` change the folder that holds the last name of `path`. A final slash is kept: to the kernel it means
  // "only if it is a folder", and none of the calls that change a folder follow a link there (link() sees to itself).
  #change(path: Uint8Array, act: (folder: number, name: Uint8Array) => number): number {
    const refused = refusePath(path)
    if (refused !== 0) return -refused
    if (this.readOnly) return -EROFS
    const { parent, name, trailing } = splitPath(path)
    const last = trailing ? withSlash(name) : name
    if (parent.length === 0) return act(this.#fd, last)
    const folder = this.#beneath(parent, sys.O_PATH | sys.O_DIRECTORY, 0)
    if (folder < 0) return folder
    try {
      return act(folder, last)
    } finally {
      sys.close(folder)
    }
  }

  #onPath<T>(path: Uint8Array, follow: boolean, ask: (fd: number) => T | number): T | number {
    const refused = refusePath(path)
    if (refused !== 0) return -refused
    const fd = this.#beneath(path, sys.O_PATH | (follow ? 0 : sys.O_NOFOLLOW), 0)
    if (fd < 0) return fd
    try {
      return ask(fd)
    } finally {
      sys.close(fd)
    }
  }
}

function isSharedFd(fd: number): boolean {
  return sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH) === 0 && isShared(sys.statxMode())
}

// O_NONBLOCK and O_NOCTTY: opening must not wait for a FIFO's other end, or take a terminal. On what we then keep,
// regular files and folders, O_NONBLOCK means nothing to Linux.
function openFlags(how: OpenHow): number {
  let flags = sys.O_NONBLOCK | sys.O_NOCTTY
  flags |= how.write ? how.read ? sys.O_RDWR : sys.O_WRONLY : sys.O_RDONLY
  if (how.append) flags |= sys.O_APPEND
  if (how.create) flags |= sys.O_CREAT
  if (how.create && how.exclusive) flags |= sys.O_EXCL
  if (how.truncate) flags |= sys.O_TRUNC
  if (how.directory) flags |= sys.O_DIRECTORY
  if (!how.follow) flags |= sys.O_NOFOLLOW
  if (how.sync === 'data') flags |= sys.O_DSYNC
  if (how.sync === 'all') flags |= sys.O_SYNC
  return flags
}

const SEEK_SET = 0
const NOTHING = new Uint8Array(0)
const DOT = Uint8Array.of(0x2e)
const entriesView = new DataView(sys.entries.buffer, sys.entries.byteOffset, sys.entries.byteLength)
