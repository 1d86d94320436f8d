// host/state.ts: all that the host knows, in memory: what the database holds, and what is going on now.
//
// The database is for a restart; every answer comes from here. A change is committed first, or it is one that a
// restart finds out anew (a guest that runs, a process that is connected). Sums of what is promised are kept as guests
// come and go. Elsewhere: rows (rows.ts), who changes them (host.ts, lifecycle.ts).

import { CellarError } from '../base/errors.ts'
import { PROJECT_ITEMS_MAX, PROJECT_SPECS_BYTES_MAX } from '../base/limits.ts'
import { ofHost, ofPool, type Promised } from './admission.ts'
import { Allowance } from './allowance.ts'
import type { GuestView, Phase } from './operator.ts'
import type { Listening } from './ports.ts'
import type { ProcessHandle } from './processes.ts'
import type { Peer } from './protocol.ts'
import type {
  Beginning, GuestRow, ImageNameRow, NetworkRow, PoolRow, ProjectRow, SecretRow, SnapshotRow, VolumeRow,
} from './rows.ts'
import { cpuPart, parsePort, type GuestSpec } from './spec.ts'

/** A guest: its row, and what of it only this host's run knows. */
export class Guest {
  row: GuestRow
  /** The process that it is in, or on its way to. */
  handle: ProcessHandle | undefined
  /** Volumes that are counted for it there. */
  volumes: readonly string[] = []
  /** Failures in a row. */
  failures = 0
  /** Monotonic ms of its start, which may have been before this process's. */
  startedMs: number | undefined
  retryAt: number | undefined
  retry: NodeJS.Timeout | undefined
  /** Counts its launches: one in whose place there is another comes to nothing. */
  launches = 0
  /** It is being removed: nobody may start or change it any more. */
  removal: Promise<void> | undefined
  /** What it publishes, listening: the process that it is in has the same sockets. */
  listening: Listening | undefined
  /** Why it can't be captured; null: it can; undefined: not known yet. */
  uncapturable: string | null | undefined
  /** It was captured, and is held in its process until it is known what becomes of it. */
  isHeld = false
  /** It is let go of by the process that had it: it may be launched again when this resolves. */
  releasing: Promise<void> | undefined
  /** Of changes of its health that are committed: its process tells of them. */
  readonly healthNotes = new Allowance(HEALTH_NOTES_MAX, HEALTH_NOTES_MS)
  readonly #waiters = new Set<() => void>()

  constructor(row: GuestRow) {
    this.row = row
  }

  /** Somebody may wait for what it is now. */
  changed(): void {
    for (const wake of this.#waiters) wake()
  }

  /** Resolves when it is in one of the phases (true), or after `timeoutMs` (false). */
  async reaches(phases: readonly Phase[], timeoutMs: number): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>()
    const look = (): void => { if (phases.includes(this.row.phase)) resolve(true) }
    const timer = setTimeout(resolve, timeoutMs, false)
    this.#waiters.add(look)
    look()
    try {
      return await promise
    } finally {
      clearTimeout(timer)
      this.#waiters.delete(look)
    }
  }

  view(): GuestView {
    const { row } = this
    return {
      id: row.id, project: row.project, name: row.name, kind: kindOf(row.spec), spec: row.spec, digest: row.digest,
      generation: row.generation, desired: row.desired, phase: row.phase, createdAt: row.createdAt,
      restarts: row.restarts, ports: row.ports,
      ...(row.healthy === null ? {} : { healthy: row.healthy }),
      ...(row.startedAt === null ? {} : { startedAt: row.startedAt }),
      ...(row.endedAt === null ? {} : { endedAt: row.endedAt }),
      ...(row.exit === null ? {} : { exit: row.exit }),
      ...(this.retryAt === undefined ? {} : { retryAt: this.retryAt }),
      ...(this.handle === undefined ? {} : { process: this.handle.id }),
      ...(this.uncapturable === undefined ? {} : { capture: this.uncapturable === null ? { can: true }
        : { can: false, why: this.uncapturable } }),
      ...(row.origin === null ? {} : { origin: row.origin }),
      ...(this.handle?.engine === undefined ? {} : { engine: this.handle.engine }),
    }
  }
}

