// host/migration_incoming.ts: the destination's side of moves: guests that come from other hosts.
//
// What is promised to the source before its commit is promised by nothing: names, memory and ports are looked at when
// the guest is offered and again when all of it is here, so that most of what can be wrong is known while it still runs
// there. What counts is what is committed when the source asks to activate: the guest and that it is active, or that it
// was dropped. Either is kept: the source may have to ask again, and what is sent late must find it. A note goes a day
// after it is of no use to the source any more; nothing that was sent is on its way for so long.
//
//   offer → module, if it is missing → snapshots, round by round → the last: ready → activate → acknowledge
//
// Of one move one message after the other. Elsewhere: which states there are (migration_machine.ts), the source
// (migrate_actions.ts), who may (api/migration_routes.ts).

import { randomBytes } from 'node:crypto'
import type { Readable } from 'node:stream'
import { CellarError } from '../base/errors.ts'
import {
  MOVE_NOTES_PROJECT_MAX, MOVES_INCOMING_MAX, MOVES_INCOMING_PROJECT_MAX, WASM_PAGE_BYTES,
} from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import { memoryLimit } from './admission.ts'
import { eventOf, type Lifecycle, volumesOf } from './lifecycle.ts'
import { incomingAfter, isKept, type Incoming } from './migration_machine.ts'
import type { Activated, IncomingMoves, MoveOffer, MoveTerms } from './operator.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import type { GuestRow, IncomingRow } from './rows.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import { keyOf, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import type { Transfers } from './transfers.ts'

/** How long a source may be silent before what it has sent is dropped. Should it ask after that, it is told so. */
const SILENCE_MS_MAX = 10 * 60_000
/** How long a note outlives its use. */
const NOTE_MS = 24 * 3_600_000
const LOOK_MS = 60_000

type Parts = {
  readonly state: State; readonly store: Store; readonly processes: Processes; readonly transfers: Transfers
  readonly lifecycle: Lifecycle; readonly files: SnapshotFiles; readonly log: Log
  /** Who this host is to others: what it knows goes with its database. */
  readonly identity: string
  readonly notes: readonly IncomingRow[]
  /** Makes the project, if it isn't there, and room for the guest if that is possible. */
  readonly prepare: (row: GuestRow) => Promise<unknown>
  /** Throws what speaks against such a guest: its name, references, ports, promises. */
  readonly check: (row: GuestRow) => void
  /** The image of a module: undefined if it isn't here. */
  readonly imageOf: (module: string) => { readonly digest: string } | undefined
  readonly importModule: (module: Readable) => Promise<{ readonly module: string }>
  /** Gives the image of a module this name if no other has it: whether it has it then. */
  readonly name: (module: string, name: string) => Promise<boolean>
}

/** A move that is under way. */
type Coming = {
  readonly id: string; readonly project: string; readonly offer: MoveOffer
  state: Incoming
  readonly handle: ProcessHandle
  /** The last snapshot that is here as a whole. */
  snapshot: string | undefined
  /** What the guest's image is called here. */
  image: string
  touchedMs: number
}

/** Moves to this host. */
export class MigrationIncoming implements IncomingMoves {
  readonly #parts: Parts
  readonly #coming = new Map<string, Coming>()
  /** What was decided, as it is on disk. */
  readonly #notes = new Map<string, IncomingRow>()
  /** The last message of each move. */
  readonly #turns = new Map<string, Promise<unknown>>()
  readonly #looking: NodeJS.Timeout

  constructor(parts: Parts) {
    this.#parts = parts
    for (const note of parts.notes) this.#notes.set(keyOf(note.project, note.id), note)
    this.#looking = setInterval(() => void this.#look(), LOOK_MS).unref()
  }

  offer(project: string, id: string, offer: MoveOffer): Promise<MoveTerms> {
    return this.#inTurn(project, id, async () => {
      const { identity, processes, imageOf, prepare, check } = this.#parts
      if (this.#stateOf(project, id) !== 'unknown') throw refusal(offer.name, 'this move has been decided on already')
      const others = [...this.#coming.values()].filter((one) => one.id !== id || one.project !== project)
      const ofProject = others.filter((one) => one.project === project).length
      if (others.length >= MOVES_INCOMING_MAX || ofProject >= MOVES_INCOMING_PROJECT_MAX) {
        throw refusal(offer.name, 'too many guests are on their way here')
      }
      const row = this.#rowOf(project, offer)
      await prepare(row)
      check(row)
      const before = this.#coming.get(keyOf(project, id))
      if (before !== undefined) this.#forget(before)
      // A process is here before the guest is: its start would keep the guest waiting.
      const handle = await processes.take(project, placeOf(id), volumesOf(offer))
      const coming: Coming = { id, project, offer, state: 'unknown', handle, snapshot: undefined,
        image: offer.spec.image, touchedMs: performance.now() }
      this.#coming.set(keyOf(project, id), coming)
      const needsModule = imageOf(offer.module) === undefined
      if (!needsModule) await this.#nameImage(coming)
      return { host: identity, needsModule }
    })
  }

  module(project: string, id: string, module: Readable): Promise<void> {
    return this.#inTurn(project, id, async () => {
      const coming = this.#find(project, id)
      const { module: digest } = await this.#parts.importModule(module)
      if (digest !== coming.offer.module) {
        const { name, module: wanted } = coming.offer
        throw new CellarError('IMAGE_DIGEST_WRONG', [`the module of "${name}"`, wanted, digest])
      }
      await this.#nameImage(coming)
      coming.touchedMs = performance.now()
    })
  }

  snapshot(project: string, id: string, bytes: Readable, isLast: boolean): Promise<{ missing: readonly string[] }> {
    return this.#inTurn(project, id, async () => {
      const coming = this.#find(project, id)
      if (incomingAfter(coming.state, 'store') === undefined) throw refusal(coming.offer.name, 'it has been decided on')
      const { offer: { spec, module }, handle } = coming
      const { snapshot, missing } = await this.#parts.transfers.receive(handle, bytes, { durable: false,
        warm: spec.machine !== undefined ? undefined : { move: id, isLast, module,
          memoryPagesMax: Math.floor(memoryLimit(spec) / WASM_PAGE_BYTES), stubs: spec.stubs, calls: spec.calls,
          deterministic: spec.deterministic ?? false,
          unbounded: spec.unbounded ?? false } })
      coming.touchedMs = performance.now()
      if (missing.length > 0) return { missing }
      if (coming.snapshot !== undefined && coming.snapshot !== snapshot) {
        this.#parts.files.release(project, coming.snapshot)
      }
      coming.snapshot = snapshot
      if (isLast) {
        // What has changed since the offer is told now, while the source can still keep the guest.
        this.#parts.check(this.#rowOf(project, coming.offer, coming))
        coming.state = incomingAfter(coming.state, 'store')!
      }
      return { missing }
    })
  }

  activate(project: string, id: string, { host, stoppedAt }: { host: string; stoppedAt: number }): Promise<Activated> {
    return this.#inTurn(project, id, async () => {
      // What another host has agreed to, it alone knows.
      if (host !== this.#parts.identity) throw refusal(id, 'it was agreed upon with another host')
      const note = this.#notes.get(keyOf(project, id))
      if (note !== undefined) return answerOf(note)
      const coming = this.#coming.get(keyOf(project, id))
      if (coming?.state !== 'ready') {
        return await this.#decide(id, project, 'it is not here', 'activate')
      }
      return await this.#begin(coming, stoppedAt)
    })
  }

  drop(project: string, id: string): Promise<void> {
    return this.#inTurn(project, id, async () => {
      const coming = this.#coming.get(keyOf(project, id))
      if (coming !== undefined) this.#forget(coming)
    })
  }

  acknowledge(project: string, id: string): Promise<void> {
    return this.#inTurn(project, id, async () => {
      const note = this.#notes.get(keyOf(project, id))
      if (note === undefined || note.acknowledgedAt !== null) return
      const row = { ...note, acknowledgedAt: Date.now() }
      await this.#parts.store.commit((tx) => tx.putIncoming(row))
      this.#notes.set(keyOf(project, id), row)
    })
  }

  close(): void { clearInterval(this.#looking) }

  // The guest and the note of it are committed together; then it is launched: what becomes of it is this host's.
  async #begin(coming: Coming, stoppedAt: number): Promise<Activated> {
    const { state, store, lifecycle } = this.#parts
    const { id, project, offer } = coming
    let guest: Guest
    try {
      const row = this.#rowOf(project, offer, coming, stoppedAt)
      this.#parts.check(row)
      guest = state.addGuest(row)
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      this.#forget(coming)
      return await this.#decide(id, project, error.message, 'refuse')
    }
    const note = noteOf(id, project, 'active', guest.row.id)
    try {
      await store.commit((tx) => {
        tx.putGuest(guest.row)
        tx.putIncoming(note)
        tx.event('guest.migrated', eventOf(guest, { from: offer.from }))
      })
    } catch (error) {
      // Nothing is decided: the source asks again.
      state.removeGuest(guest)
      throw error
    }
    this.#notes.set(keyOf(project, id), note)
    this.#coming.delete(keyOf(project, id))
    void lifecycle.launch(guest)
    this.#parts.processes.leave(coming.handle, placeOf(id), volumesOf(offer))
    return answerOf(note)
  }

  async #decide(id: string, project: string, why: string, event: 'activate' | 'refuse'): Promise<Activated> {
    // What is asked without end isn't noted without end: it is asked again.
    const ofProject = [...this.#notes.values()].filter((note) => note.project === project && note.state === 'dropped')
    if (ofProject.length >= MOVE_NOTES_PROJECT_MAX) throw refusal(id, 'too many moves were dropped here lately')
    const state = incomingAfter(event === 'refuse' ? 'ready' : 'unknown', event)
    if (state !== 'dropped') throw new Error(`Bug in Cellar: a move that is not here is ${String(state)}`)
    const note = noteOf(id, project, state, null, why)
    await this.#parts.store.commit((tx) => tx.putIncoming(note))
    this.#notes.set(keyOf(project, id), note)
    return answerOf(note)
  }

  // Its image may be called otherwise here, or not at all: then its digest is its name.
  async #nameImage(coming: Coming): Promise<void> {
    const { imageOf, name } = this.#parts
    const { spec, module } = coming.offer
    if (await name(module, spec.image)) return
    coming.image = imageOf(module)?.digest ?? spec.image
  }

  #rowOf(project: string, offer: MoveOffer, { snapshot, image }: Partial<Coming> = {}, stoppedAt = Date.now()):
  GuestRow {
    const { name, module, generation, createdAt, restarts } = offer
    const spec = image === undefined || image === offer.spec.image ? offer.spec : { ...offer.spec, image }
    const isFree = !this.#parts.state.guests.has(offer.id)
    return {
      id: isFree ? offer.id : randomBytes(6).toString('hex'), project, name, spec, digest: module,
      manifestDigest: this.#parts.imageOf(module)?.digest ?? module, generation, desired: 'running', phase: 'starting',
      healthy: null, createdAt, startedAt: null, endedAt: null, restarts, run: offer.run + 1, process: null, exit: null,
      ports: [],
      managedBy: offer.isManaged ? 'apply' : null, origin: null, move: null, address: 0,
      from: snapshot === undefined ? null : { snapshot, event: 'migrate', at: stoppedAt },
    }
  }

  #stateOf(project: string, id: string): Incoming {
    const key = keyOf(project, id)
    return this.#notes.get(key)?.state ?? this.#coming.get(key)?.state ?? 'unknown'
  }

  #find(project: string, id: string): Coming {
    const coming = this.#coming.get(keyOf(project, id))
    if (coming === undefined || isKept(this.#stateOf(project, id))) {
      throw new CellarError('NOT_FOUND', ['move', id])
    }
    return coming
  }

  // What was sent of it is nobody's any more.
  #forget(coming: Coming): void {
    const { handle, snapshot, id, project, offer } = coming
    this.#coming.delete(keyOf(project, id))
    if (snapshot !== undefined) this.#parts.files.release(project, snapshot)
    this.#parts.processes.leave(handle, placeOf(id), volumesOf(offer))
  }

  async #inTurn<T>(project: string, id: string, work: () => Promise<T>): Promise<T> {
    const key = keyOf(project, id)
    const before = this.#turns.get(key) ?? Promise.resolve()
    const mine = before.then(work, work)
    const done = mine.catch(() => {})
    this.#turns.set(key, done)
    try {
      return await mine
    } finally {
      if (this.#turns.get(key) === done) this.#turns.delete(key)
    }
  }

  async #look(): Promise<void> {
    for (const [key, coming] of this.#coming) {
      if (performance.now() - coming.touchedMs < SILENCE_MS_MAX || this.#turns.has(key)) continue
      this.#parts.log.warn('a guest never came', { move: coming.id, project: coming.project, guest: coming.offer.name })
      this.#forget(coming)
    }
    const now = Date.now()
    const old = [...this.#notes.values()].filter(({ state, createdAt, acknowledgedAt }) =>
      now - (state === 'active' ? acknowledgedAt ?? now : createdAt) > NOTE_MS)
    if (old.length === 0) return
    await this.#parts.store.commit((tx) => {
      for (const { project, id } of old) tx.deleteIncoming(project, id)
    }).then(() => {
      for (const { project, id } of old) this.#notes.delete(keyOf(project, id))
    }, () => {}) // The next look does it.
  }
}

function noteOf(id: string, project: string, state: 'active' | 'dropped', guest: string | null, why = ''): IncomingRow {
  return { id, project, state, guest, why, createdAt: Date.now(), acknowledgedAt: null }
}

function answerOf({ state, why }: IncomingRow): Activated {
  return { state, ...(why === '' ? {} : { why }) }
}

function refusal(name: string, why: string): CellarError {
  return new CellarError('MOVE_REFUSED', [name, 'this host', why])
}

// What keeps its process: a guest's id has no such sign.
function placeOf(move: string): string {
  return `move ${move}`
}
