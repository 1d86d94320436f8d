// host/migrate_actions.ts: moves of guests to other hosts: the source's side.
//
// A guest is copied while it runs, in rounds: each sends what has changed since the last, until that is little. Then
// it is captured and held, the rest is sent, and it is committed here that it goes: from then on the destination
// decides (migration_machine.ts). Until then whatever fails ends the move, and the guest goes on here. After it the
// guest lies here as a hibernated one that nobody may wake, with its last snapshot, until the destination has answered:
// it is asked again and again, also by later hosts on this state. What it answers is committed, and then done: the
// guest is gone from here, or goes on here.
//
// Elsewhere: the destination (migration_incoming.ts), what is sent (transfers.ts), the whole story (docs/migration.md).

import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { MOVE_ROUNDS_MAX, MOVE_STOPPED_MS_MAX } from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import { printable } from '../base/printable.ts'
import { formatDuration } from '../base/units.ts'
import type { Captures } from './captures.ts'
import { eventOf, type Lifecycle } from './lifecycle.ts'
import { canFail, outgoingAfter, type Outgoing } from './migration_machine.ts'
import { Peer, PeerProblem, type PeerAddress } from './migration_peer.ts'
import type { Control, Operations } from './operations.ts'
import type { Activated, Actor, MoveOffer, MoveTerms, OperationView } from './operator.ts'
import type { GuestRow, Move } from './rows.ts'
import type { Secrets } from './secrets.ts'
import { checkPhase } from './snapshot_actions.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import type { Guest, State } from './state.ts'
import type { ProcessHandle } from './processes.ts'
import type { Store } from './store.ts'
import type { Transfers, Wanted } from './transfers.ts'

/** A round that brings no more chunks than this is the last: 1 MiB goes in a moment. */
const CHUNKS_LITTLE = 16
/** Pauses between questions: doubled each time. */
const ASK_MS_MIN = 50
const ASK_MS_MAX = 10_000
/** How often the destination is told that it need not remember. Else its note stays. */
const ACKNOWLEDGE_TRIES = 5
const COMMIT_AGAIN_MS = 1000
const SEND_TRIES = 4
const LOSES = 'it loses what it is sent'
/** How long a destination may take to hear that the guest doesn't come. */
const DROP_MS_MAX = 2000

type Parts = {
  readonly state: State; readonly store: Store; readonly operations: Operations; readonly lifecycle: Lifecycle
  readonly captures: Captures; readonly transfers: Transfers; readonly files: SnapshotFiles; readonly secrets: Secrets
  readonly log: Log
  /** A cell process of a project, which reads its snapshots. */
  readonly carrier: (project: string) => Promise<ProcessHandle>
  /** The file of a blob. */
  readonly blob: (digest: string) => string
  /** Removes what is left of a guest that has no row any more. */
  readonly clear: (row: GuestRow) => Promise<void>
}

type Terms = PeerAddress & { readonly downtimeMs?: number | undefined }

/** A move that has not been committed. */
type Going = {
  readonly id: string; readonly guest: Guest; readonly run: number; readonly place: string; readonly peer: Peer
  readonly to: PeerAddress; readonly control: Control
  /** How long the guest may stand still before the commit. */
  readonly downtimeMs: number
  state: Outgoing
  host: string
  /** The snapshot that the destination has as a whole. */
  before: string | undefined
}

/** Moves from this host. */
export class MigrateActions {
  readonly #parts: Parts
  readonly #closing = new AbortController()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Begins to move a guest, which goes on here if it would stand still for longer. Throws what is wrong here. */
  async migrate(guest: Guest, { downtimeMs = MOVE_STOPPED_MS_MAX, ...to }: Terms, by: Actor): Promise<OperationView> {
    const { lifecycle, operations } = this.#parts
    lifecycle.checkStays(guest)
    checkPhase('move', guest, ['running'])
    const { name, project } = guest.row
    if (typeof guest.uncapturable === 'string') throw new CellarError('CAPTURE_IMPOSSIBLE', [name, guest.uncapturable])
    const peer = new Peer(to)
    try {
      return await operations.start('guest.migrate', `${project}/${name} to ${peer.name}`, by, async (control) => {
        try {
          return await this.#move(guest, peer, to, downtimeMs, control)
        } finally {
          peer.close()
        }
      })
    } catch (error) {
      peer.close()
      throw error
    }
  }

