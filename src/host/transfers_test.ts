// host/transfers_test.ts: snapshots from one process to another, by way of the host.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { test } from 'node:test'
import { STREAM_WINDOW_BYTES_MAX, WASM_PAGE_BYTES } from '../base/limits.ts'
import { CAPTURE_VERSION, type CellState } from '../cell/state.ts'
import type { SnapshotMeta } from '../snapshot/format.ts'
import { SnapshotStore } from '../snapshot/store.ts'
import type { Snapshots } from './cells_snapshots.ts'
import { CellTransfers } from './cells_transfers.ts'
import { HostLine } from './host_line.ts'
import type { Modules } from './modules.ts'
import { ProcessLink } from './process_link.ts'
import type { ProcessHandle } from './processes.ts'
import type { ToProcess } from './protocol.ts'
import { disposableFolder } from './test_support.ts'
import { Transfers } from './transfers.ts'

const META: SnapshotMeta = { kind: 'cell', module: `sha256:${'1'.repeat(64)}`, guest: 'web', spec: {}, createdAt: 1,
  cellar: '0' }
const PAGES = 3 * STREAM_WINDOW_BYTES_MAX / WASM_PAGE_BYTES

type Side = { readonly store: SnapshotStore; readonly handle: ProcessHandle; readonly line: HostLine } & Disposable

/** A process's end of transfers, and the host's link to it. */
async function side(transfers: Transfers): Promise<Side> {
  const folder = disposableFolder()
  const store = new SnapshotStore(join(folder.path, 'snapshots'))
  const line: HostLine = new HostLine({ gone: () => cell.detachAll(),
    bytes: (stream, bytes) => void cell.input(stream, bytes),
    message: (message: ToProcess) => {
      if ('hello' in message) line.greet({ hello: 1, process: 1, project: 'a', pid: process.pid, guests: [], ends: [] })
      else if ('transmit' in message) cell.transmit(message)
      else if ('receive' in message) cell.receive(message)
      else if ('eof' in message) cell.input(message.eof, null)
      else if ('credit' in message) cell.credit(message.credit, message.bytes)
      else if ('detach' in message) cell.detach(message.detach)
    } })
  const cell = new CellTransfers({ line, store, modules: {} as Modules, snapshots: {} as Snapshots, compile: () => {},
    die: (error) => { throw error } })
  await line.listen(join(folder.path, 'c'), () => {})
  const handle = { project: 'a', link: undefined } as unknown as ProcessHandle
  handle.link = await ProcessLink.connect(folder.path, { closed() {}, message: (message) => {
    if ('transferred' in message) transfers.heard(handle, message)
  } })
  return { store, handle, line, [Symbol.dispose]: () => {
    handle.link?.close()
    line.close()
    folder[Symbol.dispose]()
  } }
}

/** A memory of so many pages of chance, the first of which has this byte at its begin. */
function stateOf(bytes: SharedArrayBuffer, first: number): CellState {
  const copy = new SharedArrayBuffer(bytes.byteLength)
  new Uint8Array(copy).set(new Uint8Array(bytes))
  new Uint8Array(copy)[0] = first
  const pages = bytes.byteLength / WASM_PAGE_BYTES
  const present = Uint32Array.from({ length: pages }, (_, i) => i)
  return { version: CAPTURE_VERSION, memory: { pages, present, bytes: copy },
    globals: new Uint8Array(0), tables: [], frames: new Uint8Array(0), references: [], phase: 'main', args: [], env: [],
    descriptors: [], since: -1, monotonicNs: 0,
    used: { cpuNs: 0, wallNs: 0, waits: 0, preemptions: 0, hypercalls: {} } }
}

function chance(pages: number): SharedArrayBuffer {
  const bytes = new SharedArrayBuffer(pages * WASM_PAGE_BYTES)
  new Uint8Array(bytes).set(randomBytes(bytes.byteLength))
  return bytes
}

