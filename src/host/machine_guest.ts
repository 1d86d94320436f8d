// host/machine_guest.ts: a machine in its process, from its start to its end.
//
//   start → image, RAM, disks, network card → engine → `started` → (reset → engine anew)* → off, crashed, stopped
//
// A reset ends the engine and makes another with the same disks: to the host the guest runs on. To stop it is to ask:
// its agent if it has one, else its power button; who doesn't go in time is ended. Elsewhere: what it has
// (machine_parts.ts), its network (machine_net.ts), captures (machine_snapshots.ts).

import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import { Agent } from '../machine/agent.ts'
import type { Engine, MachineEnd, MachineFigures, Sections } from '../machine/engine.ts'
import type { SnapshotStore } from '../snapshot/store.ts'
import { makeRam } from '../sys/guest_ram.ts'
import { closeFd, type FdReceiver } from '../sys/sockets.ts'
import { Allowance } from './allowance.ts'
import type { Consoles, GuestConsole } from './consoles.ts'
import type { HealthChecks, HealthPeer } from './health.ts'
import type { HostLine } from './host_line.ts'
import { MachineConsole } from './machine_console.ts'
import { MachineExec } from './machine_exec.ts'
import { MachineNet } from './machine_net.ts'
import { engineFor, specOf } from './machine_parts.ts'
import { MachineSnapshots } from './machine_snapshots.ts'
import { mount } from './machine_mounts.ts'
import type { GuestEnd, GuestFigures, GuestLaunch, GuestState, ToProcess } from './protocol.ts'

/** How long a guest that was asked to go may take. */
const STOP_MS_MAX = 20_000
/** A guest that resets itself more often than so is going nowhere. */
const RESETS_MAX = 10
const RESETS_MS = 60_000
/** The host starts it again, whatever its policy is (restart.ts). */
const RESET = 'reset'
/** What the guest is called among the consoles of its process. */
const NUMBER = 1

/** What a machine's process has for its guest. */
export type MachineGuestParts = {
  readonly project: string; readonly blobFolder: string
  readonly line: HostLine; readonly receiver: FdReceiver; readonly consoles: Consoles; readonly health: HealthChecks
  readonly store: SnapshotStore
  /** Nothing more is to be started in this process. `child`: what was. */
  locked(child: number | undefined): void
  /** It is gone: with an end, or (undefined) given up, since it goes on elsewhere. */
  ended(end: GuestEnd | undefined): void
  die(error: unknown): void
}

type By = GuestEnd['by']

/** A machine. */
export class MachineGuest {
  readonly launch: GuestLaunch
  readonly snapshots: MachineSnapshots
  readonly #parts: MachineGuestParts
  readonly #screen: MachineConsole
  readonly #owner: GuestConsole
  readonly #net: MachineNet
  readonly #agent: Agent
  readonly #exec: MachineExec
  readonly #resets = new Allowance(RESETS_MAX, RESETS_MS)
  readonly #ramBytes: number
  #ramFd: number | undefined
  readonly #kvmFd: number | undefined
  #isRamPrivate = false
  #engine: Engine | undefined
  #startedAt: number | undefined
  #startedMs = 0
  #isPaused = false
  #isOver = false
  #by: By
  #event: GuestLaunch['from']
  /** What is done first when its agent has come. */
  #settling: Promise<void> = Promise.resolve()
  #killing: NodeJS.Timeout | undefined
  #timeout: NodeJS.Timeout | undefined

