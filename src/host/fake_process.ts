// host/fake_process.ts: for tests: a host's guests without cell processes, which are played by objects that do as told.
//
// The database, the files and the sockets are real. A fake process answers as a real one does, a turn of the event loop
// later; what it is told not to answer it keeps, as a process that hangs does. `restart` is a host that was killed: the
// next one has what is in the database, and hears of what fake processes have.

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { newLog } from '../base/log.ts'
import { closeFd, openFdReceiver, type FdReceiver } from '../sys/sockets.ts'
import { Allowance } from './allowance.ts'
import { Captures } from './captures.ts'
import { Dials } from './dials.ts'
import { GuestActions } from './guest_actions.ts'
import { GuestRequests } from './guest_requests.ts'
import { Hibernation } from './hibernation.ts'
import { Lifecycle } from './lifecycle.ts'
import { stateOf } from './opening.ts'
import { Paths } from './paths.ts'
import { makeProjectFolder } from './project_folder.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import type { FromProcess, GuestFigures, GuestLaunch, GuestState, ToProcess, Written } from './protocol.ts'
import { SnapshotActions } from './snapshot_actions.ts'
import { SnapshotFiles } from './snapshot_files.ts'
import { GUEST_SPEC, type GuestSpec } from './spec.ts'
import type { Guest, State } from './state.ts'
import { Store } from './store.ts'

const MODULE = `sha256:${'a'.repeat(64)}`
const MANIFEST = `sha256:${'b'.repeat(64)}`

type Kind = 'start' | 'stop' | 'pause' | 'capture' | 'fork' | 'release' | 'go' | 'figures'
type Here = { launch: GuestLaunch; held: boolean; paused: boolean; runningNs: number }

/** A cell process that only says what one would say. */
export class FakeProcess {
  readonly handle: ProcessHandle
  readonly guests = new Map<string, Here>()
  /** All that it was told, in order. */
  readonly told: ToProcess[] = []
  /** Messages of these kinds are not answered, nor acted upon. */
  readonly silent = new Set<Kind>()
  /** Snapshots that it has been told to remove, and was told to keep last. */
  readonly forgotten: string[] = []
  kept: readonly string[] = []
  /** What captures are answered with: more than a number and sizes, or an error. */
  captures: Partial<Written> | CellarError = {}
  /** Why guests of it can't be captured. */
  uncapturable: string | undefined
  readonly receiver: FdReceiver
  #say: (message: FromProcess) => void

  constructor(id: number, project: string, folder: string, say: (from: FakeProcess, message: FromProcess) => void) {
    mkdirSync(folder, { recursive: true })
    this.receiver = openFdReceiver(join(folder, 'f'))
    this.#say = (message) => { setImmediate(() => say(this, message)) }
    this.handle = { id, project, runFolder: folder, kind: 'cells', engine: undefined, pid: 1, link: undefined,
      hasAnswered: true, guests: new Set(),
      volumes: new Map(), isDraining: false, idle: undefined, nextTicket: 1, sayings: new Allowance(100, 1000) }
    this.connect(say)
  }

  /** Connects it to another host. What was said to the one before is lost. */
  connect(say: (from: FakeProcess, message: FromProcess) => void): void {
    this.#say = (message) => { setImmediate(() => say(this, message)) }
    this.handle.link = {
      send: (message: ToProcess) => this.#hear(JSON.parse(JSON.stringify(message)) as ToProcess),
      figures: async () => ({ figures: 1, process: { memoryBytes: 0, cpuNs: 0, cells: this.guests.size },
        guests: Object.fromEntries([...this.guests].map(([guest, { runningNs }]) =>
          [guest, { runningNs } as GuestFigures])) }),
    } as unknown as NonNullable<ProcessHandle['link']>
  }

  /** A guest of it ends. */
  end(id: string, code = 0): void {
    const { run } = this.guests.get(id)!.launch
    this.guests.delete(id)
    this.#say({ ended: { id, run, outcome: { kind: 'exit', code }, startedAt: 1, endedAt: Date.now() } })
  }

  /** A guest of it asks the host for something. */
  ask(id: string, what: 'snapshot' | 'fork' | 'hibernate', more: { name?: string; count?: number } = {}): void {
    this.#say({ asked: 7, id, run: this.guests.get(id)!.launch.run, what, ...more })
  }

  states(): GuestState[] {
    return [...this.guests].map(([id, { launch: { run }, held, paused }]) => ({ id, run, startedAt: 1, ageMs: 1,
      ...(held ? { held } : {}), ...(paused ? { paused } : {}) }))
  }

  /** True if it was told so, of that guest. */
  was(kind: Kind, id: string): boolean {
    return this.told.some((message) => (message as Record<string, unknown>)[kind] === id ||
      ('start' in message && kind === 'start' && message.start.id === id))
  }