async function sizeOf(pieces: AsyncIterable<Uint8Array>): Promise<number> {
  let size = 0
  for await (const piece of pieces) size += piece.length
  return size
}

const TAKING = { durable: false } as const

test('a snapshot goes from one process to another: what there is, what is missing, what is new', async () => {
  const transfers = new Transfers()
  using from = await side(transfers)
  using to = await side(transfers)
  const bytes = chance(PAGES)
  const { digest: first } = await from.store.write(META, stateOf(bytes, 1), { durable: false })
  const { digest: second } = await from.store.write(META, stateOf(bytes, 2), { durable: false })
  const head = await transfers.receive(to.handle, transfers.transmit(from.handle, first, { chunks: [] }), TAKING)
  assert.deepEqual([head.snapshot, head.missing.length], [first, PAGES])
  const rest = transfers.transmit(from.handle, first, { chunks: head.missing })
  assert.deepEqual(await transfers.receive(to.handle, rest, TAKING), { snapshot: first, missing: [] })
  const size = await sizeOf(transfers.transmit(from.handle, second, { without: first }))
  assert(size < 3 * WASM_PAGE_BYTES, `only what is new: ${size} bytes`)
  const news = transfers.transmit(from.handle, second, { without: first })
  assert.deepEqual(await transfers.receive(to.handle, news, TAKING), { snapshot: second, missing: [] })
  const { state } = await to.store.read(second)
  assert.deepEqual(Buffer.from(state.memory!.bytes), Buffer.from(stateOf(bytes, 2).memory!.bytes))
})

test('a process gives away no chunk of another snapshot, whoever asks for it', async () => {
  const transfers = new Transfers()
  using from = await side(transfers)
  const { digest: asked } = await from.store.write(META, stateOf(chance(1), 1), { durable: false })
  const { digest: other } = await from.store.write(META, stateOf(chance(1), 1), { durable: false })
  const chunks = from.store.inspect(other).chunks.map(({ hash }) => hash)
  assert(await sizeOf(transfers.transmit(from.handle, asked, { chunks })) < WASM_PAGE_BYTES)
})

test('a snapshot that is not there, or is damaged on its way, is refused with the reason', async () => {
  const transfers = new Transfers()
  using from = await side(transfers)
  using to = await side(transfers)
  const { digest } = await from.store.write(META, stateOf(chance(2), 1), { durable: false })
  await assert.rejects(sizeOf(transfers.transmit(from.handle, `sha256:${'9'.repeat(64)}`)), { code: 'NOT_FOUND' })
  async function* damaged(): AsyncGenerator<Uint8Array> {
    for await (const piece of transfers.transmit(from.handle, digest)) {
      const copy = Buffer.from(piece)
      copy[copy.length >> 1]! ^= 1
      yield copy
    }
  }
  await assert.rejects(transfers.receive(to.handle, damaged(), TAKING), { code: 'SNAPSHOT_DAMAGED' })
  // The next one is none the worse for it.
  assert.deepEqual(await transfers.receive(to.handle, transfers.transmit(from.handle, digest), TAKING),
    { snapshot: digest, missing: [] })
})

test('a transfer ends when the process is lost, or nobody reads any more', async () => {
  const transfers = new Transfers()
  using from = await side(transfers)
  using to = await side(transfers)
  const { digest } = await from.store.write(META, stateOf(chance(PAGES), 1), { durable: false })
  for await (const _ of transfers.transmit(from.handle, digest)) break
  const received = transfers.receive(to.handle, (async function* () {
    yield Buffer.from('CELLSEND')
    to.handle.link!.close()
    await new Promise((resolve) => setTimeout(resolve, 20))
  })(), TAKING)
  await assert.rejects(received, { code: 'PROCESS_LOST' })
  // It was left in the middle, and begins anew.
  assert(await sizeOf(transfers.transmit(from.handle, digest)) > PAGES * WASM_PAGE_BYTES / 2)
})
