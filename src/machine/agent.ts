// machine/agent.ts: the host's side of the agent in a machine: runs programs there, moves files, asks it to stop, tells
// it what has become of the machine, and hears what the guest asks for.
//
// The engine gives a stream each time that the guest's agent can be reached (`attach`): at its start, and again when
// the machine goes on from a snapshot. A stream that comes replaces the one before; what ran on that one is lost, and
// the guest's agent ends it. Nothing is known of a guest that has no agent: then `connected` stays unresolved.
//
// The agent is a guest's and may be anything: what it says is checked in agent_line.ts, and shown to nobody as it is.
// Elsewhere: one stream (agent_line.ts), one session (agent_session.ts), the other side (guests/agent/).

import { randomBytes } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { ENOENT } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { EVENT_KINDS, type EventKind } from '../services/lifecycle/lifecycle.ts'
import { errnoFromLinux } from '../sys/errno_linux.ts'
import { AgentLine, type AgentAnswer, type AgentGuest, type AgentRequest } from './agent_line.ts'
import { EXEC_NO_INPUT, EXEC_TTY, STOPS } from './agent_protocol.ts'
import type { AgentEnd, AgentSession } from './agent_session.ts'

/** Bytes kept of what an archiver complains of. */
const COMPLAINT_BYTES_MAX = 4096

/** A program for the guest. */
export type AgentCommand = {
  /** The program first, looked for in PATH. */
  readonly argv: readonly string[]
  /** `NAME=VALUE`; PATH, HOME and, at a terminal, TERM are there without. */
  readonly env?: readonly string[] | undefined
  readonly cwd?: string | undefined
  /** `name`, `uid`, each perhaps with `:group`; else the agent's own, root as a rule. */
  readonly user?: string | undefined
  /** It gets a terminal of this size; output is all STDOUT then. */
  readonly tty?: { readonly cols: number; readonly rows: number } | undefined
  /** False: its input is at its end from the first. */
  readonly hasInput?: boolean | undefined
}

export type AgentOptions = {
  /** Of the machine: for errors. */
  readonly name: string
  /** 32 hexadecimal digits. The agent notices by it that it is in another life. */
  readonly generation: string
  /** What the guest asks for. May reject: the guest is told EIO. */
  request(asked: AgentRequest): Promise<AgentAnswer>
  /** A session begins (with what the guest says of itself), or is lost (undefined: and why). */
  changed?(guest: AgentGuest | undefined, why: string): void
}

/** One machine's agent. */
export class Agent {
  readonly #options: AgentOptions
  #generation: string
  #line: AgentLine | undefined
  /** Of a new line that hasn't answered yet; when it has. */
  #waiting: (() => void)[] = []
  #isClosed = false
  guest: AgentGuest | undefined

  constructor(options: AgentOptions) {
    this.#options = options
    this.#generation = options.generation
  }

  get isConnected(): boolean {
    return this.guest !== undefined
  }

