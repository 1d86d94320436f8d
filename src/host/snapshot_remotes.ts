// host/snapshot_remotes.ts: snapshots to and from registries: what operators ask for.
//
// The host speaks to the registry, a process of the project has the snapshot: between them it is in a folder of the
// host's own, which goes when the operation ends. What comes is a stranger's: the specification in it is checked as if
// whoever pulls it had written it, since guests that are restored from it may do what it says. Elsewhere: what lies in
// the registry (snapshot/artifact.ts), the project's process (transfers.ts).

import { randomBytes } from 'node:crypto'
import { createReadStream, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { pullSnapshot, pushSnapshot, type Places } from '../snapshot/artifact.ts'
import { SnapshotStore } from '../snapshot/store.ts'
import { stateError } from './database.ts'
import { checkName } from './guest_actions.ts'
import type { ImageActions } from './image_actions.ts'
import type { Control, Operations } from './operations.ts'
import type { Actor, OperationView } from './operator.ts'
import type { Paths } from './paths.ts'
import { checkFolder, checkLimited } from './permissions.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import type { ProjectActions } from './project_actions.ts'
import type { SnapshotRow } from './rows.ts'
import type { SnapshotActions } from './snapshot_actions.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import { GUEST_SPEC, NAME, type GuestSpec } from './spec.ts'
import type { State } from './state.ts'
import type { Store } from './store.ts'
import type { Transfers } from './transfers.ts'

type Parts = {
  readonly state: State; readonly store: Store; readonly processes: Processes; readonly transfers: Transfers
  readonly operations: Operations; readonly projects: ProjectActions; readonly snapshots: SnapshotActions
  readonly files: SnapshotFiles; readonly images: ImageActions; readonly paths: Paths
  /** Registries that are spoken to without TLS. */
  readonly insecure: readonly string[]
}

/** Snapshots of registries. */
export class SnapshotRemotes {
  readonly #parts: Parts

  /** Clears away what a crash has left. */
  constructor(parts: Parts) {
    this.#parts = parts
    rmSync(this.#folder, { recursive: true, force: true })
  }

  async push(project: string, reference: string, to: string, by: Actor): Promise<OperationView> {
    checkFolder(to, by)
    const { digest } = this.#parts.state.snapshot(project, reference)
    return await this.#parts.operations.start('snapshot.push', `${project}/${reference} to ${to}`, by, (control) =>
      this.#staged(project, async (places, handle) => {
        await places.snapshots.receive(this.#parts.transfers.transmit(handle, digest), { durable: false })
        return { to, ...await pushSnapshot(places, digest, to, transferOf(control)) }
      }))
  }

  async pull(project: string, from: string, name: string | undefined, by: Actor): Promise<OperationView> {
    const { projects, operations, snapshots } = this.#parts
    checkFolder(from, by)
    if (name !== undefined) checkName('snapshot', name)
    await projects.ensure(project)
    snapshots.checkRoom(project, name ?? from)
    return await operations.start('snapshot.pull', `${from} to ${project}`, by, (control) =>
      this.#staged(project, async (places, handle) => {
        const { digest } = await pullSnapshot(places, from, transferOf(control))
        control.stage('keeping')
        const row = await this.#rowOf(project, name, digest, places, by)
        const sent = counted(places.snapshots.send(digest))
        const { missing } = await this.#parts.transfers.receive(handle, sent, { durable: true })
        if (missing.length > 0) throw new CellarError('SNAPSHOT_DAMAGED', [from, 'some of it was lost on the way'])
        return await this.#put({ ...row, newBytes: sent.bytes, storedBytes: sent.bytes }, from)
      }))
  }

  async #put(row: SnapshotRow, from: string): Promise<unknown> {
    const { store, snapshots, files, projects } = this.#parts
    try {
      projects.checkOpen(row.project)
      snapshots.checkRoom(row.project, row.name ?? row.digest)
      await snapshots.add(row, (put) => store.commit((tx) => {
        put(tx)
        tx.event('snapshot.pulled', { project: row.project, data: { snapshot: row.digest, name: row.name, from } })
      }))
      return snapshots.view(row)
    } catch (error) {
      files.release(row.project, row.digest)
      throw error
    }
  }

  async #rowOf(project: string, name: string | undefined, digest: string, { snapshots, blobs }: Places, by: Actor):
  Promise<SnapshotRow> {
    const { meta, state } = snapshots.inspect(digest)
    const spec = specOf(meta.spec)
    checkLimited(spec, undefined, by)
    // Its program becomes an image without a name: guests are of images.
    const image = await this.#parts.images.import(undefined, createReadStream(blobs.path(meta.module)))
    return { project, digest, name: name ?? null, guest: NAME.safeParse(meta.guest).success ? meta.guest : 'snapshot',
      spec, module: meta.module, manifestDigest: image.digest,
      memoryBytes: (state.memory?.pages ?? 0) * WASM_PAGE_BYTES, newBytes: 0, storedBytes: 0, createdAt: Date.now() }
  }

  // With a folder of the host's own, and a process of the project.
  async #staged<T>(project: string, work: (places: Places, handle: ProcessHandle) => Promise<T>): Promise<T> {
    const { processes, images, insecure } = this.#parts
    const id = randomBytes(8).toString('hex')
    const folder = join(this.#folder, id)
    const handle = await processes.take(project, id, [])
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      const places: Places = { snapshots: new SnapshotStore(join(folder, 'snapshots')), blobs: images.blobs,
        staging: join(folder, 'blobs'), registry: { insecure } }
      return await work(places, handle)
    } catch (error) {
      throw stateError(error, folder)
    } finally {
      processes.leave(handle, id, [])
      rmSync(folder, { recursive: true, force: true })
    }
  }

  get #folder(): string { return join(this.#parts.paths.state, 'transfers') }
}

// Pieces as they come, and how many bytes they had.
function counted(pieces: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> & { bytes: number } {
  return { bytes: 0, async *[Symbol.asyncIterator]() {
    for await (const piece of pieces) {
      this.bytes += piece.length
      yield piece
    }
  } }
}

/** Throws SNAPSHOT_FOREIGN for one that isn't a guest's. */
function specOf(value: unknown): GuestSpec {
  const result = GUEST_SPEC.safeParse(value)
  if (result.success) return result.data
  throw new CellarError('SNAPSHOT_FOREIGN', ['it says of its guest what this version of Cellar does not know'])
}

function transferOf({ signal, progress }: Control): NonNullable<Parameters<typeof pushSnapshot>[3]> {
  return { signal, progress: ({ done, total }) => progress(done, total, 'bytes') }
}
