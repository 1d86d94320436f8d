// host/migrations.ts: the tables of the host's database, as the steps that made them.
//
// The database's `user_version` says how many of the steps it has had. A step is never changed once it is released:
// what is to be different comes as another one. Tables are STRICT, so that a value of a wrong type is refused as it is
// written, and not found out by the next start. Times are REAL: they may have fractions. What a project has goes with
// it, but not its guests: a project that has any can't be deleted.

import type { DatabaseSync } from 'node:sqlite'

/** 'cllr': tells our database from others (PRAGMA application_id). */
export const APPLICATION_ID = 0x636c6c72

const MIGRATIONS: readonly string[] = [`
  PRAGMA application_id = ${APPLICATION_ID};

  CREATE TABLE projects (name TEXT PRIMARY KEY, uid INTEGER, createdAt REAL NOT NULL) STRICT;

  CREATE TABLE guests (
    id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects, name TEXT NOT NULL, spec TEXT NOT NULL,
    digest TEXT NOT NULL, manifestDigest TEXT NOT NULL, generation INTEGER NOT NULL, desired TEXT NOT NULL,
    phase TEXT NOT NULL, healthy INTEGER, createdAt REAL NOT NULL, startedAt REAL, endedAt REAL,
    restarts INTEGER NOT NULL, run INTEGER NOT NULL, process INTEGER, exit TEXT, ports TEXT NOT NULL, managedBy TEXT,
    UNIQUE (project, name)) STRICT;

  CREATE TABLE pools (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL, spec TEXT NOT NULL,
    createdAt REAL NOT NULL, PRIMARY KEY (project, name)) STRICT;

  CREATE TABLE volumes (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL, sizeBytes REAL NOT NULL,
    createdAt REAL NOT NULL, clonedFrom TEXT, state TEXT NOT NULL, PRIMARY KEY (project, name)) STRICT;

  CREATE TABLE networks (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL, createdAt REAL NOT NULL,
    PRIMARY KEY (project, name)) STRICT;

  CREATE TABLE secrets (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL, value BLOB NOT NULL,
    createdAt REAL NOT NULL, PRIMARY KEY (project, name)) STRICT;

  CREATE TABLE image_names (name TEXT PRIMARY KEY, digest TEXT NOT NULL, createdAt REAL NOT NULL) STRICT;

  -- A process may outlive its project's row.
  CREATE TABLE processes (
    id INTEGER PRIMARY KEY, project TEXT NOT NULL, pid INTEGER NOT NULL, createdAt REAL NOT NULL) STRICT;

  -- The numbers that were given last: none is given twice.
  CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;

  CREATE TABLE tokens (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, hash TEXT NOT NULL UNIQUE, scope TEXT NOT NULL, project TEXT,
    createdAt REAL NOT NULL, expiresAt REAL, lastUsedAt REAL) STRICT;

  CREATE TABLE operations (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, target TEXT NOT NULL, status TEXT NOT NULL, stage TEXT NOT NULL,
    progress TEXT, error TEXT, result TEXT, createdAt REAL NOT NULL, updatedAt REAL NOT NULL,
    "by" TEXT NOT NULL) STRICT;

  CREATE TABLE answers (
    "key" TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, result TEXT, createdAt REAL NOT NULL) STRICT;

  CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL, project TEXT, guest TEXT,
    data TEXT NOT NULL) STRICT;
  CREATE INDEX events_by_project ON events (project, seq) WHERE project IS NOT NULL;

  CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
    target TEXT NOT NULL, outcome TEXT NOT NULL, requestId TEXT NOT NULL) STRICT;
`, `
  -- Phases 'paused' and 'hibernated', and what a guest goes on from.
  ALTER TABLE guests ADD COLUMN origin TEXT;
  ALTER TABLE guests ADD COLUMN "from" TEXT;
  ALTER TABLE guests ADD COLUMN move TEXT;

  CREATE TABLE snapshots (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, digest TEXT NOT NULL, name TEXT, guest TEXT NOT NULL,
    spec TEXT NOT NULL, module TEXT NOT NULL, manifestDigest TEXT NOT NULL, memoryBytes REAL NOT NULL,
    newBytes REAL NOT NULL, storedBytes REAL NOT NULL, createdAt REAL NOT NULL,
    PRIMARY KEY (project, digest), UNIQUE (project, name)) STRICT;

  -- Moves between hosts: what this one has decided of those to it, and who it is to others.
  CREATE TABLE incoming (
    id TEXT NOT NULL, project TEXT NOT NULL, state TEXT NOT NULL, guest TEXT, why TEXT NOT NULL,
    createdAt REAL NOT NULL, acknowledgedAt REAL, PRIMARY KEY (project, id)) STRICT;
  CREATE TABLE identity (id TEXT PRIMARY KEY) STRICT;
  INSERT INTO identity VALUES (lower(hex(randomblob(8))));
`, `
  -- Machines: addresses in networks (0: none yet), disks as volumes, a process of its own for each.
  ALTER TABLE guests ADD COLUMN address INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE volumes ADD COLUMN kind TEXT NOT NULL DEFAULT 'folder';
  ALTER TABLE processes ADD COLUMN kind TEXT NOT NULL DEFAULT 'cells';
`]

/** The version of a database that this program reads and writes. */
export const VERSION: number = MIGRATIONS.length

/** The steps that a database has had. */
export function versionOf(db: DatabaseSync): number {
  return Number(db.prepare('PRAGMA user_version').get()!['user_version'])
}

/** Takes the steps that the database has not had, all or none of them. */
export function migrate(db: DatabaseSync, migrations: readonly string[] = MIGRATIONS): void {
  db.exec('BEGIN IMMEDIATE')
  try {
    for (const step of migrations.slice(versionOf(db))) db.exec(step)
    db.exec(`PRAGMA user_version = ${migrations.length}`)
    db.exec('COMMIT')
  } catch (error) {
    if (db.isTransaction) db.exec('ROLLBACK')
    throw error
  }
}
