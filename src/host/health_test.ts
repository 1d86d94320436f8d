// host/health_test.ts: when a guest counts as well, and what is asked of it, against peers made by the test.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ECONNREFUSED } from '../base/errno.ts'
import { HealthChecks, HealthState, type HealthPeer } from './health.ts'
import { HEALTH, type Health } from './spec.ts'

const health = (more: object): Health => HEALTH.parse({ tcp: 80, ...more })
const quick = { interval: '5ms', timeout: '200ms', 'start-period': '1ms' }

/** A peer that answers a request with `text`, then the end of its side. */
class FakePeer implements HealthPeer {
  onData: (bytes: Uint8Array) => void = () => {}
  onEnd: (errno: number) => void = () => {}
  asked = ''
  isClosed = false
  readonly #pieces: readonly string[]

  constructor(...pieces: string[]) { this.#pieces = pieces }

  write(bytes: Uint8Array): boolean {
    this.asked += Buffer.from(bytes).toString()
    for (const piece of this.#pieces) setImmediate(() => this.onData(Buffer.from(piece)))
    if (this.#pieces.length > 0) setImmediate(() => this.onEnd(0))
    return true
  }

  close(): void { this.isClosed = true }
}

/** What is said of a guest first, with these answers to its opening, one after the other, the last for ever. */
async function firstOf(spec: Health, ...answers: (() => HealthPeer | number | Promise<number>)[]):
Promise<{ healthy: boolean; why: string; opened: number }> {
  const { promise, resolve } = Promise.withResolvers<{ healthy: boolean; why: string; opened: number }>()
  let opened = 0
  const checks = new HealthChecks({
    open: async (guest) => {
      assert.equal(guest, 'g')
      return await answers[Math.min(opened++, answers.length - 1)]!()
    },
    changed: (_, healthy, why) => resolve({ healthy, why, opened }),
  })
  checks.add('g', spec)
  const said = await promise
  assert.equal(checks.of('g'), said.healthy)
  checks.remove('g')
  assert.equal(checks.of('g'), undefined)
  checks.close()
  return said
}

test('HealthState is well at the first success, and unwell after so many failures in a row', () => {
  const state = new HealthState(health({ retries: 3, 'start-period': '10s' }))
  const after = (answer: string | undefined): boolean | undefined => {
    state.answered(answer, 20e9)
    return state.healthy
  }
  assert.equal(after('x'), undefined)
  assert.equal(state.answered(undefined, 20e9), true)
  assert.equal(state.answered(undefined, 20e9), false)
  assert.deepEqual(['x', 'x', undefined, 'x', 'x', 'x', 'x', undefined].map(after),
    [true, true, true, true, true, false, false, true])
})

test('HealthState counts no failures of the start, but a success then', () => {
  const state = new HealthState(health({ retries: 1, 'start-period': '10s' }))
  assert.equal(state.answered('x', 9e9), false)
  assert.equal(state.healthy, undefined)
  state.answered(undefined, 9e9)
  assert.equal(state.healthy, true)
  assert.equal(state.answered('x', 9e9), true, 'one that was well once has started')
  const late = new HealthState(health({ retries: 1, 'start-period': '10s' }))
  late.answered('x', 11e9)
  assert.equal(late.healthy, false)
})

test('HealthState asks more often at the start', () => {
  const state = new HealthState(health({ interval: '1m', 'start-period': '10s' }))
  assert.deepEqual([state.nextNs(0), state.nextNs(11e9)], [1e9, 60e9])
  state.answered(undefined, 1e9)
  assert.equal(state.nextNs(2e9), 60e9)
  assert.equal(new HealthState(health({ interval: '5ms' })).nextNs(0), 5e6)
})

test('HealthChecks takes a connection as an answer, and closes it', { timeout: 20_000 }, async () => {
  const peer = new FakePeer()
  const { healthy, opened } = await firstOf(health(quick), () => peer)
  await sleep(1)
  assert.deepEqual([healthy, opened, peer.isClosed, peer.asked], [true, 1, true, ''])
})

test('HealthChecks tells of refusals and of silence after the retries', { timeout: 20_000 }, async () => {
  const refused = await firstOf(health({ ...quick, retries: 3 }), () => ECONNREFUSED)
  assert.deepEqual(refused, { healthy: false, why: 'ECONNREFUSED', opened: 3 })
  const silent = new FakePeer()
  const spec = HEALTH.parse({ http: '80/', ...quick, timeout: '10ms', retries: 1 })
  assert.deepEqual(await firstOf(spec, () => silent), { healthy: false, why: 'no answer within 10 ms', opened: 1 })
  assert.ok(silent.isClosed)
  const never = await firstOf(health({ ...quick, timeout: '10ms', retries: 2 }), () => new Promise<number>(() => {}))
  assert.deepEqual([never.healthy, never.opened], [false, 2])
})

test('HealthChecks takes 200 to 399 for well, in whatever pieces they come', { timeout: 20_000 }, async () => {
  const spec = HEALTH.parse({ http: '80/a b?c=%20', ...quick, retries: 1 })
  const of = (...pieces: string[]) => firstOf(spec, () => new FakePeer(...pieces))
  const peer = new FakePeer('HTTP/1.1 2', '04 No Content\r\n', 'more')
  assert.equal((await firstOf(spec, () => peer)).healthy, true)
  assert.match(peer.asked, /^GET \/a%20b\?c=%20 HTTP\/1\.1\r\nHost: localhost\r\n(?:.*\r\n)*\r\n$/)
  assert.equal((await of('HTTP/1.0 399\r\n')).healthy, true)
  assert.equal((await of('HTTP/1.1 503 Later\r\n')).why, 'it answers with status 503')
  for (const odd of ['HTTP/1.1 2000\r\n', 'x'.repeat(100_000), 'HTTP/1.1 20', 'SSH-2.0\r\n']) {
    assert.equal((await of(odd)).why, 'it does not answer in HTTP')
  }
})

test('HealthChecks asks nobody who rests, counts nothing against it, and asks again when that is over',
  { timeout: 20_000 }, async () => {
    const said: boolean[] = []
    let [opened, isWell] = [0, true]
    const checks = new HealthChecks({
      open: async () => { opened++; return isWell ? new FakePeer() : new Promise<number>(() => {}) },
      changed: (_, healthy) => said.push(healthy),
    })
    checks.add('g', health({ ...quick, timeout: '20ms', retries: 1 }))
    while (said.length === 0) await sleep(1)
    isWell = false
    // It is being asked, and has no answer: that it was kept from one is no fault of its.
    const before = opened
    const hasOpened = (): boolean => opened > before
    while (!hasOpened()) await sleep(1)
    checks.rest('g', true)
    checks.rest('g', false)
    checks.rest('g', true)
    await sleep(5)
    const resting = opened
    await sleep(60)
    assert.deepEqual([opened, said, checks.of('g')], [resting, [true], true])
    checks.rest('g', false)
    while (said.length === 1) await sleep(1)
    assert.deepEqual(said, [true, false])
    checks.close()
  })
