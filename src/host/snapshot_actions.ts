// host/snapshot_actions.ts: what operators do with guests that run: pause, save, copy; and with what was saved.
//
// A snapshot is a row and files (snapshot_files.ts). Its row is committed when its files are on the disk; a crash
// before that leaves files that nobody knows of, which go. A fork's children are rows before they are forked: they run
// in the process that the guest is in, and one that isn't there after a crash never was. Elsewhere: what processes are
// told (captures.ts), hibernation (hibernation.ts), moves and registries (migrate_actions.ts, snapshot_remotes.ts).

import { randomBytes } from 'node:crypto'
import { CellarError } from '../base/errors.ts'
import { CELLS_PER_PROCESS_MAX, FORKS_MAX, GUESTS_MAX, PROJECT_ITEMS_MAX } from '../base/limits.ts'
import { signals } from '../base/signals.ts'
import { makeRam, sealRam } from '../sys/guest_ram.ts'
import { closeFd } from '../sys/sockets.ts'
import { memoryLimit } from './admission.ts'
import type { Captures } from './captures.ts'
import { checkName, type GuestActions } from './guest_actions.ts'
import { eventOf, volumesOf, type Lifecycle } from './lifecycle.ts'
import type { GuestView, Operator, SnapshotView } from './operator.ts'
import type { Paths } from './paths.ts'
import { dropPorts, Listening, shareFd } from './ports.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import { makeLogFolder, makeMachineFolder } from './project_folder.ts'
import type { ProjectActions } from './project_actions.ts'
import type { GuestLaunch, Written } from './protocol.ts'
import type { Beginning, GuestRow, SnapshotRow } from './rows.ts'
import type { SnapshotFiles } from './snapshot_files.ts'
import { GUEST_SPEC, parsePort, type GuestSpec } from './spec.ts'
import { keyOf, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import type { Transaction } from './transaction.ts'

/** How long the children of a fork may take until they run. */
const FORKED_MS_MAX = 10_000

type Parts = {
  readonly state: State; readonly store: Store; readonly lifecycle: Lifecycle; readonly captures: Captures
  readonly files: SnapshotFiles; readonly projects: ProjectActions; readonly guests: GuestActions
  readonly processes: Processes; readonly paths: Paths
}
type SaveOptions = Parameters<Operator['snapshotGuest']>[2]
type ForkOptions = Parameters<Operator['forkGuest']>[2]
type RestoreOptions = Parameters<Operator['restoreGuest']>[2]

type Note = (tx: Transaction) => void

/** Actions on guests that run, and on snapshots. */
export class SnapshotActions {
  readonly #parts: Parts

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Keeps a guest from running. */
  pause(guest: Guest): Promise<void> {
    const { lifecycle, captures } = this.#parts
    return captures.alone(guest, async () => {
      lifecycle.checkStays(guest)
      if (guest.row.phase === 'paused') return
      checkPhase('pause', guest, ['running'])
      await lifecycle.change(guest, { phase: 'paused' }, (tx) => tx.event('guest.paused', eventOf(guest, {})))
      await captures.pause(guest, true)
    })
  }

  /** Lets a guest that is paused run again. */
  resume(guest: Guest): Promise<void> {
    const { lifecycle, captures } = this.#parts
    return captures.alone(guest, async () => {
      lifecycle.checkStays(guest)
      if (guest.row.phase === 'running') return
      checkPhase('resume', guest, ['paused'])
      await lifecycle.change(guest, { phase: 'running' }, (tx) => tx.event('guest.resumed', eventOf(guest, {})))
      await captures.pause(guest, false)
    })
  }

  /** Saves a guest; `stop`: and stops it there. */
  save(guest: Guest, { name, stop = false }: SaveOptions): Promise<SnapshotView> {
    const { lifecycle, captures, files, projects } = this.#parts
    return captures.alone(guest, async () => {
      lifecycle.checkStays(guest)
      projects.checkOpen(guest.row.project)
      if (name !== undefined) checkName('snapshot', name)
      checkPhase('save', guest, ['running', 'paused', 'hibernated'])
      this.checkRoom(guest.row.project, name ?? guest.row.name)
      const { phase, from } = guest.row
      if (phase === 'hibernated') return await this.#saveAsleep(guest, from, name, stop)
      const written = await captures.capture(guest, stop ? 'hold' : 'resume', true)
      const row = this.#rowOf(guest, name ?? null, written.snapshot, written)
      try {
        return stop ? await this.#stopThere(guest, row) : await this.#put(guest, row)
      } catch (error) {
        captures.goOn(guest)
        files.release(row.project, row.digest)
        throw error
      }
    })
  }

  // What it will go on from is saved already.
  async #saveAsleep(guest: Guest, from: Beginning | null, name: string | undefined, stop: boolean):
  Promise<SnapshotView> {
    const { state, lifecycle } = this.#parts
    if (from === null || !('snapshot' in from)) throw new CellarError('GUEST_NOT_RUNNING', [guest.row.name, 'lost'])
    const known = state.snapshots.get(keyOf(guest.row.project, from.snapshot))
    if (known?.name !== undefined && known.name !== null && name !== undefined && known.name !== name) {
      throw new CellarError('EXISTS', ['snapshot', known.name])
    }
    const view = await this.#put(guest, this.#rowOf(guest, name ?? known?.name ?? null, from.snapshot,
      from.sizes ?? { memoryBytes: 0, newBytes: 0, storedBytes: 0 }))
    if (stop) await lifecycle.stop(guest, signals.SIGTERM)
    return view
  }

  // It is held in its process: it is committed that it stopped there, then let go of.
  async #stopThere(guest: Guest, row: SnapshotRow): Promise<SnapshotView> {
    checkPhase('save', guest, ['running', 'paused'])
    const exit = { status: 128 + signals.SIGTERM, reason: `stopped where snapshot ${row.digest.slice(0, 19)} has it` }
    const { run } = guest.row
    const view = await this.#put(guest, row, {
      desired: 'stopped', phase: 'stopped', healthy: null, process: null, ports: [], endedAt: Date.now(), exit },
      (tx) => tx.event('guest.ended', eventOf(guest, { ...exit, run, next: 'stopped' })))
    this.#parts.captures.release(guest)
    guest.listening = void guest.listening?.close()
    return view
  }

  #rowOf({ row }: Guest, name: string | null, digest: string,
    { memoryBytes, newBytes, storedBytes }: Pick<Written, 'memoryBytes' | 'newBytes' | 'storedBytes'>): SnapshotRow {
    return { project: row.project, digest, name, guest: row.name, spec: row.spec, module: row.digest,
      manifestDigest: row.manifestDigest, memoryBytes, newBytes, storedBytes, createdAt: Date.now() }
  }

  async #put(guest: Guest, row: SnapshotRow, changes: Partial<GuestRow> = {}, also?: Note): Promise<SnapshotView> {
    await this.add(row, (put) => this.#parts.lifecycle.change(guest, changes, (tx) => {
      put(tx)
      also?.(tx)
      tx.event('guest.snapshot', eventOf(guest, { snapshot: row.digest, name: row.name,
        memoryBytes: row.memoryBytes, newBytes: row.newBytes }))
    }))
    return this.view(row)
  }

  /**
   * Adds a snapshot whose files are there. A name that another has is moved to it. `commit`: commits what it is given,
   * together with what else belongs to it.
   */
  async add(row: SnapshotRow, commit: (put: Note) => Promise<unknown>): Promise<void> {
    const { state } = this.#parts
    const key = keyOf(row.project, row.digest)
    const before = state.snapshots.get(key)
    const named = row.name === null ? undefined : state.of(state.snapshots, row.project)
      .find(({ name, digest }) => name === row.name && digest !== row.digest)
    // At once: two of one name, else, would both find it free.
    if (named !== undefined) state.snapshots.set(keyOf(named.project, named.digest), { ...named, name: null })
    state.snapshots.set(key, row)
    try {
      await commit((tx) => {
        if (named !== undefined) tx.putSnapshot({ ...named, name: null })
        tx.putSnapshot(row)
      })
    } catch (error) {
      if (before !== undefined) state.snapshots.set(key, before)
      else state.snapshots.delete(key)
      if (named !== undefined) state.snapshots.set(keyOf(named.project, named.digest), named)
      throw error
    }
  }

  /** Throws ADMISSION_REFUSED if the project has as many snapshots as it may have. */
  checkRoom(project: string, name: string): void {
    const { state } = this.#parts
    if (state.of(state.snapshots, project).length < PROJECT_ITEMS_MAX) return
    throw new CellarError('ADMISSION_REFUSED', [name, 'room', '1 snapshot', `0 of ${PROJECT_ITEMS_MAX}`])
  }

  // ---- copies

  /** Copies of a guest as it is now, which run when this resolves. */
  fork(guest: Guest, { count, names }: ForkOptions): Promise<GuestView[]> {
    const { state, lifecycle, captures, projects } = this.#parts
    return captures.alone(guest, async () => {
      lifecycle.checkStays(guest)
      const { name, project, phase } = guest.row
      projects.checkOpen(project)
      checkPhase('fork', guest, ['running', 'paused', 'hibernated'])
      if (typeof guest.uncapturable === 'string') {
        throw new CellarError('CAPTURE_IMPOSSIBLE', [name, guest.uncapturable])
      }
      const room = phase === 'hibernated' ? FORKS_MAX
        : Math.min(FORKS_MAX, CELLS_PER_PROCESS_MAX - (guest.handle?.guests.size ?? 0))
      const left = Math.min(room, GUESTS_MAX - state.guests.size)
      if (!(count >= 1 && count <= left)) {
        throw new CellarError('ADMISSION_REFUSED', [name, 'room', `${count} copies`, `${Math.max(0, left)} at once`])
      }
      const children = await this.#addChildren(guest, this.#namesFor(guest, count, names))
      if (phase === 'hibernated') for (const child of children) void lifecycle.launch(child)
      else if (guest.row.spec.machine !== undefined) await this.#forkMachine(guest, children)
      else await this.#forkNow(guest, children)
      await Promise.all(children.map((child) => child.reaches(BEGUN, FORKED_MS_MAX)))
      return children.map((child) => child.view())
    })
  }

  #namesFor({ row: { project, name } }: Guest, count: number, names: readonly string[] | undefined): string[] {
    const { state } = this.#parts
    const given = names ?? []
    for (const one of given) {
      checkName('guest', one)
      if (state.byName(project, one) !== undefined || given.indexOf(one) !== given.lastIndexOf(one)) {
        throw new CellarError('EXISTS', ['guest', one])
      }
    }
    if (names !== undefined && names.length !== count) {
      throw new CellarError('REQUEST_INVALID', [`${names.length} names are given for ${count} copies`])
    }
    const found = [...given]
    for (let i = 1; found.length < count; i++) {
      const end = `-${i}`
      const one = `${name.slice(0, NAME_LENGTH_MAX - end.length)}${end}`
      if (state.byName(project, one) === undefined) found.push(one)
    }
    return found
  }

  // Their rows, checked one after the other, so that each counts for the next; all of them or none.
  async #addChildren(guest: Guest, names: readonly string[]): Promise<Guest[]> {
    const { state, guests } = this.#parts
    const { row } = guest
    const asleep = row.phase === 'hibernated' && row.from !== null && 'snapshot' in row.from ? row.from : undefined
    const from: Beginning = asleep === undefined ? { fork: row.id }
      : { snapshot: asleep.snapshot, event: 'fork', at: asleep.at }
    const spec = withOwnPorts(row.spec)
    await guests.makeRoom(spec, names.length)
    const children: Guest[] = []
    try {
      for (const name of names) {
        const child = childOf(row, name, spec, { origin: { fork: row.name }, from })
        guests.check(child, undefined)
        children.push(state.addGuest(child))
      }
      await this.#parts.store.commit((tx) => {
        for (const child of children) tx.putGuest(child.row)
        tx.event('guest.forked', eventOf(guest, { count: names.length, names: names.slice(0, NAMES_TOLD_MAX) }))
      })
      return children
    } catch (error) {
      for (const child of children) state.removeGuest(child)
      throw error
    }
  }

  async #forkNow(guest: Guest, children: readonly Guest[]): Promise<void> {
    const { captures } = this.#parts
    const { handle } = guest
    const undo: (() => void)[] = []
    try {
      if (handle?.link === undefined) throw new CellarError('GUEST_NOT_RUNNING', [guest.row.name, guest.row.phase])
      const launches: GuestLaunch[] = []
      for (const [i, child] of children.entries()) {
        launches.push(await this.#launchOf(child, handle, i + 1, undo))
      }
      // It may have ended while the ports were given.
      if (guest.handle !== handle) throw new CellarError('CAPTURE_ENDED', [guest.row.name])
      await captures.fork(guest, launches)
    } catch (error) {
      for (const step of undo.reverse()) step()
      await this.#removeChildren(children)
      throw error
    }
  }

  // Each child has a process of its own: RAM is copied once, into memory that all of them share until they write.
  async #forkMachine(guest: Guest, children: readonly Guest[]): Promise<void> {
    const { captures, lifecycle, state, paths } = this.#parts
    const ramBytes = memoryLimit(guest.row.spec)
    const ramFd = makeRam(ramBytes)
    try {
      const { handle } = guest
      if (handle?.link === undefined) throw new CellarError('GUEST_NOT_RUNNING', [guest.row.name, guest.row.phase])
      const folders = children.map(({ row: { project, id } }) => {
        makeMachineFolder(paths, project, id, state.projects.get(project)?.uid ?? undefined)
        return { folder: paths.machine(project, id) }
      })
      await captures.forkMachine(guest, await shareFd(handle, ramFd), folders)
      // Who was forked, and each child, has it as well: none of them is to change what the others run on.
      if (!sealRam(ramFd, ramBytes)) throw new CellarError('PROCESS_LOST', [guest.row.project, 'it keeps what it gave'])
      await Promise.all(children.map((child, i) => lifecycle.launch(child, { ramFd, number: i + 1 })))
    } catch (error) {
      await this.#removeChildren(children)
      throw error
    } finally {
      closeFd(ramFd)
    }
  }

  async #launchOf(child: Guest, handle: ProcessHandle, number: number, undo: (() => void)[]): Promise<GuestLaunch> {
    const { state, lifecycle, processes, paths } = this.#parts
    const { id, project, spec } = child.row
    child.volumes = volumesOf(child.row)
    processes.join(handle, id, child.volumes)
    child.handle = handle
    child.launches++
    undo.push(() => {
      // Should it be there in spite of all.
      handle.link?.send({ stop: id, run: child.row.run, signal: signals.SIGKILL })
      processes.leave(handle, id, child.volumes)
      child.handle = undefined
    })
    makeLogFolder(paths, project, id, state.projects.get(project)?.uid ?? undefined)
    if (spec.ports.length === 0) return lifecycle.launchOf(child, new Map(), { number })
    const listening = child.listening = new Listening(spec)
    undo.push(() => listening.close())
    const tickets = await listening.share(handle)
    undo.push(() => dropPorts(handle, tickets))
    state.setRow(child, { ...child.row, ports: listening.published })
    return lifecycle.launchOf(child, tickets, { number })
  }

  // None of them has run. What can't be committed is so after the next start, too.
  async #removeChildren(children: readonly Guest[]): Promise<void> {
    const { state, store } = this.#parts
    for (const child of children) state.removeGuest(child)
    await store.commit((tx) => { for (const { row } of children) tx.deleteGuest(row.id) }).catch(() => {})
    for (const child of children) child.changed()
  }

  // ---- what was saved

  list(project: string): SnapshotView[] {
    const { state, projects } = this.#parts
    projects.project(project)
    return state.of(state.snapshots, project).map((row) => this.view(row))
  }

  one(project: string, reference: string): SnapshotView {
    return this.view(this.#parts.state.snapshot(project, reference))
  }

  /** Throws IN_USE if a guest goes on from it. */
  async remove(project: string, reference: string): Promise<void> {
    const { state, store, files } = this.#parts
    const row = state.snapshot(project, reference)
    const by = files.guestOf(project, row.digest)
    if (by !== undefined) throw new CellarError('IN_USE', ['snapshot', row.name ?? row.digest, `guest ${by}`])
    const key = keyOf(project, row.digest)
    // At once: nobody begins with it any more.
    state.snapshots.delete(key)
    try {
      await store.commit((tx) => {
        tx.deleteSnapshot(project, row.digest)
        tx.event('snapshot.removed', { project, data: { snapshot: row.digest, name: row.name } })
      })
    } catch (error) {
      if (!state.snapshots.has(key)) state.snapshots.set(key, row)
      throw error
    }
    files.release(project, row.digest)
  }

  /** A new guest that goes on from a snapshot, committed and on its way. */
  async restore(project: string, reference: string, { name: given, ports = [] }: RestoreOptions,
    checkSpec: (spec: GuestSpec) => void): Promise<GuestView> {
    const { state, projects, guests } = this.#parts
    projects.checkOpen(project)
    const saved = state.snapshot(project, reference)
    const name = given ?? this.#newName(project, saved.guest)
    checkName('guest', name)
    if (state.byName(project, name) !== undefined) throw new CellarError('EXISTS', ['guest', name])
    if (state.guests.size >= GUESTS_MAX) {
      throw new CellarError('ADMISSION_REFUSED', [name, 'room', '1 guest', `0 of ${GUESTS_MAX}`])
    }
    const spec = withOwnPorts(saved.spec, ports)
    checkSpec(spec)
    const row = childOf({ project, digest: saved.module, manifestDigest: saved.manifestDigest }, name, spec, {
      origin: { snapshot: saved.digest }, from: { snapshot: saved.digest, event: 'restore', at: saved.createdAt } })
    const guest = await guests.add(row, 'guest.restored', { snapshot: saved.digest, from: saved.guest })
    return guest.view()
  }

  #newName(project: string, base: string): string {
    for (;;) {
      const end = `-${randomBytes(2).toString('hex')}`
      const name = `${base.slice(0, NAME_LENGTH_MAX - end.length)}${end}`
      if (this.#parts.state.byName(project, name) === undefined) return name
    }
  }

  view({ manifestDigest: _, name, ...row }: SnapshotRow): SnapshotView {
    const guests = this.#parts.state.ofProject(row.project)
      .filter(({ row: { origin } }) => origin?.snapshot === row.digest).length
    return { ...row, ...(name === null ? {} : { name }), guests }
  }
}

