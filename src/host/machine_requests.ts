// host/machine_requests.ts: what a machine asks for through its agent, as cells do by hypercalls.
//
// Who it is it is told at once; to be saved, copied or hibernated is the host's to grant (`may`) and to do. A question
// that waits for a host that goes is answered with "try later", as cells' are (cells_asking.ts).

import { EAGAIN } from '../base/errno.ts'
import type { AgentAnswer, AgentRequest } from '../machine/agent_line.ts'
import { Allowance } from './allowance.ts'
import type { HostLine } from './host_line.ts'
import type { GuestLaunch, ToProcess } from './protocol.ts'

/** So many questions of one guest, in so much time: twice what the host has an ear for (guest_requests.ts). */
const QUESTIONS_MAX = 120
const QUESTIONS_MS = 60_000

type Told = Extract<ToProcess, { readonly told: number }>

/** The questions of one machine. */
export class Requests {
  readonly #launch: GuestLaunch
  readonly #line: HostLine
  readonly #allowance = new Allowance(QUESTIONS_MAX, QUESTIONS_MS)
  readonly #waiting = new Map<number, (told: Told | undefined) => void>()
  #next = 1

  constructor(launch: GuestLaunch, line: HostLine) {
    this.#launch = launch
    this.#line = line
  }

  /** The answer to what isn't a connection. `generation`: the guest's own. */
  async answer(asked: Exclude<AgentRequest, { what: 'connect' }>, generation: string): Promise<AgentAnswer> {
    const { id, run, name, networks, machine, env, args } = this.#launch
    if (asked.what === 'metadata') {
      return { errno: 0, text: JSON.stringify({ id, name, generation, networks, vcpus: machine!.vcpus,
        memoryBytes: machine!.memoryBytes, engine: machine!.engine, args: args.slice(1),
        env: Object.fromEntries(env) }) }
    }
    if (!this.#line.isConnected || !this.#allowance.allow()) return { errno: EAGAIN }
    const question = this.#next++
    const { promise, resolve } = Promise.withResolvers<Told | undefined>()
    this.#waiting.set(question, resolve)
    this.#line.send({ asked: question, id, run, what: asked.what,
      ...(asked.what === 'snapshot' && asked.name !== undefined ? { name: asked.name } : {}),
      ...(asked.what === 'fork' ? { count: asked.count } : {}) })
    const told = await promise
    return told === undefined ? { errno: EAGAIN } : { errno: told.errno, value: told.value ?? 0 }
  }

  /** The host has answered. */
  told(told: Told): void {
    this.#waiting.get(told.told)?.(told)
    this.#waiting.delete(told.told)
  }

  hostGone(): void {
    for (const answer of this.#waiting.values()) answer(undefined)
    this.#waiting.clear()
  }
}
