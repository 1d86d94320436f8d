// snapshot/format.ts: a stopped guest as bytes: all but its memory, for which it has the digests of chunks.
//
//   CELLSNAP · version u32 = 1 · the fields of SNAPSHOT in their order · SHA-256 of all before, 32 bytes
//
// That of a machine has those of MACHINE_SNAPSHOT: both begin with what it is of.
//
// A snapshot is known by the SHA-256 of these bytes. They name no file, no place and no number of this host, so that
// the same snapshot has the same digest wherever it is. Memory is in chunks of a page (64 KiB), each known by the
// SHA-256 of its bytes; pages that are all zero are left out. docs/reference/snapshots.md is made of the table.
//
// Bytes are a stranger's: each length has a cap and nothing is believed because the digest is right. What a table
// entry, a frame or a descriptor may be is checked by who uses it (cell/, services/). Elsewhere: how fields are written
// (codec.ts), where snapshots and chunks are kept (store.ts).

import { Buffer } from 'node:buffer'
import { hash } from 'node:crypto'
import { CellarError } from '../base/errors.ts'
import {
  DESCRIPTORS_MAX, EVENTS_UNREAD_MAX, MACHINE_PAGES_MAX, MACHINE_SECTION_BYTES_MAX, MACHINE_SECTIONS_MAX,
  PATH_BYTES_MAX, SNAPSHOT_ARGUMENT_BYTES_MAX, SNAPSHOT_ARGUMENTS_MAX,
  SNAPSHOT_FRAMES_BYTES_MAX, SNAPSHOT_GLOBALS_BYTES_MAX, SNAPSHOT_LABELS_MAX, SNAPSHOT_SPEC_BYTES_MAX,
  TABLE_ENTRIES_MAX, TABLE_GROWTH_MAX, WASM_PAGE_BYTES, WASM_PAGES_MAX,
} from '../base/limits.ts'
import { CAPTURE_VERSION, type CellState, type TableImage } from '../cell/state.ts'
import { DISKS_MAX, VCPUS_MAX } from '../machine/spec.ts'
import type { MachineParts, MachineState } from '../machine/state.ts'
import type { GuestEvent } from '../services/lifecycle/lifecycle.ts'
import type { SavedDescriptor, SavedIs } from '../services/saved.ts'
import {
  bool, bytes, f64, fixed, indices, json, list, Malformed, oneOf, optional, Reader, record, text, u32, u53, word,
  Writer, type Codec,
} from './codec.ts'

/** The format that this Cellar writes, and the latest that it reads. */
export const SNAPSHOT_VERSION = 1

/** What a snapshot is of. */
export type SnapshotMeta = {
  readonly kind: 'cell' | 'machine'
  /** Digest of the program, or of a machine's configuration, `sha256:HEX`. */
  readonly module: string
  /** Name of the guest. */
  readonly guest: string
  /** Its specification: JSON of GUEST_SPEC. Whoever uses it checks it. */
  readonly spec: unknown
  /** Milliseconds since 1970. */
  readonly createdAt: number
  /** The version of Cellar that took it. */
  readonly cellar: string
  /** Digest of the snapshot that the guest was started from. */
  readonly parent?: string | undefined
  readonly labels?: Readonly<Record<string, string>> | undefined
}

/** A page of the memory, and the SHA-256 of its bytes in hex. */
export type ChunkRef = { readonly page: number; readonly hash: string }

/** A stopped cell without its memory's bytes. */
export type BareState = Omit<CellState, 'memory' | 'deadlineNs'> & {
  readonly memory: { readonly pages: number } | undefined
}

/** A stopped machine without its pages' bytes. */
export type BareMachine = Omit<MachineState, 'memory'> & { readonly memory: { readonly pages: number } }

/** What the bytes of a snapshot say. `state` is a machine's if `meta.kind` says so. */
export type Snapshot = { readonly meta: SnapshotMeta; readonly state: BareState | BareMachine
  readonly chunks: readonly ChunkRef[] }