  /** Asks about the moves that an earlier host has committed. */
  recover(): void {
    for (const guest of this.#parts.state.guests.values()) {
      if (guest.row.move !== null) void this.#resume(guest, guest.row.move)
    }
  }

  /** Nothing is asked any more: the next host does. */
  close(): void { this.#closing.abort() }

  // ---- until the commit

  async #move(guest: Guest, peer: Peer, to: PeerAddress, downtimeMs: number, control: Control): Promise<unknown> {
    const id = randomBytes(8).toString('hex')
    const { project, run } = guest.row
    const going: Going = { id, guest, run, peer, to, downtimeMs, control,
      place: `/v1/projects/${project}/moves/${id}`,
      state: 'sending', host: '', before: undefined }
    let stoppedNs: number
    const rounds = { count: 0, chunks: 0 }
    try {
      await this.#offer(going)
      await this.#copy(going, rounds)
      control.stage('moving')
      stoppedNs = await this.#parts.captures.alone(guest, () => this.#stop(going))
    } catch (error) {
      if (!canFail(going.state)) throw error
      going.state = outgoingAfter(going.state, 'failed')
      // The destination drops what it has by itself, should this not arrive.
      await peer.ask('DELETE', going.place, { signal: AbortSignal.timeout(DROP_MS_MAX) }).catch(() => {})
      const why = error instanceof PeerProblem ? error.message
        : (error as Error).name === 'TimeoutError'
          ? `the guest would stand still for longer than ${formatDuration(downtimeMs * 1e6)}` : undefined
      if (why === undefined) throw error
      throw new CellarError('MOVE_REFUSED', [guest.row.name, peer.name, why], { cause: error })
    } finally {
      if (going.before !== undefined) this.#parts.files.release(project, going.before)
    }
    const began = performance.now()
    const answer = await this.#ask(guest, peer, guest.row.move!)
    const stoppedMs = stoppedNs / 1e6 + performance.now() - began
    if (answer === undefined) throw new CellarError('OPERATION_INTERRUPTED', [`the move of "${guest.row.name}"`])
    await this.#settle(guest, peer, answer)
    if (answer.state === 'active') return { to: peer.name, rounds: rounds.count, chunks: rounds.chunks, stoppedMs }
    throw new CellarError('MOVE_REFUSED', [guest.row.name, peer.name, answer.why ?? 'it was dropped there'])
  }

  async #offer(going: Going): Promise<void> {
    const { guest: { row }, peer, place, control: { stage, signal } } = going
    const { id, name, spec, digest: module, generation, createdAt, restarts, run, managedBy } = row
    stage('asking')
    const offer: MoveOffer = { id, name, spec, module, generation, createdAt, restarts, run,
      isManaged: managedBy !== null, from: hostname() }
    const terms = await peer.ask<MoveTerms>('PUT', place, { json: offer, signal })
    going.host = String(terms.host)
    if (!terms.needsModule) return
    if (spec.machine !== undefined) throw new CellarError('MOVE_REFUSED', [name, peer.name, NO_IMAGE])
    stage('sending the program')
    await peer.ask('PUT', `${place}/module`, { bytes: createReadStream(this.#parts.blob(module)),
      type: 'application/wasm', signal })
  }

