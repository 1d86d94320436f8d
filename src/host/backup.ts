// host/backup.ts: copies of the host's database, and going back to one.
//
// A backup is made while the host works; it is one consistent state. It gets its name when it is whole. Going back
// loses what was committed since; nothing is deleted: the damaged database stays beside the new one, under a name that
// says when, so that somebody who knows SQLite can look for what is missing. Both are for when no host runs on the
// folder, or the host itself: whoever calls holds host.lock.

import {
  chmodSync, closeSync, copyFileSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync,
} from 'node:fs'
import { join } from 'node:path'
import { backup, DatabaseSync } from 'node:sqlite'
import { CellarError } from '../base/errors.ts'
import { BACKUPS_MAX } from '../base/limits.ts'
import {
  backupFolder, backupsIn, BESIDE, checkDatabase, databasePath, newDatabaseFile, removeDatabase, stateError, syncFolder,
} from './database.ts'

/** More numbers than are given between two backups. */
const LEAP = 100_000

/** What `recover` did. Paths are absolute if the folder's was. */
export type Recovery = {
  /** The backup that is the state now. */
  readonly from: string
  /** Newer ones that were damaged, too. */
  readonly skipped: readonly string[]
  /** Where the damaged files are now. */
  readonly kept: readonly string[]
}

/** Copies the database into the folder's backups, and removes the oldest beyond BACKUPS_MAX: the copy's path. */
export async function keepBackup(db: DatabaseSync, folder: string): Promise<string> {
  const inside = backupFolder(folder)
  const path = join(inside, `cellar-${laterThan(backupsIn(folder)[0])}.db`)
  const partial = join(inside, 'new')
  try {
    if (!existsSync(inside)) mkdirSync(inside, 0o700)
    removeDatabase(partial)
    closeSync(openSync(partial, 'wx', 0o600))
    await backup(db, partial)
    renameSync(partial, path)
    syncFolder(inside)
  } catch (error) {
    removeDatabase(partial)
    throw stateError(error, inside)
  }
  for (const name of backupsIn(folder).slice(BACKUPS_MAX)) rmSync(join(inside, name))
  return path
}

/**
 * Makes the newest backup that is whole the state of the folder; undefined if the state is whole as it is. Throws
 * HOST_STATE_UNUSABLE if no backup is whole, or a host runs; HOST_STATE_NEWER; HOST_DISK_FULL. Then all is as it was.
 */
export function recover(folder: string): Recovery | undefined {
  const path = databasePath(folder)
  try {
    if (existsSync(path) && !isDamaged(path)) return undefined
    const skipped: string[] = []
    for (const name of backupsIn(folder)) {
      const from = join(backupFolder(folder), name)
      const partial = copyOf(from, folder)
      if (isDamaged(partial)) {
        skipped.push(from)
        removeDatabase(partial)
        continue
      }
      leap(partial)
      // What looking at it has left.
      for (const beside of BESIDE) rmSync(`${partial}${beside}`, { force: true })
      const kept = putAside(path)
      renameSync(partial, path)
      syncFolder(folder)
      return { from, skipped, kept }
    }
  } catch (error) {
    throw stateError(error, folder)
  }
  throw new CellarError('HOST_STATE_UNUSABLE', [folder, 'it is damaged, and no backup in it is whole'])
}

// Numbers that were given since are not to be given again: what belongs to them is still there.
function leap(path: string): void {
  using db = new DatabaseSync(path)
  db.exec(`UPDATE counters SET value = value + ${LEAP}`)
}

function isDamaged(path: string): boolean {
  try {
    checkDatabase(path)
    return false
  } catch (error) {
    if (error instanceof CellarError && error.code === 'HOST_STATE_DAMAGED') return true
    throw error
  }
}

// Not the backup itself: it stays what it is, even if this is done again.
function copyOf(from: string, folder: string): string {
  const path = newDatabaseFile(folder)
  try {
    copyFileSync(from, path)
    chmodSync(path, 0o600)
    const fd = openSync(path, 'r+')
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    return path
  } catch (error) {
    removeDatabase(path)
    throw error
  }
}

// A WAL that stayed would be taken for the new database's.
function putAside(path: string): string[] {
  const aside = `${path}.damaged-${stamp()}`
  return ['', ...BESIDE].flatMap((beside) => {
    if (!existsSync(`${path}${beside}`)) return []
    renameSync(`${path}${beside}`, `${aside}${beside}`)
    return [`${aside}${beside}`]
  })
}

/** A time, as a part of a file's name. Later ones sort behind. */
function stamp(time = Date.now()): string {
  return new Date(time).toISOString().replaceAll(':', '-')
}

// Now, unless the clock was set back: then a moment after the newest backup. It must not pass for the oldest.
function laterThan(newest: string | undefined): string {
  const [, day, hour, rest] = /^cellar-([\d-]+)T(\d\d)-(.*)\.db$/.exec(newest ?? '') ?? []
  const before = Date.parse(`${day}T${hour}:${rest?.replace('-', ':')}`)
  return stamp(before >= Date.now() ? before + 1 : Date.now())
}
