// host/tables.ts: how rows lie in their tables: the columns of each, as data, and the statements made of them.
//
// A column has the name of the row's field. It holds the value as it is, as JSON, or as 0 or 1. Statements are prepared
// once; a row is put whether or not it is there already. Another row that claims the same unique name is an error: it
// is never replaced.

import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite'
import { assert } from '../base/assert.ts'
import type {
  AnswerRow, GuestRow, IdentityRow, ImageNameRow, IncomingRow, NetworkRow, OperationRow, PoolRow, ProcessRow,
  ProjectRow, SecretRow, SnapshotRow, TokenRow, VolumeRow,
} from './rows.ts'

type Form = 'plain' | 'json' | 'flag'

/** A table: its key, and the form of each field of a row. */
type Table<Row> = { readonly name: string; readonly key: readonly (keyof Row & string)[]
  readonly columns: { readonly [field in keyof Row]-?: Form } }

export const PROJECTS: Table<ProjectRow> = { name: 'projects', key: ['name'],
  columns: { name: 'plain', uid: 'plain', createdAt: 'plain' } }
export const GUESTS: Table<GuestRow> = { name: 'guests', key: ['id'], columns: {
  id: 'plain', project: 'plain', name: 'plain', spec: 'json', digest: 'plain', manifestDigest: 'plain',
  generation: 'plain', desired: 'plain', phase: 'plain', healthy: 'flag', createdAt: 'plain', startedAt: 'plain',
  endedAt: 'plain', restarts: 'plain', run: 'plain', process: 'plain', exit: 'json', ports: 'json', managedBy: 'plain',
  origin: 'json', from: 'json', move: 'json', address: 'plain',
} }
export const SNAPSHOTS: Table<SnapshotRow> = { name: 'snapshots', key: ['project', 'digest'], columns: {
  project: 'plain', digest: 'plain', name: 'plain', guest: 'plain', spec: 'json', module: 'plain',
  manifestDigest: 'plain', memoryBytes: 'plain', newBytes: 'plain', storedBytes: 'plain', createdAt: 'plain' } }
export const POOLS: Table<PoolRow> = { name: 'pools', key: ['project', 'name'],
  columns: { project: 'plain', name: 'plain', spec: 'json', createdAt: 'plain' } }
export const VOLUMES: Table<VolumeRow> = { name: 'volumes', key: ['project', 'name'], columns: {
  project: 'plain', name: 'plain', sizeBytes: 'plain', createdAt: 'plain', clonedFrom: 'plain', kind: 'plain',
  state: 'plain' } }
export const NETWORKS: Table<NetworkRow> = { name: 'networks', key: ['project', 'name'],
  columns: { project: 'plain', name: 'plain', createdAt: 'plain' } }
export const SECRETS: Table<SecretRow> = { name: 'secrets', key: ['project', 'name'],
  columns: { project: 'plain', name: 'plain', value: 'plain', createdAt: 'plain' } }
export const IMAGE_NAMES: Table<ImageNameRow> = { name: 'image_names', key: ['name'],
  columns: { name: 'plain', digest: 'plain', createdAt: 'plain' } }
export const PROCESSES: Table<ProcessRow> = { name: 'processes', key: ['id'],
  columns: { id: 'plain', project: 'plain', pid: 'plain', kind: 'plain', createdAt: 'plain' } }
export const TOKENS: Table<TokenRow> = { name: 'tokens', key: ['id'], columns: {
  id: 'plain', name: 'plain', hash: 'plain', scope: 'plain', project: 'plain', createdAt: 'plain', expiresAt: 'plain',
  lastUsedAt: 'plain' } }
export const OPERATIONS: Table<OperationRow> = { name: 'operations', key: ['id'], columns: {
  id: 'plain', kind: 'plain', target: 'plain', status: 'plain', stage: 'plain', progress: 'json', error: 'json',
  result: 'json', createdAt: 'plain', updatedAt: 'plain', by: 'plain' } }
export const INCOMING: Table<IncomingRow> = { name: 'incoming', key: ['project', 'id'], columns: {
  id: 'plain', project: 'plain', state: 'plain', guest: 'plain', why: 'plain', createdAt: 'plain',
  acknowledgedAt: 'plain' } }
export const IDENTITY: Table<IdentityRow> = { name: 'identity', key: ['id'], columns: { id: 'plain' } }
export const ANSWERS: Table<AnswerRow> = { name: 'answers', key: ['key'],
  columns: { key: 'plain', fingerprint: 'plain', result: 'plain', createdAt: 'plain' } }

/** All rows of a table, in the order of their creation. Throws for one that can't be read. */
export function readAll<Row>(db: DatabaseSync, { name, columns }: Table<Row>): Row[] {
  const forms = formsOf({ columns })
  const found = db.prepare(`SELECT ${list(forms.map(([field]) => field), quoted)} FROM ${name} ORDER BY rowid`).all()
  return found.map((values) => {
    const row: Record<string, unknown> = {}
    for (const [field, form] of forms) row[field] = decode(values[field] as SQLInputValue, form)
    return row as Row
  })
}

/** The statements that write one table. Only for use in a transaction. */
export class Writer<Row> {
  readonly #db: DatabaseSync
  readonly #put: StatementSync
  readonly #delete: StatementSync
  readonly #forms: readonly (readonly [field: keyof Row & string, form: Form])[]

  constructor(db: DatabaseSync, table: Table<Row>) {
    this.#db = db
    this.#forms = formsOf(table)
    const fields = this.#forms.map(([field]) => field)
    const others = fields.filter((field) => !table.key.includes(field))
    this.#put = db.prepare(`INSERT INTO ${table.name} (${list(fields, quoted)}) VALUES (${list(fields, () => '?')})
      ON CONFLICT (${list(table.key, quoted)}) DO UPDATE SET ${
        list(others, (field) => `${quoted(field)} = excluded.${quoted(field)}`)}`)
    this.#delete = db.prepare(
      `DELETE FROM ${table.name} WHERE ${table.key.map((field) => `${quoted(field)} = ?`).join(' AND ')}`)
  }

  /** Adds the row, or replaces the one with its key. */
  put(row: Row): void {
    assert(this.#db.isTransaction, 'a transaction is used after its work')
    this.#put.run(...this.#forms.map(([field, form]) => encode(row[field], form)))
  }

  /** Removes the row with this key. That there is none is as good. */
  delete(...key: (string | number)[]): void {
    assert(this.#db.isTransaction, 'a transaction is used after its work')
    this.#delete.run(...key)
  }
}

function encode(value: unknown, form: Form): SQLInputValue {
  if (value === null || value === undefined) return null
  if (form === 'json') return JSON.stringify(value) ?? null
  return form === 'flag' ? Number(value) : value as SQLInputValue
}

function decode(value: SQLInputValue, form: Form): unknown {
  if (value === null) return null
  if (form === 'json') return JSON.parse(value as string)
  return form === 'flag' ? value !== 0 : value
}

function formsOf<Row>({ columns }: Pick<Table<Row>, 'columns'>): [field: keyof Row & string, form: Form][] {
  return Object.entries(columns) as [keyof Row & string, Form][]
}

function list(fields: readonly string[], write: (field: string) => string): string {
  return fields.map(write).join(', ')
}

function quoted(field: string): string {
  return `"${field}"`
}