/** The hash of a page that is all zero: such a page is left out, so that a state has one snapshot. */
export const ZERO_HASH = hash('sha256', new Uint8Array(WASM_PAGE_BYTES))

const MAGIC = Buffer.from('CELLSNAP')
const HASH_BYTES = 32
const HEAD_BYTES = MAGIC.length + 4

/** A digest, written without its algorithm's name. */
const digest: Codec<string> = {
  describe: 'SHA-256, 32 bytes',
  write: (value, to) => fixed(HASH_BYTES).write(Buffer.from(value.replace(/^sha256:/, ''), 'hex'), to),
  read: (from) => `sha256:${from.take(HASH_BYTES).toString('hex')}`,
}

/** Keys and values, the keys ascending. */
function pairs<T>(key: Codec<string>, value: Codec<T>, max: number): Codec<Readonly<Record<string, T>>> {
  const rows = list(record<{ key: string; value: T }>({ key: [key, ''], value: [value, ''] }), max, 4, (row) => row.key)
  return {
    describe: `${max} pairs at most, keys ascending: ${key.describe}; ${value.describe}`,
    write: (values, to) => rows.write(Object.entries(values).map(([key, value]) => ({ key, value })), to),
    read: (from) => Object.fromEntries(rows.read(from).map((row) => [row.key, row.value])),
  }
}

const path = text(PATH_BYTES_MAX)
const shortText = text(1024)

const META = record<SnapshotMeta>({
  kind: [word('cell', 'machine'), 'what kind of guest it is of'],
  module: [digest, 'the program: it goes on with no other'],
  guest: [text(256), 'name of the guest'],
  spec: [json(SNAPSHOT_SPEC_BYTES_MAX), 'its specification, as the API has it'],
  createdAt: [u53, 'when it was taken, milliseconds since 1970'],
  cellar: [text(64), 'the version of Cellar that took it'],
  parent: [optional(digest), 'the snapshot that the guest was started from'],
  labels: [optional(pairs(text(256), text(4096), SNAPSHOT_LABELS_MAX)), 'what its owner says of it'],
})

const EVENT = record<GuestEvent>({
  kind: [word('fork', 'restore', 'wake', 'migrate'), 'what has become of it'],
  number: [u32(), 'of a fork: which of the children it is'], at: [u53, 'when it went on, milliseconds since 1970'],
  generation: [text(64), 'the generation that it came with'],
})

type Events = Omit<Extract<SavedIs, { kind: 'events' }>, 'kind'>

const IS = oneOf<SavedIs>({
  console: record({ stream: [u32(2) as Codec<0 | 1 | 2>, 'standard input, output or error'] }),
  directory: record({ volume: [u32(DESCRIPTORS_MAX), 'number of the granted folder'],
    path: [path, 'from there, as the guest would say it'] }),
  file: record({
    volume: [u32(DESCRIPTORS_MAX), 'number of the granted folder'], path: [path, 'from there'],
    offset: [u53, 'where it reads and writes next'], read: [bool, 'open for reading'], write: [bool, 'for writing'],
    append: [bool, 'at the end always'],
  }),
  listener: record({ port: [u32(DESCRIPTORS_MAX), 'number of the granted port'] }),
  events: record<Events>({ unread: [optional(list(EVENT, EVENTS_UNREAD_MAX, 28)), 'events that it has not read yet'] }),
  lost: record({ filetype: [u32(255), 'what it was, as WASI has it'], errno: [u32(0xffff), 'what each use answers'],
    why: [shortText, 'in words'] }),
})

const DESCRIPTOR = record<SavedDescriptor>({
  fd: [u32(DESCRIPTORS_MAX), 'its number'], rightsBase: [u53, 'as WASI has it'],
  rightsInheriting: [u53, 'as WASI has it'], flags: [u32(), 'as WASI has it'],
  preopen: [optional(path), "the guest's name of a granted folder"], is: [IS, 'what it stands for'],
})

