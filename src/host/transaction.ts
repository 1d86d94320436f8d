// host/transaction.ts: what a work may do to the database while it is committed (store.ts).
//
// Rows are put and deleted whole. Events and entries of the audit log are added and get their numbers, which count up
// by one without a gap: those of a work that fails are given to the next. The oldest are removed in steps.

import type { DatabaseSync, StatementSync } from 'node:sqlite'
import { assert } from '../base/assert.ts'
import {
  AUDIT_MAX, AUDIT_TEXT_MAX, EVENT_AGE_MS_MAX, EVENT_DATA_BYTES_MAX, EVENTS_MAX, TRIM_STEP,
} from '../base/limits.ts'
import type { AuditView, EventView } from './operator.ts'
import type {
  AnswerRow, GuestRow, ImageNameRow, IncomingRow, NetworkRow, OperationRow, PoolRow, ProcessRow, ProjectRow, SecretRow,
  SnapshotRow, TokenRow, VolumeRow,
} from './rows.ts'
import {
  ANSWERS, GUESTS, IMAGE_NAMES, INCOMING, NETWORKS, OPERATIONS, POOLS, PROCESSES, PROJECTS, SECRETS, SNAPSHOTS, TOKENS,
  VOLUMES, Writer,
} from './tables.ts'

/** What an event may say beside its kind. */
export type EventDetails = { readonly project?: string | undefined; readonly guest?: string | undefined
  readonly data?: Readonly<Record<string, unknown>> | undefined }

/** Good only while its work runs. */
export class Transaction {
  readonly #db: DatabaseSync
  readonly #projects: Writer<ProjectRow>
  readonly #guests: Writer<GuestRow>
  readonly #snapshots: Writer<SnapshotRow>
  readonly #pools: Writer<PoolRow>
  readonly #volumes: Writer<VolumeRow>
  readonly #networks: Writer<NetworkRow>
  readonly #secrets: Writer<SecretRow>
  readonly #imageNames: Writer<ImageNameRow>
  readonly #processes: Writer<ProcessRow>
  readonly #tokens: Writer<TokenRow>
  readonly #operations: Writer<OperationRow>
  readonly #answers: Writer<AnswerRow>
  readonly #incoming: Writer<IncomingRow>
  readonly #event: StatementSync
  readonly #audit: StatementSync
  readonly #trimEvents: StatementSync
  readonly #trimAudit: StatementSync
  #events: EventView[] = []

