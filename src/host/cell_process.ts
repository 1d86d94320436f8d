// host/cell_process.ts: the process that runs the cells of one project: `node cell_process.ts RUNFOLDER`.
//
// It is started detached and outlives the host: guests run on while no host is there, and what ended meanwhile is told
// to the next one (protocol.ts). It ends by itself when nobody can want it any more: with no guests, nothing to tell
// and no host for a minute; when its run folder is gone and with it the way to reach it; or when it was drained. When
// one of its threads dies it ends at once, with all guests: the host starts them again by their policies.
//
//   cells.ts  guests     consoles.ts  their output and input      log_writer.ts         logs
//   health.ts  checks    host_line.ts  the connection             modules.ts            what they run
//   cells_captures.ts  captures, forks                            cells_snapshots.ts    what is saved of them
//   cells_asking.ts  what they ask of the host                    cells_transfers.ts    snapshots from and to the host

import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { EHOSTUNREACH } from '../base/errno.ts'
import { DIALS_MAX } from '../base/limits.ts'
import { Continuations } from '../cell/continuations.ts'
import { Stack } from '../cell/stack.ts'
import { Switchboard } from '../cell/switchboard.ts'
import { exitNow } from '../sys/libc.ts'
import { closeFd, openFdReceiver, type FdReceiver } from '../sys/sockets.ts'
import { SnapshotStore } from '../snapshot/store.ts'
import { Asking } from './cells_asking.ts'
import { Cells } from './cells.ts'
import { Snapshots } from './cells_snapshots.ts'
import { CellTransfers } from './cells_transfers.ts'
import { Consoles } from './consoles.ts'
import { HealthChecks } from './health.ts'
import { HostLine } from './host_line.ts'
import { lockDown } from './jail_inside.ts'
import { LogWriter } from './log_writer.ts'
import { Modules } from './modules.ts'
import { PROTOCOL_VERSION, type GuestEnd, type ProcessConfig, type ToProcess } from './protocol.ts'

/** How often it looks for its run folder while no host is there, and how long it waits for one with no guests. */
const LOOK_MS = 3000
const ALONE_MS_MAX = 60_000
/** How long its end is held back for logs to be written. */
const SETTLE_MS_MAX = 2000
/** How often pools are split over the pCPUs: while their cells want something, and while they don't. */
const SPLIT_BUSY_MS = 250
const SPLIT_IDLE_MS = 2000
/** How often it looks whether another pCPU would have more for a cell: while some are moved, and while none is. */
const BALANCE_BUSY_MS = 1000
const BALANCE_IDLE_MS = 2000
/** Ends in one hello: the others follow, as a frame is bounded, and a trap's stack is long. */
const ENDS_IN_HELLO_MAX = 100

type Waiting = (answer: { readonly ticket?: number; readonly errno?: number }) => void

class CellProcess {
  readonly #config: ProcessConfig
  readonly #line: HostLine
  readonly #log: LogWriter
  readonly #stack: Stack
  readonly #receiver: FdReceiver
  readonly #switchboard: Switchboard
  readonly #consoles: Consoles
  readonly #health: HealthChecks
  readonly #cells: Cells
  readonly #snapshots: Snapshots
  readonly #transfers: CellTransfers
  readonly #asking: Asking
  readonly #dials = new Map<number, Waiting>()
  #nextDial = 1
  #aloneSince = performance.now()
  #lookout: NodeJS.Timeout | undefined
  #splitting: NodeJS.Timeout | undefined
  #balancing: NodeJS.Timeout | undefined
  #isOver = false