  /** A stream to the agent: it is ours from now on. */
  attach(stream: Duplex): void {
    this.#line?.lose('its line was replaced')
    if (this.#isClosed) return void stream.destroy()
    const line: AgentLine = this.#line = new AgentLine(stream, this.#generation, this.#options.request, {
      begun: (guest) => {
        this.guest = guest
        for (const wake of this.#waiting.splice(0)) wake()
        this.#options.changed?.(guest, '')
      },
      lost: (why) => {
        if (this.#line !== line) return
        const was = this.guest
        this.#line = this.guest = undefined
        if (was !== undefined) this.#options.changed?.(undefined, why)
      },
    })
  }

  /** Resolves when the agent is there. Rejects with AGENT_NOT_CONNECTED. */
  async connected(timeoutMs: number): Promise<void> {
    const until = performance.now() + timeoutMs
    while (!this.isConnected) {
      const left = until - performance.now()
      if (left <= 0 || this.#isClosed) throw this.#away()
      const { promise, resolve } = Promise.withResolvers<void>()
      const late = setTimeout(resolve, left)
      this.#waiting.push(resolve)
      await promise
      clearTimeout(late)
      this.#waiting = this.#waiting.filter((wake) => wake !== resolve)
    }
  }

  /** Runs a program. What it comes to, an unknown program among it, is the session's end. */
  exec({ argv, env = [], cwd = '', user = '', tty, hasInput = true }: AgentCommand): AgentSession {
    const flags = (tty === undefined ? 0 : EXEC_TTY) | (hasInput ? 0 : EXEC_NO_INPUT)
    const size = { cols: tty?.cols ?? 0, rows: tty?.rows ?? 0 }
    return this.#there().open('exec', { flags, ...size, user, cwd, argv, env }, this.#failure(argv[0] ?? ''))
  }

  /**
   * An archive (tar) of a path in the guest, in which all names begin with the path's last part. Rejects with NOT_FOUND
   * and AGENT_FAILED before anything of it is there; the archive throws AGENT_FAILED if not all of it came.
   */
  async get(path: string): Promise<AsyncIterable<Uint8Array>> {
    const session = this.#there().open('get', { path }, this.#failure(path))
    const pieces = session.output[Symbol.asyncIterator]()
    const complaints = new Complaints()
    const next = async (): Promise<Uint8Array | undefined> => {
      for (;;) {
        const { value, done } = await pieces.next()
        if (done === true) break
        if (value.channel === 1) return value.bytes
        complaints.add(value.bytes)
      }
      this.#check(await session.ended, path, complaints)
      return undefined
    }
    let first = await next()
    return { async *[Symbol.asyncIterator]() {
      try {
        for (; first !== undefined; first = await next()) yield first
      } finally {
        session.close()
      }
    } }
  }

  /** Unpacks an archive (tar) in a folder of the guest, which is made if it isn't there. Rejects with AGENT_FAILED. */
  async put(path: string, archive: AsyncIterable<Uint8Array>): Promise<void> {
    const session = this.#there().open('put', { path }, this.#failure(path))
    const complaints = new Complaints()
    const heard = (async () => {
      for await (const { bytes } of session.output) complaints.add(bytes)
    })()
    const pieces = archive[Symbol.asyncIterator]()
    // An archive that doesn't come on mustn't keep us, when nobody unpacks it any more.
    let wake = (): void => {}
    void session.ended.then(() => wake())
    try {
      while (session.end === undefined) {
        const step = await new Promise<IteratorResult<Uint8Array> | undefined>((resolve, reject) => {
          wake = () => resolve(undefined)
          pieces.next().then(resolve, reject)
        })
        if (step === undefined || step.done === true) break
        await session.write(step.value)
      }
      session.endInput()
      await heard
      this.#check(await session.ended, path, complaints)
    } finally {
      session.close()
      pieces.return?.().catch(() => {})
    }
  }

  /** Asks the guest to end itself. It does that a little later, or not at all. Rejects with AGENT_FAILED. */
  async stop(how: (typeof STOPS)[number]): Promise<void> {
    const { errno } = await this.#there().ask('stop', { how: STOPS.indexOf(how) }, () => this.#away())
    if (errno !== 0) throw this.#failure('its end')(errnoFromLinux(errno))
  }

  /**
   * Tells what has become of the machine: it gets entropy, the time and perhaps a name, and renews its addresses.
   * `number`: of a fork, which of the children it is. What it says it did is in `did`.
   */
  async event({ kind, number = 0, generation, hostname = '' }: {
    readonly kind: EventKind; readonly number?: number; readonly generation: string; readonly hostname?: string
  }): Promise<{ did: number }> {
    this.#generation = generation
    const { did } = await this.#there().ask('event', { kind: EVENT_KINDS[kind], number, at: Date.now(), generation,
      hostname, entropy: randomBytes(64) }, () => this.#away())
    return { did }
  }

  /** Resolves when the agent has answered. Rejects with AGENT_NOT_CONNECTED. */
  async ping(): Promise<void> {
    await this.#there().ask('ping', {}, () => this.#away())
  }

  /** Nothing comes or goes any more. */
  close(): void {
    this.#isClosed = true
    this.#line?.lose('it was closed')
    for (const wake of this.#waiting.splice(0)) wake()
  }

  #there(): AgentLine {
    if (this.#line === undefined || this.guest === undefined) throw this.#away()
    return this.#line
  }

  #away(): CellarError {
    return new CellarError('AGENT_NOT_CONNECTED', [this.#options.name])
  }

  #failure(what: string): (errno: number | string) => CellarError {
    return (why) => new CellarError('AGENT_FAILED', [this.#options.name, printable(what),
      typeof why === 'number' ? `the guest answers with error ${why}` : printable(why, 400)])
  }

  #check(end: AgentEnd, path: string, complaints: Complaints): void {
    if (end.kind === 'exited' && end.status === 0) return
    if (end.kind === 'lost') throw this.#away()
    if (end.kind === 'failed' && end.errno === ENOENT) throw new CellarError('NOT_FOUND', ['file', printable(path)])
    throw this.#failure(path)(end.kind === 'failed' ? end.errno : complaints.text)
  }
}

/** The exit status of a session as a shell has it; undefined if the agent is gone. */
export function statusOf(end: AgentEnd): number | undefined {
  if (end.kind === 'exited') return end.status
  if (end.kind === 'signalled') return 128 + end.signal
  if (end.kind === 'failed') return end.errno === ENOENT ? 127 : 126
  return undefined
}

/** What an archiver complains of. */
class Complaints {
  #text = ''

  get text(): string {
    return this.#text.trim().replaceAll('\n', '; ') || 'it gives no reason'
  }

  add(bytes: Uint8Array): void {
    if (this.#text.length < COMPLAINT_BYTES_MAX) this.#text += Buffer.from(bytes).toString('utf8')
  }
}
