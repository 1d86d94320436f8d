// host/store.ts: the host's state on disk: what is committed here survives whatever becomes of the process.
//
// The host lives from memory (state.ts); the database is for its next start. A change is a work: a function that puts
// and deletes rows. Works that come in one turn of the event loop are committed as a group, since what a commit costs
// is the disk's sync, however much it is of. Each has a savepoint: one that throws is undone alone. What fails for the
// machine's sake (a full disk) fails all of its group: nothing of it is there then, and later groups may succeed.
//
//   commit(work) ─▶ queue ─▶ setImmediate: BEGIN, works in order, COMMIT (sync) ─▶ events to followers ─▶ promises
//
// A work is synchronous and changes nothing but through its transaction: it may have run and be undone.
// Elsewhere: what a work can do (transaction.ts), the file (database.ts), backups (backup.ts).

import { existsSync } from 'node:fs'
import type { DatabaseSync, StatementSync } from 'node:sqlite'
import { CellarError } from '../base/errors.ts'
import { COMMIT_GROUP_MAX } from '../base/limits.ts'
import { keepBackup } from './backup.ts'
import {
  checkDatabase, databasePath, loadAll, makeDatabase, makeStateFolder, openDatabase, openingError, stateError,
  type Loaded,
} from './database.ts'
import { migrate, VERSION } from './migrations.ts'
import type { AuditView, EventView } from './operator.ts'
import { eventOf, Transaction } from './transaction.ts'

type Work = {
  readonly run: (tx: Transaction) => unknown
  readonly resolve: (value: unknown) => void
  readonly reject: (error: unknown) => void
  value?: unknown
  failed?: boolean
}

/** The database of one host. */
export class Store {
  readonly #folder: string
  readonly #path: string
  readonly #db: DatabaseSync
  readonly #transaction: Transaction
  readonly #statements: { readonly [name in keyof typeof STATEMENTS]: StatementSync }
  /** The numbers that were given last. */
  readonly #counters: Map<string, number>
  /** Some are not yet in the database. */
  #hasGiven = false
  #queue: Work[] = []
  #scheduled: NodeJS.Immediate | undefined
  #isClosed = false
  #backup: Promise<string> | undefined
  #deliver: (events: readonly EventView[]) => void = () => {}

  private constructor(folder: string, db: DatabaseSync) {
    this.#folder = folder
    this.#path = databasePath(folder)
    this.#db = db
    this.#transaction = new Transaction(db)
    this.#statements = Object.fromEntries(Object.entries(STATEMENTS).map(([name, sql]) => [name, db.prepare(sql)])) as
      { [name in keyof typeof STATEMENTS]: StatementSync }
    this.#counters = new Map(this.#statements.counters.all().map(({ name, value }) => [String(name), Number(value)]))
  }

  /**
   * Opens the database of a state folder, both made if they aren't there. Throws HOST_STATE_DAMAGED, HOST_STATE_NEWER,
   * HOST_STATE_UNUSABLE, HOST_DISK_FULL.
   */
  static async open(folder: string): Promise<Store> {
    const path = databasePath(folder)
    let db: DatabaseSync | undefined
    try {
      makeStateFolder(folder)
      makeDatabase(folder)
      const version = checkDatabase(path)
      db = openDatabase(path)
      if (version < VERSION) {
        await keepBackup(db, folder)
        migrate(db)
      }
      return new Store(folder, db)
    } catch (error) {
      db?.close()
      throw existsSync(path) ? openingError(error, path) : stateError(error, folder)
    }
  }