const USED = record<CellState['used']>({
  cpuNs: [f64(0), 'nanoseconds on a pCPU'],
  wallNs: [f64(0), 'nanoseconds since its start, without those that it was stopped'],
  waits: [f64(0), 'times that it waited'], preemptions: [f64(0), 'times that it was preempted'],
  hypercalls: [pairs(text(128), f64(0), 4096), 'calls by name'],
})

/** One chunk in the table: 4 + 32 bytes, the pages ascending. */
function chunkOf(pagesMax: number): Codec<ChunkRef> {
  return record<ChunkRef>({
    page: [u32(pagesMax - 1), 'number of the page'],
    hash: [{ ...digest, read: (from) => from.take(HASH_BYTES).toString('hex') }, 'of its 65,536 bytes'],
  })
}

const argument = text(SNAPSHOT_ARGUMENT_BYTES_MAX)
const REFERENCES_MAX = TABLE_ENTRIES_MAX + TABLE_GROWTH_MAX

type Fields = Omit<BareState, 'version' | 'deadlineNs'> & { readonly meta: SnapshotMeta; readonly capture: number
  readonly chunks: readonly ChunkRef[] }

/** The fields of a snapshot, in their order: what is written, read and documented. */
export const SNAPSHOT: Codec<Fields> = record<Fields>({
  meta: [META, 'what it is of'],
  capture: [u32(), `layout of frames and globals; this Cellar goes on with ${CAPTURE_VERSION}`],
  memory: [optional(record({ pages: [u32(WASM_PAGES_MAX), 'its size, in pages of 64 KiB'] })), 'its memory'],
  chunks: [list(chunkOf(WASM_PAGES_MAX), WASM_PAGES_MAX, 36, (one) => one.page),
    "the memory's pages that aren't all zero"],
  globals: [bytes(SNAPSHOT_GLOBALS_BYTES_MAX), 'values of globals'],
  tables: [list(record<TableImage>({ table: [u32(), 'its number'],
    entries: [indices(REFERENCES_MAX), 'functions by number'] }), 1024, 8, (one) => one.table),
  'tables that have changed'],
  frames: [bytes(SNAPSHOT_FRAMES_BYTES_MAX), "the vCPU's frames, innermost first"],
  references: [indices(REFERENCES_MAX), 'functions that frames and globals refer to'],
  phase: [word('start', 'main'), 'the call that is in progress'],
  args: [list(argument, SNAPSHOT_ARGUMENTS_MAX, 4), "the program's arguments"],
  env: [list(argument, SNAPSHOT_ARGUMENTS_MAX, 4), 'its environment'],
  descriptors: [list(DESCRIPTOR, DESCRIPTORS_MAX, 29, (one) => one.fd), 'its descriptors'],
  since: [f64(-1), "when the hypercall in progress began, nanoseconds of the guest's monotonic clock; -1: none is"],
  monotonicNs: [f64(0), "the guest's monotonic clock: it goes on from there"],
  used: [USED, 'what it has used until then'],
})

type MachineFields = { readonly meta: SnapshotMeta; readonly machine: MachineParts
  readonly memory: { readonly pages: number }; readonly chunks: readonly ChunkRef[] }

/** The fields of a machine's snapshot, in their order. */
export const MACHINE_SNAPSHOT: Codec<MachineFields> = record<MachineFields>({
  meta: [META, 'what it is of'],
  machine: [record<MachineParts>({
    engine: [word('kvm', 'qemu'), 'what it ran under: it goes on under the same'],
    vcpus: [u32(VCPUS_MAX), 'its vCPUs'], ramBytes: [u53, 'its RAM'],
    sections: [list(record({ name: [text(64), 'which part'], bytes: [bytes(MACHINE_SECTION_BYTES_MAX), 'its state'] }),
      MACHINE_SECTIONS_MAX, 8, (one) => one.name), 'what the engine has saved, by name'],
    disks: [list(record({ name: [text(64), 'which disk'], sizeBytes: [u53, 'bytes of its file'] }), DISKS_MAX, 12),
      'the disks that are its own'],
    generation: [text(64), 'what the guest knew as its generation'],
  }), 'what it was, beside pages'],
  memory: [record({ pages: [u32(MACHINE_PAGES_MAX), 'pages of RAM, then of the file of each disk'] }), 'its pages'],
  chunks: [list(chunkOf(MACHINE_PAGES_MAX), MACHINE_PAGES_MAX, 36, (one) => one.page), "pages that aren't all zero"],
})

