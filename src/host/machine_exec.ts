// host/machine_exec.ts: programs that run in a machine through its agent: `exec` as the host knows it of cells.
//
// Each has a number among the consoles of the process. Its output goes to its stream as fast as that is read; when the
// stream goes, nobody is there for it, and it is hung up.

import { setTimeout as sleep } from 'node:timers/promises'
import { signals } from '../base/signals.ts'
import { CellarError } from '../base/errors.ts'
import { statusOf, type Agent } from '../machine/agent.ts'
import type { AgentSession } from '../machine/agent_session.ts'
import { OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX } from '../base/limits.ts'
import type { Consoles, GuestConsole } from './consoles.ts'
import { Inflow } from './inflow.ts'
import { STDERR, STDOUT, type GuestLaunch } from './protocol.ts'

/** How long a guest that has just started may take until its agent is there. */
const AGENT_MS_MAX = 30_000
/** The status of a program that could not be run at all. */
const CANNOT_RUN = 126
/** Those of exec have numbers from here on. */
const NUMBER_FIRST = 2

type Running = { readonly owner: GuestConsole; session: AgentSession | undefined; archive: Inflow | undefined
  waiting: number
  /** Input that it has been given, in its order. */
  fed: Promise<void>
  wake: (() => void) | undefined; isHungUp: boolean }

/** Programs that run in one machine. */
export class MachineExec {
  readonly #agent: Agent
  readonly #consoles: Consoles
  readonly #running = new Map<number, Running>()
  readonly #settled: () => Promise<void>
  #next = NUMBER_FIRST

  /** `settled`: resolves when a guest whose agent has come has all that it is to have, such as its volumes. */
  constructor(agent: Agent, consoles: Consoles, settled: () => Promise<void>) {
    this.#agent = agent
    this.#consoles = consoles
    this.#settled = settled
  }

  /** Runs the program of a launch of `exec`; its console has its stream. */
  start({ args, env, files }: GuestLaunch, owner: GuestConsole): void {
    const number = this.#next++
    const one: Running = { owner, session: undefined, archive: undefined, waiting: 0,
      fed: Promise.resolve(), wake: undefined, isHungUp: false }
    this.#running.set(number, one)
    const work = files === undefined ? this.#run(number, one, args, env) : this.#files(number, one, files)
    work.then((status) => this.#end(number, one, status), (error: unknown) => {
      const text = error instanceof CellarError ? `cellar: ${error.message}\n` : `cellar: ${String(error)}\n`
      this.#consoles.output(number, STDERR, Buffer.from(text))
      this.#end(number, one, CANNOT_RUN)
    })
  }

  input(number: number, bytes: Uint8Array | null): void {
    const one = this.#running.get(number)
    if (one?.archive !== undefined) return one.archive.push(bytes === null ? null : Buffer.from(bytes))
    const session = one?.session
    if (session === undefined) return
    one!.fed = one!.fed.then(async () => {
      if (bytes === null) return session.endInput()
      await session.write(bytes)
      this.#consoles.taken(number, bytes.length)
    })
  }

  credit(number: number, bytes: number): void {
    const one = this.#running.get(number)
    if (one === undefined) return
    one.waiting -= bytes
    if (one.waiting > OUTPUT_WINDOW_BYTES_MAX) return
    one.wake?.()
    one.wake = undefined
  }

  /** Nobody is there for it any more. */
  hangUp(owner: GuestConsole): void {
    for (const one of this.#running.values()) {
      if (one.owner !== owner) continue
      one.isHungUp = true
      one.session?.signal(signals.SIGHUP)
      one.session?.close()
      one.archive?.cut()
      one.wake?.()
    }
  }

  close(): void {
    for (const { owner } of this.#running.values()) this.hangUp(owner)
  }

  async #ready(): Promise<void> {
    await this.#agent.connected(AGENT_MS_MAX)
    // Not for ever: a volume that can't be mounted is looked into by a program, too.
    await Promise.race([this.#settled(), sleep(AGENT_MS_MAX, undefined, { ref: false })])
  }

  async #run(number: number, one: Running, args: readonly string[], env: GuestLaunch['env']): Promise<number> {
    await this.#ready()
    if (one.isHungUp) return CANNOT_RUN
    const session = one.session = this.#agent.exec({ argv: args, env: env.map(([key, value]) => `${key}=${value}`) })
    this.#consoles.connect(one.owner, number)
    for await (const { channel, bytes } of session.output) {
      await this.#give(number, one, channel === STDERR ? STDERR : STDOUT, bytes)
    }
    return statusOf(await session.ended) ?? CANNOT_RUN
  }

  // Errors are told on STDERR before a byte of the archive, or with a status at its end.
  async #files(number: number, one: Running, { way, path }: NonNullable<GuestLaunch['files']>): Promise<number> {
    await this.#ready()
    if (way === 'put') {
      const archive = new Inflow((bytes) => this.#consoles.taken(number, bytes))
      one.archive = archive
      this.#consoles.connect(one.owner, number)
      await this.#agent.put(path, archive)
      return 0
    }
    const archive = await this.#agent.get(path)
    this.#consoles.connect(one.owner, number)
    for await (const bytes of archive) {
      if (one.isHungUp) break
      await this.#give(number, one, STDOUT, bytes)
    }
    return 0
  }

  // Resolves when there is room for more.
  async #give(number: number, one: Running, channel: 1 | 2, bytes: Uint8Array): Promise<void> {
    one.waiting += bytes.length + OUTPUT_PIECE_BYTES
    this.#consoles.output(number, channel, bytes)
    if (one.waiting > OUTPUT_WINDOW_BYTES_MAX && !one.isHungUp) {
      await new Promise<void>((wake) => { one.wake = wake })
    }
  }

  #end(number: number, { owner }: Running, status: number): void {
    this.#running.delete(number)
    this.#consoles.end(owner, status)
  }
}
