// host/host.ts: one host: its parts put together, and what an operator can ask of it.
//
// Order of a start: the lock (two hosts on one state would both be right), the database, what an earlier host left half
// done, then the processes that it left running, and only then guests are started and questions answered. Order of an
// end: nothing new, connections closed, the database. Guests go on. Elsewhere: the calls' meaning (operator.ts), what
// they do (*_actions.ts, sessions.ts), what happens by itself (lifecycle.ts, processes.ts).

import { availableParallelism, freemem, totalmem } from 'node:os'
import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import type { Capacity } from './admission.ts'
import { Captures } from './captures.ts'
import { Dials } from './dials.ts'
import { EventLog } from './events.ts'
import { GuestActions } from './guest_actions.ts'
import { GuestRequests } from './guest_requests.ts'
import { Hibernation } from './hibernation.ts'
import { Idempotency } from './idempotency.ts'
import { ImageActions } from './image_actions.ts'
import { Lifecycle } from './lifecycle.ts'
import { Machines } from './machines.ts'
import { exposition } from './metrics.ts'
import { Moves } from './moves.ts'
import { Operations } from './operations.ts'
import { lockedStore, stateOf, sweep } from './opening.ts'
import type { Actor, HostView, Operator } from './operator.ts'
import { Paths } from './paths.ts'
import { checkFolder, checkLimited, givenTo } from './permissions.ts'
import { Processes } from './processes.ts'
import type { ProcessHandle } from './processes.ts'
import { found, ProjectActions } from './project_actions.ts'
import type { FromProcess, GuestFigures } from './protocol.ts'
import { canSeparate } from './reachable.ts'
import { Secrets } from './secrets.ts'
import { readFiles, writeFiles } from './guest_files.ts'
import { attach, exec, logsOf } from './sessions.ts'
import { SnapshotActions } from './snapshot_actions.ts'
import { SnapshotFiles } from './snapshot_files.ts'
import { ACTIVE, type Guest, type State } from './state.ts'
import type { Store } from './store.ts'
import { Tokens } from './tokens.ts'
import { VolumeActions } from './volume_actions.ts'

/** How a host is started. */
export type HostOptions = {
  readonly state: string; readonly version: string; readonly log: Log
  /** Registries that are spoken to without TLS. */
  readonly insecureRegistries?: readonly string[]
}

/** How long figures are good for: several people who watch cost as much as one. */
const FIGURES_FRESH_MS = 500
/** Memory that isn't promised to guests: the hypervisor's own processes and the kernel's. */
const OWN_MEMORY_BYTES = 512 * 1024 * 1024
const BACKUP_MS = 3600_000