  #hear(message: ToProcess): void {
    this.told.push(message)
    if ([...this.silent].some((kind) => kind in message)) return
    if ('start' in message) this.#start(message.start)
    else if ('stop' in message) this.#stop(message)
    else if ('forget' in message) this.forgotten.push(...message.forget)
    else if ('keep' in message) this.kept = message.keep
    else if ('pause' in message) {
      const guest = this.guests.get(message.pause)
      if (guest !== undefined) guest.paused = message.paused
      this.#say({ paused: message.pause, run: message.run, is: message.paused })
    } else if ('capture' in message) this.#capture(message)
    else if ('fork' in message) {
      if (this.captures instanceof CellarError) return this.#refuse(message.request, message.fork, this.captures)
      for (const child of message.children) this.#start(child)
      this.#say({ captured: message.request, id: message.fork })
    } else if ('go' in message) {
      const guest = this.guests.get(message.go)
      if (guest !== undefined) guest.held = false
    } else if ('release' in message) {
      if (this.guests.get(message.release)?.launch.run === message.run) this.#gone(message.release)
      this.#say({ released: message.release, run: message.run })
    } else if ('incoming' in message) this.#say({ incoming: message.request, errno: 0 })
  }

  #start(launch: GuestLaunch): void {
    this.guests.set(launch.id, { launch, held: false, paused: false, runningNs: 1 })
    this.#say({ started: launch.id, run: launch.run, startedAt: Date.now(), uncapturable: this.uncapturable })
  }

  #stop({ stop: id, run, signal }: Extract<ToProcess, { stop: string }>): void {
    if (!this.#gone(id)) return
    this.#say({ ended: { id, run, outcome: { kind: 'signal', signal }, startedAt: 1, endedAt: Date.now(),
      by: 'stop' } })
  }

  // Its sockets are closed.
  #gone(id: string): boolean {
    const ports = this.guests.get(id)?.launch.ports ?? []
    for (const ticket of ports.flatMap(({ tickets }) => tickets)) closeFd(this.receiver.take(ticket) ?? -1)
    return this.guests.delete(id)
  }

  #capture({ capture: id, request, next }: Extract<ToProcess, { capture: string }>): void {
    const guest = this.guests.get(id)
    if (guest === undefined) return this.#refuse(request, id, new CellarError('CAPTURE_ENDED', [id]))
    if (this.captures instanceof CellarError) return this.#refuse(request, id, this.captures)
    guest.held = next === 'hold'
    const snapshot = `sha256:${String(++captured).padStart(64, '0')}`
    this.#say({ captured: request, id, written: { snapshot, memoryBytes: 65_536, newBytes: 100, storedBytes: 200,
      chunks: 1, newChunks: 1, stoppedNs: 1e6, ...this.captures } })
  }

  #refuse(request: number, id: string, { code, values }: CellarError): void {
    this.#say({ captured: request, id, error: { code, values } })
  }
}

let captured = 0

/** A host's guests. */
export class FakeHost {
  readonly folder: string
  readonly paths: Paths
  processes: FakeProcess[] = []
  /** Messages of these kinds no process answers that is made from now on. */
  silent: readonly Kind[] = []
  store!: Store
  state!: State
  captures!: Captures
  lifecycle!: Lifecycle
  guests!: GuestActions
  snapshots!: SnapshotActions
  hibernation!: Hibernation
  dials!: Dials
  requests!: GuestRequests
  /** What is free of the machine's memory; what guests can be promised. */
  available = 2 ** 40
  capacity = { pcpus: 8, memoryBytes: 2 ** 30 }
  #files!: SnapshotFiles
  #nextProcess = 1

  private constructor(folder: string) {
    this.folder = folder
    this.paths = new Paths(folder)
  }

  /** A host on a folder. */
  static async start(folder: string): Promise<FakeHost> {
    const host = new FakeHost(folder)
    await host.#open()
    if (!host.state.projects.has('default')) {
      await host.store.commit((tx) => tx.putProject({ name: 'default', uid: null, createdAt: 1 }))
      host.state.projects.set('default', { name: 'default', uid: null, createdAt: 1 })
    }
    makeProjectFolder(host.paths, 'default', undefined)
    return host
  }