  constructor(config: ProcessConfig) {
    this.#config = config
    const { project, runFolder, blobFolder, cacheFolder, logFolder, snapshotFolder, quantumNs } = config
    this.#receiver = openFdReceiver(join(runFolder, 'f'))
    this.#line = new HostLine({ message: (message) => this.#heard(message),
      bytes: (stream, bytes) => this.#input(stream, bytes), gone: () => this.#hostGone() })
    this.#log = new LogWriter(logFolder)
    const continuations = new Continuations()
    const stack = this.#stack = new Stack({ quantumNs, continuations, on: {
      failed: (error) => this.die(error),
      output: (id, channel, bytes) => this.#consoles.output(id, channel, bytes),
      taken: (id, count) => this.#consoles.taken(id, count),
      net: (pcpu, report) => this.#switchboard.report(pcpu, report),
      asks: (id, asked, serial) => this.#asking.asked(id, asked, serial),
      moved: (id, pcpu) => this.#cells.moved(id, pcpu),
    } })
    this.#switchboard = new Switchboard({ post: (pcpu, command, transfer) => stack.postNet(pcpu, command, transfer),
      outside: (id, name, port) => this.#dial(id, name, port) })
    this.#consoles = new Consoles(this.#line, this.#log, stack)
    this.#health = new HealthChecks({ open: (id, port) => this.#switchboard.open(id, port),
      changed: (id, healthy, why) => this.#cells.healthChanged(id, healthy, why) })
    const modules = new Modules({ blobFolder, cacheFolder, forget: (executable) => stack.forget(executable) })
    const store = new SnapshotStore(snapshotFolder)
    this.#snapshots = new Snapshots(store, (say) => this.#line.send({ say }))
    this.#transfers = new CellTransfers({ line: this.#line, store, modules, snapshots: this.#snapshots,
      compile: (executable, frames) => void continuations.of(executable, frames), die: (error) => this.die(error) })
    this.#cells = new Cells({ project, stack, modules, consoles: this.#consoles, line: this.#line,
      receiver: this.#receiver, switchboard: this.#switchboard, health: this.#health, snapshots: this.#snapshots,
      left: (number) => this.#asking.forget(number), idle: () => this.#looked() })
    this.#asking = new Asking(this.#line, { guestOf: (number) => this.#cells.withNumber(number),
      told: (number, serial, errno) => stack.told(number, serial, errno) })
  }

  /** From here on it can be reached. Rejects with a system error. */
  async listen(): Promise<void> {
    await this.#line.listen(join(this.#config.runFolder, 'c'), () => {
      // Before the first connection, and so before any guest.
      for (const { layer, on, why } of lockDown()) {
        if (!on) process.stderr.write(`without the wall ${layer}: ${why}\n`)
      }
    })
    this.#lookOut()
  }

  /** Something of ours is broken: nothing can be relied on any more. */
  die(error: unknown): void {
    const text = error instanceof Error ? error.stack ?? error.message : String(error)
    process.stderr.write(`the cell process ends: ${text}\n`)
    this.#line.send({ say: `the cell process ends: ${text.slice(0, 4096)}` })
    exitNow(1)
  }

  #heard(message: ToProcess): void {
    if ('start' in message) this.#cells.start(message.start)
    else if ('stop' in message) this.#cells.stop(message.stop, message.run, message.signal)
    else if ('ack' in message) this.#cells.ack(message.ack, message.run)
    else if ('credit' in message) {
      if (!this.#transfers.credit(message.credit, message.bytes)) this.#consoles.credit(message.credit, message.bytes)
    } else if ('eof' in message) this.#input(message.eof, null)
    else if ('attach' in message) this.#consoles.attach(this.#cells.consoleOf(message.attach), message.stream)
    else if ('detach' in message) this.#detach(message.detach)
    else if ('terms' in message) this.#cells.setTerms(message.terms, message.to)
    else if ('pool' in message) this.#cells.setPool(message.pool, message.to)
    else if ('drop' in message) for (const ticket of message.drop) closeFd(this.#receiver.take(ticket) ?? -1)
    else if ('figures' in message) void this.#figures(message.figures)
    else if ('resolved' in message || 'peers' in message || 'forkMachine' in message || 'resize' in message) {
      return // A machine's.
    }
    else if ('dialled' in message) this.#dials.get(message.dialled)?.(message)
    else if ('incoming' in message) {
      const errno = this.#cells.incoming(message.incoming, message.port, message.ticket)
      this.#line.send({ incoming: message.request, errno })
    } else if ('hello' in message) this.#hello(message.version)
    else if ('drain' in message) {
      this.#cells.isDraining = true
      this.#looked()
    } else this.#heardOfSnapshots(message)
    if ('start' in message || 'pool' in message) this.#split()
    if ('start' in message || 'fork' in message) this.#balance()
  }

  #heardOfSnapshots(message: OfSnapshots): void {
    if ('pause' in message) this.#cells.pause(message.pause, message.run, message.paused)
    else if ('capture' in message) this.#cells.captures.capture(message)
    else if ('go' in message) this.#cells.captures.go(message.go, message.run)
    else if ('release' in message) this.#cells.captures.release(message.release, message.run)
    else if ('fork' in message) this.#cells.captures.fork(message)
    else if ('told' in message) this.#asking.told(message.told, message.errno)
    else if ('forget' in message) this.#snapshots.remove(message.forget)
    else if ('keep' in message) this.#snapshots.keep(message.keep)
    else if ('transmit' in message) this.#transfers.transmit(message)
    else this.#transfers.receive(message)
  }

  #input(stream: number, bytes: Buffer | null): void {
    if (!this.#transfers.input(stream, bytes)) this.#consoles.input(stream, bytes)
  }

  #detach(stream: number): void {
    if (this.#transfers.detach(stream)) return
    const abandoned = this.#consoles.detach(stream)
    if (abandoned !== undefined) this.#cells.abandon(abandoned)
  }

  #hello(version: string): void {
    this.#snapshots.cellar = version
    this.#lookout = void clearInterval(this.#lookout)
    // An earlier host answers nothing any more, though its end may not have been noticed yet.
    this.#unanswered()
    // What an earlier host sent for launches that never came, and what it wanted.
    this.#receiver.clear()
    this.#cells.isDraining = false
    const { process: number, project } = this.#config
    const ends: readonly GuestEnd[] = this.#cells.ends
    this.#line.greet({ hello: PROTOCOL_VERSION, process: number, project, pid: process.pid,
      guests: this.#cells.states(), ends: ends.slice(0, ENDS_IN_HELLO_MAX) })
    for (const end of ends.slice(ENDS_IN_HELLO_MAX)) this.#line.send({ ended: end })
  }

  async #figures(number: number): Promise<void> {
    const guests = await this.#cells.figures()
    const { user, system } = process.cpuUsage()
    this.#line.send({ figures: number, guests, process: { memoryBytes: process.memoryUsage.rss(),
      cpuNs: (user + system) * 1e3, cells: this.#cells.size } })
  }

  // Asks the host for a connection to what isn't here.
  async #dial(id: string, name: string, port: number): Promise<{ fd: number } | number> {
    if (!this.#line.isConnected || this.#dials.size >= DIALS_MAX) return EHOSTUNREACH
    const number = this.#nextDial++
    const { promise, resolve } = Promise.withResolvers<Parameters<Waiting>[0]>()
    this.#dials.set(number, resolve)
    this.#line.send({ dial: number, id, name, port })
    const { ticket, errno = EHOSTUNREACH } = await promise
    this.#dials.delete(number)
    const fd = ticket === undefined ? undefined : this.#receiver.take(ticket)
    return fd === undefined ? errno : { fd }
  }

  #hostGone(): void {
    this.#unanswered()
    this.#transfers.detachAll()
    for (const abandoned of this.#consoles.detachAll()) this.#cells.abandon(abandoned)
    this.#lookOut()
  }

  #unanswered(): void {
    for (const answer of this.#dials.values()) answer({ errno: EHOSTUNREACH })
    this.#asking.hostGone()
  }

  // Only while no host is there: then it can't be told to end.
  #lookOut(): void {
    this.#aloneSince = performance.now()
    this.#lookout ??= setInterval(() => this.#looked(), LOOK_MS)
  }

  #looked(): void {
    const { isConnected } = this.#line
    const isEmpty = this.#cells.size === 0 && this.#cells.ends.length === 0
    const isGone = !isConnected && !existsSync(this.#config.runFolder)
    const isAlone = !isConnected && performance.now() - this.#aloneSince > ALONE_MS_MAX
    if (isGone || (isEmpty && (isAlone || this.#cells.isDraining))) void this.end()
  }

  // One timer, while there are guests in pools that must be divided by what they want.
  #split(): void {
    this.#splitting ??= setTimeout(() => void this.#splitNow(), SPLIT_BUSY_MS)
  }

  async #splitNow(): Promise<void> {
    const isBusy = await this.#stack.split()
    this.#splitting = this.#stack.mustSplit
      ? setTimeout(() => void this.#splitNow(), isBusy ? SPLIT_BUSY_MS : SPLIT_IDLE_MS) : undefined
  }

  // One timer, while there are several guests and several pCPUs for them.
  #balance(): void {
    if (this.#stack.pcpus > 1) this.#balancing ??= setTimeout(() => void this.#balanceNow(), BALANCE_BUSY_MS)
  }

  async #balanceNow(): Promise<void> {
    const isBusy = await this.#stack.rebalance() > 0
    this.#balancing = this.#cells.size > 1
      ? setTimeout(() => void this.#balanceNow(), isBusy ? BALANCE_BUSY_MS : BALANCE_IDLE_MS) : undefined
  }

  /** Ends all that runs, writes what was written, and the process. */
  async end(): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    clearInterval(this.#lookout)
    clearTimeout(this.#splitting)
    clearTimeout(this.#balancing)
    this.#health.close()
    this.#switchboard.close()
    await this.#stack.close()
    await this.#log.settled(SETTLE_MS_MAX)
    this.#line.close()
    rmSync(join(this.#config.runFolder, 'c'), { force: true })
    this.#receiver.close()
    exitNow(0)
  }
}

type OfSnapshots = Extract<ToProcess, { readonly pause: string } | { readonly capture: string } |
  { readonly go: string } | { readonly release: string } | { readonly fork: string } | { readonly told: number } |
  { readonly forget: readonly string[] } | { readonly keep: readonly string[] } | { readonly transmit: string } |
  { readonly receive: number }>

const [folder = ''] = process.argv.slice(2)
const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as ProcessConfig
const cellProcess = new CellProcess(config)
for (const name of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(name, (error: unknown) => cellProcess.die(error))
}
await cellProcess.listen()
