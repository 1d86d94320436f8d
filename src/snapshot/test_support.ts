// snapshot/test_support.ts: states and stores made for one test.

import { randomFillSync } from 'node:crypto'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { CellState, MemoryImage } from '../cell/state.ts'
import { CHUNK_BYTES } from './chunk_work.ts'
import type { SnapshotMeta } from './format.ts'
import { SnapshotStore } from './store.ts'

/** The digest of no program that there is. */
export const MODULE_DIGEST = `sha256:${'ab'.repeat(32)}`

/** What a snapshot is of, with these differences. */
export function metaOf(more: Partial<SnapshotMeta> = {}): SnapshotMeta {
  return { kind: 'cell', module: MODULE_DIGEST, guest: 'counter', spec: { name: 'counter', args: ['1'] },
    createdAt: 1_790_000_000_000, cellar: '0.1.0', ...more }
}

/** A state with something in each field. */
export function stateOf(memory: MemoryImage | undefined, more: Partial<CellState> = {}): CellState {
  const rights = { rightsBase: 2 ** 29 - 1, rightsInheriting: 5, flags: 1 }
  return {
    version: 1, memory, globals: Uint8Array.of(1, 2, 3, 4), tables: [{ table: 1, entries: [3, null, 0] }],
    frames: Uint8Array.from({ length: 300 }, (_, index) => index % 251), references: [7, null], phase: 'main',
    args: ['prog', 'ä€😀', ''], env: ['HOME=/', 'X='],
    descriptors: [
      { fd: 0, ...rights, is: { kind: 'console', stream: 0 } },
      { fd: 3, ...rights, preopen: '/data', is: { kind: 'directory', volume: 0, path: '' } },
      { fd: 4, ...rights,
        is: { kind: 'file', volume: 0, path: 'a/b', offset: 2 ** 40, read: true, write: false, append: true } },
      { fd: 7, ...rights, is: { kind: 'listener', port: 2 } },
      { fd: 8, ...rights, is: { kind: 'events',
        unread: [{ kind: 'fork', number: 2, at: 1_790_000_000_001, generation: '0f'.repeat(16) }] } },
      { fd: 65_000, ...rights, is: { kind: 'lost', filetype: 6, errno: 15, why: 'it was connected' } },
    ],
    since: -1, monotonicNs: 2 ** 60, used: { cpuNs: 1.5, wallNs: 2, waits: 3, preemptions: 4,
      hypercalls: { fd_write: 5, poll_oneoff: 6 } },
    ...more,
  }
}

/** A memory of these pages: `random`, or all of one byte. */
export function memoryOf(pages: number, content: Readonly<Record<number, number | 'random'>>): MemoryImage {
  const present = Uint32Array.from(Object.keys(content), Number)
  const bytes = new SharedArrayBuffer(present.length * CHUNK_BYTES)
  present.forEach((page, slot) => {
    const chunk = Buffer.from(bytes, slot * CHUNK_BYTES, CHUNK_BYTES)
    if (content[page] === 'random') randomFillSync(chunk)
    else chunk.fill(content[page]!)
  })
  return { pages, present, bytes }
}

/** A page of this memory. */
export function pageOf(memory: MemoryImage, page: number): Buffer {
  return Buffer.from(memory.bytes, memory.present.indexOf(page) * CHUNK_BYTES, CHUNK_BYTES)
}

/** A store in a folder that goes with `using`. `again`: another process's, as it were. */
export function newStore():
{ store: SnapshotStore; path: string; again: () => SnapshotStore; files: (end: string) => string[] } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'cellar-snapshot-'))
  return {
    store: new SnapshotStore(path), path, again: () => new SnapshotStore(path),
    files: (end) => readdirSync(path).filter((name) => name.endsWith(end)).map((name) => join(path, name)),
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  }
}
