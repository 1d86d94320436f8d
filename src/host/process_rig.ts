// host/process_rig.ts: for tests and benches: a real cell process in a folder of its own, and a host's link to it.

import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { ProcessLink } from './process_link.ts'
import type { FromProcess, GuestEnd, GuestLaunch, ProcessConfig } from './protocol.ts'

const GUESTS = fileURLToPath(new URL('../../guests/', import.meta.url))
const PROGRAM = fileURLToPath(new URL('./cell_process.ts', import.meta.url))

/** A cell process that is ended with its rig. */
export class ProcessRig {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-process-'))
  readonly config: ProcessConfig
  readonly child: ChildProcess
  readonly exited: Promise<unknown[]>
  /** All that the process has said, to all links. */
  readonly heard: FromProcess[] = []
  link!: ProcessLink
  #wake: (() => void)[] = []

  private constructor(before: (folder: string) => void) {
    const { folder } = this
    this.config = { process: 7, project: 'test', runFolder: join(folder, 'run'), blobFolder: join(folder, 'blobs'),
      cacheFolder: join(folder, 'cache'), logFolder: join(folder, 'logs'),
      snapshotFolder: join(folder, 'snapshots'), quantumNs: 1e6 }
    mkdirSync(this.config.snapshotFolder, { mode: 0o700 })
    mkdirSync(this.config.runFolder)
    mkdirSync(join(folder, 'blobs/sha256'), { recursive: true })
    writeFileSync(join(this.config.runFolder, 'config.json'), JSON.stringify(this.config))
    before(folder)
    this.child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', PROGRAM, this.config.runFolder],
      { stdio: ['ignore', 'ignore', process.env['RIG_LOUD'] === undefined ? 'ignore' : 'inherit'] })
    this.exited = once(this.child, 'exit')
  }

  /** Starts a process and connects to it. `before`: what is done to its folder first. */
  static async start(before: (folder: string) => void = () => {}): Promise<ProcessRig> {
    const rig = new ProcessRig(before)
    try {
      await rig.connect()
    } catch (error) {
      rig[Symbol.dispose]()
      throw error
    }
    return rig
  }

  /** A new link, in place of the one before. */
  async connect(): Promise<ProcessLink> {
    while (!existsSync(join(this.config.runFolder, 'c'))) {
      if (this.child.exitCode !== null) throw new Error(`the process has ended with status ${this.child.exitCode}`)
      await sleep(5)
    }
    return this.link = await ProcessLink.connect(this.config.runFolder, {
      message: (message) => {
        this.heard.push(message)
        for (const wake of this.#wake.splice(0)) wake()
      },
      closed: () => {},
    })
  }

  /** The first message from `since` on that `is` so. */
  async hear<T extends FromProcess>(is: (message: FromProcess) => message is T, since = 0): Promise<T> {
    for (let at = since; ; at++) {
      while (at >= this.heard.length) await new Promise<void>((wake) => { this.#wake.push(wake) })
      const message = this.heard[at]!
      if (is(message)) return message
    }
  }

  async started(id: string): Promise<void> {
    await this.hear((message): message is Extract<FromProcess, { started: string }> =>
      'started' in message && message.started === id)
  }

  /** How a guest has ended, which is acknowledged. Of one that ended before a new link was there, its hello tells. */
  async ended(id: string, run = 1): Promise<GuestEnd> {
    const its = (message: FromProcess): GuestEnd | undefined =>
      ('ended' in message ? [message.ended] : 'hello' in message ? [...message.ends] : [])
        .find((end) => end.id === id && end.run === run)
    const message = await this.hear((one): one is FromProcess => its(one) !== undefined)
    this.link.send({ ack: id, run })
    return its(message)!
  }

  /** A launch of guests/PROGRAM.wasm. */
  launch(id: string, [program, ...args]: [string, ...string[]], more: Partial<GuestLaunch> = {}): GuestLaunch {
    return {
      id, run: 1, name: id, module: this.blob(program), args: [program, ...args], env: [], memoryPagesMax: 1024,
      stubs: [], deterministic: false, unbounded: false, terms: DEFAULT_TERMS, volumes: [], ports: [], connect: [],
      networks: [], stdin: false, ...more,
    }
  }

  start(id: string, command: [string, ...string[]], more: Partial<GuestLaunch> = {}): void {
    this.link.send({ start: this.launch(id, command, more) })
  }

  /** The digest of guests/PROGRAM.wasm, which is among the blobs. */
  blob(program: string): string {
    return this.blobOf(readFileSync(join(GUESTS, `${program}.wasm`)))
  }

  /** The digest of a module, which is among the blobs. */
  blobOf(bytes: Uint8Array): string {
    const hex = createHash('sha256').update(bytes).digest('hex')
    const to = join(this.config.blobFolder, 'sha256', hex)
    if (!existsSync(to)) writeFileSync(to, bytes)
    return `sha256:${hex}`
  }

  /** Bytes of memory that the process has resident. */
  resident(): number {
    return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${this.child.pid}/status`, 'utf8'))![1]) * 1024
  }

  /** Nanoseconds on processors that the process has had, all threads. */
  cpuNs(): number {
    const fields = readFileSync(`/proc/${this.child.pid}/stat`, 'utf8').split(') ')[1]!.split(' ')
    return (Number(fields[11]) + Number(fields[12])) * 1e7
  }

  [Symbol.dispose](): void {
    this.link?.close()
    this.child.kill('SIGKILL')
    rmSync(this.folder, { recursive: true, force: true })
  }
}
