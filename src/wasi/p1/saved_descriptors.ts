// wasi/p1/saved_descriptors.ts: a cell's descriptor numbers as a snapshot keeps them, and from there again.
//
// A guest that goes on is granted what a fresh one is: a table of streams, folders and listening sockets. Its saved
// numbers are then made from those grants and from nothing else: files and folders are opened beneath the granted
// folders as path_open opens them, and rights are no more than path_open or the grant would give. So a snapshot that
// somebody forged reaches what its guest could have opened itself. What makes no sense at all is refused; what can't
// be had again is lost (services/lost.ts), and the guest goes on.
//
// Elsewhere: what each descriptor says of itself (save, services/descriptor.ts).

import {
  EAGAIN, ECONNRESET, EIO, EISDIR, ELOOP, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR, ENOTSUP, EPERM, ERRNO_NAMES,
} from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { DESCRIPTORS_MAX, PATH_BYTES_MAX } from '../../base/limits.ts'
import { printable } from '../../base/printable.ts'
import {
  FILETYPE_CHARACTER_DEVICE, FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM,
  FILETYPE_SYMBOLIC_LINK, type Descriptor, type GrantKind,
} from '../../services/descriptor.ts'
import type { Directory, OpenHow } from '../../services/file/directory.ts'
import { LostDescriptor } from '../../services/lost.ts'
import { LOST_WHY_LENGTH_MAX, type SavedDescriptor, type SavedIs } from '../../services/saved.ts'
import * as abi from './abi.ts'
import { Descriptors, type Entry } from './descriptors.ts'

/** What the descriptors of a stopped cell stand for. They stay open. */
export function saveDescriptors(descriptors: Descriptors): SavedDescriptor[] {
  const saved: SavedDescriptor[] = []
  for (const [fd, { descriptor, rightsBase, rightsInheriting, flags, preopen, grant }] of descriptors.all()) {
    const is = descriptor.save?.(grant ?? -1) ?? leftBehind(descriptor.filetype)
    const name = preopen === undefined ? {} : { preopen: new TextDecoder().decode(preopen) }
    saved.push({ fd, rightsBase, rightsInheriting, flags, ...name, is })
  }
  return saved
}

function leftBehind(filetype: number): SavedIs {
  return filetype === FILETYPE_SOCKET_STREAM
    ? { kind: 'lost', filetype, errno: ECONNRESET, why: 'the connection stayed behind' }
    : { kind: 'lost', filetype, errno: EIO, why: 'it belongs to where the guest ran' }
}

/**
 * The descriptors of a guest that goes on. `granted`: the table that a fresh start gets; what the guest doesn't have
 * any more of it is closed. `openEvents` opens a descriptor of lifecycle events. Throws CellarError SNAPSHOT_FOREIGN,
 * or VOLUME_UNREADABLE where this process can't open so much; then all is closed, what was granted too.
 */
export async function restoreDescriptors(
  saved: readonly SavedDescriptor[], granted: Descriptors, openEvents?: OpenEvents,
): Promise<Descriptors> {
  const restored = new Descriptors()
  const grants = new Grants(granted, openEvents)
  try {
    if (!Array.isArray(saved) || saved.length > DESCRIPTORS_MAX) throw foreign('it has too many descriptors')
    for (const one of saved as readonly SavedDescriptor[]) {
      if (!isObject(one) || !isObject(one.is)) throw foreign('it has a descriptor that is none')
      const { fd, rightsBase, rightsInheriting, flags } = one
      if (!isCount(fd, DESCRIPTORS_MAX)) throw foreign(`it has a descriptor ${shown(fd)}`)
      if (restored.get(fd) !== undefined) throw foreign(`it has descriptor ${fd} twice`)
      if (!isCount(rightsBase, abi.RIGHTS_ALL + 1) || !isCount(rightsInheriting, abi.RIGHTS_ALL + 1) ||
        !isCount(flags, abi.FDFLAGS_ALL + 1)) throw foreign(`descriptor ${fd} has unknown rights or flags`)
      const most = await entryOf(one, grants)
      restored.put(fd, { ...most, rightsBase: rightsBase & most.rightsBase,
        rightsInheriting: rightsInheriting & most.rightsInheriting, flags })
    }
    grants.closeUnused()
    return restored
  } catch (error) {
    restored.closeAll()
    granted.closeAll()
    throw error
  }
}

