// host/volume_actions.ts: what operators do with volumes.
//
// The row of a volume says what is true of its folder: `creating` before there is one, `ready`, `deleting` once nobody
// may use it any more. A host that is killed meanwhile finishes at its next start: what was being created is removed,
// what was being removed as well. Elsewhere: folders (volumes.ts), archives (volume_archive.ts).

import { PassThrough, pipeline, type Readable } from 'node:stream'
import { CellarError } from '../base/errors.ts'
import { formatSize, parseSize } from '../base/units.ts'
import { SECTOR_BYTES } from '../services/block/disk.ts'
import { checkName } from './guest_actions.ts'
import { volumesOf } from './lifecycle.ts'
import type { Actor, OperationView, VolumeView } from './operator.ts'
import type { Control, Operations } from './operations.ts'
import type { Paths } from './paths.ts'
import { found, type ProjectActions } from './project_actions.ts'
import type { VolumeRow } from './rows.ts'
import type { VolumeSpec } from './spec.ts'
import { ACTIVE, keyOf, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import { readArchive, writeArchive } from './volume_archive.ts'
import { VolumeFolders } from './volumes.ts'

type Parts = {
  readonly state: State; readonly store: Store; readonly operations: Operations; readonly projects: ProjectActions
  readonly paths: Paths
}

/** Actions on volumes. */
export class VolumeActions {
  readonly #parts: Parts
  /** Volumes that are being cloned, and how often. */
  readonly #cloned = new Map<string, number>()
  /** Volumes that archives are being unpacked into, with these. */
  readonly #written = new Map<string, Map<Readable, Promise<void>>>()
  /** Counts that are under way: one for each volume, however many ask. */
  readonly #counted = new Map<string, Promise<number>>()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Creates a volume, empty or as another one is now. */
  async create(project: string, name: string, spec: VolumeSpec, by: Actor): Promise<VolumeView> {
    const { projects, operations } = this.#parts
    await projects.ensure(project)
    if (spec.clone !== undefined) {
      const { id } = await this.clone(project, spec.clone, name, by, parseSize(spec.size))
      const { error } = await operations.wait(id, CLONE_MS_MAX)
      if (error !== undefined) throw new CellarError('OPERATION_INTERRUPTED', [`the clone: ${error.detail}`])
      return this.view(this.#row(project, name))
    }
    const sizeBytes = parseSize(spec.size)!
    if (spec.kind === 'disk' && sizeBytes % SECTOR_BYTES !== 0) {
      throw new CellarError('DISK_SIZE_UNALIGNED', [name, SECTOR_BYTES, sizeBytes])
    }
    const row = await this.#begin({ project, name, sizeBytes, createdAt: Date.now(), clonedFrom: null,
      kind: spec.kind, state: 'creating' })
    try {
      await this.#folders(project).create(name, spec.kind === 'disk' ? sizeBytes : undefined)
      return this.view(await this.#finish(row))
    } catch (error) {
      await this.#giveUp(row)
      throw error
    }
  }

  /** Clones one in the background. */
  async clone(project: string, name: string, to: string, by: Actor, sizeBytes?: number): Promise<OperationView> {
    this.#parts.projects.checkOpen(project)
    const source = this.#row(project, name)
    const size = sizeBytes ?? source.sizeBytes
    if (size < source.sizeBytes) {
      throw new CellarError('VOLUME_TOO_SMALL', [to, formatSize(size), `a clone of "${name}"`])
    }
    // A copy of a disk that is written to meanwhile would be of no moment that there was.
    if (source.kind === 'disk') this.#checkUnused(project, name)
    const key = keyOf(project, name)
    const { operations } = this.#parts
    let row: VolumeRow | undefined
    count(this.#cloned, key, 1)
    try {
      const begun = row = await this.#begin({ project, name: to, sizeBytes: size, createdAt: Date.now(),
        clonedFrom: name, kind: source.kind, state: 'creating' })
      return await operations.start('volume.clone', `${project}/${name}`, by, (control) =>
        this.#clone(begun, name, control).finally(() => count(this.#cloned, key, -1)))
    } catch (error) {
      count(this.#cloned, key, -1)
      if (row !== undefined) await this.#giveUp(row)
      throw error
    }
  }

  async #clone(row: VolumeRow, name: string, { progress, signal }: Control): Promise<unknown> {
    const { project, name: to } = row
    // Files are shared with the clone only if nobody writes to the volume, nor will meanwhile; else they are copied.
    const isWritten = this.#users(project, name).length > 0 || this.#written.has(keyOf(project, name))
    // A machine writes its disk past those who part shared files: it is copied, and held for that.
    const inUse = row.kind === 'disk' || isWritten
    const isHeld = row.kind === 'disk' || !isWritten
    const { heldVolumes } = this.#parts.state
    if (isHeld) count(heldVolumes, keyOf(project, name), 1)
    try {
      await this.#folders(project).clone(name, to, { inUse, signal,
        progress: (done, total) => progress(done, total, 'files') })
      await this.#finish(row)
      return { volume: to }
    } catch (error) {
      await this.#giveUp(row)
      throw error
    } finally {
      if (isHeld) count(heldVolumes, keyOf(project, name), -1)
    }
  }

  /** Gives it another size: not less than it holds. */
  async resize(project: string, name: string, sizeBytes: number): Promise<VolumeView> {
    const { state, store } = this.#parts
    this.#row(project, name)
    this.#checkUnused(project, name)
    const used = await this.#folders(project).usage(name)
    // Again: that took a while.
    const row = this.#row(project, name)
    this.#checkUnused(project, name)
    const held = row.kind === 'disk' ? row.sizeBytes : used
    if (held > sizeBytes) throw new CellarError('VOLUME_TOO_SMALL', [name, formatSize(sizeBytes), formatSize(held)])
    if (row.kind === 'disk') await this.#folders(project).growDisk(name, sizeBytes)
    const next = { ...row, sizeBytes }
    await store.commit((tx) => tx.putVolume(next))
    state.volumes.set(keyOf(project, name), next)
    return this.view(next)
  }

  /** Nobody can use it from now on; its files go in the background. */
  async remove(project: string, name: string, by: Actor): Promise<OperationView> {
    const { state, store, operations } = this.#parts
    const row = this.#row(project, name)
    const user = this.#users(project, name)[0]
    if (user !== undefined) throw new CellarError('IN_USE', ['volume', name, user.row.name])
    if (this.#cloned.has(keyOf(project, name))) throw new CellarError('IN_USE', ['volume', name, 'a clone'])
    if (this.#written.has(keyOf(project, name))) throw new CellarError('IN_USE', ['volume', name, 'a copy into it'])
    const next: VolumeRow = { ...row, state: 'deleting' }
    const key = keyOf(project, name)
    state.volumes.set(key, next)
    const unlessCommitted = (error: unknown): never => {
      if (state.volumes.get(key) === next) state.volumes.set(key, row)
      throw error
    }
    return await operations.start('volume.delete', `${project}/${name}`, by, async ({ progress }) => {
      // Not before there is somebody who finishes it.
      await store.commit((tx) => tx.putVolume(next)).catch(unlessCommitted)
      await this.#folders(project).remove(name, { progress: (done, total) => progress(done, total, 'files') })
      await this.#giveUp(next)
      return { volume: name }
    }).catch(unlessCommitted)
  }

  /** As remove, of a project that goes. */
  async removeNow(project: string, name: string): Promise<void> {
    const { state, store } = this.#parts
    const next: VolumeRow = { ...this.#row(project, name), state: 'deleting' }
    // First, as one that was cut short is no volume any more.
    await store.commit((tx) => tx.putVolume(next))
    state.volumes.set(keyOf(project, name), next)
    const writes = [...this.#written.get(keyOf(project, name)) ?? []]
    for (const [archive] of writes) archive.destroy(new CellarError('NOT_FOUND', ['volume', name]))
    await Promise.allSettled(writes.map(([, written]) => written))
    await this.#removeFolder(next)
    await this.#giveUp(next)
  }

  read(project: string, name: string, path: string): Readable {
    this.#row(project, name)
    return readArchive(this.#folders(project).path(name), path)
  }

  async write(project: string, name: string, path: string, archive: Readable): Promise<void> {
    const { sizeBytes } = this.#row(project, name)
    const uid = this.#parts.state.projects.get(project)?.uid ?? undefined
    const key = keyOf(project, name)
    if (this.#parts.state.heldVolumes.has(key)) throw new CellarError('VOLUME_IN_USE', [name, 'a clone'])
    // A client's stream may wait for the client before it ends: this one ends when it is told to.
    const bytes = pipeline(archive, new PassThrough(), () => {})
    const written = writeArchive(this.#folders(project).path(name), path, bytes, { sizeBytes, uid })
    const writes = this.#written.get(key) ?? new Map<Readable, Promise<void>>()
    this.#written.set(key, writes.set(bytes, written))
    try {
      await written
    } finally {
      writes.delete(bytes)
      if (writes.size === 0) this.#written.delete(key)
    }
  }

  view({ project, name, sizeBytes, createdAt, clonedFrom, kind }: VolumeRow): VolumeView {
    return { project, name, sizeBytes, createdAt, kind, guests: this.#users(project, name).map(({ row }) => row.name),
      ...(clonedFrom === null ? {} : { clonedFrom }) }
  }

  /** With what it holds. */
  async one(project: string, name: string): Promise<VolumeView> {
    const key = keyOf(project, name)
    this.#row(project, name)
    let counting = this.#counted.get(key)
    if (counting === undefined) {
      counting = this.#folders(project).usage(name).finally(() => this.#counted.delete(key))
      this.#counted.set(key, counting)
    }
    const usedBytes = await counting.catch((error: unknown) => {
      // Removed meanwhile, most likely.
      this.#row(project, name)
      throw error
    })
    return { ...this.view(this.#row(project, name)), usedBytes }
  }

  /** Volumes that may be used. */
  list(project: string): VolumeView[] {
    const { state } = this.#parts
    return state.of(state.volumes, project).filter((row) => row.state === 'ready').map((row) => this.view(row))
  }

  /** Finishes what an earlier host could not. At the start, before anything else is asked. */
  async recover(): Promise<void> {
    const { state } = this.#parts
    for (const project of state.projects.keys()) await this.#folders(project).sweep()
    for (const row of [...state.volumes.values()].filter((one) => one.state !== 'ready')) {
      await this.#removeFolder(row)
      await this.#giveUp(row)
    }
  }

  // It may be gone, or never have been made.
  async #removeFolder({ project, name }: VolumeRow): Promise<void> {
    await this.#folders(project).remove(name).catch((error: unknown) => {
      if (!(error instanceof CellarError && error.code === 'NOT_FOUND')) throw error
    })
  }

  #row(project: string, name: string): VolumeRow {
    const row = this.#parts.state.volumes.get(keyOf(project, name))
    return found('volume', name, row?.state === 'ready' ? row : undefined)
  }

  async #begin(row: VolumeRow): Promise<VolumeRow> {
    const { state, store } = this.#parts
    checkName('volume', row.name)
    const key = keyOf(row.project, row.name)
    if (state.volumes.has(key)) throw new CellarError('EXISTS', ['volume', row.name])
    state.checkRoom('volume', state.volumes, row.project, row.name)
    state.volumes.set(key, row)
    try {
      await store.commit((tx) => tx.putVolume(row))
    } catch (error) {
      state.volumes.delete(key)
      throw error
    }
    return row
  }

  async #finish(row: VolumeRow): Promise<VolumeRow> {
    const { state, store } = this.#parts
    const ready: VolumeRow = { ...row, state: 'ready' }
    await store.commit((tx) => {
      tx.putVolume(ready)
      tx.event('volume.created', { project: row.project, data: { volume: row.name, clonedFrom: row.clonedFrom } })
    })
    state.volumes.set(keyOf(row.project, row.name), ready)
    return ready
  }

  // What is left of its row where that can't be committed goes at the next start, or is another volume's by then.
  async #giveUp({ project, name, state: was }: VolumeRow): Promise<void> {
    const { state, store } = this.#parts
    await store.commit((tx) => {
      tx.deleteVolume(project, name)
      if (was === 'deleting') tx.event('volume.removed', { project, data: { volume: name } })
    }).catch(() => {})
    state.volumes.delete(keyOf(project, name))
  }

  #checkUnused(project: string, name: string): void {
    const by = this.#users(project, name).filter(({ row }) => ACTIVE.includes(row.phase))
    if (by.length > 0) throw new CellarError('VOLUME_IN_USE', [name, by.map(({ row }) => row.name).join(', ')])
  }

  #users(project: string, name: string): Guest[] {
    return this.#parts.state.ofProject(project).filter(({ row }) => volumesOf(row).includes(name))
  }

  #folders(project: string): VolumeFolders {
    const { state, paths } = this.#parts
    return new VolumeFolders(paths.project(project), state.projects.get(project)?.uid ?? undefined)
  }
}

function count(counts: Map<string, number>, key: string, change: 1 | -1): void {
  const now = (counts.get(key) ?? 0) + change
  if (now > 0) counts.set(key, now)
  else counts.delete(key)
}

const CLONE_MS_MAX = 600_000
