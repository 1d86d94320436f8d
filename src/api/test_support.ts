// api/test_support.ts: an Operator in memory for tests of the API, and small clients.
//
// It keeps what it is given, checks names as a host does, and has no guests that run: `phase` is what was asked last.
// Tokens: 'reader', 'writer' and 'admin' by their scopes, 'limited': a writer of project "a" only.

import { Readable } from 'node:stream'
import { CellarError } from '../base/errors.ts'
import type {
  Actor, AuditView, EventView, GuestView, ImageView, IncomingMoves, LogLine, MoveOffer, NetworkView, OperationView,
  Operator, PoolView, ProjectView, SecretView, Session, SnapshotView, TokenView, VolumeView,
} from '../host/operator.ts'
import { GUEST_SPEC } from '../host/spec.ts'
import type { GuestSpec } from '../host/spec.ts'
import { parseSize } from '../base/units.ts'

const ACTORS: Readonly<Record<string, Actor>> = {
  reader: { name: 'token:reader', scope: 'read' }, writer: { name: 'token:writer', scope: 'write' },
  admin: { name: 'token:admin', scope: 'admin' }, limited: { name: 'token:limited', scope: 'write', project: 'a' },
}
const DIGEST = `sha256:${'0'.repeat(64)}`

/** Headers of a request with a token of `ACTORS`. */
export function bearer(token: string, more: Readonly<Record<string, string>> = {}): Record<string, string> {
  return { authorization: `Bearer ${token}`, ...more }
}

/** An init of a request with a JSON body. */
export function sending(method: string, body: unknown, token = 'writer', more: Readonly<Record<string, string>> = {}):
RequestInit {
  return { method, body: JSON.stringify(body), headers: bearer(token, { 'content-type': 'application/json', ...more }) }
}

/** A guest's spec with all defaults. */
export function specOf(more: Partial<GuestSpec> = {}): GuestSpec {
  return { ...GUEST_SPEC.parse({ image: 'app' }), ...more }
}

/** A session that answers what it gets: `output` can be replaced, `closed` and `ended` tell what was called. */
export class FakeSession implements Session {
  output: Session['output']
  readonly status: Promise<number | undefined>
  readonly input: Buffer[] = []
  closed = 0
  ended = false
  /** Writes wait for this. */
  room: Promise<void> = Promise.resolve()
  #finish: (status: number | undefined) => void = () => {}
  #wake: () => void = () => {}
  #read = 0

