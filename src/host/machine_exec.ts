// host/machine_exec.ts: programs that run in a machine through its agent: `exec` as the host knows it of cells.
//
// Each has a number among the consoles of the process. Its output goes to its stream as fast as that is read; when the
// stream goes, nobody is there for it, and it is hung up.

import { signals } from '../base/signals.ts'
import { CellarError } from '../base/errors.ts'
import { statusOf, type Agent } from '../machine/agent.ts'
import type { AgentSession } from '../machine/agent_session.ts'
import { OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX } from '../base/limits.ts'
import type { Consoles, GuestConsole } from './consoles.ts'
import { STDERR, STDOUT, type GuestLaunch } from './protocol.ts'

/** How long a guest that has just started may take until its agent is there. */
const AGENT_MS_MAX = 30_000
/** The status of a program that could not be run at all. */
const CANNOT_RUN = 126
/** Those of exec have numbers from here on. */
const NUMBER_FIRST = 2

type Running = { readonly owner: GuestConsole; session: AgentSession | undefined; waiting: number
  wake: (() => void) | undefined; isHungUp: boolean }

/** Programs that run in one machine. */
export class MachineExec {
  readonly #agent: Agent
  readonly #consoles: Consoles
  readonly #running = new Map<number, Running>()
  #next = NUMBER_FIRST

  constructor(agent: Agent, consoles: Consoles) {
    this.#agent = agent
    this.#consoles = consoles
  }

  /** Runs the program of a launch of `exec`; its console has its stream. */
  start({ args, env }: GuestLaunch, owner: GuestConsole): void {
    const number = this.#next++
    const one: Running = { owner, session: undefined, waiting: 0, wake: undefined, isHungUp: false }
    this.#running.set(number, one)
    this.#run(number, one, args, env).then((status) => this.#end(number, one, status), (error: unknown) => {
      const text = error instanceof CellarError ? `cellar: ${error.message}\n` : `cellar: ${String(error)}\n`
      this.#consoles.output(number, STDERR, Buffer.from(text))
      this.#end(number, one, CANNOT_RUN)
    })
  }

  input(number: number, bytes: Uint8Array | null): void {
    const session = this.#running.get(number)?.session
    if (bytes === null) return session?.endInput()
    void session?.write(bytes).then(() => this.#consoles.taken(number, bytes.length))
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
      one.wake?.()
    }
  }

  close(): void {
    for (const { owner } of [...this.#running.values()]) this.hangUp(owner)
  }

  async #run(number: number, one: Running, args: readonly string[], env: GuestLaunch['env']): Promise<number> {
    await this.#agent.connected(AGENT_MS_MAX)
    if (one.isHungUp) return CANNOT_RUN
    const session = one.session = this.#agent.exec({ argv: args, env: env.map(([key, value]) => `${key}=${value}`) })
    this.#consoles.connect(one.owner, number)
    for await (const { channel, bytes } of session.output) {
      one.waiting += bytes.length + OUTPUT_PIECE_BYTES
      this.#consoles.output(number, channel === STDERR ? STDERR : STDOUT, bytes)
      if (one.waiting > OUTPUT_WINDOW_BYTES_MAX && !one.isHungUp) {
        await new Promise<void>((wake) => { one.wake = wake })
      }
    }
    return statusOf(await session.ended) ?? CANNOT_RUN
  }

  #end(number: number, { owner }: Running, status: number): void {
    this.#running.delete(number)
    this.#consoles.end(owner, status)
  }
}