/** True if the two have a network in common: they reach each other by name. */
export function meets(one: Pick<GuestRow, 'spec'>, other: Pick<GuestRow, 'spec'>): boolean {
  return other.spec.networks.some((network) => one.spec.networks.includes(network))
}

/** A guest as others of its networks know it. */
export function peerOf({ row: { name, address, spec } }: Guest): Peer {
  return { name, address, kind: kindOf(spec) }
}

/**
 * Whether what a process says counts for a guest: a cell process's for guests of its project, a machine's for the one
 * that it has. Nobody's for one that another machine's process has.
 */
export function speaksFor(handle: ProcessHandle, { row, handle: own }: Guest): boolean {
  if (row.project !== handle.project) return false
  if (own !== undefined && own !== handle && (own.kind === 'machine' || handle.kind === 'machine')) return false
  return handle.kind !== 'machine' || handle.guests.size === 0 || handle.guests.has(row.id)
}

/** What a guest is, as its spec says: a machine's has `machine`. */
export function kindOf({ machine }: Pick<GuestSpec, 'machine'>): 'cell' | 'machine' {
  return machine === undefined ? 'cell' : 'machine'
}

const ADDRESS_FIRST = 1
const HEALTH_NOTES_MAX = 20
const HEALTH_NOTES_MS = 60_000

/** Phases in which a guest is in a process, or on its way. */
export const ACTIVE: readonly Phase[] = ['starting', 'running', 'paused', 'stopping']

/** All rows, by what they are asked for. */
export class State {
  readonly projects = new Map<string, ProjectRow>()
  readonly guests = new Map<string, Guest>()
  readonly #names = new Map<string, Map<string, Guest>>()
  readonly #addresses = new Map<string, Guest>()
  /** Called when guests of a project have come, gone, or are in other networks. */
  peersChanged: (project: string) => void = () => {}
  /** By project and digest. */
  readonly snapshots = new Map<string, SnapshotRow>()
  readonly pools = new Map<string, PoolRow>()
  readonly volumes = new Map<string, VolumeRow>()
  /** Volumes whose files are being shared, and with how many clones: nobody may start to write them meanwhile. */
  readonly heldVolumes = new Map<string, number>()
  readonly networks = new Map<string, NetworkRow>()
  readonly secrets = new Map<string, SecretRow>()
  readonly images = new Map<string, ImageNameRow>()
  /** What guests that are to run, and pools, are promised; and cells of each pool. */
  readonly promised: Promised = { cpu: 0, memoryBytes: 0 }
  readonly #inPools = new Map<string, Promised>()
  /** Bytes of specs by project, once somebody has asked. */
  readonly #specBytes = new Map<string, number>()
  /** Published addresses of guests that are to run. */
  readonly #published = new Map<string, string>()

  /** Adds a guest: it has an address of its own then, if it had none. */
  addGuest(given: GuestRow): Guest {
    const row = { ...given, address: this.#addressFor(given) }
    const guest = new Guest(row)
    this.guests.set(row.id, guest)
    this.#addresses.set(keyOf(row.project, String(row.address)), guest)
    let names = this.#names.get(row.project)
    if (names === undefined) this.#names.set(row.project, names = new Map())
    names.set(row.name, guest)
    this.charge(row, 1)
    this.#chargeSpec(row, 1)
    this.peersChanged(row.project)
    return guest
  }

  removeGuest(guest: Guest): void {
    if (!this.guests.delete(guest.row.id)) return
    this.#addresses.delete(keyOf(guest.row.project, String(guest.row.address)))
    const names = this.#names.get(guest.row.project)
    names?.delete(guest.row.name)
    if (names?.size === 0) this.#names.delete(guest.row.project)
    this.charge(guest.row, -1)
    this.#chargeSpec(guest.row, -1)
    this.peersChanged(guest.row.project)
  }

  // Its own, unless another has it; else the lowest that is free, so that it is the same again after a restart.
  #addressFor({ project, address }: GuestRow): number {
    const isTaken = (number: number): boolean => this.#addresses.has(keyOf(project, String(number)))
    let number = address >= ADDRESS_FIRST && !isTaken(address) ? address : ADDRESS_FIRST
    while (isTaken(number)) number++
    return number
  }

