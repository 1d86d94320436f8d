// services/gateway/udp_flows.ts: datagrams of the guest to addresses outside, if its owner takes any.
//
// A flow is from one port of the guest to one port outside. It is made by the first datagram and ends when nothing has
// passed for a while; of too many flows the one that was used longest ago ends. Few datagrams wait for a flow to be
// made: those beyond are lost, as datagrams may be.

import { GATEWAY_FLOWS_MAX, GATEWAY_WAITING_MAX } from '../../base/limits.ts'
import type { Clock } from './clock.ts'

const IDLE_MS_MAX = 60_000

/** One flow, as the owner has it. */
export type UdpFlow = { send(bytes: Uint8Array): void; close(): void }

type Made = {
  readonly waiting: Buffer[]
  flow: UdpFlow | undefined
  usedAt: number
}

/** See the head of this file. */
export class UdpFlows {
  readonly #clock: Clock
  // By guest's port, address and port outside; the one used longest ago is the first.
  readonly #flows = new Map<string, Made>()
  #cancelTimer = (): void => {}
  #isTimed = false

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /**
   * Sends on flow `key`, which `make` makes; if it can't, `refused` is told. `bytes` are copied. False: it was lost.
   */
  send(key: string, bytes: Uint8Array, make: () => Promise<UdpFlow | number>, refused: (errno: number) => void):
  boolean {
    let made = this.#flows.get(key)
    if (made === undefined) {
      if (this.#flows.size >= GATEWAY_FLOWS_MAX) this.#end(this.#flows.keys().next().value!)
      made = { waiting: [], flow: undefined, usedAt: 0 }
      this.#make(key, made, make, refused)
    }
    this.#flows.delete(key)
    this.#flows.set(key, made)
    made.usedAt = this.#clock.now()
    if (made.flow !== undefined) made.flow.send(Buffer.from(bytes))
    else if (made.waiting.length < GATEWAY_WAITING_MAX) made.waiting.push(Buffer.from(bytes))
    else return false
    this.#watch()
    return true
  }

  /** Something came on it. */
  used(key: string): void {
    const made = this.#flows.get(key)
    if (made !== undefined) made.usedAt = this.#clock.now()
  }

  close(): void {
    this.#cancelTimer()
    for (const key of this.#flows.keys()) this.#end(key)
  }

  #make(key: string, made: Made, make: () => Promise<UdpFlow | number>, refused: (errno: number) => void): void {
    void make().then((flow) => {
      const isGone = this.#flows.get(key) !== made
      if (typeof flow === 'number') {
        if (isGone) return
        this.#flows.delete(key)
        refused(flow)
      } else if (isGone) flow.close()
      else {
        made.flow = flow
        for (const bytes of made.waiting.splice(0)) flow.send(bytes)
      }
    })
  }

  #watch(): void {
    if (this.#isTimed) return
    this.#isTimed = true
    this.#cancelTimer = this.#clock.after(IDLE_MS_MAX / 2, () => {
      this.#isTimed = false
      const now = this.#clock.now()
      for (const [key, { usedAt }] of this.#flows) if (now - usedAt >= IDLE_MS_MAX) this.#end(key)
      if (this.#flows.size > 0) this.#watch()
    })
  }

  #end(key: string): void {
    this.#flows.get(key)?.flow?.close()
    this.#flows.delete(key)
  }
}