  constructor() {
    this.status = new Promise((resolve) => { this.#finish = resolve })
    this.output = this.#echo()
  }

  async* #echo(): AsyncGenerator<{ channel: number; bytes: Uint8Array }> {
    while (!this.ended && this.closed === 0) {
      while (this.#read < this.input.length) yield { channel: 1, bytes: this.input[this.#read++]! }
      if (this.ended || this.closed > 0) break
      await new Promise<void>((resolve) => { this.#wake = resolve })
    }
    while (this.#read < this.input.length) yield { channel: 1, bytes: this.input[this.#read++]! }
    this.#finish(this.closed > 0 ? undefined : 7)
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.room
    this.input.push(Buffer.from(bytes))
    this.#wake()
  }

  endInput(): void {
    this.ended = true
    this.#wake()
  }

  close(): void {
    this.closed++
    this.#wake()
  }
}

type Kept = { guests: Map<string, GuestView>; pools: Map<string, PoolView>; networks: Map<string, NetworkView>
  secrets: Map<string, SecretView>; volumes: Map<string, VolumeView>; snapshots: Map<string, SnapshotView>
  createdAt: number }

/** Notes what is asked of it, and lacks every chunk until the last. */
class FakeMoves implements IncomingMoves {
  readonly asked: string[] = []

  async offer(project: string, move: string, { name }: MoveOffer): ReturnType<IncomingMoves['offer']> {
    this.asked.push(`offer ${project} ${move} ${name}`)
    return { host: 'fake', needsModule: true }
  }
  async module(...[project, move, module]: Parameters<IncomingMoves['module']>): Promise<void> {
    this.asked.push(`module ${project} ${move} ${Buffer.concat(await module.toArray()).length}`)
  }
  async snapshot(...[project, move, bytes, isLast]: Parameters<IncomingMoves['snapshot']>):
  ReturnType<IncomingMoves['snapshot']> {
    this.asked.push(`snapshot ${project} ${move} ${Buffer.concat(await bytes.toArray()).length} ${isLast}`)
    return { missing: isLast ? [] : ['ab'] }
  }
  async activate(...[project, move, options]: Parameters<IncomingMoves['activate']>):
  ReturnType<IncomingMoves['activate']> {
    this.asked.push(`activate ${project} ${move} ${options.host} ${options.stoppedAt}`)
    return { state: 'active' }
  }
  async drop(...which: Parameters<IncomingMoves['drop']>): Promise<void> { this.asked.push(`drop ${which.join(' ')}`) }
  async acknowledge(...which: Parameters<IncomingMoves['acknowledge']>): Promise<void> {
    this.asked.push(`acknowledge ${which.join(' ')}`)
  }
}

/** An Operator that keeps all in memory. */
export class FakeOperator implements Operator {
  readonly incoming = new FakeMoves()
  readonly kept = new Map<string, Kept>()
  readonly recorded: Omit<AuditView, 'seq' | 'time'>[] = []
  readonly happened: EventView[] = []
  readonly sessions: FakeSession[] = []
  readonly work = new Map<string, OperationView>()
  /** Bytes of modules and archives that were read. */
  received = 0
  missing: string[] = []
  lines: LogLine[] = [{ time: '2026-01-31T12:00:00Z', stream: 'stdout', text: 'hello', partial: false }]
  /** Thrown by `host`: a fault. */
  fault: Error | undefined
  /** Waits are no longer than this. */
  waitMsMax = Infinity
  /** Made for the next attach or exec. */
  nextSession = new FakeSession()
  exec1: unknown
  /** What migrateGuest was given last. */
  moved: unknown
  #ids = 0
  #listeners = new Set<() => void>()
  readonly #once = new Map<string, { fingerprint: string; answer: unknown }>()

  host(): ReturnType<Operator['host']> {
    if (this.fault !== undefined) throw this.fault
    return { version: '0.1.0', node: '26', pid: 1, startedAt: 0, state: '/s', pcpus: 2, memoryBytes: 1, guests: 0,
      running: 0, reserved: { cpu: 0, memoryBytes: 0 }, processes: [] }
  }

  happen(kind: string, project?: string): void {
    this.happened.push({ seq: this.happened.length + 1, time: 0, kind, data: {}, project })
    for (const listener of this.#listeners) listener()
  }

  projects(): ProjectView[] {
    return [...this.kept].map(([name, { guests, createdAt }]) =>
      ({ name, createdAt, guests: guests.size, running: 0, processes: 0 }))
  }
  async createProject(name: string): Promise<ProjectView> {
    if (this.kept.has(name)) throw new CellarError('EXISTS', ['project', name])
    this.#of(name, true)
    return this.projects().find((one) => one.name === name)!
  }
  async removeProject(name: string, force: boolean, by: Actor): Promise<OperationView> {
    const { guests } = this.#of(name)
    if (guests.size > 0 && !force) throw new CellarError('IN_USE', ['project', name, 'guests'])
    this.kept.delete(name)
    return this.#begin('project.delete', name, by)
  }

  guests(project?: string): GuestView[] {
    if (project !== undefined) return [...this.#of(project).guests.values()]
    return [...this.kept.values()].flatMap(({ guests }) => [...guests.values()])
  }
  guest(project: string, nameOrId: string): GuestView {
    const { guests } = this.#of(project)
    return guests.get(nameOrId) ?? lost('guest', nameOrId, [...guests.values()].find(({ id }) => id === nameOrId))
  }
  async createGuest(project: string, given: string | undefined, spec: GuestSpec, start: boolean):
  Promise<GuestView> {
    const { guests } = this.#of(project, true)
    const id = `g${++this.#ids}`
    const name = given ?? id
    if (guests.has(name)) throw new CellarError('EXISTS', ['guest', name])
    guests.set(name, {
      id, project, name, kind: 'cell', spec, digest: DIGEST, generation: 1, createdAt: this.#ids, restarts: 0,
      ports: [], desired: start ? 'running' : 'stopped', phase: start ? 'running' : 'created',
    })
    return guests.get(name)!
  }
  async replaceGuest(project: string, name: string, spec: GuestSpec, generation: number | undefined):
  Promise<GuestView> {
    const found = this.guest(project, name)
    if (generation !== undefined && generation !== found.generation) {
      throw new CellarError('GENERATION_STALE', [name, String(generation), found.generation])
    }
    return this.#become(found, { spec, generation: found.generation + 1 })
  }
  async removeGuest(project: string, name: string, force: boolean): Promise<void> {
    const found = this.guest(project, name)
    if (found.phase === 'running' && !force) throw new CellarError('GUEST_RUNNING', [name])
    this.#of(project).guests.delete(found.name)
  }
  async restartGuest(project: string, name: string): Promise<GuestView> {
    return await this.startGuest(project, name)
  }

  async startGuest(project: string, name: string): Promise<GuestView> {
    return this.#become(this.guest(project, name), { phase: 'running', desired: 'running' })
  }
  async stopGuest(project: string, name: string): Promise<GuestView> {
    return this.#become(this.guest(project, name), { phase: 'stopped', desired: 'stopped' })
  }
  async waitGuest(project: string, name: string, phases: readonly string[], timeoutMs: number): Promise<GuestView> {
    if (!phases.includes(this.guest(project, name).phase)) {
      await new Promise((resolve) => { setTimeout(resolve, Math.min(timeoutMs, this.waitMsMax)).unref() })
    }
    return this.guest(project, name)
  }
  async resizeGuest(project: string, name: string): Promise<GuestView> { return this.guest(project, name) }
  async pauseGuest(project: string, name: string): Promise<GuestView> {
    return this.#become(this.#running('pause', project, name), { phase: 'paused' })
  }
  async resumeGuest(project: string, name: string): Promise<GuestView> {
    const found = this.guest(project, name)
    if (found.phase !== 'hibernated') this.#running('resume', project, name)
    return this.#become(found, { phase: 'running' })
  }
  async hibernateGuest(project: string, name: string): Promise<GuestView> {
    return this.#become(this.#running('hibernate', project, name), { phase: 'hibernated' })
  }
  async snapshotGuest(project: string, guest: string, { name, stop = false }: Parameters<Operator['snapshotGuest']>[2]):
  Promise<SnapshotView> {
    const { spec, digest: module } = this.#running('save', project, guest)
    const { snapshots } = this.#of(project)
    const digest = `sha256:${String(++this.#ids).padStart(2, '0').padEnd(64, 'f')}`
    for (const one of snapshots.values()) if (one.name === name) snapshots.set(one.digest, { ...one, name: undefined })
    const made: SnapshotView = { project, name, digest, guest, spec, module, memoryBytes: 131_072, newBytes: 1000,
      storedBytes: 2000, createdAt: this.#ids, guests: 0 }
    snapshots.set(digest, made)
    if (stop) await this.stopGuest(project, guest)
    return made
  }
  async forkGuest(project: string, name: string, { count, names }: Parameters<Operator['forkGuest']>[2]):
  Promise<GuestView[]> {
    const { spec } = this.#running('fork', project, name)
    const wanted = names ?? Array.from({ length: count }, (_, i) => `${name}-${i + 1}`)
    return await Promise.all(wanted.map(async (one) =>
      this.#become(await this.createGuest(project, one, spec, true), { origin: { fork: name } })))
  }
  async migrateGuest(project: string, name: string, options: Parameters<Operator['migrateGuest']>[2], by: Actor):
  Promise<OperationView> {
    this.moved = options
    return this.#begin('guest.migrate', this.#running('migrate', project, name).name, by)
  }
  snapshots(project: string): SnapshotView[] { return [...this.#of(project).snapshots.values()] }
  snapshot(project: string, reference: string): SnapshotView {
    return lost('snapshot', reference, this.snapshots(project).find(({ name, digest }) => name === reference ||
      digest.startsWith(reference.startsWith('sha256:') ? reference : `sha256:${reference}`)))
  }
  async removeSnapshot(project: string, reference: string): Promise<void> {
    this.#of(project).snapshots.delete(this.snapshot(project, reference).digest)
  }
  async restoreGuest(project: string, reference: string, { name, ports }: Parameters<Operator['restoreGuest']>[2]):
  Promise<GuestView> {
    const { spec, digest } = this.snapshot(project, reference)
    const made = await this.createGuest(project, name, { ...spec, ports: [...ports ?? spec.ports] }, true)
    return this.#become(made, { origin: { snapshot: digest }, capture: { can: true } })
  }
  async pushSnapshot(project: string, reference: string, _to: string, by: Actor): Promise<OperationView> {
    return this.#begin('snapshot.push', this.snapshot(project, reference).digest, by)
  }
  async pullSnapshot(_project: string, from: string, _name: string | undefined, by: Actor): Promise<OperationView> {
    return this.#begin('snapshot.pull', from, by)
  }
  async* logs(_project: string, _name: string, { follow, signal }: { follow?: boolean | undefined
    signal?: AbortSignal | undefined }): AsyncGenerator<LogLine> {
    yield* this.lines
    if (follow === true && signal?.aborted === false) {
      await new Promise<void>((resolve) => { signal.addEventListener('abort', () => resolve()) })
    }
  }
  async attach(project: string, name: string): Promise<Session> {
    this.guest(project, name)
    return this.#session()
  }
  async exec(project: string, name: string, command: unknown): Promise<Session> {
    this.guest(project, name)
    this.exec1 = command
    return this.#session()
  }
  async stats(project?: string): ReturnType<Operator['stats']> {
    const figures = { pcpu: 0, waitedFor: [], hypercalls: 1, memoryBytes: 65_536, throttledBy: undefined, ageNs: 1,
      runningNs: 1, runnableNs: 0, waitingNs: 0, throttledNs: 0, pausedNs: 0, stints: 1, switches: 0, preemptions: 0 }
    return new Map(this.guests(project).filter(({ phase }) => phase === 'running' || phase === 'paused')
      .map(({ id }) => [id, figures]))
  }

  pools(project: string): PoolView[] { return [...this.#of(project).pools.values()] }
  async putPool(project: string, name: string, spec: PoolView['spec']): Promise<PoolView> {
    return put(this.#of(project, true).pools, { project, name, spec, guests: 0, createdAt: 0 })
  }
  async removePool(project: string, name: string): Promise<void> { remove('pool', this.#of(project).pools, name) }
  networks(project: string): NetworkView[] { return [...this.#of(project).networks.values()] }
  async putNetwork(project: string, name: string): Promise<NetworkView> {
    return put(this.#of(project, true).networks, { project, name, guests: [], createdAt: 0 })
  }
  async removeNetwork(project: string, name: string): Promise<void> {
    remove('network', this.#of(project).networks, name)
  }
  secrets(project: string): SecretView[] { return [...this.#of(project).secrets.values()] }
  async putSecret(project: string, name: string, value: Uint8Array): Promise<SecretView> {
    this.received += value.length
    return put(this.#of(project, true).secrets, { project, name, createdAt: 0 })
  }
  async removeSecret(project: string, name: string): Promise<void> { remove('secret', this.#of(project).secrets, name) }
  volumes(project: string): VolumeView[] { return [...this.#of(project).volumes.values()] }
  async volume(project: string, name: string): Promise<VolumeView> {
    return { ...this.#volume(project, name), usedBytes: 0 }
  }
  async createVolume(project: string, name: string, spec: Pick<VolumeView, 'kind'> & { size: string }):
  Promise<VolumeView> {
    const { volumes } = this.#of(project, true)
    if (volumes.has(name)) throw new CellarError('EXISTS', ['volume', name])
    return put(volumes, { project, name, sizeBytes: parseSize(spec.size)!, guests: [], createdAt: 0,
      kind: spec.kind })
  }
  async resizeVolume(project: string, name: string, sizeBytes: number): Promise<VolumeView> {
    return put(this.#of(project).volumes, { ...this.#volume(project, name), sizeBytes })
  }
  async cloneVolume(project: string, name: string, to: string, by: Actor): Promise<OperationView> {
    put(this.#of(project).volumes, { ...this.#volume(project, name), name: to })
    return this.#begin('volume.clone', to, by)
  }
  async removeVolume(project: string, name: string, by: Actor): Promise<OperationView> {
    remove('volume', this.#of(project).volumes, name)
    return this.#begin('volume.delete', name, by)
  }
  async readGuest(): Promise<Readable> { return Readable.from([Buffer.from('archive')]) }
  async writeGuest(_project: string, _name: string, _path: string, archive: Readable): Promise<void> {
    for await (const _ of archive) { /* It is read. */ }
  }
  async readVolume(project: string, name: string): Promise<Readable> {
    this.#volume(project, name)
    return Readable.from([Buffer.alloc(1024), Buffer.alloc(1024)])
  }
  async writeVolume(project: string, name: string, _path: string, archive: Readable): Promise<void> {
    this.#volume(project, name)
    await this.#drain(archive)
  }
  async apply(): ReturnType<Operator['apply']> { return [{ kind: 'guest', name: 'web', action: 'create' }] }

  images(): ImageView[] {
    return [{ kind: 'cell', names: ['app:latest'], digest: DIGEST, module: DIGEST, sizeBytes: 8, createdAt: 0,
      guests: 0 }]
  }
  image(reference: string): ImageView {
    return lost('image', reference, this.images().find(({ names, digest }) =>
      names.includes(reference) || digest === reference || reference === 'registry.example.com/team/app:1'))
  }
  async importImage(_name: string | undefined, module: Readable): Promise<ImageView> {
    await this.#drain(module)
    return this.images()[0]!
  }
  async pullImage(reference: string, by: Actor): Promise<OperationView> {
    return this.#begin('image.pull', reference, by)
  }
  async pushImage(reference: string, _to: string, by: Actor): Promise<OperationView> {
    return this.#begin('image.push', this.image(reference).digest, by)
  }
  async tagImage(reference: string): Promise<ImageView> { return this.image(reference) }
  async removeImage(reference: string): Promise<void> { this.image(reference) }
  async collectImages(): Promise<number> { return 42 }

  operations(): OperationView[] { return [...this.work.values()] }
  operation(id: string): OperationView { return lost('operation', id, this.work.get(id)) }
  async waitOperation(id: string, timeoutMs: number): Promise<OperationView> {
    await new Promise((resolve) => { setTimeout(resolve, Math.min(timeoutMs, this.waitMsMax)).unref() })
    return this.operation(id)
  }
  async cancelOperation(id: string): Promise<OperationView> {
    this.work.set(id, { ...this.operation(id), status: 'cancelled' })
    return this.operation(id)
  }

  async* events({ since = 0, follow, project, signal }: Parameters<Operator['events']>[0]): AsyncGenerator<EventView> {
    for (let next = since; ; next++) {
      while (next >= this.happened.length) {
        if (!follow || signal?.aborted === true) return
        await new Promise<void>((resolve) => {
          const wake = (): void => {
            this.#listeners.delete(wake)
            resolve()
          }
          this.#listeners.add(wake)
          signal?.addEventListener('abort', wake)
        })
      }
      const event = this.happened[next]!
      if (project === undefined || event.project === project) yield event
    }
  }
  /** Who waits for events. */
  get listeners(): number { return this.#listeners.size }

  audit(limit: number): AuditView[] {
    return this.recorded.slice(-limit).map((entry, i) => ({ ...entry, seq: i, time: 0 }))
  }
  record(entry: Omit<AuditView, 'seq' | 'time'>): void { this.recorded.push(entry) }

  tokens(): TokenView[] {
    return Object.entries(ACTORS).map(([id, { scope, project }]) => ({ id, name: id, scope, project, createdAt: 0 }))
  }
  async createToken(name: string, scope: Actor['scope']): ReturnType<Operator['createToken']> {
    return { id: 't', name, scope, createdAt: 0, token: 'cellar_secret' }
  }
  async removeToken(id: string): Promise<void> { lost('token', id, ACTORS[id]) }
  authenticate(token: string): Actor {
    if (Object.hasOwn(ACTORS, token)) return ACTORS[token]!
    throw new CellarError('UNAUTHENTICATED', ['nobody has this token'])
  }

  async once<T>(key: string, fingerprint: string, work: () => Promise<T>): Promise<T> {
    const found = this.#once.get(key)
    if (found === undefined) {
      const answer = await work()
      this.#once.set(key, { fingerprint, answer: JSON.parse(JSON.stringify(answer)) as unknown })
      return answer
    }
    if (found.fingerprint !== fingerprint) throw new CellarError('IDEMPOTENCY_KEY_REUSED', [key])
    return found.answer as T
  }
  async metrics(): Promise<string> {
    return '# HELP cellar_guests Guests.\n# TYPE cellar_guests gauge\ncellar_guests 0\n'
  }
  unready(): string[] { return this.missing }

  #of(project: string, isMade = false): Kept {
    const found = this.kept.get(project)
    if (found !== undefined) return found
    if (!isMade) throw new CellarError('NOT_FOUND', ['project', project])
    const made = { guests: new Map(), pools: new Map(), networks: new Map(), secrets: new Map(), volumes: new Map(),
      snapshots: new Map(), createdAt: 0 }
    this.kept.set(project, made)
    return made
  }
  /** A guest that runs, or is paused. */
  #running(what: string, project: string, name: string): GuestView {
    const found = this.guest(project, name)
    if (['running', 'paused'].includes(found.phase)) return found
    throw new CellarError('GUEST_PHASE_WRONG', [what, name, found.phase])
  }
  #become(guest: GuestView, change: Partial<GuestView>): GuestView {
    return put(this.#of(guest.project).guests, { ...guest, ...change })
  }
  #volume(project: string, name: string): VolumeView {
    return lost('volume', name, this.#of(project).volumes.get(name))
  }
  #session(): Session {
    const session = this.nextSession
    this.sessions.push(session)
    this.nextSession = new FakeSession()
    return session
  }
  #begin(kind: OperationView['kind'], target: string, by: Actor): OperationView {
    const id = `op${this.work.size + 1}`
    const made: OperationView = { id, kind, target, status: 'running', stage: 'begun', createdAt: this.work.size,
      updatedAt: 0, by: by.name }
    this.work.set(id, made)
    return made
  }
  async #drain(stream: Readable): Promise<void> {
    for await (const piece of stream) this.received += (piece as Uint8Array).length
  }
}

function lost<T>(kind: string, name: string, found: T | undefined): T {
  if (found === undefined) throw new CellarError('NOT_FOUND', [kind, name])
  return found
}

function put<T extends { readonly name: string }>(into: Map<string, T>, one: T): T {
  into.set(one.name, one)
  return one
}

function remove(kind: string, from: Map<string, unknown>, name: string): void {
  if (!from.delete(name)) throw new CellarError('NOT_FOUND', [kind, name])
}