/** The bytes of a snapshot. `chunks`: the memory's, pages ascending. Throws Malformed if a cap is passed. */
export function encodeSnapshot(meta: SnapshotMeta, state: BareState | BareMachine | CellState | MachineState,
  chunks: readonly ChunkRef[]): Buffer {
  const to = new Writer()
  const { bytes, at } = to.room(HEAD_BYTES)
  MAGIC.copy(bytes, at)
  bytes.writeUInt32LE(SNAPSHOT_VERSION, at + MAGIC.length)
  if ('machine' in state) MACHINE_SNAPSHOT.write({ ...state, meta, chunks }, to)
  else SNAPSHOT.write({ ...state, meta, capture: state.version, chunks }, to)
  return Buffer.concat([to.done(), hash('sha256', to.done(), 'buffer')])
}

/** What the bytes say. `name`: for messages. Throws SNAPSHOT_DAMAGED, SNAPSHOT_NEWER. */
export function decodeSnapshot(bytes: Uint8Array, name: string): Snapshot {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  try {
    if (!all.subarray(0, MAGIC.length).equals(MAGIC)) throw new Malformed('it is none')
    if (all.length < HEAD_BYTES + HASH_BYTES) throw new Malformed('it ends too early')
    const version = all.readUInt32LE(MAGIC.length)
    if (version > SNAPSHOT_VERSION) throw new CellarError('SNAPSHOT_NEWER', [name, version, SNAPSHOT_VERSION])
    if (version !== SNAPSHOT_VERSION) throw new Malformed(`its format is ${version}`)
    const body = all.subarray(0, -HASH_BYTES)
    if (!hash('sha256', body, 'buffer').equals(all.subarray(-HASH_BYTES))) throw new Malformed('its digest is wrong')
    const from = new Reader(body.subarray(HEAD_BYTES))
    const snapshot = META.read(new Reader(body.subarray(HEAD_BYTES))).kind === 'machine' ? readMachine(from)
      : readCell(from)
    if (from.left > 0) throw new Malformed('something follows it')
    const { chunks, state: { memory } } = snapshot
    if (chunks.some((one) => one.hash === ZERO_HASH)) throw new Malformed('it has a page that is all zero')
    if ((chunks.at(-1)?.page ?? -1) >= (memory?.pages ?? 0)) throw new Malformed('it has pages beyond its memory')
    return snapshot
  } catch (error) {
    if (!(error instanceof Malformed)) throw error
    throw new CellarError('SNAPSHOT_DAMAGED', [name, error.message], { cause: error })
  }
}

function readCell(from: Reader): Snapshot {
  const { meta, capture, chunks, ...rest } = SNAPSHOT.read(from)
  return { meta, chunks, state: { ...rest, version: capture } }
}

// RAM and each disk begin on a page of their own, and there is nothing else.
function readMachine(from: Reader): Snapshot {
  const { meta, chunks, machine, memory } = MACHINE_SNAPSHOT.read(from)
  const pages = [machine.ramBytes, ...machine.disks.map(({ sizeBytes }) => sizeBytes)]
    .reduce((sum, size) => sum + Math.ceil(size / WASM_PAGE_BYTES), 0)
  if (machine.ramBytes % WASM_PAGE_BYTES !== 0) throw new Malformed('its RAM is no number of pages')
  if (pages !== memory.pages) throw new Malformed('its pages are not those of its RAM and its disks')
  if (!/^[0-9a-f]{32}$/.test(machine.generation)) throw new Malformed('its generation is none')
  return { meta, chunks, state: { machine, memory } }
}
