// host/opening.ts: what a host begins with: its state, locked and read, and its folders, without what nobody needs.

import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { lockFile } from '../sys/flock.ts'
import { makeStateFolder, stateError } from './database.ts'
import type { Paths } from './paths.ts'
import { keyOf, State } from './state.ts'
import { Store } from './store.ts'
import { removeTree } from './volumes.ts'

/** The store of a state folder that no other host has. Throws HOST_RUNNING, HOST_STATE_DAMAGED and its siblings. */
export async function lockedStore(paths: Paths): Promise<Store> {
  try {
    makeStateFolder(paths.state)
  } catch (error) {
    throw stateError(error, paths.state)
  }
  // Held until the process ends, however it ends.
  if (lockFile(paths.lock) === undefined) {
    throw new CellarError('HOST_RUNNING', [paths.state, readFileSync(paths.lock, 'utf8').trim() || 'unknown'])
  }
  return await Store.open(paths.state)
}

/** What rows say, in memory. */
export function stateOf(loaded: ReturnType<Store['load']>): State {
  const state = new State()
  for (const row of loaded.projects) state.projects.set(row.name, row)
  for (const row of loaded.snapshots) state.snapshots.set(keyOf(row.project, row.digest), row)
  for (const row of loaded.pools) state.putPool(row)
  for (const row of loaded.volumes) state.volumes.set(keyOf(row.project, row.name), row)
  for (const row of loaded.networks) state.networks.set(keyOf(row.project, row.name), row)
  for (const row of loaded.secrets) state.secrets.set(keyOf(row.project, row.name), row)
  for (const row of loaded.imageNames) state.images.set(row.name, row)
  for (const row of loaded.guests) state.addGuest(row)
  return state
}

/** Removes folders of guests and projects that are gone: a removal was cut short. */
export async function sweep(paths: Paths, state: State, log: Log): Promise<void> {
  const remove = (folder: string): Promise<void> => removeTree(folder).catch((error: unknown) => {
    log.warn('cannot clear away what is left', { folder, why: (error as Error).message })
  })
  mkdirSync(paths.projects, { recursive: true, mode: 0o711 })
  for (const project of readdirSync(paths.projects)) {
    const folder = paths.project(project)
    if (!state.projects.has(project)) await remove(folder)
    for (const kind of ['logs', 'files', 'machines']) {
      for (const id of entriesOf(join(folder, kind))) {
        if (!state.guests.has(id)) await remove(join(folder, kind, id))
      }
    }
  }
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}
