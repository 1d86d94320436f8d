// host/health.ts: asks guests whether they are well: a connection that is taken, or a request that is answered.
//
// What a guest's answers mean is a state machine without clocks or sockets (HealthState): unknown at first; well at the
// first success; unwell after `retries` failures in a row, where failures of its start don't count. Around it, one heap
// and one timer for all guests: what is due next, an asking or the end of one's patience. While a guest starts and
// isn't known to be well it is asked more often (STARTING_NS), as others wait for it. Times are of the monotonic clock.

import { ERRNO_NAMES } from '../base/errno.ts'
import { HEALTH_ANSWER_BYTES_MAX, HEALTH_CHECKS_MAX } from '../base/limits.ts'
import { nowNs } from '../base/stopwatch.ts'
import { parseDuration } from '../base/units.ts'
import { Timers, type TimerEntry } from '../cell/timers.ts'
import type { Health } from './spec.ts'

const INTERVAL_NS = 10e9
const TIMEOUT_NS = 1e9
const START_PERIOD_NS = 5e9
/** How often it is asked at its start, if its own interval is no shorter. */
const STARTING_NS = 1e9

/** What came of one asking: undefined if it is well, else why not. */
export type Answer = string | undefined

/** What is known of one guest's health. */
export class HealthState {
  /** undefined: it isn't known yet. */
  healthy: boolean | undefined
  #failures = 0
  readonly #retries: number
  readonly #startPeriodNs: number
  readonly #intervalNs: number

  constructor(health: Health) {
    this.#retries = health.retries
    this.#startPeriodNs = durationOf(health['start-period'], START_PERIOD_NS)
    this.#intervalNs = durationOf(health.interval, INTERVAL_NS)
  }

