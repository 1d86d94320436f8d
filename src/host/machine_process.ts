// host/machine_process.ts: the process that runs one machine: `node machine_process.ts RUNFOLDER`.
//
// To its host it is as a cell process (protocol.ts), with one guest. It outlives the host, keeps the guest's end until
// that is acknowledged, and ends by itself when nobody can want it any more. Here is the line to the host; this thread
// runs no vCPU and no device of the guest's.
//
//   machine_guest.ts  the guest from its start to its end      machine_net.ts   its network card, and who it reaches
//   machine_console.ts  its console                            machine_exec.ts  programs run in it, files copied
//   machine_snapshots.ts  what is saved of it                  consoles.ts, log_writer.ts  where output goes

import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { exitNow } from '../sys/libc.ts'
import { closeFd, openFdReceiver, type FdReceiver } from '../sys/sockets.ts'
import { SnapshotStore } from '../snapshot/store.ts'
import { Consoles } from './consoles.ts'
import { HealthChecks } from './health.ts'
import { HostLine } from './host_line.ts'
import { lockDown } from './jail_inside.ts'
import { LogWriter } from './log_writer.ts'
import { MachineGuest } from './machine_guest.ts'
import { PROTOCOL_VERSION, type GuestEnd, type ProcessConfig, type ToProcess } from './protocol.ts'

/** How often it looks for its run folder while no host is there, and how long it waits for one with no guest. */
const LOOK_MS = 3000
const ALONE_MS_MAX = 60_000
/** How long its end is held back for logs to be written. */
const SETTLE_MS_MAX = 2000

/** The process of a machine. */
class MachineProcess {
  readonly #config: ProcessConfig
  readonly #line: HostLine
  readonly #receiver: FdReceiver
  readonly #log: LogWriter
  readonly #consoles: Consoles
  readonly #health: HealthChecks
  readonly #store: SnapshotStore
  #guest: MachineGuest | undefined
  #end: GuestEnd | undefined
  #isDraining = false
  #isOver = false
  #aloneSince = performance.now()
  #lookout: NodeJS.Timeout | undefined