  async #open(): Promise<void> {
    const log = newLog(() => {})
    const store = this.store = await Store.open(this.folder)
    const state = this.state = stateOf(store.load())
    const processes = this.#asProcesses()
    const files = this.#files = new SnapshotFiles({ state, processes, log, isOpen: () => true })
    const captures = this.captures = new Captures({ state, processes, files })
    const { paths, capacity } = this
    const lifecycle = this.lifecycle = new Lifecycle({ state, store, processes, secrets: {} as never, paths, log,
      captures, files, machines: { take: (guest: Guest, volumes: readonly string[]) =>
        processes.take(guest.row.project, guest.row.id, volumes), give: async () => undefined,
        setTerms: () => {} } as never })
    const hibernation: Hibernation = this.hibernation = new Hibernation({ state, lifecycle, captures, files, processes,
      capacity, log, availableMemory: () => this.available, start: (guest, note) => this.guests.start(guest, note) })
    const projects = { ensure: async () => {}, checkOpen: () => {}, project: () => {} } as never
    this.guests = new GuestActions({ state, store, lifecycle, projects, volumes: {} as never, paths, capacity,
      endProcess: () => {}, makeRoom: (bytes) => hibernation.makeRoom(bytes),
      resolveImage: () => ({ digest: MANIFEST, module: MODULE }) })
    this.snapshots = new SnapshotActions({ state, store, lifecycle, captures, files, projects, guests: this.guests,
      processes, paths })
    this.requests = new GuestRequests({ state, snapshots: this.snapshots, hibernation, log })
    this.dials = new Dials({ state, store, log, wake: (guest) => hibernation.wake(guest, 'connection') })
  }

  /** A guest that runs. */
  async run(name: string, more: Partial<GuestSpec> = {}): Promise<Guest> {
    const spec = GUEST_SPEC.parse({ image: 'app', restart: 'no', ...more })
    const guest = await this.guests.create('default', name, spec, true)
    await guest.reaches(['running', 'failed'], 5000)
    return guest
  }

  guest(name: string): Guest {
    return this.state.guest('default', name)
  }

  /** The host is killed, and another takes its place. Processes in `lost` have ended meanwhile. */
  async restart(lost: readonly FakeProcess[] = []): Promise<void> {
    this.#stop()
    await this.store.close()
    await this.#open()
    this.processes = this.processes.filter((process) => !lost.includes(process))
    for (const process of this.processes) {
      process.handle.guests.clear()
      process.handle.volumes.clear()
      process.connect((from, message) => this.#heard(from, message))
      this.hello(process)
    }
    this.lifecycle.settle()
    this.hibernation.settle()
  }

  /** A process says hello, as after its connection was lost. */
  hello({ handle, states }: FakeProcess, guests = states): void {
    const { id, project } = handle
    const process = this.processes.find((one) => one.handle === handle)!
    const hello = { hello: 1, process: id, project, pid: 1, guests: guests.call(process), ends: [] }
    this.captures.hello(handle, hello)
    this.lifecycle.hello(handle, hello)
    this.#files.hello(handle)
  }

  /** A process ends at once. */
  lose(process: FakeProcess): void {
    this.processes = this.processes.filter((one) => one !== process)
    process.handle.link = undefined
    this.lifecycle.lost(process.handle, 'it was ended by SIGKILL')
  }

  #stop(): void {
    this.lifecycle.close()
    this.hibernation.close()
    this.#files.close()
    for (const { listening } of this.state.guests.values()) listening?.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop()
    for (const { receiver } of this.processes) receiver.close()
    await this.store.close()
  }

  // Messages of processes that are gone, or that a host before this one has heard, come to nothing.
  #heard({ handle }: FakeProcess, message: FromProcess): void {
    if (handle.link === undefined) return
    if ('started' in message) this.lifecycle.started(message, handle)
    else if ('ended' in message) this.lifecycle.ended(message.ended, handle)
    else if ('captured' in message) this.captures.captured(handle, message)
    else if ('paused' in message) this.captures.paused(handle, message)
    else if ('released' in message) this.captures.released(handle, message)
    else if ('asked' in message) void this.requests.asked(handle, message)
    else if ('incoming' in message) this.dials.taken(handle, message.incoming, message.errno)
  }

  #asProcesses(): Processes {
    const some = async (project: string): Promise<ProcessHandle> => {
      const there = this.processes.find(({ handle }) => handle.project === project)
      if (there !== undefined) return there.handle
      const id = this.#nextProcess++
      const made = new FakeProcess(id, project, this.paths.run(id), (from, message) => this.#heard(from, message))
      for (const kind of this.silent) made.silent.add(kind)
      this.processes.push(made)
      return made.handle
    }
    const join = (handle: ProcessHandle, guest: string): void => void handle.guests.add(guest)
    const all = (): Processes['all'] => new Map(this.processes.map(({ handle }) => [handle.id, handle]))
    return {
      some, join, leave: (handle: ProcessHandle, guest: string) => void handle.guests.delete(guest),
      take: async (project: string, guest: string) => {
        const handle = await some(project)
        join(handle, guest)
        return handle
      },
      kill: (handle: ProcessHandle) => this.lose(this.processes.find((one) => one.handle === handle)!),
      get all() { return all() },
    } as unknown as Processes
  }
}