  constructor(launch: GuestLaunch, parts: MachineGuestParts) {
    const { line, consoles, receiver } = parts
    this.launch = launch
    this.#parts = parts
    this.#ramBytes = launch.machine!.memoryBytes
    this.#kvmFd = launch.machine!.kvm === undefined ? undefined : receiver.take(launch.machine!.kvm)
    this.#owner = consoles.add(launch.id, true, undefined)
    this.#screen = new MachineConsole(NUMBER, consoles)
    this.#net = new MachineNet(launch, { line, receiver })
    this.snapshots = new MachineSnapshots(launch, { line, receiver, store: parts.store,
      machine: () => this.#captured(), release: () => void this.#release(),
      rest: () => this.#rest(), die: parts.die })
    this.#agent = new Agent({ name: launch.name, generation: this.snapshots.generation,
      request: async (asked) => asked.what === 'connect' ? await this.#net.connectFor(asked)
        : await this.snapshots.requests.answer(asked, this.snapshots.generation),
      changed: (guest) => { if (guest !== undefined) this.#settling = this.#agentCame() } })
    this.#exec = new MachineExec(this.#agent, consoles, async () => await this.#settling)
  }

  /** Begins. What becomes of it is told to the host. */
  start(): void {
    const { id, timeoutNs, health } = this.launch
    this.#parts.consoles.connect(this.#owner, NUMBER)
    this.#begin().then(() => {
      if (this.#isOver) return
      this.#startedAt = Date.now()
      this.#startedMs = performance.now()
      this.tellStarted()
      this.#net.listen()
      if (timeoutNs !== undefined) this.#timeout = setTimeout(() => this.kill('timeout'), timeoutNs / 1e6)
      if (health !== undefined) this.#parts.health.add(id, health)
    }, (error: unknown) => this.#failed(error))
  }

  tellStarted(): void {
    const { id, run } = this.launch
    if (this.#startedAt === undefined) return
    this.#parts.line.send({ started: id, run, startedAt: this.#startedAt })
  }

  state(): GuestState {
    const { id, run } = this.launch
    return { id, run, ...(this.#startedAt === undefined ? {}
      : { startedAt: this.#startedAt, ageMs: performance.now() - this.#startedMs }),
    ...(this.#parts.health.of(id) === undefined ? {} : { healthy: this.#parts.health.of(id) }),
    ...(this.snapshots.isHeld ? { held: true } : {}), ...(this.#isPaused ? { paused: true } : {}) }
  }

  /** What the host says of this guest. */
  heard(message: ToProcess): void {
    const { id, run } = this.launch
    if ('dialled' in message || 'resolved' in message) return this.#net.answered(message)
    if ('incoming' in message) return this.#net.incoming(message)
    if ('peers' in message) return this.#net.knows(message.are)
    if ('told' in message) return this.snapshots.requests.told(message)
    if ('attach' in message) return this.#attach(message.stream)
    if ('terms' in message) return // Its share of the CPU is its process's: the kernel divides it.
    if (!('run' in message) || message.run !== run) {
      // Who is given up is no more: that is as good.
      if ('release' in message) this.#parts.line.send({ released: id, run: message.run })
      return
    }
    if ('stop' in message) this.#stop(message.signal)
    else if ('resize' in message) this.#engine?.balloon(Math.max(0, this.#ramBytes - message.memoryBytes))
    else if ('pause' in message) void this.#pause(message.paused).catch((error: unknown) => this.#parts.die(error))
    else this.snapshots.heard(message)
  }

  input(number: number, bytes: Uint8Array | null): void {
    if (number === NUMBER) this.#screen.read(bytes)
    else this.#exec.input(number, bytes)
  }

  credit(number: number, bytes: number): void {
    if (number === NUMBER) this.#screen.credit(bytes)
    else this.#exec.credit(number, bytes)
  }

  exec(launch: GuestLaunch, owner: GuestConsole): void {
    this.#exec.start(launch, owner)
  }

  hangUp(owner: GuestConsole): void {
    this.#exec.hangUp(owner)
  }

  async openForHealth(port: number): Promise<HealthPeer | number> {
    return await this.#net.openForHealth(port)
  }

  hostCame(version: string): void {
    this.snapshots.cellar = version
    this.#net.unanswered()
  }

  hostGone(): void {
    this.#net.unanswered()
    this.snapshots.hostGone()
  }

  async figures(): Promise<GuestFigures | undefined> {
    const figures = await this.#engine?.figures()
    if (figures === undefined || this.#startedAt === undefined) return undefined
    return figuresOf(figures, { ageNs: (performance.now() - this.#startedMs) * 1e6, vcpus: this.launch.machine!.vcpus })
  }

  /** Ends it at once. */
  kill(by: By): void {
    this.#by ??= by
    void this.#over({ kind: 'signal', signal: signals.SIGKILL })
  }

  /** Its process is about to be no more. */
  abandon(): void {
    void this.#engine?.close()
  }

  async close(): Promise<void> {
    this.#isOver = true
    await this.#leave()
  }

  // ---- from nothing to an engine

  async #begin(): Promise<void> {
    const { machine, from } = this.launch
    const restored = from === undefined ? undefined : await this.snapshots.read(from)
    if (this.#isOver) return
    this.#ramFd ??= restored?.ramFd ?? makeRam(machine!.memoryBytes)
    this.#isRamPrivate = restored?.isRamPrivate ?? false
    this.#event = from
    await this.#power(restored?.sections)
  }

  async #power(sections: Sections | undefined): Promise<void> {
    const { blobFolder } = this.#parts
    const { generation } = this.snapshots
    const spec = specOf(this.launch, { blobFolder, nics: this.#net.connect(), generation })
    const engine = engineFor(this.launch, this.#kvmFd, { spec, ramFd: this.#ramFd!, isRamPrivate: this.#isRamPrivate,
      from: sections, events: {
        console: (bytes) => { if (this.#engine === engine) this.#screen.write(bytes) },
        ended: (end) => { if (this.#engine === engine) this.#ended(end) },
        agent: (stream) => { if (this.#engine === engine) this.#agent.attach(stream) },
        say: (say) => this.#parts.line.send({ say, id: this.launch.id }),
      } })
    this.#engine = engine
    if ('prepare' in engine) engine.prepare()
    this.#parts.locked('prepare' in engine ? engine.childPid : undefined)
    await engine.start()
    if (this.#isOver) return
    this.#screen.connect(engine)
    if (this.#isPaused) await engine.pause()
  }

  #attach(stream: number): void {
    this.#parts.consoles.attach(this.#owner, stream)
    this.#screen.replay((bytes) => this.#parts.consoles.replay(stream, bytes))
  }

  // The agent is there, for the first time or again: after a reset without its mounts.
  async #agentCame(): Promise<void> {
    const { name, volumes } = this.launch
    const event = this.#event
    this.#event = undefined
    try {
      if (event !== undefined) {
        const isOther = event.event === 'fork' || event.event === 'restore'
        await this.#agent.event({ kind: event.event, number: event.number ?? 0, generation: this.snapshots.generation,
          hostname: isOther ? name : '' })
      } else for (const volume of volumes) await mount(this.#agent, volume)
    } catch (error) {
      if (!(error instanceof CellarError)) return this.#parts.die(error)
      this.#parts.line.send({ say: error.message, id: this.launch.id })
    }
  }

  // ---- what is done with it

  #stop(signal: number): void {
    this.#by ??= 'stop'
    if (signal === signals.SIGKILL || this.#engine === undefined || this.snapshots.isHeld) return this.kill('stop')
    if (this.#killing !== undefined) return
    if (this.#isPaused) void this.#pause(false).catch((error: unknown) => this.#parts.die(error))
    // Who has no agent, or one that refuses, may hear its button.
    const engine = this.#engine
    this.#agent.stop('poweroff').catch(() => engine.powerButton())
    this.#killing = setTimeout(() => this.kill('stop'), STOP_MS_MAX)
  }

  async #pause(isPaused: boolean): Promise<void> {
    const { id, run } = this.launch
    if (isPaused !== this.#isPaused) {
      this.#isPaused = isPaused
      this.#rest()
      if (!this.snapshots.isHeld) await (isPaused ? this.#engine?.pause() : this.#engine?.resume())
    }
    this.#parts.line.send({ paused: id, run, is: isPaused })
  }

  // Who stands still is asked nothing, and its connections wait.
  #rest(): void {
    const isResting = this.#isPaused || this.snapshots.isHeld
    this.#parts.health.rest(this.launch.id, isResting)
    if (isResting) this.#net.pause()
    else this.#net.resume()
  }

  // What a capture works with: undefined while there is nothing to capture.
  #captured(): ReturnType<ConstructorParameters<typeof MachineSnapshots>[1]['machine']> {
    if (this.#engine === undefined || this.#startedAt === undefined || this.#isOver) return undefined
    return { engine: this.#engine, ramFd: this.#ramFd!, isPaused: this.#isPaused }
  }

  // ---- its end

  #ended({ kind, reason }: MachineEnd): void {
    if (kind === 'reset' && this.#by === undefined) {
      // QEMU is started before the walls are: another one needs another process.
      if (this.launch.machine!.engine === 'qemu') return void this.#over({ kind: 'off', reason: RESET })
      if (this.#resets.allow()) return void this.#reset().catch((error: unknown) => this.#failed(error))
      return void this.#over({ kind: 'crashed', reason: 'it resets itself again and again' })
    }
    if (kind === 'failed') return this.#failed(new CellarError('MACHINE_LOST', [this.launch.name, reason]))
    void this.#over(kind === 'crashed' ? { kind, reason } : { kind: 'off', reason })
  }

  // As a reset button does: RAM, vCPUs and devices begin anew, disks stay.
  async #reset(): Promise<void> {
    const before = this.#engine
    this.#engine = undefined
    this.#screen.connect(undefined)
    await before?.close()
    if (this.#isOver) return
    this.#closeRam()
    this.#ramFd = makeRam(this.#ramBytes)
    this.#isRamPrivate = false
    await this.#power(undefined)
  }

  async #release(): Promise<void> {
    const { id, run } = this.launch
    if (this.#isOver) return
    this.#isOver = true
    await this.#leave()
    this.#parts.consoles.end(this.#owner, 0)
    this.#parts.line.send({ released: id, run })
    this.#parts.ended(undefined)
  }

  #failed(error: unknown): void {
    if (this.#isOver) return
    const lost = error instanceof Error && 'syscall' in error ? error.message : undefined
    const known = error instanceof CellarError ? error
      : lost === undefined ? undefined : new CellarError('MACHINE_LOST', [this.launch.name, lost])
    if (known === undefined) return this.#parts.die(error)
    void this.#over({ kind: 'failed', code: known.code, values: known.values })
  }

  async #over(outcome: GuestEnd['outcome']): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    const { id, run } = this.launch
    await this.#leave().catch((error: unknown) => this.#parts.die(error))
    this.#parts.consoles.end(this.#owner, statusOf(outcome))
    this.#parts.ended({ id, run, outcome, startedAt: this.#startedAt, endedAt: Date.now(), by: this.#by })
  }

  async #leave(): Promise<void> {
    clearTimeout(this.#killing)
    clearTimeout(this.#timeout)
    this.#parts.health.remove(this.launch.id)
    const engine = this.#engine
    this.#engine = undefined
    this.#screen.connect(undefined)
    this.#exec.close()
    this.#agent.close()
    this.#net.close()
    this.snapshots.close()
    await engine?.close()
    this.#closeRam()
    if (this.#kvmFd !== undefined) closeFd(this.#kvmFd)
  }

  #closeRam(): void {
    if (this.#ramFd !== undefined) closeFd(this.#ramFd)
    this.#ramFd = undefined
  }
}

function statusOf(outcome: GuestEnd['outcome']): number {
  return outcome.kind === 'off' ? 0 : 128 + (outcome.kind === 'signal' ? outcome.signal : signals.SIGABRT)
}

// A machine's time is that of its vCPUs' threads, which the kernel schedules: what it waited for isn't known here.
function figuresOf(figures: MachineFigures, { ageNs, vcpus }: { ageNs: number; vcpus: number }): GuestFigures {
  const { vcpuNs, residentBytes, ...machine } = figures
  return {
    ageNs, runningNs: vcpuNs, runnableNs: 0, waitingNs: Math.max(0, ageNs * vcpus - vcpuNs), throttledNs: 0,
    pausedNs: 0, stints: 0, switches: 0, preemptions: 0, throttledBy: undefined, memoryBytes: residentBytes, pcpu: 0,
    waitedFor: [], hypercalls: 0,
    machine: { ...machine, vcpus },
  }
}
