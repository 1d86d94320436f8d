// host/processes.ts: the guests' processes of a host: starting them, finding them again, noticing their end.
//
// The cells of a project share processes; a machine has one of its own, which ends with it.
//
// A process has a number that no other has while anything is left of it, and a folder run/N that is made before it is
// started. Whoever finds run/N after a crash can tell what became of it: its socket answers, or nobody will ever listen
// there (then the folder is moved away first: a process that was about to listen finds it gone and ends). A process is
// started detached, in a session of its own: it outlives the host. Elsewhere: walls around it (jail.ts), what is said
// (process_link.ts), what its guests are to do (lifecycle.ts).

import { spawn } from 'node:child_process'
import {
  chownSync, closeSync, mkdirSync, openSync, readdirSync, readFileSync, renameSync, rmSync, statSync, truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { CELLS_PER_PROCESS_MAX, LOG_FILE_BYTES_MAX, QUANTUM_NS_DEFAULT } from '../base/limits.ts'
import type { Log } from '../base/log.ts'
import { stateError } from './database.ts'
import { Allowance } from './allowance.ts'
import { jailCommand, ownFolder } from './jail.ts'
import type { Paths } from './paths.ts'
import { ProcessLink, type LinkHandlers } from './process_link.ts'
import { PROTOCOL_VERSION, type FromProcess, type ProcessConfig } from './protocol.ts'
import { writeProcessCode } from './process_code.ts'
import { makeProjectFolder } from './project_folder.ts'
import type { ProcessRow } from './rows.ts'
import type { Store } from './store.ts'
import { removeTree } from './volumes.ts'

/** How long a process may take until it listens. */
const START_MS_MAX = 60_000
/** How often a new process is tried. */
const TRY_MS = 4
/** How long a process that runs but doesn't answer is tried again. */
const RECONNECT_MS_MAX = 5000
/** A process without guests is kept so long for the next one. */
const IDLE_MS = 30_000

/** So many lines of the host's log are a process's, in so much time. */
const SAYINGS_MAX = 100
const SAYINGS_MS = 60_000

/** A project whose process could not be started is left alone for so long. */
const FAILED_MS = 1000

/** How often what processes write to stderr is looked at. */
const LOOK_MS = 5000

/** A cell process, as the host has it. */
export type ProcessHandle = {
  readonly id: number; readonly project: string; readonly runFolder: string
  readonly kind: 'cells' | 'machine'
  /** Of a machine process: what runs its guest, and why that. */
  engine: { readonly name: 'kvm' | 'qemu'; readonly why: string } | undefined
  pid: number
  link: ProcessLink | undefined
  hasAnswered: boolean
  /** Guests that are in it, or on their way. */
  readonly guests: Set<string>
  /** Volumes that are in use in it, and by how many guests: their quotas are counted there. */
  readonly volumes: Map<string, number>
  isDraining: boolean
  idle: NodeJS.Timeout | undefined
  /** Begins anywhere: a ticket of an earlier host may still lie there. */
  nextTicket: number
  /** Of what it has to say for the log. */
  readonly sayings: Allowance
}

/** What the rest of the host does about processes. */
export type ProcessEvents = {
  hello(handle: ProcessHandle, hello: Extract<FromProcess, { pid: number }>): void
  message(handle: ProcessHandle, message: FromProcess): void
  lost(handle: ProcessHandle, why: string): void
}

type Parts = {
  readonly paths: Paths; readonly store: Store; readonly log: Log; readonly events: ProcessEvents
  readonly uidOf: (project: string) => number | undefined
  readonly nextId: () => number
  /** The processes that an earlier host has started, by number. */
  readonly known: ReadonlyMap<number, Pick<ProcessRow, 'project' | 'kind'>>
}

/** All cell processes. */
export class Processes {
  readonly all = new Map<number, ProcessHandle>()
  readonly #starting = new Map<string, Promise<ProcessHandle>>()
  readonly #parts: Parts
  #codeFolder: string | undefined
  readonly #looking: NodeJS.Timeout
  #isClosed = false

  constructor(parts: Parts) {
    this.#parts = parts
    const { paths, log } = parts
    mkdirSync(paths.runs, { recursive: true, mode: 0o711 })
    this.#looking = setInterval(() => this.#boundLogs(), LOOK_MS).unref()
    try {
      writeProcessCode(paths.code)
      this.#codeFolder = paths.code
    } catch (error) {
      // Such as on a full disk: they start from the sources, more slowly.
      log.warn('cannot write what cell processes run', { why: (error as Error).message })
    }
  }

  /**
   * A process for one more guest of the project, which is counted in it at once: one that has its volumes in use, else
   * the fullest with room, else a new one. Throws CellarError.
   */
  async take(project: string, guest: string, volumes: readonly string[]): Promise<ProcessHandle> {
    for (;;) {
      const handle = this.#choose(project, volumes) ?? await this.#start(project)
      // While it started others may have filled it.
      if (this.#choose(project, volumes) !== handle && handle.guests.size >= CELLS_PER_PROCESS_MAX) continue
      this.join(handle, guest, volumes)
      return handle
    }
  }

  /** A new process for a machine, which is counted in it at once. Throws CellarError. */
  async takeMachine(project: string, guest: string, volumes: readonly string[],
    engine: NonNullable<ProcessHandle['engine']>): Promise<ProcessHandle> {
    const handle = await this.#startNow(project, engine)
    this.join(handle, guest, volumes)
    return handle
  }

  /** A process of the project, whether or not a guest is in it. Throws CellarError. */
  async some(project: string): Promise<ProcessHandle> {
    const handle = this.#choose(project, []) ?? await this.#start(project)
    this.#restIfEmpty(handle)
    return handle
  }

  /** Counts a guest in a process. */
  join(handle: ProcessHandle, guest: string, volumes: readonly string[]): void {
    clearTimeout(handle.idle)
    if (handle.guests.has(guest)) return
    handle.guests.add(guest)
    for (const volume of volumes) handle.volumes.set(volume, (handle.volumes.get(volume) ?? 0) + 1)
  }

  /** The guest is no longer in it. */
  leave(handle: ProcessHandle, guest: string, volumes: readonly string[]): void {
    if (!handle.guests.delete(guest)) return
    for (const volume of volumes) {
      const left = (handle.volumes.get(volume) ?? 1) - 1
      if (left > 0) handle.volumes.set(volume, left)
      else handle.volumes.delete(volume)
    }
    this.#restIfEmpty(handle)
  }

  #restIfEmpty(handle: ProcessHandle): void {
    if (handle.guests.size > 0) return
    clearTimeout(handle.idle)
    handle.idle = setTimeout(() => this.#drain(handle), handle.kind === 'machine' ? 0 : IDLE_MS).unref()
  }

  /** Connects to the processes that an earlier host has left, and clears away what is left of others. */
  async discover(): Promise<void> {
    const { paths } = this.#parts
    await Promise.all(readdirSync(paths.runs).map(async (name) => {
      const id = Number(name)
      const folder = join(paths.runs, name)
      // What was being cleared away.
      if (!Number.isInteger(id)) return void this.#clearAway(folder)
      const known = this.#parts.known.get(id)
      const handle = newHandle(id, known?.project ?? '', folder, known?.kind)
      this.all.set(id, handle)
      if (known !== undefined && await this.#connect(handle, RECONNECT_MS_MAX)) return this.#restIfEmpty(handle)
      this.kill(handle)
      this.#lose(handle, 'it was gone')
    }))
  }

  /** Ends the connections. The processes go on. */
  close(): void {
    this.#isClosed = true
    clearInterval(this.#looking)
    for (const { link, idle } of this.all.values()) {
      clearTimeout(idle)
      link?.close()
    }
  }

  // What a process writes to stderr is little, unless a guest has taken it over: its file begins anew then. It writes
  // at the end, wherever that is.
  #boundLogs(): void {
    for (const id of this.all.keys()) {
      const path = this.#parts.paths.processLog(id)
      const size = statSync(path, { throwIfNoEntry: false })?.size ?? 0
      if (size > LOG_FILE_BYTES_MAX) truncateSync(path)
    }
  }

  /** Ends a process at once, guests and all. */
  kill(handle: ProcessHandle): void {
    // One that an earlier host has started, and that never said hello to us: it may hang, or be about to start.
    const pids = handle.pid === 0 ? processesOf(handle.runFolder) : this.#isThere(handle) ? [handle.pid] : []
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch { /* It has just ended. */ }
    }
    killGroup(handle)
  }

  // What a process has on its command line it can change, but not its user, which no other project has.
  #isThere(handle: ProcessHandle): boolean {
    const uid = this.#parts.uidOf(handle.project)
    return isOurs(handle) || (uid !== undefined && handle.pid > 1 && userOf(handle.pid) === uid)
  }

  #choose(project: string, volumes: readonly string[]): ProcessHandle | undefined {
    let best: ProcessHandle | undefined
    for (const handle of this.all.values()) {
      if (handle.project !== project || handle.link === undefined || handle.isDraining) continue
      if (handle.kind === 'machine') continue
      if (volumes.some((volume) => handle.volumes.has(volume))) return handle
      if (handle.guests.size < CELLS_PER_PROCESS_MAX && handle.guests.size >= (best?.guests.size ?? 0)) best = handle
    }
    return best
  }

  #start(project: string): Promise<ProcessHandle> {
    const pending = this.#starting.get(project)
    if (pending !== undefined) return pending
    const started = this.#startNow(project)
    this.#starting.set(project, started)
    const forget = (): void => { this.#starting.delete(project) }
    // What has just failed isn't tried again for each guest that waits for it.
    started.then(forget, () => setTimeout(forget, FAILED_MS).unref())
    return started
  }

  async #startNow(project: string, engine?: ProcessHandle['engine']): Promise<ProcessHandle> {
    const { paths, store, nextId, uidOf } = this.#parts
    const id = nextId()
    const kind = engine === undefined ? 'cells' : 'machine'
    await store.commit((tx) => tx.putProcess({ id, project, pid: 0, kind, createdAt: Date.now() }))
    const handle = newHandle(id, project, paths.run(id), kind)
    handle.engine = engine
    const uid = uidOf(project)
    const config: ProcessConfig = {
      process: id, project, runFolder: handle.runFolder, blobFolder: join(paths.state, 'blobs'),
      cacheFolder: paths.cache(project), logFolder: paths.logs(project), snapshotFolder: paths.snapshots(project),
      quantumNs: QUANTUM_NS_DEFAULT, ...(engine === undefined ? {} : { engine }),
    }
    this.all.set(id, handle)
    let why: { text: string | undefined }
    try {
      // The project's user may change what is in its own folders, and never what is above them: we work there by path.
      makeProjectFolder(paths, project, uid)
      mkdirSync(handle.runFolder, { mode: 0o700 })
      const file = join(handle.runFolder, 'config.json')
      writeFileSync(file, JSON.stringify(config), { mode: 0o600 })
      if (uid !== undefined) chownSync(file, uid, uid)
      ownFolder(handle.runFolder, uid)
      why = this.#spawn(handle, uid)
    } catch (error) {
      this.#lose(handle, (error as Error).message)
      throw stateError(error, handle.runFolder)
    }
    if (!await this.#connect(handle, START_MS_MAX, why)) {
      const reason = lastWords(paths.processLog(id)) ?? why.text ?? 'it did not answer in time'
      this.kill(handle)
      this.#lose(handle, reason)
      throw new CellarError('PROCESS_LOST', [project, reason])
    }
    return handle
  }

  #spawn(handle: ProcessHandle, uid: number | undefined): { text: string | undefined } {
    const { paths, log } = this.#parts
    const { file, args, env } = jailCommand({ runFolder: handle.runFolder, projectFolder: paths.project(handle.project),
      blobFolder: join(paths.state, 'blobs'), codeFolder: this.#codeFolder, ...(uid === undefined ? {} : { uid }),
      ...(handle.engine === undefined ? {} : { engine: handle.engine.name }) })
    mkdirSync(paths.log, { recursive: true, mode: 0o700 })
    const output = openSync(paths.processLog(handle.id), 'a', 0o600)
    const why: { text: string | undefined } = { text: undefined }
    const child = spawn(file, args, { env, detached: true, stdio: ['ignore', output, output], cwd: handle.runFolder })
    closeSync(output)
    handle.pid = child.pid ?? 0
    child.once('error', (error) => { why.text = error.message })
    child.once('exit', (code, signal) => {
      why.text = signal === null ? `it ended with status ${code}` : `it was ended by ${signal}`
      log.info(`${wordFor(handle)} ended`, { process: handle.id, project: handle.project, why: why.text })
      // One that never said hello is lost by who waits for it.
      if (handle.hasAnswered) this.#lose(handle, why.text)
    })
    child.unref()
    log.info(`${wordFor(handle)} started`, { process: handle.id, project: handle.project, pid: handle.pid })
    return why
  }

  // True when it has said hello. Tries until then, unless `why` tells that it has ended.
  async #connect(handle: ProcessHandle, timeoutMs: number, why?: { text: string | undefined }): Promise<boolean> {
    const until = performance.now() + timeoutMs
    const handlers: LinkHandlers = {
      message: (message) => this.#parts.events.message(handle, message),
      closed: () => { void this.#reconnect(handle) },
    }
    const isOver = (): boolean => performance.now() >= until || why?.text !== undefined || this.#isClosed
    while (!isOver()) {
      try {
        const link = await ProcessLink.connect(handle.runFolder, handlers)
        // Its socket lies in a folder of its own: it may lead to another process. Or it is of another version of ours.
        const { hello, process, project, engine } = link.hello
        if (process !== handle.id || project !== handle.project || hello !== PROTOCOL_VERSION) {
          link.close()
          return false
        }
        handle.link = link
        handle.hasAnswered = true
        handle.pid = link.pid
        if (handle.kind === 'machine') handle.engine ??= engine
        this.#parts.events.hello(handle, link.hello)
        if (handle.isDraining) link.send({ drain: true })
        return true
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        // A socket that nobody listens on: whoever made it is dead. One that isn't there yet may come.
        if (code === 'ECONNREFUSED' && why === undefined) return false
        const isLate = performance.now() > until - timeoutMs + 2000
        if (why === undefined && handle.pid === 0 && code === 'ENOENT' && isLate) return false
        await sleep(TRY_MS)
      }
    }
    return false
  }

  async #reconnect(handle: ProcessHandle): Promise<void> {
    handle.link = undefined
    if (this.#isClosed || !this.all.has(handle.id)) return
    // A moment, for the kernel to tell of its end: then we know why.
    await sleep(20)
    if (!this.all.has(handle.id)) return
    if (this.#isThere(handle) && await this.#connect(handle, RECONNECT_MS_MAX)) return
    if (!this.all.has(handle.id) || this.#isClosed) return
    // It runs and doesn't answer: nobody else may own what is in it.
    this.kill(handle)
    this.#lose(handle, 'it did not answer')
  }

  #lose(handle: ProcessHandle, why: string): void {
    if (this.#isClosed || !this.all.delete(handle.id)) return
    clearTimeout(handle.idle)
    handle.link?.close()
    handle.link = undefined
    killGroup(handle)
    const { paths, store, log, events } = this.#parts
    const dead = join(paths.runs, `.dead-${handle.id}`)
    try {
      renameSync(handle.runFolder, dead)
      void this.#clearAway(dead)
      const output = paths.processLog(handle.id)
      if (statSync(output, { throwIfNoEntry: false })?.size === 0) rmSync(output)
    } catch (error) {
      log.warn('cannot clear away a cell process', { process: handle.id, why: (error as Error).message })
    }
    void store.commit((tx) => tx.deleteProcess(handle.id)).catch(() => {})
    events.lost(handle, why)
  }

  #clearAway(folder: string): Promise<void> {
    return removeTree(folder).catch((error: unknown) => {
      this.#parts.log.warn('cannot clear away a cell process', { folder, why: (error as Error).message })
    })
  }

  #drain(handle: ProcessHandle): void {
    if (handle.guests.size > 0 || handle.link === undefined) return
    handle.isDraining = true
    handle.link.send({ drain: true })
  }
}