  // Rounds while it runs. A guest that changes more than is sent is stopped after some all the same.
  async #copy(going: Going, rounds: { count: number; chunks: number }): Promise<void> {
    const { guest, control } = going
    const { captures, files } = this.#parts
    control.stage('copying')
    for (let last = Infinity; rounds.count < MOVE_ROUNDS_MAX; rounds.count++) {
      const written = await captures.alone(guest, () => {
        this.#check(going)
        return captures.capture(guest, 'resume', false)
      })
      try {
        await this.#send(going, written.snapshot)
      } catch (error) {
        files.release(guest.row.project, written.snapshot)
        throw error
      }
      if (going.before !== undefined && going.before !== written.snapshot) {
        files.release(guest.row.project, going.before)
      }
      going.before = written.snapshot
      const chunks = rounds.count === 0 ? written.chunks : written.newChunks
      rounds.chunks += chunks
      if (chunks <= CHUNKS_LITTLE || chunks > last / 2) return void rounds.count++
      last = chunks
    }
  }

  // Stops it, sends the rest, commits: how long that took. Throws when it goes on here.
  async #stop(going: Going): Promise<number> {
    const { captures, files, lifecycle } = this.#parts
    const { guest, id, to, host } = going
    this.#check(going)
    const began = performance.now()
    const at = Date.now()
    // Nobody waits for it longer than this: it goes on, and may be moved another time.
    const patience = AbortSignal.timeout(Math.ceil(going.downtimeMs))
    const written = await captures.capture(guest, 'hold', false)
    try {
      going.state = outgoingAfter(going.state, 'stopped')
      await this.#send(going, written.snapshot, patience)
      patience.throwIfAborted()
      going.state = outgoingAfter(going.state, 'stored')
      this.#check(going)
      const { project, name } = guest.row
      const move: Move = { id, way: 'out', peer: to.to, host, fingerprint: to.fingerprint,
        token: to.token === undefined ? undefined : this.#seal(project, id, to.token) }
      await lifecycle.change(guest, { phase: 'hibernated', healthy: null, process: null, move,
        from: { snapshot: written.snapshot, event: 'wake', at, sizes: written } },
        (tx) => tx.event('guest.migrating', eventOf(guest, { to: going.peer.name, name })))
      going.state = outgoingAfter(going.state, 'committed')
    } catch (error) {
      captures.goOn(guest)
      files.release(guest.row.project, written.snapshot)
      throw error
    }
    captures.release(guest)
    guest.listening = void guest.listening?.close()
    return (performance.now() - began) * 1e6
  }

  // What is to be moved is still what it was, and where it was.
  #check({ guest, run, control }: Going): void {
    control.signal.throwIfAborted()
    this.#parts.lifecycle.checkStays(guest)
    checkPhase('move', guest, ['running'])
    if (guest.row.run !== run) throw new CellarError('CAPTURE_ENDED', [guest.row.name])
  }

  // At first it is only said what there is, and the destination says what it lacks. `patience`: it is the last.
  async #send(going: Going, snapshot: string, patience?: AbortSignal): Promise<void> {
    const { guest, peer, place, before, control } = going
    const path = `${place}/snapshot${patience === undefined ? '' : '?last'}`
    const signal = patience === undefined ? control.signal : AbortSignal.any([control.signal, patience])
    const send = async (wanted: Wanted): Promise<readonly string[]> => {
      if (guest.handle === undefined) throw new CellarError('CAPTURE_ENDED', [guest.row.name])
      // A machine's own process carries nothing: the project's cells have one that does.
      const carrier = guest.handle.kind === 'cells' ? guest.handle : await this.#parts.carrier(guest.row.project)
      const bytes = this.#parts.transfers.transmit(carrier, snapshot, wanted)
      const { missing } = await peer.ask<{ missing: unknown }>('PUT', path, { bytes, signal })
      if (Array.isArray(missing) && missing.every((one) => typeof one === 'string')) return missing
      throw new CellarError('MOVE_REFUSED', [guest.row.name, peer.name, 'it does not say what it lacks'])
    }
    let missing = await send(before === undefined ? { chunks: [] } : { without: before })
    // What it had of another guest's it may have no more when the rest comes.
    for (let tries = 0; missing.length > 0; tries++) {
      if (tries === SEND_TRIES) throw new CellarError('MOVE_REFUSED', [guest.row.name, peer.name, LOSES])
      missing = await send({ chunks: missing })
    }
  }

  // ---- after the commit

  async #resume(guest: Guest, move: Move): Promise<void> {
    const { project, name } = guest.row
    let peer: Peer | undefined
    try {
      peer = new Peer({ to: move.peer, fingerprint: move.fingerprint,
        token: move.token === undefined ? undefined : this.#open(project, move.id, move.token) })
      const answer = await this.#ask(guest, peer, move)
      if (answer !== undefined) await this.#settle(guest, peer, answer)
    } catch (error) {
      this.#parts.log.error('cannot ask about a move', { project, guest: name, why: (error as Error).message })
    } finally {
      peer?.close()
    }
  }

  // Undefined if this host is to end: the next one asks.
  async #ask(guest: Guest, peer: Peer, { id, host }: Move): Promise<Activated | undefined> {
    const { project, name, from } = guest.row
    const { signal } = this.#closing
    const path = `/v1/projects/${project}/moves/${id}/activate`
    const stoppedAt = from !== null && 'snapshot' in from ? from.at : Date.now()
    for (let pauseMs = ASK_MS_MIN; ; pauseMs = Math.min(ASK_MS_MAX, pauseMs * 2)) {
      try {
        const { state, why } = await peer.ask<Activated>('POST', path, { json: { host, stoppedAt }, signal })
        if (state === 'active' || state === 'dropped') {
          return { state, ...(why === undefined ? {} : { why: printable(String(why), 1000) }) }
        }
        throw new Error('it answers neither yes nor no')
      } catch (error) {
        if (signal.aborted) return undefined
        this.#parts.log.warn('a move is not answered, asking again', { project, guest: name, to: peer.name,
          why: (error as Error).message })
      }
      await sleep(pauseMs, undefined, { signal, ref: false }).catch(() => {})
      if (signal.aborted) return undefined
    }
  }

  async #settle(guest: Guest, peer: Peer, answer: Activated): Promise<void> {
    const { files } = this.#parts
    const { row } = guest
    const { id } = row.move!
    if (answer.state === 'dropped') await this.#takeBack(guest, peer, answer.why)
    else {
      await this.#commit((tx) => {
        tx.deleteGuest(row.id)
        tx.event('guest.migrated', eventOf(guest, { to: peer.name }))
      })
      this.#parts.state.removeGuest(guest)
      guest.changed()
      if (row.from !== null && 'snapshot' in row.from) files.release(row.project, row.from.snapshot)
      await this.#parts.clear(row)
    }
    await this.#acknowledge(peer, `/v1/projects/${row.project}/moves/${id}/acknowledge`)
  }

  // It goes on where it stopped, here.
  async #takeBack(guest: Guest, peer: Peer, why = 'it was dropped there'): Promise<void> {
    const { lifecycle, state } = this.#parts
    state.setRow(guest, { ...guest.row, move: null, phase: 'starting', run: guest.row.run + 1 })
    await this.#commit((tx) => {
      tx.putGuest(guest.row)
      tx.event('guest.stayed', eventOf(guest, { to: peer.name, why }))
    })
    guest.changed()
    void lifecycle.launch(guest)
  }

  // What the other host has decided is so: it is committed when that works.
  async #commit(work: Parameters<Store['commit']>[0]): Promise<void> {
    for (;;) {
      try {
        return void await this.#parts.store.commit(work)
      } catch (error) {
        if (this.#closing.signal.aborted) throw error
        this.#parts.log.error('cannot commit, trying again', { why: (error as Error).message })
        await sleep(COMMIT_AGAIN_MS, undefined, { ref: false })
      }
    }
  }

  async #acknowledge(peer: Peer, path: string): Promise<void> {
    const { signal } = this.#closing
    for (let tries = 0; tries < ACKNOWLEDGE_TRIES && !signal.aborted; tries++) {
      try {
        return await peer.ask('POST', path, { signal })
      } catch {
        await sleep(ASK_MS_MIN * 4 ** tries, undefined, { signal, ref: false }).catch(() => {})
      }
    }
  }

  #seal(project: string, move: string, token: string): string {
    return Buffer.from(this.#parts.secrets.seal(project, placeOf(move), Buffer.from(token))).toString('base64')
  }

  #open(project: string, move: string, sealed: string): string {
    return new TextDecoder().decode(this.#parts.secrets.open(project, placeOf(move), Buffer.from(sealed, 'base64')))
  }
}

// Where a token is sealed: no secret has such a name.
function placeOf(move: string): string {
  return `move ${move}`
}

const NO_IMAGE = 'it does not have the image of that machine: push it to a registry, and pull it there'