// With the most rights that it may have.
async function entryOf({ fd, is, preopen, flags }: SavedDescriptor, grants: Grants): Promise<Entry> {
  if (preopen !== undefined && (is.kind !== 'directory' || is.path !== '')) {
    throw foreign(`descriptor ${fd} is a granted folder and something else`)
  }
  switch (is.kind) {
    case 'console': return grants.take('console', is.stream)
    case 'listener': return grants.take('listener', is.port)
    case 'directory':
      return preopen === undefined ? await folderOf(is, grants) : grants.takeVolume(is.volume, preopen)
    case 'file': return await fileOf(is, flags, grants)
    case 'events':
      if (grants.openEvents === undefined) return lost(FILETYPE_CHARACTER_DEVICE, EIO, 'nobody tells of events here')
      return { descriptor: grants.openEvents(is), rightsBase: abi.RIGHTS_EVENTS, rightsInheriting: 0, flags: 0 }
    case 'lost':
      if (!isCount(is.filetype, FILETYPE_SYMBOLIC_LINK + 1) || !isErrno(is.errno) || typeof is.why !== 'string') {
        throw foreign(`descriptor ${fd} is lost in no way that there is`)
      }
      return lost(is.filetype, is.errno, is.why)
    default: throw foreign(`descriptor ${fd} is of a kind that this version doesn't know`)
  }
}

/** Opens a descriptor of lifecycle events as it was saved (services/lifecycle/events.ts). */
type OpenEvents = (saved: Extract<SavedIs, { kind: 'events' }>) => Descriptor

type SavedFolder = Extract<SavedIs, { kind: 'directory' }>
type SavedFile = Extract<SavedIs, { kind: 'file' }>

async function folderOf({ volume, path }: SavedFolder, grants: Grants): Promise<Entry> {
  if (path !== '') checkPath(path)
  const opened = await openAgain(grants.volume(volume), path === '' ? '.' : path,
    { ...AS_IT_IS, read: true, directory: true, sync: 'none' })
  return 'descriptor' in opened ? opened : lost(FILETYPE_DIRECTORY, opened.errno, opened.why)
}

async function fileOf(file: SavedFile, flags: number, grants: Grants): Promise<Entry> {
  const { path, offset, read, write, append } = file
  checkPath(path)
  if (!isCount(offset, Infinity) || [read, write, append].some((one) => typeof one !== 'boolean')) {
    throw foreign(`it has the file "${printable(path)}" open in no way that there is`)
  }
  const how = { ...AS_IT_IS, read, write, append, directory: false, sync: syncOf(flags) }
  const opened = await openAgain(grants.volume(file.volume), path, how)
  if (!('descriptor' in opened)) return lost(FILETYPE_REGULAR_FILE, opened.errno, opened.why)
  const { descriptor } = opened
  const isFile = descriptor.filetype === FILETYPE_REGULAR_FILE
  if (isFile && descriptor.seek!(offset, abi.WHENCE_SET) === offset) return opened
  descriptor.close()
  return lost(FILETYPE_REGULAR_FILE, EIO, 'another thing has its name')
}

// Nothing is created or cut. The last name isn't followed: when the path was taken, it wasn't a link.
const AS_IT_IS = { create: false, exclusive: false, truncate: false, follow: false, append: false, write: false }

// Bytes of a path that was taken beneath a volume are neither absolute nor do they lead up.
function checkPath(path: string): void {
  const isOne = typeof path === 'string' && Buffer.byteLength(path) < PATH_BYTES_MAX && !path.includes('\0') &&
    path.isWellFormed() && path.split('/').every((name) => name !== '' && name !== '.' && name !== '..')
  if (!isOne) throw foreign(`it has a file at ${shown(path)}, which is no path beneath a folder`)
}

type Refusal = { readonly errno: number; readonly why: string }

// As path_open: a file that the volume shares with a clone is copied before it is written.
async function openAgain(
  { descriptor, rightsInheriting }: Entry, path: string, how: OpenHow,
): Promise<Entry | Refusal> {
  const root = descriptor as Directory
  for (;;) {
    const opened = root.open(Buffer.from(path), how)
    if (typeof opened !== 'number') {
      const rights = opened.filetype === FILETYPE_DIRECTORY ? abi.RIGHTS_DIRECTORY : abi.RIGHTS_FILE
      return { descriptor: opened, rightsBase: rights & rightsInheriting, rightsInheriting, flags: 0 }
    }
    const copy = opened === -EAGAIN ? root.takePending() : undefined
    const errno = copy === undefined ? -opened : -await copy()
    if (errno !== 0) return refusal(path, errno)
  }
}

