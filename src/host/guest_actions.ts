// host/guest_actions.ts: what operators do with guests: create, change, start, stop, remove, apply a manifest.
//
// Each is checked whole before anything changes: references, ports, what the host can promise. Then it is committed,
// then done. Elsewhere: how a guest comes to run (lifecycle.ts), what a manifest changes (apply.ts).

import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { GUESTS_MAX, MACHINE_MEMORY_BYTES_MIN } from '../base/limits.ts'
import { signals } from '../base/signals.ts'
import { formatSize, parseSize } from '../base/units.ts'
import { admit, memoryLimit, ofHost, ofPool, type Capacity, type Promised } from './admission.ts'
import { complete, type OfImage } from './complete.ts'
import { areLive, changedFields, guestSpecs, planApply } from './apply.ts'
import { parseRules } from './egress.ts'
import { guestPorts, parseVolume } from './launch.ts'
import { eventOf, volumesOf, type Lifecycle } from './lifecycle.ts'
import type { Actor, ApplyChange, GuestView, Phase } from './operator.ts'
import type { Paths } from './paths.ts'
import type { ProcessHandle } from './processes.ts'
import type { ProjectActions } from './project_actions.ts'
import type { GuestRow } from './rows.ts'
import { NAME, parsePort, type GuestSpec, type Manifest } from './spec.ts'
import { ACTIVE, isPromised, keyOf, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import type { Transaction } from './transaction.ts'
import type { VolumeActions } from './volume_actions.ts'
import { removeTree } from './volumes.ts'

/** How long a stop may take: a guest ends at its next check, unless a system call of its holds it up. */
const STOP_MS_MAX = 30_000
/** How long a kill may take until the guest's process is killed. */
const KILL_MS_MAX = 10_000
const ENDED: readonly Phase[] = ['stopped', 'exited', 'failed', 'created']

type Parts = {
  readonly endProcess: (handle: ProcessHandle) => void
  readonly state: State; readonly store: Store; readonly lifecycle: Lifecycle; readonly projects: ProjectActions
  readonly volumes: VolumeActions; readonly paths: Paths; readonly capacity: Capacity
  /** What an image's name or digest leads to. Throws CellarError. */
  readonly resolveImage: (reference: string) => { readonly digest: string; readonly module: string } & OfImage
  /** Hibernates who may be, until so much memory can be promised, if that is enough. */
  readonly makeRoom: (memoryBytes: number) => Promise<void>
}

/** Actions on guests. */
export class GuestActions {
  readonly #parts: Parts

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Creates a guest, and starts it if it is to run. Resolves when that is committed. */
  async create(project: string, given: string | undefined, said: GuestSpec, start: boolean, isManaged = false):
  Promise<Guest> {
    const { state, projects } = this.#parts
    if (state.guests.size >= GUESTS_MAX) {
      throw new CellarError('ADMISSION_REFUSED', [given ?? 'a guest', 'room', '1 guest', `0 of ${GUESTS_MAX}`])
    }
    const name = given ?? this.#newName(project, said.image)
    checkName('guest', name)
    complete(name, said, this.#parts.resolveImage(said.image))
    await projects.ensure(project)
    // Again: it may have been removed meanwhile.
    const { digest, module, ...image } = this.#parts.resolveImage(said.image)
    const spec = complete(name, said, image)
    if (state.byName(project, name) !== undefined) throw new CellarError('EXISTS', ['guest', name])
    const row: GuestRow = {
      id: randomBytes(6).toString('hex'), project, name, spec, digest: module, manifestDigest: digest, generation: 1,
      desired: start ? 'running' : 'stopped', phase: start ? 'starting' : 'created', healthy: null,
      createdAt: Date.now(), startedAt: null, endedAt: null, restarts: 0, run: start ? 1 : 0, process: null, exit: null,
      ports: [], managedBy: isManaged ? 'apply' : null, origin: null, from: null, move: null, address: 0,
    }
    return await this.add(row, 'guest.created', { image: spec.image })
  }

  /** Adds a guest, and launches it if it is to run. `kind`, `data`: of the event. Resolves when that is committed. */
  async add(row: GuestRow, kind: string, data: Readonly<Record<string, unknown>>): Promise<Guest> {
    const { state, store, lifecycle, projects } = this.#parts
    if (row.desired === 'running') await this.makeRoom(row.spec)
    // Again: room may have taken its time.
    projects.checkOpen(row.project)
    if (state.byName(row.project, row.name) !== undefined) throw new CellarError('EXISTS', ['guest', row.name])
    this.check(row, undefined)
    const guest = state.addGuest(row)
    try {
      await store.commit((tx) => {
        tx.putGuest(guest.row)
        tx.event(kind, eventOf(guest, data))
      })
    } catch (error) {
      state.removeGuest(guest)
      throw error
    }
    if (row.phase === 'starting') void lifecycle.launch(guest)
    return guest
  }

  /** Gives a guest another spec; it is restarted if it can't take it as it runs. */
  async replace(guest: Guest, said: GuestSpec, generation: number | undefined): Promise<Guest> {
    const { state, store, lifecycle } = this.#parts
    const before = guest.row
    if (guest.removal !== undefined) throw new CellarError('IN_USE', ['guest', before.name, 'its removal'])
    if (generation !== undefined && generation !== before.generation) {
      throw new CellarError('GENERATION_STALE', [before.name, String(generation), before.generation])
    }
    const { digest, module, ...image } = this.#parts.resolveImage(said.image)
    const spec = complete(before.name, said, image)
    const fields = changedFields(spec, before.spec)
    if (fields.length === 0 && module === before.digest) return guest
    const row: GuestRow = { ...before, spec, digest: module, manifestDigest: digest, generation: before.generation + 1,
      // What it was restored from doesn't fit any more.
      ...(areLive(fields) ? {} : { origin: null }) }
    this.check(row, guest)
    state.setRow(guest, row)
    try {
      await store.commit((tx) => {
        tx.putGuest(guest.row)
        tx.event('guest.changed', eventOf(guest, { fields }))
      })
    } catch (error) {
      state.setRow(guest, { ...guest.row, spec: before.spec, digest: before.digest,
        manifestDigest: before.manifestDigest, generation: before.generation, origin: before.origin })
      throw error
    }
    if (areLive(fields) && module === before.digest) lifecycle.tellTerms(guest)
    else if (guest.row.desired === 'running') await lifecycle.restart(guest)
    return guest
  }

  /** Starts a guest, if what it was promised is still there. `note`: what is committed with it. */
  async start(guest: Guest, note?: (tx: Transaction) => void): Promise<GuestView> {
    if (!isPromised(guest.row)) {
      await this.makeRoom(guest.row.spec)
      this.check({ ...guest.row, desired: 'running', phase: 'starting' }, guest)
    }
    await this.#parts.lifecycle.start(guest, note)
    return guest.view()
  }

  /** Ends it, if it runs, and starts it anew. */
  async restart(guest: Guest): Promise<GuestView> {
    if (!isPromised(guest.row)) this.check({ ...guest.row, desired: 'running', phase: 'starting' }, guest)
    await this.#parts.lifecycle.restart(guest)
    return guest.view()
  }

  async stop(guest: Guest, signal: number): Promise<GuestView> {
    await this.#parts.lifecycle.stop(guest, signal)
    const isKill = signal === signals.SIGKILL
    if (!await guest.reaches(ENDED, isKill ? KILL_MS_MAX : STOP_MS_MAX) && isKill && guest.handle !== undefined) {
      // Its process doesn't do as it is told: it ends, and who else is in it is started again.
      this.#parts.endProcess(guest.handle)
      await guest.reaches(ENDED, STOP_MS_MAX)
    }
    return guest.view()
  }

  /** Asks a machine's balloon to leave it so much memory. Throws CELL_WORD, GUEST_NOT_RUNNING, GUEST_UNSUPPORTED. */
  resize({ row, handle }: Guest, memoryBytes: number): void {
    const { id, run, name, phase, spec } = row
    if (spec.machine === undefined) throw new CellarError('CELL_WORD', [name, 'resize'])
    if (phase !== 'running' || handle?.link === undefined) throw new CellarError('GUEST_NOT_RUNNING', [name, phase])
    const most = memoryLimit(spec)
    if (memoryBytes > most || memoryBytes < MACHINE_MEMORY_BYTES_MIN) {
      throw new CellarError('GUEST_UNSUPPORTED', [name, `its memory can be ${formatSize(MACHINE_MEMORY_BYTES_MIN)} to ${
        formatSize(most)} while it runs: ${formatSize(memoryBytes)} is asked for`])
    }
    handle.link.send({ resize: id, run, memoryBytes })
  }

  async remove(guest: Guest, force: boolean): Promise<void> {
    const { name, phase } = guest.row
    if (ACTIVE.includes(phase) && !force) throw new CellarError('GUEST_RUNNING', [name])
    guest.removal ??= this.#removeNow(guest).finally(() => { guest.removal = undefined })
    await guest.removal
  }

  // Nobody starts or changes it meanwhile (`removal`): what is committed last is that it is gone.
  async #removeNow(guest: Guest): Promise<void> {
    const { state, store, paths } = this.#parts
    const { id, project, name } = guest.row
    await this.stop(guest, signals.SIGKILL)
    if (ACTIVE.includes(guest.row.phase)) throw new CellarError('GUEST_RUNNING', [name])
    await store.commit((tx) => {
      tx.deleteGuest(id)
      tx.event('guest.removed', eventOf(guest, {}))
    })
    state.removeGuest(guest)
    guest.changed()
    // What a crash leaves of these is swept at the host's start.
    for (const folder of [paths.files(project, id), join(paths.logs(project), id), paths.machine(project, id)]) {
      await removeTree(folder).catch(() => {})
    }
  }

  /** Makes a project as its manifest says: what was changed, or would be. */
  async apply(project: string, manifest: Manifest, { dryRun, prune }: { dryRun: boolean; prune: boolean }, by: Actor):
  Promise<ApplyChange[]> {
    const { state, projects, volumes } = this.#parts
    const specs = guestSpecs(manifest)
    const changes = planApply(manifest, {
      guests: new Map(state.ofProject(project).map(({ row }) =>
        [row.name, { spec: row.spec, digest: row.digest, managed: row.managedBy !== null }])),
      pools: new Map(state.of(state.pools, project).map(({ name, spec }) => [name, spec])),
      volumes: new Map(state.of(state.volumes, project).map((row) => [row.name, row])),
      networks: new Set(['default', ...state.of(state.networks, project).map(({ name }) => name)]),
      resolve: (image) => this.#parts.resolveImage(image).module,
      complete: (name, spec) => complete(name, spec, this.#parts.resolveImage(spec.image)),
    }, prune)
    if (dryRun) return changes
    await projects.ensure(project)
    const putPool = (name: string): Promise<unknown> => projects.putPool(project, name, manifest.pools[name]!)
    // One that shrinks together with its cells does so when they have.
    const later: string[] = []
    const unlessLater = (name: string) => (error: unknown): void => {
      if (!(error instanceof CellarError) || error.code !== 'ADMISSION_REFUSED') throw error
      if (!state.pools.has(keyOf(project, name))) throw error
      later.push(name)
    }
    for (const { kind, name, action } of changes) {
      if (action === 'none') continue
      if (kind === 'network') await projects.putNetwork(project, name)
      if (kind === 'pool') await putPool(name).catch(unlessLater(name))
      if (kind !== 'volume') continue
      if (action === 'create') await volumes.create(project, name, manifest.volumes[name]!, by)
      else await volumes.resize(project, name, parseSize(manifest.volumes[name]!.size)!)
    }
    const guests = changes.filter(({ kind, action }) => kind === 'guest' && action !== 'none')
    // First who makes room, then who takes it.
    for (const { name, action } of guests) {
      if (action === 'remove') await this.remove(state.guest(project, name), true)
    }
    await Promise.all(guests.map(async ({ name, action }) => {
      if (action === 'create') await this.create(project, name, specs.get(name)!, true, true)
      else if (action !== 'remove') {
        const guest = state.guest(project, name)
        await this.replace(guest, specs.get(name)!, undefined)
        // What has ended or was stopped, and is to be otherwise now, is to run.
        if (guest.row.desired !== 'running') await this.start(guest)
      }
    }))
    for (const name of later) await putPool(name)
    return changes
  }

  /** Makes room for the memory that so many guests of this spec are promised, as far as that can be. */
  async makeRoom(spec: GuestSpec, count = 1): Promise<void> {
    await this.#parts.makeRoom(ofHost(spec).memoryBytes * count)
  }

  /** Throws what may speak against this row. `self`: the guest as it is, whose promises it may use anew. */
  check(row: GuestRow, self: Guest | undefined): void {
    const { state, capacity } = this.#parts
    const { name, project, spec } = row
    this.#checkReferences(row)
    checkWords(name, spec)
    if (self?.row.spec !== spec) state.checkSpec(row, self?.row.spec)
    state.checkPorts(row)
    if (row.desired === 'running') this.#checkDisks(row)
    if (!isPromised(row)) return
    const counted = self !== undefined && isPromised(self.row) ? self.row : undefined
    const pool = spec.pool === undefined ? undefined : state.pools.get(keyOf(project, spec.pool))
    const inPool = spec.pool === undefined ? NOTHING : state.inPool(project, spec.pool)
    admit(name, spec, {
      capacity, pool: pool?.spec,
      host: counted === undefined ? state.promised : without(state.promised, ofHost(counted.spec)),
      inPool: counted?.spec.pool === spec.pool && counted !== undefined
        ? without(inPool, ofPool(counted.spec)) : inPool,
    })
  }

  #checkReferences(row: GuestRow): void {
    const { state } = this.#parts
    const { project, name, spec } = row
    const missing = (kind: string, what: string): never => {
      throw new CellarError('REFERENCE_UNKNOWN', [name, kind, what])
    }
    if (spec.pool !== undefined && !state.pools.has(keyOf(project, spec.pool))) missing('pool', spec.pool)
    for (const volume of volumesOf(row)) {
      if (state.volumes.get(keyOf(project, volume))?.state !== 'ready') missing('volume', volume)
      if (state.heldVolumes.has(keyOf(project, volume))) throw new CellarError('VOLUME_IN_USE', [volume, 'a clone'])
      if (spec.machine !== undefined && state.volumes.get(keyOf(project, volume))?.kind === 'folder') {
        throw new CellarError('VOLUME_KIND', [name, volume])
      }
    }
    for (const network of spec.networks) {
      if (network !== 'default' && !state.networks.has(keyOf(project, network))) missing('network', network)
    }
    const inFiles = Object.values(spec.files).flatMap((folder) => Object.values(folder))
      .flatMap((content) => typeof content === 'object' && 'secret' in content ? [content.secret] : [])
    for (const secret of [...Object.values(spec.secrets), ...inFiles]) {
      if (!state.secrets.has(keyOf(project, secret))) missing('secret', secret)
    }
  }

  // A file system on a disk is for one who writes it, or for several who read it. Who is on its way out, or asleep, has
  // it still: it knows what was there.
  #checkDisks({ id, project, name, spec }: GuestRow): void {
    const { state } = this.#parts
    const disks = (one: GuestSpec): Map<string, boolean> => new Map(one.volumes.map(parseVolume)
      .filter((volume) => state.volumes.get(keyOf(project, volume.name))?.kind === 'disk')
      .map((volume) => [volume.name, volume.readOnly]))
    const mine = disks(spec)
    if (mine.size === 0) return
    for (const { row } of state.ofProject(project)) {
      if (row.id === id || (row.desired !== 'running' && !ACTIVE.includes(row.phase))) continue
      for (const [volume, readOnly] of disks(row.spec)) {
        if (mine.has(volume) && !(readOnly && mine.get(volume)!)) {
          throw new CellarError('VOLUME_SHARED', [name, volume, row.name])
        }
      }
    }
  }

  #newName(project: string, image: string): string {
    const base = /([A-Za-z0-9][\w.-]*?)(?:\.wasm)?(?:[:@].*)?$/.exec(image)?.[1]?.slice(0, 30) ?? 'cell'
    for (;;) {
      const name = `${image.startsWith('sha256:') ? 'cell' : base}-${randomBytes(2).toString('hex')}`
      if (this.#parts.state.byName(project, name) === undefined) return name
    }
  }
}