  constructor(config: ProcessConfig) {
    this.#config = config
    this.#receiver = openFdReceiver(join(config.runFolder, 'f'))
    this.#line = new HostLine({ message: (message) => this.#heard(message),
      bytes: (stream, bytes) => this.#input(stream, bytes), gone: () => this.#hostGone() })
    this.#log = new LogWriter(config.logFolder)
    this.#consoles = new Consoles(this.#line, this.#log, {
      credit: (number, _channel, bytes) => this.#guest?.credit(number, bytes),
      input: (number, bytes) => this.#guest?.input(number, bytes),
    })
    this.#health = new HealthChecks({
      open: async (_id, port) => await this.#guest!.openForHealth(port),
      changed: (id, healthy, why) => this.#healthChanged(id, healthy, why),
    })
    this.#store = new SnapshotStore(config.snapshotFolder)
  }

  /** From here on it can be reached. Rejects with a system error. */
  async listen(): Promise<void> {
    await this.#line.listen(join(this.#config.runFolder, 'c'), () => {
      // QEMU is a program of its own: the door closes behind it (machine_guest.ts).
      if (this.#config.engine?.name !== 'qemu') this.#lockDown()
    })
    this.#lookOut()
  }

  #lockDown(child?: number): void {
    for (const { layer, on, why } of lockDown(child)) {
      if (!on) process.stderr.write(`without the wall ${layer}: ${why}\n`)
    }
  }

  /** Something of ours is broken: nothing can be relied on any more. */
  die(error: unknown): void {
    const text = error instanceof Error ? error.stack ?? error.message : String(error)
    process.stderr.write(`the machine process ends: ${text}\n`)
    this.#line.send({ say: `the machine process ends: ${text.slice(0, 4096)}` })
    this.#guest?.abandon()
    exitNow(1)
  }

  #heard(message: ToProcess): void {
    if ('hello' in message) this.#hello(message.version)
    else if ('start' in message) this.#start(message.start)
    else if ('ack' in message) this.#acknowledged(message.ack, message.run)
    else if ('drain' in message) {
      this.#isDraining = true
      this.#looked()
    } else if ('eof' in message) this.#input(message.eof, null)
    else if ('credit' in message) this.#consoles.credit(message.credit, message.bytes)
    else if ('detach' in message) this.#detach(message.detach)
    else if ('drop' in message) for (const ticket of message.drop) closeFd(this.#receiver.take(ticket) ?? -1)
    else if ('figures' in message) void this.#figures(message.figures)
    else if ('forget' in message || 'keep' in message || 'pool' in message) return // Cell processes do that.
    else if ('transmit' in message || 'receive' in message) return // They do that, too.
    else this.#guest?.heard(message)
  }

  #start(launch: Extract<ToProcess, { start: unknown }>['start']): void {
    const { id, run, stream } = launch
    // A program to be run beside the guest is a program to be run in it.
    if (stream !== undefined) {
      const guest = this.#guest
      if (guest === undefined) this.#line.send({ eof: stream, status: NOT_HERE })
      else guest.exec(launch, this.#consoles.add(id, true, stream))
      return
    }
    if (this.#guest?.launch.id === id && this.#guest.launch.run === run) return this.#guest.tellStarted()
    if (this.#end?.id === id && this.#end.run === run) return this.#line.send({ ended: this.#end })
    this.#guest = new MachineGuest(launch, {
      project: this.#config.project, blobFolder: this.#config.blobFolder, line: this.#line, receiver: this.#receiver,
      consoles: this.#consoles, health: this.#health, store: this.#store,
      locked: (child) => this.#lockDown(child), ended: (end) => this.#ended(end), die: (error) => this.die(error),
    })
    this.#guest.start()
  }

  #ended(end: GuestEnd | undefined): void {
    this.#guest = undefined
    this.#end = end
    if (end !== undefined) this.#line.send({ ended: end })
    this.#looked()
  }

  #acknowledged(id: string, run: number): void {
    if (this.#end?.id !== id || this.#end.run !== run) return
    this.#end = undefined
    this.#looked()
  }

  #healthChanged(id: string, healthy: boolean, why: string): void {
    const guest = this.#guest
    if (guest === undefined) return
    this.#line.send({ health: id, run: guest.launch.run, healthy, why })
    if (!healthy) guest.kill('unhealthy')
  }

  #input(stream: number, bytes: Buffer | null): void {
    this.#consoles.input(stream, bytes)
  }

  #detach(stream: number): void {
    const abandoned = this.#consoles.detach(stream)
    if (abandoned !== undefined) this.#guest?.hangUp(abandoned)
  }

  #hello(version: string): void {
    this.#lookout = void clearInterval(this.#lookout)
    this.#receiver.clear()
    this.#isDraining = false
    this.#guest?.hostCame(version)
    const { process: number, project, engine } = this.#config
    this.#line.greet({ hello: PROTOCOL_VERSION, process: number, project, pid: process.pid,
      guests: this.#guest === undefined ? [] : [this.#guest.state()], ends: this.#end === undefined ? [] : [this.#end],
      ...(engine === undefined ? {} : { engine }) })
  }

  async #figures(number: number): Promise<void> {
    const guest = this.#guest
    const figures = await guest?.figures()
    const { user, system } = process.cpuUsage()
    this.#line.send({ figures: number, guests: guest === undefined || figures === undefined ? {}
      : { [guest.launch.id]: figures }, process: { memoryBytes: process.memoryUsage.rss(), cpuNs: (user + system) * 1e3,
      cells: guest === undefined ? 0 : 1 } })
  }

  #hostGone(): void {
    this.#guest?.hostGone()
    for (const abandoned of this.#consoles.detachAll()) this.#guest?.hangUp(abandoned)
    this.#lookOut()
  }

  // Only while no host is there: then it can't be told to end.
  #lookOut(): void {
    this.#aloneSince = performance.now()
    this.#lookout ??= setInterval(() => this.#looked(), LOOK_MS)
  }

  #looked(): void {
    const { isConnected } = this.#line
    const isEmpty = this.#guest === undefined && this.#end === undefined
    const isGone = !isConnected && !existsSync(this.#config.runFolder)
    const isAlone = !isConnected && performance.now() - this.#aloneSince > ALONE_MS_MAX
    if (isGone || (isEmpty && (isAlone || this.#isDraining))) void this.end()
  }

  /** Ends what runs, writes what was written, and the process. */
  async end(): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    clearInterval(this.#lookout)
    this.#health.close()
    await this.#guest?.close()
    await this.#log.settled(SETTLE_MS_MAX)
    this.#line.close()
    rmSync(join(this.#config.runFolder, 'c'), { force: true })
    this.#receiver.close()
    exitNow(0)
  }
}

/** The status of a program whose guest isn't here. */
const NOT_HERE = 255

const [folder = ''] = process.argv.slice(2)
const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as ProcessConfig
const machineProcess = new MachineProcess(config)
for (const name of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(name, (error: unknown) => machineProcess.die(error))
}
await machineProcess.listen()