function newHandle(id: number, project: string, runFolder: string, kind: ProcessHandle['kind'] = 'cells'):
ProcessHandle {
  return { id, project, runFolder, kind, engine: undefined, pid: 0, link: undefined, hasAnswered: false,
    guests: new Set(), volumes: new Map(), isDraining: false, idle: undefined,
    nextTicket: Math.floor(Math.random() * 2 ** 40),
    sayings: new Allowance(SAYINGS_MAX, SAYINGS_MS) }
}

function wordFor({ kind }: ProcessHandle): string {
  return kind === 'cells' ? 'cell process' : 'machine process'
}

// A machine process may have left a QEMU, which is in the group that began with it: a number that no other process gets
// while anybody is in there.
function killGroup({ kind, pid }: ProcessHandle): void {
  if (kind !== 'machine' || pid <= 1) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch { /* Nobody is in it. */ }
}

// A number of a process may be another's by now: ours has its run folder on its command line or as its folder.
function isOurs({ pid, runFolder }: Pick<ProcessHandle, 'pid' | 'runFolder'>): boolean {
  if (pid <= 1) return false
  try {
    // The launcher has it in its JSON, the process as its last word.
    const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
    return words.includes(`\0${runFolder}\0`) || words.includes(JSON.stringify(runFolder))
  } catch {
    return false
  }
}

function userOf(pid: number): number | undefined {
  try {
    const uid = /^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return uid === undefined ? undefined : Number(uid)
  } catch {
    return undefined
  }
}

// Every process that was started for a run folder: it is a word of its command line.
function processesOf(runFolder: string): number[] {
  return readdirSync('/proc').map(Number).filter((pid) => pid > 1 && isOurs({ pid, runFolder }))
}

// Why it has ended, if it has said so: its launcher says it in a line.
function lastWords(path: string): string | undefined {
  return /^cellar: (.*)$/m.exec(readFileSync(path, 'utf8').slice(0, WORDS_LENGTH_MAX))?.[1]
}

const WORDS_LENGTH_MAX = 65_536
