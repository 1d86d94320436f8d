// host/database.ts: the file of the host's database: making it, looking whether it is whole, and opening it.
//
// One process has it open, with all locks held: SQLite then needs no shared memory beside it. A commit is on disk when
// it is answered (WAL, synchronous=FULL). A new database is made under another name and then renamed, so that there is
// never a half one; and one is never made where there was one before, as that would be forgetting every guest without a
// word. A database is looked at read-only first: what is damaged stays as it was found, its WAL too.
//
// Elsewhere: its tables (migrations.ts), backups and going back to one (backup.ts), who uses it (store.ts).

import {
  chmodSync, closeSync, existsSync, fsyncSync, mkdirSync, openSync, readdirSync, renameSync, rmSync, statSync,
  type Stats,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { CellarError } from '../base/errors.ts'
import { APPLICATION_ID, migrate, VERSION, versionOf } from './migrations.ts'
import {
  ANSWERS, GUESTS, IDENTITY, IMAGE_NAMES, INCOMING, NETWORKS, OPERATIONS, POOLS, PROCESSES, PROJECTS, readAll,
  SECRETS, SNAPSHOTS, TOKENS, VOLUMES,
} from './tables.ts'

/** What SQLite keeps beside a database. */
export const BESIDE: readonly string[] = ['-wal', '-shm', '-journal']

const PRAGMAS = `
  PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
  PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = ${64 * 1024 * 1024};`

/** Another one, such as a backup's look at it, is gone soon. */
const BUSY_MS_MAX = 500

/** All rows that a host starts from. */
export type Loaded = ReturnType<typeof loadAll>

/** Reads all rows but events and the audit log. Throws for one that can't be read. */
export function loadAll(db: DatabaseSync) {
  return {
    projects: readAll(db, PROJECTS), guests: readAll(db, GUESTS),
    snapshots: readAll(db, SNAPSHOTS), pools: readAll(db, POOLS),
    volumes: readAll(db, VOLUMES), networks: readAll(db, NETWORKS), secrets: readAll(db, SECRETS),
    imageNames: readAll(db, IMAGE_NAMES), processes: readAll(db, PROCESSES), tokens: readAll(db, TOKENS),
    operations: readAll(db, OPERATIONS), answers: readAll(db, ANSWERS),
    incoming: readAll(db, INCOMING), identity: readAll(db, IDENTITY),
  }
}

/** Where the database of a state folder is. */
export function databasePath(folder: string): string {
  return join(folder, 'cellar.db')
}

/** Where its backups are. */
export function backupFolder(folder: string): string {
  return join(folder, 'backup')
}

/** Names of backups, newest first. */
export function backupsIn(folder: string): string[] {
  const inside = backupFolder(folder)
  if (!existsSync(inside)) return []
  return readdirSync(inside).filter((name) => /^cellar-[\dTZ.-]+\.db$/.test(name)).sort().reverse()
}

/** Makes the state folder, if it is missing. Throws HOST_STATE_UNUSABLE if another user could change what is in it. */
export function makeStateFolder(folder: string): void {
  // Not by mkdir's own `recursive`: beneath /proc Node 26 never comes back from it.
  const missing: string[] = []
  for (let path = folder; !existsSync(path); path = dirname(path)) missing.push(path)
  for (const path of missing.reverse()) {
    mkdirSync(path, 0o711)
    // Users of cell processes go through it, whatever the umask says.
    if (path === folder) chmodSync(path, 0o711)
  }
  const unusable = (why: string): never => { throw new CellarError('HOST_STATE_UNUSABLE', [folder, why]) }
  const stat = statSync(folder)
  if (!stat.isDirectory()) unusable('it is no folder')
  if (!isOwn(stat)) unusable('it belongs to another user')
  if ((stat.mode & 0o022) !== 0) unusable('other users can write to it')
}

/** True if the file is this user's. Where there are no users all is. */
export function isOwn(stat: Stats): boolean {
  return stat.uid === (process.geteuid?.() ?? stat.uid)
}

/** Makes a database with no rows, if there is none. Throws HOST_STATE_DAMAGED if there must have been one. */
export function makeDatabase(folder: string): void {
  const path = databasePath(folder)
  if (existsSync(path)) return
  if (existsSync(`${path}-wal`) || backupsIn(folder).length > 0) {
    throw new CellarError('HOST_STATE_DAMAGED', [path, 'it is gone, but what was beside it is there'])
  }
  const partial = newDatabaseFile(folder)
  const db = new DatabaseSync(partial, { defensive: true })
  try {
    migrate(db)
  } finally {
    db.close()
  }
  renameSync(partial, path)
  syncFolder(folder)
}

/** An empty file that nobody else can read, for what is to become the database: its path. */
export function newDatabaseFile(folder: string): string {
  const path = `${databasePath(folder)}.new`
  removeDatabase(path)
  closeSync(openSync(path, 'wx', 0o600))
  return path
}

/** Removes a database and what is beside it. */
export function removeDatabase(path: string): void {
  for (const beside of ['', ...BESIDE]) rmSync(`${path}${beside}`, { force: true })
}

/** Makes renames in a folder last. */
export function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

/** Opens a database that is whole, to read and write. */
export function openDatabase(path: string): DatabaseSync {
  chmodSync(path, 0o600)
  const db = new DatabaseSync(path, { timeout: BUSY_MS_MAX, defensive: true })
  try {
    db.exec(PRAGMAS)
    // Takes the locks now, not with the first commit.
    db.exec('BEGIN IMMEDIATE; COMMIT')
    return db
  } catch (error) {
    db.close()
    throw error
  }
}

/**
 * Looks at all of a database and changes nothing. Answers its version. Throws HOST_STATE_DAMAGED, HOST_STATE_NEWER,
 * HOST_STATE_UNUSABLE.
 */
export function checkDatabase(path: string): number {
  const damaged = (why: string): never => { throw new CellarError('HOST_STATE_DAMAGED', [path, why]) }
  if (statSync(path).size === 0) damaged('it is empty')
  try {
    using db = new DatabaseSync(path, { readOnly: true, timeout: BUSY_MS_MAX, defensive: true })
    db.exec('PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON')
    const id = db.prepare('PRAGMA application_id').get()!['application_id']
    if (id !== APPLICATION_ID) damaged('it is no state of Cellar')
    const version = versionOf(db)
    if (version > VERSION) throw new CellarError('HOST_STATE_NEWER', [path, version, VERSION])
    const found = db.prepare('PRAGMA integrity_check(1)').get()?.['integrity_check']
    if (found !== 'ok') damaged(String(found))
    const [lone] = db.prepare('PRAGMA foreign_key_check').all()
    if (lone !== undefined) damaged(`a row of ${lone['table']} belongs to nothing`)
    if (version === VERSION) loadAll(db)
    return version
  } catch (error) {
    throw openingError(error, path)
  }
}

/** As stateError, for a database that is looked at or opened: what can't be read of it is damaged. */
export function openingError(error: unknown, path: string): unknown {
  const known = stateError(error, path)
  if (known instanceof CellarError || !existsSync(path)) return known
  return new CellarError('HOST_STATE_DAMAGED', [path, (error as Error).message], { cause: error })
}

/** SQLite's primary result codes (sqlite.org/rescode.html), and one extended one. */
const PERM = 3, BUSY = 5, READONLY = 8, IOERR = 10, CORRUPT = 11, FULL = 13, CANTOPEN = 14, NOTADB = 26
const IOERR_SHMSIZE = IOERR | 19 << 8
const UNUSABLE: readonly number[] = [PERM, READONLY, IOERR, CANTOPEN]

/** What an operator is told of an error of SQLite or the disk; other errors are answered as they are. */
export function stateError(error: unknown, path: string): unknown {
  if (!(error instanceof Error) || error instanceof CellarError) return error
  const { code, errcode = 0, errstr = error.message } =
    error as Error & { code?: string; errcode?: number; errstr?: string }
  const full = new CellarError('HOST_DISK_FULL', ['keep the change'], { cause: error })
  const unusable = (why: string): CellarError => new CellarError('HOST_STATE_UNUSABLE', [path, why], { cause: error })
  if (code === 'ENOSPC' || code === 'EDQUOT') return full
  if ('syscall' in error) return unusable(error.message)
  if (code !== 'ERR_SQLITE_ERROR') return error
  const primary = errcode & 0xff
  if (primary === FULL || errcode === IOERR_SHMSIZE) return full
  if (primary === BUSY) return unusable('another process has it open')
  if (UNUSABLE.includes(primary)) return unusable(errstr)
  if (primary === CORRUPT || primary === NOTADB) {
    return new CellarError('HOST_STATE_DAMAGED', [path, errstr], { cause: error })
  }
  return error
}