  /** Who else is in a guest's networks. */
  peersOf({ row }: Guest): Peer[] {
    return this.ofProject(row.project).filter((other) => other.row.id !== row.id && meets(row, other.row)).map(peerOf)
  }

  /** Gives a guest another row, its promises with it. One that is gone is promised nothing. */
  setRow(guest: Guest, row: GuestRow): void {
    if (this.guests.get(row.id) !== guest) {
      guest.row = row
      return
    }
    this.charge(guest.row, -1)
    if (guest.row.spec !== row.spec) {
      this.#chargeSpec(guest.row, -1)
      this.#chargeSpec(row, 1)
      this.peersChanged(row.project)
    }
    guest.row = row
    this.charge(row, 1)
  }

  /** Counts (1) or no longer counts (-1) what a guest is promised, if it is to run. */
  charge(row: GuestRow, sign: 1 | -1): void {
    if (isPromised(row)) {
      add(this.promised, ofHost(row.spec), sign)
      if (row.spec.pool !== undefined) add(this.inPool(row.project, row.spec.pool), ofPool(row.spec), sign)
    }
    if (row.desired !== 'running') return
    for (const address of publishedBy(row)) {
      if (sign === 1) this.#published.set(address, row.id)
      else if (this.#published.get(address) === row.id) this.#published.delete(address)
    }
  }

  putPool(row: PoolRow): void {
    const key = keyOf(row.project, row.name)
    this.promised.cpu += cpuPart(row.spec['cpu-reservation'], 0)
      - cpuPart(this.pools.get(key)?.spec['cpu-reservation'], 0)
    this.pools.set(key, row)
  }

  /** Removes one that has no cells. */
  deletePool(project: string, name: string): void {
    const key = keyOf(project, name)
    this.promised.cpu -= cpuPart(this.pools.get(key)?.spec['cpu-reservation'], 0)
    this.pools.delete(key)
    this.#inPools.delete(key)
  }

  inPool(project: string, pool: string): Promised {
    const key = keyOf(project, pool)
    let sums = this.#inPools.get(key)
    if (sums === undefined) this.#inPools.set(key, sums = { cpu: 0, memoryBytes: 0 })
    return sums
  }

  /** Throws PORT_TAKEN if another guest publishes what this one wants to. */
  checkPorts(row: GuestRow): void {
    for (const address of publishedBy(row)) {
      const by = this.guests.get(this.#published.get(address) ?? '')
      if (by !== undefined && by.row.id !== row.id) {
        // Who asks may not know what other projects have.
        const whose = by.row.project === row.project ? `"${by.row.name}"` : 'a guest of another project'
        throw new CellarError('PORT_TAKEN', [row.name, address, whose])
      }
    }
  }

  ofProject(project: string): Guest[] {
    return [...this.#names.get(project)?.values() ?? []]
  }

  countOf(project: string): number {
    return this.#names.get(project)?.size ?? 0
  }

  byName(project: string, name: string): Guest | undefined {
    return this.#names.get(project)?.get(name)
  }

  /** By name, id, or a prefix of an id that only one has. Throws NOT_FOUND. */
  guest(project: string, nameOrId: string): Guest {
    const exact = this.byName(project, nameOrId) ?? this.guests.get(nameOrId)
    if (exact !== undefined && exact.row.project === project) return exact
    const found = nameOrId.length < ID_PREFIX_MIN ? []
      : this.ofProject(project).filter(({ row }) => row.id.startsWith(nameOrId))
    if (found.length !== 1) throw new CellarError('NOT_FOUND', ['guest', nameOrId])
    return found[0]!
  }

  /** By name, digest, or a prefix of its digits that only one has. Throws NOT_FOUND. */
  snapshot(project: string, reference: string): SnapshotRow {
    const rows = this.of(this.snapshots, project)
    const named = rows.find(({ name, digest }) => name === reference || digest === reference)
    const digits = reference.replace(/^sha256:/, '')
    const found = named !== undefined ? [named] : digits.length < ID_PREFIX_MIN ? []
      : rows.filter(({ digest }) => digest.startsWith(`sha256:${digits}`))
    if (found.length !== 1) throw new CellarError('NOT_FOUND', ['snapshot', reference])
    return found[0]!
  }

  /** What a guest begins with when it is started anew: the snapshot that it was restored from, if that is there. */
  beginning({ project, digest, origin }: GuestRow): Beginning | null {
    const row = this.snapshots.get(keyOf(project, origin?.snapshot ?? ''))
    if (row === undefined || row.module !== digest) return null
    return { snapshot: row.digest, event: 'restore', at: row.createdAt }
  }

  /** Throws ADMISSION_REFUSED if the project has as many of the kind as it may have. */
  checkRoom(kind: string, map: ReadonlyMap<string, { readonly project: string }>, project: string, name: string): void {
    if (map.has(keyOf(project, name)) || this.of(map, project).length < PROJECT_ITEMS_MAX) return
    throw new CellarError('ADMISSION_REFUSED', [name, 'room', `1 ${kind}`, `0 of ${PROJECT_ITEMS_MAX}`])
  }

  /** Throws ADMISSION_REFUSED if the specs of the project's guests would be too much, this one in place of `before`. */
  checkSpec({ project, name, spec }: GuestRow, before?: GuestSpec): void {
    const left = PROJECT_SPECS_BYTES_MAX - this.#specBytesOf(project) + (before === undefined ? 0 : bytesOf(before))
    if (bytesOf(spec) <= left) return
    throw new CellarError('ADMISSION_REFUSED', [name, 'room for specs', `${bytesOf(spec)} bytes`, `${left} bytes`])
  }

  // Summed up when it is first asked for, then kept.
  #specBytesOf(project: string): number {
    let sum = this.#specBytes.get(project)
    if (sum === undefined) {
      sum = this.ofProject(project).reduce((bytes, { row }) => bytes + bytesOf(row.spec), 0)
      this.#specBytes.set(project, sum)
    }
    return sum
  }

  #chargeSpec({ project, spec }: GuestRow, sign: 1 | -1): void {
    const sum = this.#specBytes.get(project)
    if (sum !== undefined) this.#specBytes.set(project, sum + sign * bytesOf(spec))
  }

  /** The rows of a project in one of the maps. */
  of<T extends { readonly project: string }>(map: ReadonlyMap<string, T>, project: string): T[] {
    return [...map.values()].filter((row) => row.project === project)
  }
}

/** True if a guest has what it is promised: it is to run, and isn't on disk only. */
export function isPromised({ desired, phase }: Pick<GuestRow, 'desired' | 'phase'>): boolean {
  return desired === 'running' && phase !== 'hibernated'
}

/** The key of what has a name in a project. A project's name has no slash. */
export function keyOf(project: string, name: string): string {
  return `${project}/${name}`
}

const sizes = new WeakMap<GuestSpec, number>()
function bytesOf(spec: GuestSpec): number {
  let size = sizes.get(spec)
  if (size === undefined) sizes.set(spec, size = JSON.stringify(spec).length)
  return size
}

function publishedBy({ spec }: GuestRow): string[] {
  return spec.ports.map((text) => parsePort(text)!).filter(({ port }) => port !== 0)
    .map(({ address, port }) => address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`)
}

function add(sums: Promised, more: Promised, sign: 1 | -1): void {
  sums.cpu += sign * more.cpu
  sums.memoryBytes += sign * more.memoryBytes
}

/** A shorter prefix of an id is more likely a name that doesn't exist. */
const ID_PREFIX_MIN = 4