  /** An answer of a guest that has run for `ageNs`. True if that changes whether it is healthy. */
  answered(answer: Answer, ageNs: number): boolean {
    const before = this.healthy
    if (answer === undefined) {
      this.#failures = 0
      this.healthy = true
    } else if (this.healthy !== undefined || ageNs > this.#startPeriodNs) {
      this.#failures++
      if (this.#failures >= this.#retries) this.healthy = false
    }
    return this.healthy !== before
  }

  /** When to ask next, from now on. */
  nextNs(ageNs: number): number {
    const isStarting = this.healthy === undefined && ageNs < this.#startPeriodNs
    return isStarting ? Math.min(this.#intervalNs, STARTING_NS) : this.#intervalNs
  }
}

/** A connection to a guest's port. */
export interface HealthPeer {
  onData: (bytes: Uint8Array) => void
  onEnd: (errno: number) => void
  write(bytes: Uint8Array): boolean
  close(): void
}

/** What the checks are connected to. `open` answers with a connection, or an errno. */
export type HealthLines = {
  open(guest: string, port: number): Promise<HealthPeer | number>
  /** Whether it is healthy has changed. */
  changed(guest: string, healthy: boolean, why: string): void
}

type Check = {
  readonly guest: string; readonly health: Health; readonly state: HealthState; readonly startedNs: number
  due: TimerEntry | undefined
  /** It doesn't run, and so isn't asked. */
  isResting: boolean
  /** Ends the asking that is under way. */
  answer: ((answer: Answer) => void) | undefined
}

/** The health checks of a process. */
export class HealthChecks {
  readonly #lines: HealthLines
  readonly #checks = new Map<string, Check>()
  readonly #timers = new Timers()
  #timer: NodeJS.Timeout | undefined
  #firesAt = Infinity
  #underWay = 0

  constructor(lines: HealthLines) {
    this.#lines = lines
  }

  /** The guest has started. */
  add(guest: string, health: Health): void {
    const check: Check = { guest, health, state: new HealthState(health), startedNs: nowNs(), due: undefined,
      isResting: false, answer: undefined }
    this.#checks.set(guest, check)
    this.#later(check, check.state.nextNs(0), () => this.#ask(check))
  }

  /** The guest has ended. */
  remove(guest: string): void {
    const check = this.#checks.get(guest)
    if (check === undefined) return
    this.#checks.delete(guest)
    if (check.due !== undefined) this.#timers.remove(check.due)
    check.answer?.('it has ended')
  }

  /** A guest is kept from running, or runs again: it isn't asked meanwhile, and stays as healthy as it was. */
  rest(guest: string, isResting: boolean): void {
    const check = this.#checks.get(guest)
    if (check === undefined || check.isResting === isResting) return
    check.isResting = isResting
    if (!isResting) return this.#askAgain(check)
    if (check.due !== undefined) this.#timers.remove(check.due)
    check.answer?.(RESTS)
  }

  /** Whether it is healthy, if that is known. */
  of(guest: string): boolean | undefined {
    return this.#checks.get(guest)?.state.healthy
  }

  close(): void {
    for (const guest of this.#checks.keys()) this.remove(guest)
    clearTimeout(this.#timer)
  }

  #later(check: Check, ns: number, call: () => void): void {
    check.due = this.#timers.add(nowNs() + ns, call)
    this.#arm()
  }

  // One timer, for what is due first. When it fires, what has come by then is read before anybody's patience ends: this
  // thread may have been busy.
  #arm(): void {
    const next = this.#timers.nextNs
    if (next >= this.#firesAt) return
    clearTimeout(this.#timer)
    this.#firesAt = next
    if (next === Infinity) return
    this.#timer = setTimeout(() => setImmediate(() => {
      this.#firesAt = Infinity
      this.#timers.fire(nowNs())
      this.#arm()
    }), Math.min(MS_MAX, Math.max(0, Math.ceil((next - nowNs()) / 1e6))))
  }

  #ask(check: Check): void {
    // Others are being asked: in a moment.
    if (this.#underWay >= HEALTH_CHECKS_MAX) return this.#later(check, BUSY_NS, () => this.#ask(check))
    this.#underWay++
    const { promise, resolve } = Promise.withResolvers<Answer>()
    check.answer = resolve
    const timeoutNs = durationOf(check.health.timeout, TIMEOUT_NS)
    this.#later(check, timeoutNs, () => resolve(`no answer within ${timeoutNs / 1e6} ms`))
    void ask(this.#lines, check, promise, resolve).then(() => promise).then((answer) => this.#answered(check, answer))
  }

  #answered(check: Check, answer: Answer): void {
    this.#underWay--
    check.answer = undefined
    if (check.due !== undefined) this.#timers.remove(check.due)
    if (this.#checks.get(check.guest) !== check) return
    if (answer === RESTS) {
      if (!check.isResting) this.#askAgain(check)
      return
    }
    const { state } = check
    const changed = state.answered(answer, nowNs() - check.startedNs)
    this.#askAgain(check)
    if (changed) this.#lines.changed(check.guest, state.healthy!, answer ?? 'it answers')
  }

  #askAgain(check: Check): void {
    this.#later(check, check.state.nextNs(nowNs() - check.startedNs), () => this.#ask(check))
  }
}

// Asks, and closes the connection when the answer is there, whoever gave it.
async function ask(lines: HealthLines, { guest, health }: Check, answered: Promise<Answer>,
  answer: (answer: Answer) => void): Promise<void> {
  const { port, path } = targetOf(health)
  // One that comes when nobody waits for it any more is closed as well.
  const opening = lines.open(guest, port)
  const peer = await Promise.race([opening, answered])
  if (typeof peer === 'number') return answer(ERRNO_NAMES[peer] ?? `errno ${peer}`)
  if (peer === undefined || typeof peer === 'string') {
    void opening.then((late) => { if (typeof late !== 'number') late.close() })
    return
  }
  void answered.then(() => peer.close())
  if (path === undefined) return answer(undefined)
  let text = ''
  peer.onData = (bytes) => {
    text += Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1')
    if (text.includes('\r\n') || text.length > HEALTH_ANSWER_BYTES_MAX) answer(judge(text))
  }
  peer.onEnd = () => answer(judge(text))
  const request = `GET ${path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: cellar\r\nConnection: close\r\n\r\n`
  if (!peer.write(Buffer.from(request))) answer('it takes no request')
}

/** What the beginning of an HTTP answer says. */
function judge(text: string): Answer {
  const status = /^HTTP\/1\.[01] (\d{3})(?: |\r\n)/.exec(text.slice(0, HEALTH_ANSWER_BYTES_MAX))?.[1]
  if (status === undefined) return 'it does not answer in HTTP'
  return Number(status) >= 200 && Number(status) < 400 ? undefined : `it answers with status ${status}`
}

function targetOf({ tcp, http }: Health): { port: number; path: string | undefined } {
  if (http === undefined) return { port: tcp!, path: undefined }
  const slash = http.indexOf('/')
  // What can't be in a request's first line, a space above all, is encoded.
  return { port: Number(http.slice(0, slash)), path: encodeURI(http.slice(slash)).replaceAll('%25', '%') }
}

function durationOf(text: string | undefined, otherwise: number): number {
  return text === undefined ? otherwise : parseDuration(text) ?? otherwise
}

/** Node's timers end here. */
const MS_MAX = 0x7fffffff
const BUSY_NS = 50e6
/** In place of an answer: the guest was kept from giving one. */
const RESTS = 'it rests'