function refusal(path: string, errno: number): Refusal {
  const name = ERRNO_NAMES[errno] ?? `errno ${errno}`
  if (EXHAUSTED.has(errno)) throw new CellarError('VOLUME_UNREADABLE', [printable(path), name])
  return { errno: ELSEWHERE.has(errno) ? EIO : errno, why: `it can't be opened again: ${name}` }
}

// What says nothing about the file, but about us.
const EXHAUSTED: ReadonlySet<number> = new Set([EMFILE, ENFILE, ENOMEM])
// What means that its name leads to something else now, or nowhere.
const ELSEWHERE: ReadonlySet<number> = new Set([EAGAIN, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTSUP, EPERM])

function syncOf(flags: number): OpenHow['sync'] {
  if ((flags & (abi.FDFLAGS_SYNC | abi.FDFLAGS_RSYNC)) !== 0) return 'all'
  return (flags & abi.FDFLAGS_DSYNC) !== 0 ? 'data' : 'none'
}

function lost(filetype: number, errno: number, why: string): Entry {
  const descriptor = new LostDescriptor(filetype, errno, why.slice(0, LOST_WHY_LENGTH_MAX))
  return { descriptor, rightsBase: abi.RIGHTS_ALL, rightsInheriting: abi.RIGHTS_ALL, flags: 0 }
}

/** What a guest is granted, by kind and number. */
class Grants {
  readonly openEvents: OpenEvents | undefined
  readonly #entries: Record<GrantKind, Entry[]> = { console: [], volume: [], listener: [] }
  readonly #all: Entry[] = []
  readonly #used = new Set<Entry>()

  constructor(granted: Descriptors, openEvents: OpenEvents | undefined) {
    this.openEvents = openEvents
    for (const [, entry] of granted.all()) {
      this.#all.push(entry)
      const { grant } = entry.descriptor
      if (grant !== undefined) this.#entries[grant][entry.grant!] = entry
    }
  }

  /** The granted folder `number`, for what is to be opened beneath it. */
  volume(number: number): Entry { return this.#get('volume', number) }

  /** What is granted as `number` of its kind, for the one descriptor that takes it over. */
  take(kind: GrantKind, number: number): Entry {
    const entry = this.#get(kind, number)
    if (this.#used.has(entry)) throw foreign(`it has ${NAMES[kind]} ${number} twice`)
    this.#used.add(entry)
    return entry
  }

  /** As take, of the folder that the guest knows as `name`. */
  takeVolume(number: number, name: string): Entry {
    const entry = this.take('volume', number)
    const granted = new TextDecoder().decode(entry.preopen)
    if (granted === name) return entry
    throw foreign(`its ${NAMES.volume} ${number} is ${shown(name)}, and ${shown(granted)} is granted`)
  }

  /** Closes what nobody took. One descriptor may be granted several times. */
  closeUnused(): void {
    const kept = new Set([...this.#used].map(({ descriptor }) => descriptor))
    for (const { descriptor } of this.#all) if (!kept.has(descriptor)) descriptor.close()
  }

  #get(kind: GrantKind, number: number): Entry {
    const entries = this.#entries[kind]
    const entry = isCount(number, entries.length) ? entries[number] : undefined
    if (entry === undefined) throw foreign(`it has ${NAMES[kind]} ${shown(number)}, and ${entries.length} are granted`)
    return entry
  }
}

const NAMES: Record<GrantKind, string> = {
  console: 'stream', volume: 'granted folder', listener: 'listening socket',
}

function foreign(why: string): CellarError { return new CellarError('SNAPSHOT_FOREIGN', [why]) }

// What came from a file is of its type only after this.
function isObject(value: unknown): boolean { return typeof value === 'object' && value !== null }
function isCount(value: number, end: number): boolean {
  return Number.isSafeInteger(value) && value >= 0 && value < end
}
// EAGAIN would have the guest wait for what nobody does.
function isErrno(value: number): boolean { return isCount(value, ERRNO_NAMES.length) && value > 0 && value !== EAGAIN }
function shown(value: unknown): string { return `"${printable(String(value))}"` }
