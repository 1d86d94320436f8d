// host/project_actions.ts: what operators do with projects and with what guests use: pools, networks, secrets.
//
// A project is made when something is put into it. Its number gives it a user id, when the host may give one: what it
// has on disk and the processes of its guests are that user's and nobody else's. Elsewhere: volumes
// (volume_actions.ts).

import { randomUUID } from 'node:crypto'
import { renameSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { PROJECTS_MAX } from '../base/limits.ts'
import { admitPool, type Capacity } from './admission.ts'
import { checkName } from './guest_actions.ts'
import { uidOf } from './jail.ts'
import type { Lifecycle } from './lifecycle.ts'
import type { NetworkView, PoolView, ProjectView, SecretView } from './operator.ts'
import type { Paths } from './paths.ts'
import type { Processes } from './processes.ts'
import type { NetworkRow, PoolRow, ProjectRow, SecretRow } from './rows.ts'
import type { Secrets } from './secrets.ts'
import { cpuPart, type PoolSpec } from './spec.ts'
import { ACTIVE, keyOf, type State } from './state.ts'
import type { Store } from './store.ts'
import { removeTree } from './volumes.ts'

type Parts = {
  readonly state: State; readonly store: Store; readonly lifecycle: Lifecycle; readonly processes: Processes
  readonly secrets: Secrets; readonly paths: Paths; readonly capacity: Capacity
  /** True if projects get user ids of their own. */
  readonly isRoot: boolean
}

/** Actions on projects. */
export class ProjectActions {
  readonly #parts: Parts
  readonly #making = new Map<string, Promise<void>>()
  /** Those that are being removed. */
  readonly #closed = new Set<string>()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** The project is there when this resolves, and something may be put into it. Throws IN_USE while it is removed. */
  async ensure(name: string): Promise<void> {
    const { state } = this.#parts
    this.checkOpen(name)
    if (state.projects.has(name)) return
    let making = this.#making.get(name)
    if (making === undefined) {
      making = this.#make(name).finally(() => this.#making.delete(name))
      this.#making.set(name, making)
    }
    await making
  }

  /** From now on nothing is put into the project, until what this answers with is called. */
  close(name: string): () => void {
    this.#closed.add(name)
    return () => this.#closed.delete(name)
  }

  /** Throws IN_USE if the project is being removed. */
  checkOpen(name: string): void {
    if (!this.isOpen(name)) throw new CellarError('IN_USE', ['project', name, 'its removal'])
  }

  /** False while the project is being removed. */
  isOpen(name: string): boolean {
    return !this.#closed.has(name)
  }

  async create(name: string): Promise<ProjectView> {
    if (this.#parts.state.projects.has(name)) throw new CellarError('EXISTS', ['project', name])
    await this.ensure(name)
    return this.view(this.#parts.state.projects.get(name)!)
  }

  async #make(name: string): Promise<void> {
    const { state, store, isRoot } = this.#parts
    checkName('project', name)
    if (state.projects.size >= PROJECTS_MAX) {
      throw new CellarError('ADMISSION_REFUSED', [name, 'room', '1 project', `0 of ${PROJECTS_MAX}`])
    }
    // Never one that another project has had: it might have left something behind.
    const uid = isRoot ? uidOf(store.nextNumber('project')) : null
    const row: ProjectRow = { name, uid, createdAt: Date.now() }
    await store.commit((tx) => {
      tx.putProject(row)
      tx.event('project.created', { project: name, data: {} })
    })
    state.projects.set(name, row)
  }

  /** Forgets a project that has no guests any more, and removes what it had on disk. */
  async forget(name: string): Promise<void> {
    const { state, store, processes, paths } = this.#parts
    for (const handle of processes.all.values()) {
      if (handle.project !== name) continue
      // Nobody gets into it any more until it is known to be dead.
      handle.isDraining = true
      processes.kill(handle)
    }
    await store.commit((tx) => {
      tx.deleteProject(name)
      tx.event('project.removed', { project: name, data: {} })
    })
    for (const { name: pool } of state.of(state.pools, name)) state.deletePool(name, pool)
    const { snapshots, volumes, networks, secrets } = state
    for (const map of [snapshots, volumes, networks, secrets] as Map<string, { project: string }>[]) {
      for (const [key, row] of map) if (row.project === name) map.delete(key)
    }
    state.projects.delete(name)
    // Away first: a project of this name may be made while it goes. What is left of it is swept at the next start.
    const gone = paths.project(`.gone-${randomUUID()}`)
    try {
      renameSync(paths.project(name), gone)
    } catch {
      return // It never had any.
    }
    await removeTree(gone).catch(() => {})
  }

  project(name: string): ProjectRow {
    return found('project', name, this.#parts.state.projects.get(name))
  }

  view({ name, createdAt, uid }: ProjectRow): ProjectView {
    const { state, processes } = this.#parts
    const guests = state.ofProject(name)
    return { name, createdAt, guests: guests.length,
      running: guests.filter(({ row }) => row.phase === 'running').length,
      processes: [...processes.all.values()].filter((handle) => handle.project === name).length,
      ...(uid === null ? {} : { uid }) }
  }

  // ---- pools

  async putPool(project: string, name: string, spec: PoolSpec): Promise<PoolView> {
    const { state, store, lifecycle, capacity } = this.#parts
    checkName('pool', name)
    await this.ensure(project)
    state.checkRoom('pool', state.pools, project, name)
    const before = state.pools.get(keyOf(project, name))
    const { promised } = state
    admitPool(name, spec, { inPool: state.inPool(project, name), capacity,
      host: { ...promised, cpu: promised.cpu - cpuPart(before?.spec['cpu-reservation'], 0) } })
    const row: PoolRow = { project, name, spec, createdAt: before?.createdAt ?? Date.now() }
    state.putPool(row)
    try {
      await store.commit((tx) => {
        tx.putPool(row)
        tx.event(before === undefined ? 'pool.created' : 'pool.changed', { project, data: { pool: name } })
      })
    } catch (error) {
      if (before === undefined) state.deletePool(project, name)
      else state.putPool(before)
      throw error
    }
    lifecycle.tellPool(project, name)
    return this.poolView(row)
  }

  async removePool(project: string, name: string): Promise<void> {
    const { state, store, lifecycle } = this.#parts
    const key = keyOf(project, name)
    const row = found('pool', name, state.pools.get(key))
    const by = state.ofProject(project).find(({ row }) => row.spec.pool === name)
    if (by !== undefined) throw new CellarError('IN_USE', ['pool', name, by.row.name])
    // At once: nobody may come to use it meanwhile.
    state.deletePool(project, name)
    try {
      await store.commit((tx) => tx.deletePool(project, name))
    } catch (error) {
      if (!state.pools.has(key)) state.putPool(row)
      throw error
    }
    // Processes don't forget a pool, but it is promised nothing any more.
    lifecycle.tellPool(project, name)
  }

  poolView({ project, name, spec, createdAt }: PoolRow): PoolView {
    return { project, name, spec, createdAt,
      guests: this.#parts.state.ofProject(project).filter(({ row }) => row.spec.pool === name).length }
  }

  // ---- networks

  async putNetwork(project: string, name: string): Promise<NetworkView> {
    const { state, store } = this.#parts
    checkName('network', name)
    await this.ensure(project)
    state.checkRoom('network', state.networks, project, name)
    const key = keyOf(project, name)
    const row: NetworkRow = state.networks.get(key) ?? { project, name, createdAt: Date.now() }
    if (!state.networks.has(key)) {
      await store.commit((tx) => tx.putNetwork(row))
      state.networks.set(key, row)
    }
    return this.networkView(row)
  }

  async removeNetwork(project: string, name: string): Promise<void> {
    const { state, store } = this.#parts
    const row = found('network', name, state.networks.get(keyOf(project, name)))
    const by = state.ofProject(project).find(({ row }) => row.spec.networks.includes(name))
    if (by !== undefined) throw new CellarError('IN_USE', ['network', name, by.row.name])
    await this.#drop(state.networks, row, store.commit((tx) => tx.deleteNetwork(project, name)))
  }

  /** All networks: `default` is there without having been made. */
  networks(project: string): NetworkView[] {
    const { state } = this.#parts
    const rows = state.of(state.networks, project)
    const { createdAt } = this.project(project)
    return [...(rows.some(({ name }) => name === 'default') ? [] : [{ project, name: 'default', createdAt }]), ...rows]
      .map((row) => this.networkView(row))
  }

  networkView({ project, name, createdAt }: NetworkRow): NetworkView {
    return { project, name, createdAt, guests: this.#parts.state.ofProject(project)
      .filter(({ row }) => row.spec.networks.includes(name)).map(({ row }) => row.name) }
  }

  // ---- secrets

  async putSecret(project: string, name: string, value: Uint8Array): Promise<SecretView> {
    const { state, store, secrets } = this.#parts
    checkName('secret', name)
    await this.ensure(project)
    state.checkRoom('secret', state.secrets, project, name)
    const row: SecretRow = { project, name, value: secrets.seal(project, name, value), createdAt: Date.now() }
    await store.commit((tx) => {
      tx.putSecret(row)
      tx.event('secret.changed', { project, data: { secret: name } })
    })
    state.secrets.set(keyOf(project, name), row)
    return { project, name, createdAt: row.createdAt }
  }

  async removeSecret(project: string, name: string): Promise<void> {
    const { state, store } = this.#parts
    const row = found('secret', name, state.secrets.get(keyOf(project, name)))
    const by = state.ofProject(project).find(({ row: { spec } }) => Object.values(spec.secrets).includes(name) ||
      JSON.stringify(spec.files).includes(`{"secret":${JSON.stringify(name)}}`))
    if (by !== undefined) throw new CellarError('IN_USE', ['secret', name, by.row.name])
    await this.#drop(state.secrets, row, store.commit((tx) => tx.deleteSecret(project, name)))
  }

  // At once, as nobody may come to use it meanwhile; it is back if that could not be committed.
  async #drop<T extends { readonly project: string; readonly name: string }>(rows: Map<string, T>, row: T,
    committed: Promise<void>): Promise<void> {
    const key = keyOf(row.project, row.name)
    rows.delete(key)
    try {
      await committed
    } catch (error) {
      if (!rows.has(key)) rows.set(key, row)
      throw error
    }
  }

  /** Throws GUEST_RUNNING if a guest of the project is in a process, unless forced; IN_USE if it is being removed. */
  checkRemovable(project: string, force: boolean): void {
    this.project(project) // It is there.
    this.checkOpen(project)
    const guest = this.#parts.state.ofProject(project)[0]
    if (guest === undefined || force) return
    if (ACTIVE.includes(guest.row.phase)) throw new CellarError('GUEST_RUNNING', [guest.row.name])
    throw new CellarError('IN_USE', ['project', project, `guest ${guest.row.name}`])
  }
}

/** Throws NOT_FOUND for undefined. */
export function found<T>(kind: string, name: string, value: T | undefined): T {
  if (value === undefined) throw new CellarError('NOT_FOUND', [kind, name])
  return value
}
