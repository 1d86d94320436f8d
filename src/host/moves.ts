// host/moves.ts: moves between hosts and snapshots of registries, put together: what of them the host has to know.
//
// Elsewhere: guests that go (migrate_actions.ts), guests that come (migration_incoming.ts).

import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { GUESTS_MAX } from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import type { Captures } from './captures.ts'
import { checkName, type GuestActions } from './guest_actions.ts'
import type { ImageActions } from './image_actions.ts'
import type { Lifecycle } from './lifecycle.ts'
import { MigrateActions } from './migrate_actions.ts'
import { MigrationIncoming } from './migration_incoming.ts'
import type { Operations } from './operations.ts'
import type { IncomingMoves, MoveOffer, Operator } from './operator.ts'
import type { Paths } from './paths.ts'
import { checkLimited } from './permissions.ts'
import type { Processes } from './processes.ts'
import type { ProjectActions } from './project_actions.ts'
import type { GuestRow, IncomingRow } from './rows.ts'
import type { Secrets } from './secrets.ts'
import type { SnapshotActions } from './snapshot_actions.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import { SnapshotRemotes } from './snapshot_remotes.ts'
import type { State } from './state.ts'
import type { Store } from './store.ts'
import { Transfers } from './transfers.ts'
import { removeTree } from './volumes.ts'

type Parts = {
  readonly state: State; readonly store: Store; readonly processes: Processes; readonly lifecycle: Lifecycle
  readonly captures: Captures; readonly files: SnapshotFiles; readonly secrets: Secrets; readonly log: Log
  readonly operations: Operations; readonly guests: GuestActions; readonly projects: ProjectActions
  readonly images: ImageActions; readonly paths: Paths; readonly snapshots: SnapshotActions
  readonly insecure: readonly string[]
  /** Rows of the database. */
  readonly loaded: { readonly incoming: readonly IncomingRow[]; readonly identity: readonly { readonly id: string }[] }
}

/** Moves to and from a host. */
export class Moves {
  /** What processes say of transfers goes here. */
  readonly transfers = new Transfers()
  /** For hosts whose guests come. */
  readonly incoming: IncomingMoves
  readonly #parts: Parts
  readonly #coming: MigrationIncoming
  readonly #going: MigrateActions
  readonly #remotes: SnapshotRemotes

  constructor(parts: Parts) {
    this.#parts = parts
    const { state, store, processes, lifecycle, captures, files, secrets, log, operations, images, paths } = parts
    const { transfers } = this
    const coming = this.#coming = new MigrationIncoming({ state, store, processes, transfers, lifecycle, files, log,
      identity: parts.loaded.identity[0]!.id, notes: parts.loaded.incoming,
      prepare: async ({ project, spec }) => {
        await parts.projects.ensure(project)
        await parts.guests.makeRoom(spec)
      },
      check: (row) => this.#check(row),
      imageOf: (module) => this.#imageOf(module),
      importModule: (module) => images.import(undefined, module),
      name: (module, name) => this.#name(module, name) })
    this.#going = new MigrateActions({ state, store, operations, lifecycle, captures, transfers, files, secrets, log,
      carrier: (project) => processes.some(project),
      blob: (digest) => join(paths.state, 'blobs/sha256', digest.slice('sha256:'.length)),
      clear: (row) => this.#clear(row) })
    this.#remotes = new SnapshotRemotes({ ...parts, transfers })
    this.incoming = {
      offer: async (project, move, offer, by) => {
        checkLimited(offer.spec, undefined, by)
        // Names of images are all projects': who is limited to one gives none away.
        return await coming.offer(project, move, by.project === undefined ? offer : this.#withKnownImage(offer))
      },
      module: (...of) => coming.module(...of), snapshot: (...of) => coming.snapshot(...of),
      activate: (...of) => coming.activate(...of), drop: (...of) => coming.drop(...of),
      acknowledge: (...of) => coming.acknowledge(...of),
    }
  }

  migrate: Operator['migrateGuest'] = async (project, name, to, by) =>
    await this.#going.migrate(this.#parts.state.guest(project, name), to, by)

  push: Operator['pushSnapshot'] = (...which) => this.#remotes.push(...which)
  pull: Operator['pullSnapshot'] = (...which) => this.#remotes.pull(...which)

  /** Once all guests are found. */
  recover(): void { this.#going.recover() }

  /** Before operations are closed: moves that were committed go on with the next host. */
  close(): void {
    this.#going.close()
    this.#coming.close()
  }

  #check(row: GuestRow): void {
    const { state, projects, guests } = this.#parts
    checkName('guest', row.name)
    projects.checkOpen(row.project)
    if (state.byName(row.project, row.name) !== undefined) throw new CellarError('EXISTS', ['guest', row.name])
    if (state.guests.size >= GUESTS_MAX) {
      throw new CellarError('ADMISSION_REFUSED', [row.name, 'room', '1 guest', `0 of ${GUESTS_MAX}`])
    }
    guests.check(row, undefined)
  }

  // Its image by name if that is what it is called here already, else by digest.
  #withKnownImage(offer: MoveOffer): MoveOffer {
    const { spec, module } = offer
    return this.#imageOf(spec.image)?.module === module ? offer : { ...offer, spec: { ...spec, image: module } }
  }

  #imageOf(reference: string): { readonly digest: string; readonly module: string } | undefined {
    try {
      return this.#parts.images.resolve(reference)
    } catch (error) {
      if (error instanceof CellarError) return undefined
      throw error
    }
  }

  async #name(module: string, name: string): Promise<boolean> {
    const known = this.#imageOf(name)
    if (known !== undefined) return known.module === module
    try {
      await this.#parts.images.tag(module, name)
      return true
    } catch (error) {
      if (error instanceof CellarError && error.code === 'IMAGE_REFERENCE_INVALID') return false
      throw error
    }
  }

  // What a crash leaves of these is swept at the host's start.
  async #clear({ project, id }: GuestRow): Promise<void> {
    const { paths } = this.#parts
    for (const folder of [paths.files(project, id), join(paths.logs(project), id)]) {
      await removeTree(folder).catch(() => {})
    }
  }
}
