// host/test_support.ts: folders, stores and rows for tests of the host.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Actor } from './operator.ts'
import type { GuestRow, ProjectRow } from './rows.ts'
import { GUEST_SPEC } from './spec.ts'
import { Store } from './store.ts'

/** Who asks, in tests. */
export const TESTER: Actor = { name: 'test', scope: 'admin' }

/** A folder of its own below the system's temporary one, removed when it is disposed of. */
export function disposableFolder(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'cellar-host-'))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

/** A store in a folder of its own: closed, and removed, when it is disposed of. `reopen`: as the host's next start. */
export async function disposableStore():
Promise<{ folder: string; store: Store; reopen(): Promise<Store> } & AsyncDisposable> {
  const { path: folder, [Symbol.dispose]: remove } = disposableFolder()
  const made = {
    folder, store: await Store.open(folder),
    async reopen(): Promise<Store> {
      await made.store.close()
      made.store = await Store.open(folder)
      return made.store
    },
    async [Symbol.asyncDispose](): Promise<void> {
      await made.store.close()
      remove()
    },
  }
  return made
}

/** A project's row. */
export function projectRow(name = 'default'): ProjectRow {
  return { name, uid: null, createdAt: 1 }
}

/** A guest's row, of project `default`; its id is its name. */
export function guestRow(name: string, changes: Partial<GuestRow> = {}): GuestRow {
  return {
    id: name, project: 'default', name, spec: GUEST_SPEC.parse({ image: 'app:1' }), digest: `sha256:${'0'.repeat(64)}`,
    manifestDigest: `sha256:${'1'.repeat(64)}`, generation: 1, desired: 'running', phase: 'created', healthy: null,
    createdAt: 1_700_000_000_000.5, startedAt: null, endedAt: null, restarts: 0, run: 0, process: null, exit: null,
    managedBy: null, ports: [], origin: null, from: null, move: null, address: 2, ...changes,
  }
}

/** A module that is larger by a custom section of `size` bytes and its head. */
export function padded(module: Uint8Array, size: number): Buffer {
  return Buffer.concat([module, section(0, Buffer.alloc(size + 1))])
}

/** A module with so many exports, all of one function that does nothing, the first of which is `_start`. */
export function exporting(count: number): Buffer {
  const names = Array.from({ length: count }, (_, i) => Buffer.from(`\x08${String(i).padStart(8, '0')}\0\0`, 'latin1'))
  return Buffer.concat([Buffer.from('\0asm\x01\0\0\0', 'latin1'), section(1, Buffer.from([1, 0x60, 0, 0])),
    section(3, Buffer.from([1, 0])),
    section(7, Buffer.concat([leb32(count + 1), Buffer.from('\x06_start\0\0', 'latin1'), ...names])),
    section(10, Buffer.from([1, 2, 0, 0x0b]))])
}

function section(id: number, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from([id]), leb32(content.length), content])
}

function leb32(value: number): Buffer {
  return Buffer.from([0, 7, 14, 21, 28].map((shift, i) => (value >>> shift) & 0x7f | (i < 4 ? 0x80 : 0)))
}