  constructor(db: DatabaseSync) {
    this.#db = db
    this.#projects = new Writer(db, PROJECTS)
    this.#guests = new Writer(db, GUESTS)
    this.#snapshots = new Writer(db, SNAPSHOTS)
    this.#pools = new Writer(db, POOLS)
    this.#volumes = new Writer(db, VOLUMES)
    this.#networks = new Writer(db, NETWORKS)
    this.#secrets = new Writer(db, SECRETS)
    this.#imageNames = new Writer(db, IMAGE_NAMES)
    this.#processes = new Writer(db, PROCESSES)
    this.#tokens = new Writer(db, TOKENS)
    this.#operations = new Writer(db, OPERATIONS)
    this.#answers = new Writer(db, ANSWERS)
    this.#incoming = new Writer(db, INCOMING)
    this.#event = db.prepare('INSERT INTO events (time, kind, project, guest, data) VALUES (?, ?, ?, ?, ?)')
    this.#audit = db.prepare(
      'INSERT INTO audit (time, actor, action, target, outcome, requestId) VALUES (?, ?, ?, ?, ?, ?)')
    // Up to a number, and up to the first that is young enough; not more at once than a few steps.
    this.#trimEvents = db.prepare(`DELETE FROM events WHERE seq < (SELECT min(seq) FROM events) + ${4 * TRIM_STEP} AND
      (seq <= ? OR seq < (SELECT seq FROM events WHERE time >= ? ORDER BY seq LIMIT 1))`)
    this.#trimAudit = db.prepare('DELETE FROM audit WHERE seq <= ?')
  }

  /** Adds or replaces. The others refer to projects: theirs must be there. */
  putProject(row: ProjectRow): void { this.#projects.put(row) }
  /** With its snapshots, pools, volumes, networks and secrets. Throws if it has guests. */
  deleteProject(name: string): void { this.#projects.delete(name) }

  putGuest(row: GuestRow): void { this.#guests.put(row) }
  deleteGuest(id: string): void { this.#guests.delete(id) }

  /** One of this name is to have none before. */
  putSnapshot(row: SnapshotRow): void { this.#snapshots.put(row) }
  deleteSnapshot(project: string, digest: string): void { this.#snapshots.delete(project, digest) }

  putPool(row: PoolRow): void { this.#pools.put(row) }
  deletePool(project: string, name: string): void { this.#pools.delete(project, name) }

  putVolume(row: VolumeRow): void { this.#volumes.put(row) }
  deleteVolume(project: string, name: string): void { this.#volumes.delete(project, name) }

  putNetwork(row: NetworkRow): void { this.#networks.put(row) }
  deleteNetwork(project: string, name: string): void { this.#networks.delete(project, name) }

  putSecret(row: SecretRow): void { this.#secrets.put(row) }
  deleteSecret(project: string, name: string): void { this.#secrets.delete(project, name) }

  putImageName(row: ImageNameRow): void { this.#imageNames.put(row) }
  deleteImageName(name: string): void { this.#imageNames.delete(name) }

  putProcess(row: ProcessRow): void { this.#processes.put(row) }
  deleteProcess(id: number): void { this.#processes.delete(id) }

  putToken(row: TokenRow): void { this.#tokens.put(row) }
  deleteToken(id: string): void { this.#tokens.delete(id) }

  putOperation(row: OperationRow): void { this.#operations.put(row) }
  deleteOperation(id: string): void { this.#operations.delete(id) }

  putAnswer(row: AnswerRow): void { this.#answers.put(row) }
  deleteAnswer(key: string): void { this.#answers.delete(key) }

  putIncoming(row: IncomingRow): void { this.#incoming.put(row) }
  deleteIncoming(project: string, id: string): void { this.#incoming.delete(project, id) }

  /** Adds an event. Followers (events.ts) get it when it is committed. Data beyond EVENT_DATA_BYTES_MAX isn't kept. */
  event(kind: string, { project, guest, data = {} }: EventDetails = {}): EventView {
    assert(this.#db.isTransaction, 'a transaction is used after its work')
    const time = Date.now()
    const whole = JSON.stringify(data)
    const text = Buffer.byteLength(whole) <= EVENT_DATA_BYTES_MAX ? whole : TOO_LARGE
    const seq = Number(this.#event.run(time, kind, project ?? null, guest ?? null, text).lastInsertRowid)
    if (seq % TRIM_STEP === 0) this.#trimEvents.run(seq - EVENTS_MAX, time - EVENT_AGE_MS_MAX)
    // As it will be read: whoever made the data may change it.
    const event = eventOf({ seq, time, kind, project, guest, data: text })
    this.#events.push(event)
    return event
  }

  /** Notes who asked for what. Fields are cut at AUDIT_TEXT_MAX. */
  audit({ actor, action, target, outcome, requestId }: Omit<AuditView, 'seq' | 'time'>): void {
    assert(this.#db.isTransaction, 'a transaction is used after its work')
    const texts = [actor, action, target, outcome, requestId].map((text) => text.slice(0, AUDIT_TEXT_MAX))
    const seq = Number(this.#audit.run(Date.now(), ...texts).lastInsertRowid)
    if (seq % TRIM_STEP === 0) this.#trimAudit.run(seq - AUDIT_MAX)
  }

  /** The events since it was last asked. */
  takeEvents(): EventView[] {
    const taken = this.#events
    this.#events = []
    return taken
  }
}

const TOO_LARGE = JSON.stringify({ truncated: true })

/** An event of what its columns hold. What damage has made unreadable is left out, as those behind it are good. */
export function eventOf({ seq, time, kind, project, guest, data }: { readonly [column: string]: unknown }): EventView {
  let read: unknown
  try {
    read = JSON.parse(String(data))
  } catch {
    read = { unreadable: true }
  }
  return {
    seq: Number(seq), time: Number(time), kind: String(kind),
    ...(typeof project === 'string' ? { project } : {}), ...(typeof guest === 'string' ? { guest } : {}),
    data: read as EventView['data'],
  }
}