  /** All rows, for the start of the host. Throws HOST_STATE_DAMAGED. */
  load(): Loaded {
    try {
      return loadAll(this.#db)
    } catch (error) {
      throw openingError(error, this.#path)
    }
  }

  /**
   * Runs `work` with the next group. Resolves with what it answers when that is on disk. Rejects with what it throws;
   * with HOST_DISK_FULL or HOST_STATE_UNUSABLE if it can't be committed; with HOST_DRAINING once the store is closed.
   */
  commit<T>(work: (tx: Transaction) => T): Promise<T> {
    if (this.#isClosed) return Promise.reject(new CellarError('HOST_DRAINING', []))
    return new Promise<T>((resolve, reject) => {
      this.#queue.push({ run: work, resolve: resolve as (value: unknown) => void, reject })
      this.#scheduled ??= setImmediate(() => this.#flush())
    })
  }

  /** A number that none of its kind has had, from 1 on. It is kept with the next group that is committed. */
  nextNumber(kind: 'project' | 'process'): number {
    const number = (this.#counters.get(kind) ?? 0) + 1
    this.#counters.set(kind, number)
    this.#hasGiven = true
    return number
  }

  /** Who gets the events of each group that was committed. */
  onEvents(deliver: (events: readonly EventView[]) => void): void {
    this.#deliver = deliver
  }

  /** The number of the latest event; 0 if there was none. */
  lastEvent(): number {
    return Number(this.#statements.lastEvent.get()?.['seq'] ?? 0)
  }

  /** Events after one, the oldest first, `limit` at most; of all projects if none is named. */
  events(after: number, project: string | undefined, limit: number): EventView[] {
    const rows = project === undefined ? this.#statements.events.all(after, limit)
      : this.#statements.projectEvents.all(project, after, limit)
    return rows.map(eventOf)
  }

  /** The latest entries of the audit log, newest first. */
  audit(limit: number): AuditView[] {
    return this.#statements.audit.all(limit).map((row) => ({ ...row })) as unknown as AuditView[]
  }

  /** Makes a backup, unless one is being made: its path. Throws HOST_DISK_FULL, HOST_STATE_UNUSABLE. */
  backup(): Promise<string> {
    if (this.#isClosed) return Promise.reject(new CellarError('HOST_DRAINING', []))
    this.#backup ??= keepBackup(this.#db, this.#folder).finally(() => { this.#backup = undefined })
    return this.#backup
  }

  /** Commits what waits, then closes the database. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    while (this.#queue.length > 0) this.#flush()
    await this.#backup?.catch(() => {})
    this.#db.close()
  }

  #flush(): void {
    const group = this.#queue.splice(0, COMMIT_GROUP_MAX)
    clearImmediate(this.#scheduled)
    this.#scheduled = this.#queue.length > 0 ? setImmediate(() => this.#flush()) : undefined
    const events: EventView[] = []
    try {
      this.#statements.begin.run()
      for (const work of group) events.push(...this.#attempt(work))
      if (this.#hasGiven) for (const [name, value] of this.#counters) this.#statements.putCounter.run(name, value)
      this.#statements.commit.run()
    } catch (error) {
      this.#undo()
      const known = stateError(error, this.#path)
      for (const work of group) if (work.failed !== true) work.reject(known)
      return
    }
    this.#hasGiven = false
    if (events.length > 0) this.#deliver(events)
    for (const work of group) if (work.failed !== true) work.resolve(work.value)
  }

  // Runs one work in its savepoint: its events. Throws what fails for the machine's sake.
  #attempt(work: Work): EventView[] {
    const { savepoint, rollbackTo, release } = this.#statements
    savepoint.run()
    try {
      work.value = work.run(this.#transaction)
      if (work.value instanceof Promise) throw new TypeError('Cannot commit a work that is asynchronous')
    } catch (error) {
      this.#transaction.takeEvents()
      // SQLite has undone the whole group, or what it says of this work is true of all of it.
      if (!this.#db.isTransaction || isOfMachine(error)) throw error
      rollbackTo.run()
      release.run()
      work.failed = true
      work.reject(error)
      return []
    }
    release.run()
    return this.#transaction.takeEvents()
  }

  #undo(): void {
    this.#transaction.takeEvents()
    if (this.#db.isTransaction) this.#statements.rollback.run()
  }
}

// An error of SQLite that the catalogue knows: the disk, or the file. Others are mistakes of a work.
function isOfMachine(error: unknown): boolean {
  return !(error instanceof CellarError) && stateError(error, '') instanceof CellarError
}

const STATEMENTS = {
  begin: 'BEGIN IMMEDIATE', commit: 'COMMIT', rollback: 'ROLLBACK',
  savepoint: 'SAVEPOINT work', release: 'RELEASE work', rollbackTo: 'ROLLBACK TO work',
  lastEvent: "SELECT seq FROM sqlite_sequence WHERE name = 'events'",
  events: 'SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?',
  projectEvents: 'SELECT * FROM events WHERE project = ? AND seq > ? ORDER BY seq LIMIT ?',
  counters: 'SELECT * FROM counters',
  putCounter: 'INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value',
  audit: 'SELECT * FROM audit ORDER BY seq DESC LIMIT ?',
} as const