/** One host. */
export class Host implements Operator {
  readonly #options: HostOptions
  readonly #paths: Paths
  readonly #store: Store
  readonly #state: State
  readonly #capacity: Capacity = {
    pcpus: availableParallelism(), memoryBytes: Math.max(0, totalmem() - OWN_MEMORY_BYTES),
  }
  readonly #startedAt = Date.now()
  readonly #events: EventLog
  readonly #operations: Operations
  readonly #tokens: Tokens
  readonly #idempotency: Idempotency
  readonly #processes: Processes
  readonly #lifecycle: Lifecycle
  readonly #dials: Dials
  readonly #guests: GuestActions
  readonly #projects: ProjectActions
  readonly #volumes: VolumeActions
  readonly #images: ImageActions
  readonly #captures: Captures
  readonly #files: SnapshotFiles
  readonly #snapshots: SnapshotActions
  readonly #hibernation: Hibernation
  readonly #requests: GuestRequests
  readonly #moves: Moves
  #figures: { at: number; read: Promise<Map<string, GuestFigures>> } | undefined
  #isReady = false
  #isClosed = false
  #backup: NodeJS.Timeout | undefined

  /** Starts a host: resolves when it has found its guests again. Throws CellarError. */
  static async start(options: HostOptions): Promise<Host> {
    const paths = new Paths(options.state)
    const store = await lockedStore(paths)
    try {
      const loaded = store.load()
      const log = (error: unknown): void => options.log.error('cannot note an operation', { why: String(error) })
      const host = new Host(options, paths, store, loaded, await Operations.open(store, loaded.operations, log))
      await host.#recover()
      return host
    } catch (error) {
      await store.close()
      throw error
    }
  }

  private constructor(options: HostOptions, paths: Paths, store: Store, loaded: ReturnType<Store['load']>,
    operations: Operations) {
    const { log } = options
    const state = stateOf(loaded)
    this.#options = options
    this.#paths = paths
    this.#store = store
    this.#state = state
    this.#operations = operations
    this.#events = new EventLog(store)
    this.#tokens = new Tokens(store, loaded.tokens)
    this.#idempotency = new Idempotency(store, loaded.answers)
    const secrets = Secrets.load(paths.state, loaded.secrets.length > 0)
    this.#processes = new Processes({ paths, store, log,
      known: new Map(loaded.processes.map((row) => [row.id, row])),
      nextId: () => store.nextNumber('process'),
      uidOf: (project) => state.projects.get(project)?.uid ?? undefined,
      events: {
        hello: (handle, hello) => {
          this.#captures.hello(handle, hello)
          this.#lifecycle.hello(handle, hello)
          this.#files.hello(handle)
        },
        message: (handle, message) => this.#hear(handle, message),
        lost: (handle, why) => this.#lifecycle.lost(handle, why),
      } })
    const [processes, capacity] = [this.#processes, this.#capacity]
    const files = this.#files = new SnapshotFiles({ state, processes, log,
      isOpen: (project) => this.#projects.isOpen(project) })
    const captures = this.#captures = new Captures({ state, processes, files })
    const lifecycle = this.#lifecycle = new Lifecycle({ state, store, processes, secrets, paths, log, captures, files,
      machines: new Machines({ state, paths, processes, log, imageOf: (digest) => this.#images.machineOf(digest) }) })
    const hibernation: Hibernation = this.#hibernation = new Hibernation({ state, lifecycle, captures, files, processes,
      capacity, log, availableMemory: freemem, start: (guest, note) => this.#guests.start(guest, note) })
    this.#dials = new Dials({ state, store, log, wake: (guest) => hibernation.wake(guest, 'connection') })
    const separation = canSeparate(paths.state)
    if (separation !== true) log.warn('projects do not get users of their own', { why: separation })
    this.#projects = new ProjectActions({ state, store, lifecycle, processes, secrets, paths, capacity,
      isRoot: separation === true })
    const projects = this.#projects
    this.#images = new ImageActions({ state, store, operations, folder: paths.state,
      insecure: options.insecureRegistries ?? [] })
    this.#volumes = new VolumeActions({ state, store, operations, projects, paths })
    this.#guests = new GuestActions({ state, store, lifecycle, projects, volumes: this.#volumes, paths, capacity,
      endProcess: (handle) => processes.kill(handle), makeRoom: (bytes) => hibernation.makeRoom(bytes),
      resolveImage: (reference) => this.#images.resolve(reference) })
    this.#snapshots = new SnapshotActions({ state, store, lifecycle, captures, files, projects, guests: this.#guests,
      processes, paths })
    this.#requests = new GuestRequests({ state, snapshots: this.#snapshots, hibernation, log })
    this.#moves = new Moves({ state, store, processes, lifecycle, captures, files, secrets, log, operations,
      guests: this.#guests, projects, images: this.#images, snapshots: this.#snapshots, paths, loaded,
      insecure: options.insecureRegistries ?? [] })
  }

  async #recover(): Promise<void> {
    await this.#volumes.recover()
    await sweep(this.#paths, this.#state, this.#options.log)
    await this.#processes.discover()
    this.#lifecycle.settle()
    this.#hibernation.settle()
    this.#moves.recover()
    this.#isReady = true
    const failed = (what: string) => (error: unknown): void => {
      this.#options.log.error(what, { why: (error as Error).message })
    }
    this.#store.commit((tx) => tx.event('host.started', { data: { version: this.#options.version } }))
      .catch(failed('cannot note the start'))
    const backup = (): void => { this.#store.backup().catch(failed('cannot make a backup of the state')) }
    backup()
    this.#backup = setInterval(backup, BACKUP_MS).unref()
  }

  /** Ends the host. Guests go on, unless they are to end with it: then they are started again with the next one. */
  async close({ endGuests = false }: { readonly endGuests?: boolean } = {}): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    clearInterval(this.#backup)
    this.#lifecycle.close()
    this.#hibernation.close()
    this.#moves.close()
    this.#files.close()
    await this.#operations.close()
    if (endGuests) {
      const active = [...this.#state.guests.values()]
        .filter(({ row }) => row.desired === 'running' && ACTIVE.includes(row.phase))
      await this.#store.commit((tx) => {
        for (const { row } of active) {
          tx.putGuest({ ...row, phase: 'starting', run: row.run + 1, from: row.from ?? this.#state.beginning(row) })
        }
      })
      for (const handle of this.#processes.all.values()) this.#processes.kill(handle)
    }
    this.#processes.close()
    await this.#store.close()
  }

  #hear(handle: ProcessHandle, message: FromProcess): void {
    if ('started' in message) this.#lifecycle.started(message, handle)
    else if ('ended' in message) this.#lifecycle.ended(message.ended, handle)
    else if ('health' in message) {
      this.#lifecycle.health(message.health, message.run, message.healthy, message.why, handle)
    }
    else if ('dial' in message) void this.#dials.dial(handle, message)
    else if ('resolve' in message) void this.#dials.resolve(handle, message)
    else if ('incoming' in message) this.#dials.taken(handle, message.incoming, message.errno)
    else if ('captured' in message) this.#captures.captured(handle, message)
    else if ('paused' in message) this.#captures.paused(handle, message)
    else if ('released' in message) this.#captures.released(handle, message)
    else if ('asked' in message) void this.#requests.asked(handle, message)
    else if ('transferred' in message) this.#moves.transfers.heard(handle, message)
    else if ('say' in message) {
      if (!handle.sayings.allow()) return
      this.#options.log.warn('a cell process says', { process: handle.id, project: handle.project, text: message.say,
        ...(message.id === undefined ? {} : { guest: message.id }) })
    }
  }

  // ---- Operator

  host(): HostView {
    const { promised, guests } = this.#state
    return {
      version: this.#options.version, node: process.version, pid: process.pid, startedAt: this.#startedAt,
      state: this.#paths.state, ...this.#capacity,
      reserved: { cpu: promised.cpu, memoryBytes: promised.memoryBytes }, guests: guests.size,
      running: [...guests.values()].filter(({ row }) => row.phase === 'running').length,
      processes: [...this.#processes.all.values()].map(({ id, project, pid, guests }) =>
        ({ id, project, pid, guests: guests.size })),
    }
  }

  projects = (): ReturnType<Operator['projects']> =>
    [...this.#state.projects.values()].map((row) => this.#projects.view(row))
  createProject = (name: string): ReturnType<Operator['createProject']> =>
    this.#starting(() => this.#projects.create(name))

  async removeProject(name: string, force: boolean, by: Actor): ReturnType<Operator['removeProject']> {
    this.#projects.checkRemovable(name, force)
    const release = this.#projects.close(name)
    return await this.#operations.start('project.delete', name, by, async ({ progress }) => {
      const guests = this.#state.ofProject(name)
      let done = 0
      try {
        await Promise.all(guests.map(async (guest) => {
          await this.#guests.remove(guest, true)
          progress(++done, guests.length, 'guests')
        }))
        // By descriptor: they are full of what guests have made.
        for (const volume of this.#volumes.list(name)) await this.#volumes.removeNow(name, volume.name)
        await this.#projects.forget(name)
        return { project: name }
      } finally {
        release()
      }
    }).catch((error: unknown) => {
      release()
      throw error
    })
  }

  guests = (project?: string): ReturnType<Operator['guests']> =>
    (project === undefined ? [...this.#state.guests.values()] : this.#state.ofProject(project))
      .map((guest) => guest.view())
  guest = (project: string, name: string): ReturnType<Operator['guest']> => this.#state.guest(project, name).view()
  createGuest: Operator['createGuest'] = (project, name, spec, start, by) => this.#starting(async () => {
    checkLimited(spec, undefined, by)
    return (await this.#guests.create(project, name, spec, start)).view()
  })
  replaceGuest: Operator['replaceGuest'] = (project, name, spec, generation, by) => this.#starting(async () => {
    const guest = this.#state.guest(project, name)
    checkLimited(spec, givenTo([guest.row.spec]), by)
    return (await this.#guests.replace(guest, spec, generation)).view()
  })
  removeGuest: Operator['removeGuest'] = async (project, name, force) =>
    await this.#guests.remove(this.#state.guest(project, name), force)
  startGuest: Operator['startGuest'] = (project, name) => this.#starting(async () => {
    const guest = this.#state.guest(project, name)
    return guest.row.phase === 'paused' || guest.row.phase === 'hibernated' ? await this.#resume(guest)
      : await this.#guests.start(guest)
  })
  restartGuest: Operator['restartGuest'] = (project, name) =>
    this.#starting(() => this.#guests.restart(this.#state.guest(project, name)))
  stopGuest: Operator['stopGuest'] = async (project, name, signal) =>
    await this.#guests.stop(this.#state.guest(project, name), signal)

  pauseGuest: Operator['pauseGuest'] = async (project, name) => {
    const guest = this.#state.guest(project, name)
    await this.#snapshots.pause(guest)
    return guest.view()
  }
  resizeGuest: Operator['resizeGuest'] = async (project, name, memoryBytes) => {
    const guest = this.#state.guest(project, name)
    this.#guests.resize(guest, memoryBytes)
    return guest.view()
  }
  resumeGuest: Operator['resumeGuest'] = (project, name) =>
    this.#starting(() => this.#resume(this.#state.guest(project, name)))
  async #resume(guest: Guest): ReturnType<Operator['resumeGuest']> {
    if (guest.row.phase === 'hibernated') await this.#hibernation.wake(guest, 'asked')
    else await this.#snapshots.resume(guest)
    return guest.view()
  }
  hibernateGuest: Operator['hibernateGuest'] = async (project, name) => {
    const guest = this.#state.guest(project, name)
    await this.#hibernation.hibernate(guest)
    return guest.view()
  }
  forkGuest: Operator['forkGuest'] = (project, name, options) =>
    this.#starting(() => this.#snapshots.fork(this.#state.guest(project, name), options))
  snapshotGuest: Operator['snapshotGuest'] = async (project, name, options) =>
    await this.#snapshots.save(this.#state.guest(project, name), options)
  snapshots: Operator['snapshots'] = (project) => this.#snapshots.list(project)
  snapshot: Operator['snapshot'] = (project, reference) => this.#snapshots.one(project, reference)
  removeSnapshot: Operator['removeSnapshot'] = (project, reference) => this.#snapshots.remove(project, reference)
  restoreGuest: Operator['restoreGuest'] = (project, reference, options, by) => this.#starting(() =>
    this.#snapshots.restore(project, reference, options, (spec) =>
      checkLimited(spec, givenTo([this.#state.snapshot(project, reference).spec]), by)))

  get incoming(): Operator['incoming'] { return this.#moves.incoming }
  migrateGuest: Operator['migrateGuest'] = (...which) => this.#starting(() => this.#moves.migrate(...which))
  pushSnapshot: Operator['pushSnapshot'] = (...which) => this.#starting(() => this.#moves.push(...which))
  pullSnapshot: Operator['pullSnapshot'] = (...which) => this.#starting(() => this.#moves.pull(...which))

  waitGuest: Operator['waitGuest'] = async (project, name, phases, timeoutMs) => {
    const guest = this.#state.guest(project, name)
    await guest.reaches(phases, timeoutMs)
    return guest.view()
  }

  logs: Operator['logs'] = (project, name, options) => logsOf(this.#paths, this.#state.guest(project, name), options)
  attach: Operator['attach'] = async (project, name) => attach(await this.#awake(this.#state.guest(project, name)))
  exec: Operator['exec'] = async (project, name, command) => {
    const guest = await this.#awake(this.#state.guest(project, name))
    const module = command.image === undefined ? guest.row.digest : this.#images.resolve(command.image).module
    return await this.#starting(async () => exec(this.#lifecycle, guest, module, command))
  }

  readGuest: Operator['readGuest'] = async (project, name, path) =>
    await readFiles(this.#lifecycle, await this.#awake(this.#state.guest(project, name)), path)
  writeGuest: Operator['writeGuest'] = async (project, name, path, archive) =>
    await writeFiles(this.#lifecycle, await this.#awake(this.#state.guest(project, name)), path, archive)

  async stats(project?: string): Promise<Map<string, GuestFigures>> {
    const now = performance.now()
    if (this.#figures === undefined || now - this.#figures.at > FIGURES_FRESH_MS) {
      this.#figures = { at: now, read: this.#readFigures() }
    }
    const all = await this.#figures.read
    return project === undefined ? all
      : new Map([...all].filter(([id]) => this.#state.guests.get(id)?.row.project === project))
  }

  // A process tells of its own guests only.
  async #readFigures(): Promise<Map<string, GuestFigures>> {
    const found = new Map<string, GuestFigures>()
    await Promise.all([...this.#processes.all.values()].map(async (handle) => {
      const answer = await handle.link?.figures().catch(() => undefined)
      for (const [id, figures] of Object.entries(answer?.guests ?? {})) {
        if (this.#state.guests.get(id)?.handle === handle) found.set(id, figures)
      }
    }))
    return found
  }

  pools: Operator['pools'] = (project) =>
    this.#of(project, this.#state.pools).map((row) => this.#projects.poolView(row))
  putPool: Operator['putPool'] = (project, name, spec) =>
    this.#starting(() => this.#projects.putPool(project, name, spec))
  removePool: Operator['removePool'] = (project, name) => this.#projects.removePool(project, name)
  networks: Operator['networks'] = (project) => this.#projects.networks(project)
  putNetwork: Operator['putNetwork'] = (project, name) => this.#starting(() => this.#projects.putNetwork(project, name))
  removeNetwork: Operator['removeNetwork'] = (project, name) => this.#projects.removeNetwork(project, name)
  secrets: Operator['secrets'] = (project) => this.#of(project, this.#state.secrets)
    .map(({ name, createdAt }) => ({ project, name, createdAt }))
  putSecret: Operator['putSecret'] = (project, name, value) =>
    this.#starting(() => this.#projects.putSecret(project, name, value))
  removeSecret: Operator['removeSecret'] = (project, name) => this.#projects.removeSecret(project, name)

  volumes: Operator['volumes'] = (project) => {
    this.#projects.project(project)
    return this.#volumes.list(project)
  }
  volume: Operator['volume'] = (project, name) => this.#volumes.one(project, name)
  createVolume: Operator['createVolume'] = (project, name, spec, by) =>
    this.#starting(() => this.#volumes.create(project, name, spec, by))
  resizeVolume: Operator['resizeVolume'] = (project, name, sizeBytes) => this.#volumes.resize(project, name, sizeBytes)
  cloneVolume: Operator['cloneVolume'] = (project, name, to, by) =>
    this.#starting(() => this.#volumes.clone(project, name, to, by))
  removeVolume: Operator['removeVolume'] = (project, name, by) => this.#volumes.remove(project, name, by)
  readVolume: Operator['readVolume'] = async (project, name, path) => this.#volumes.read(project, name, path)
  writeVolume: Operator['writeVolume'] = (project, name, path, archive) =>
    this.#starting(() => this.#volumes.write(project, name, path, archive))

  apply: Operator['apply'] = (project, manifest, options, by) => this.#starting(async () => {
    const known = givenTo(this.#state.ofProject(project).map(({ row }) => row.spec))
    for (const cell of Object.values(manifest.cells)) checkLimited(cell, known, by)
    return await this.#guests.apply(project, manifest, options, by)
  })

  images: Operator['images'] = () => this.#images.list()
  image: Operator['image'] = (reference) => this.#images.one(reference)
  importImage: Operator['importImage'] = (name, module) => this.#starting(() => this.#images.import(name, module))
  pullImage: Operator['pullImage'] = (reference, by) => this.#starting(() => {
    checkFolder(reference, by)
    return this.#images.pull(reference, by)
  })
  pushImage: Operator['pushImage'] = async (reference, to, by) => {
    checkFolder(to, by)
    return await this.#images.push(reference, to, by)
  }
  tagImage: Operator['tagImage'] = (reference, name) => this.#images.tag(reference, name)
  removeImage: Operator['removeImage'] = (reference) => this.#images.remove(reference)
  collectImages: Operator['collectImages'] = async () => this.#images.collect()

  operations: Operator['operations'] = () => this.#operations.list()
  operation: Operator['operation'] = (id) => this.#operations.get(id)
  waitOperation: Operator['waitOperation'] = (id, timeoutMs) => this.#operations.wait(id, timeoutMs)
  cancelOperation: Operator['cancelOperation'] = async (id) => this.#operations.cancel(id)

  events: Operator['events'] = (options) => this.#events.follow(options)
  audit: Operator['audit'] = (limit) => this.#store.audit(limit)
  record(entry: Parameters<Operator['record']>[0]): void {
    this.#store.commit((tx) => tx.audit(entry)).catch((error: unknown) => {
      this.#options.log.error('cannot keep the audit log', { why: (error as Error).message, action: entry.action })
    })
  }

  tokens: Operator['tokens'] = () => this.#tokens.list()
  createToken: Operator['createToken'] = (name, scope, options) => this.#tokens.create(name, scope, options)
  removeToken: Operator['removeToken'] = (id) => this.#tokens.remove(id)
  authenticate: Operator['authenticate'] = (token) => this.#tokens.authenticate(token)
  once: Operator['once'] = (key, fingerprint, work) => this.#idempotency.once(key, fingerprint, work)

  async metrics(): Promise<string> {
    const guests = this.guests()
    return exposition({ host: this.host(), guests, stats: await this.stats(), egress: this.#dials.counts,
      restarts: guests.reduce((sum, { restarts }) => sum + restarts, 0), events: this.#store.lastEvent(),
      snapshots: this.#state.snapshots.size, captures: this.#captures.counts, hibernation: this.#hibernation.counts })
  }

  unready(): string[] {
    return this.#isClosed ? ['shutting down'] : this.#isReady ? [] : ['finding guests again']
  }

  #of<T extends { readonly project: string }>(project: string, rows: ReadonlyMap<string, T>): T[] {
    found('project', project, this.#state.projects.get(project))
    return this.#state.of(rows, project)
  }

  // Who looks at a hibernated guest wakes it.
  async #awake(guest: Guest): Promise<Guest> {
    if (guest.row.phase === 'hibernated') await this.#starting(() => this.#hibernation.wake(guest, 'attach'))
    return guest
  }

  // Nothing new once the host is on its way out.
  async #starting<T>(work: () => Promise<T>): Promise<T> {
    if (this.#isClosed) throw new CellarError('HOST_DRAINING', [])
    return await work()
  }
}