/** Throws GUEST_PHASE_WRONG. */
export function checkPhase(what: string, { row: { name, phase } }: Guest, phases: readonly GuestRow['phase'][]): void {
  if (!phases.includes(phase)) throw new CellarError('GUEST_PHASE_WRONG', [what, name, phase])
}

// A guest that begins with the state of another.
function childOf(parent: Pick<GuestRow, 'project' | 'digest' | 'manifestDigest'>, name: string, spec: GuestSpec,
  { origin, from }: Pick<GuestRow, 'origin' | 'from'>): GuestRow {
  return { id: randomBytes(6).toString('hex'), project: parent.project, name, spec, digest: parent.digest,
    manifestDigest: parent.manifestDigest, generation: 1, desired: 'running', phase: 'starting', healthy: null,
    createdAt: Date.now(), startedAt: null, endedAt: null, restarts: 0, run: 1, process: null, exit: null, ports: [],
    managedBy: null, origin, from, move: null, address: 0 }
}

// Ports that the first guest publishes are taken: the host chooses others, or `given` says which. Which of its own
// ports a guest listens on, and in which order, is part of its state.
function withOwnPorts(spec: GuestSpec, given: readonly string[] = []): GuestSpec {
  const wanted = new Map<number, string>()
  for (const text of given) {
    const port = parsePort(text)
    if (port === undefined || !spec.ports.some((own) => parsePort(own)!.guest === port.guest)) {
      throw new CellarError('REQUEST_INVALID', [`"${text}" is no port that it publishes: ${spec.ports.join(', ')}`])
    }
    wanted.set(port.guest, text)
  }
  const ports = spec.ports.map((text) => {
    const { address, guest } = parsePort(text)!
    const own = wanted.get(guest)
    wanted.delete(guest)
    return own ?? `${address.includes(':') ? `[${address}]` : address}:0:${guest}`
  })
  return GUEST_SPEC.parse({ ...spec, ports })
}

/** Phases of one that has begun, however that went. */
const BEGUN = ['running', 'paused', 'stopping', 'backing-off', 'exited', 'failed', 'stopped'] as const
const NAME_LENGTH_MAX = 40
const NAMES_TOLD_MAX = 100