/** Throws NAME_INVALID. */
export function checkName(kind: string, name: string): void {
  if (!NAME.safeParse(name).success) throw new CellarError('NAME_INVALID', [kind, name])
}

// What the schema can't say: numbers within texts, and what doesn't fit together.
function checkWords(name: string, spec: GuestSpec): void {
  const refuse = (what: string): never => { throw new CellarError('GUEST_UNSUPPORTED', [name, what]) }
  for (const text of spec.ports) if (parsePort(text) === undefined) refuse(`"${text}" is no port that can be published`)
  for (const text of spec.connect) {
    if (Number(text.slice(text.lastIndexOf(':') + 1)) > 65_535) refuse(`"${text}" has no port that exists`)
  }
  const check = spec.health?.tcp ?? Number(spec.health?.http?.split('/', 1)[0] ?? Number.NaN)
  if (spec.health !== undefined && !guestPorts(spec).includes(check)) {
    refuse(`its health is asked for at port ${check}, which is neither in ports nor in expose`)
  }
  try {
    parseRules(spec.egress)
  } catch {
    refuse('a rule of egress has no range of addresses that exists')
  }
}

function without(sums: Promised, less: Promised): Promised {
  return { cpu: sums.cpu - less.cpu, memoryBytes: sums.memoryBytes - less.memoryBytes }
}

const NOTHING: Promised = { cpu: 0, memoryBytes: 0 }
