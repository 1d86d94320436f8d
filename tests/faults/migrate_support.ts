// tests/faults/migrate_support.ts: two hosts, what goes over the wire between them, and a guest that tells on both.
//
// The source reaches its destination through a proxy, which knows each step of a move by its request, and does what a
// test wants done right before it is passed on, or before its answer is. The guest counts aloud with a nonce of its
// memory: who says the same number twice, here and there, has run twice.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createServer, request, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'
import { guestsOf, type Seen } from './faults_support.ts'

/** The requests of a move, in their order. */
export const STEPS = ['offer', 'snapshot', 'last', 'activate', 'acknowledge'] as const
export type Step = typeof STEPS[number] | 'module' | 'drop'
/** Done once, at a step: before it is passed on, or before its answer is. `cut`: it isn't, then. */
export type Fault = { readonly step: Step; readonly when: 'before' | 'after'; readonly act: () => Promise<void>
  readonly cut?: boolean }

/** Two hosts, and the way from the first to the second. */
export type Pair = { readonly from: TestHost; readonly to: TestHost; readonly address: string; fault: Fault | undefined
  /** The last move that was offered: what comes of others has no faults. */
  move: string } & AsyncDisposable

/** Starts both. */
export async function startPair(): Promise<Pair> {
  const from = await startHost()
  const to = await startHost()
  const server = createServer((asked, answer) => {
    pass(asked, answer, pair, join(to.state, 'host.sock')).catch(() => answer.destroy())
  })
  await new Promise<void>((resolve) => { server.listen(0, '127.0.0.1', resolve) })
  const { port } = server.address() as AddressInfo
  const pair: Pair = { from, to, address: `http://127.0.0.1:${port}`, fault: undefined, move: '',
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      server.close()
      await Promise.all([from[Symbol.asyncDispose](), to[Symbol.asyncDispose]()])
    } }
  return pair
}

async function pass(asked: IncomingMessage, answer: ServerResponse, pair: Pair, socketPath: string): Promise<void> {
  const { step, move } = stepOf(asked)
  if (step === 'offer') pair.move = move
  const chunks: Buffer[] = []
  for await (const chunk of asked as AsyncIterable<Buffer>) chunks.push(chunk)
  const isOurs = move === pair.move
  if (isOurs) await failing(pair, step, 'before', answer)
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  request({ socketPath, method: asked.method, path: asked.url, headers: asked.headers, agent: false }, resolve)
    .on('error', reject).end(Buffer.concat(chunks))
  const came = await promise
  const body: Buffer[] = []
  for await (const chunk of came as AsyncIterable<Buffer>) body.push(chunk)
  if (isOurs) await failing(pair, step, 'after', answer)
  answer.writeHead(came.statusCode!, { 'content-type': came.headers['content-type'] ?? 'text/plain' })
    .end(Buffer.concat(body))
}

async function failing(pair: Pair, step: Step, when: Fault['when'], answer: ServerResponse): Promise<void> {
  const { fault } = pair
  if (fault?.step !== step || fault.when !== when) return
  pair.fault = undefined
  await fault.act()
  if (fault.cut !== true) return
  answer.destroy()
  throw new Error('cut')
}

function stepOf({ method, url }: IncomingMessage): { step: Step; move: string } {
  const [, move = '', last = ''] = /\/moves\/([0-9a-f]+)\/?(.*)$/.exec(url!) ?? []
  const step = method === 'DELETE' ? 'drop' : last === '' ? 'offer' : last === 'snapshot?last' ? 'last' : last as Step
  return { step, move }
}

/** What a guest has counted at a host: numbers by nonce, in their order. */
export type Ticks = Map<string, number[]>

/** Follows what a guest says until the host or the guest is gone; `ticks` grows. */
export function follow(host: TestHost, name: string): { readonly ticks: Ticks; stop(): void } {
  const ticks: Ticks = new Map()
  let rest = ''
  const asked = request({ socketPath: join(host.state, 'host.sock'),
    path: `/v1/projects/default/guests/${name}/logs?follow=true` }, (answer) => {
    answer.setEncoding('utf8').on('error', () => {}).on('data', (text: string) => {
      const lines = (rest + text).split('\n')
      rest = lines.pop()!
      for (const line of lines) {
        const [, number, nonce] = /^tick (\d+) nonce (\w+)/.exec(line) ?? []
        if (nonce === undefined) continue
        const numbers = ticks.get(nonce)
        if (numbers === undefined) ticks.set(nonce, [Number(number)])
        else numbers.push(Number(number))
      }
    })
  })
  asked.on('error', () => {}).end()
  return { ticks, stop: () => { asked.destroy() } }
}

/** Starts the guest that counts, `args` as its own, and waits until it has counted a little. */
export async function startTicker(host: TestHost, args: readonly string[] = ['20'], more: Record<string, unknown> = {}):
Promise<void> {
  const { status } = await host.api('POST', '/v1/images?name=ticker', readFileSync(guest('ticker')))
  assert.equal(status, 201)
  const made = await host.api('POST', '/v1/projects/default/guests', { name: 'web', spec: { image: 'ticker',
    args: ['ticker', ...args], memory: '64MiB', restart: 'always', ...more } })
  assert.equal(made.status, 201, JSON.stringify(made.body))
  const heard = follow(host, 'web')
  await eventually('it counts', () => [...heard.ticks.values()].some((numbers) => numbers.length > 3))
  heard.stop()
}

/** Asks the first host to move the guest to the second: the operation's id. */
export async function migrate({ from, address }: Pair): Promise<string> {
  const { status, body } = await from.api('POST', '/v1/projects/default/guests/web/migrate', { to: address })
  assert.equal(status, 202, JSON.stringify(body))
  return (body as { id: string }).id
}

/** The host that alone has the guest, and runs it, when it is settled. */
export async function settled({ from, to }: Pair): Promise<{ host: TestHost; seen: Seen }> {
  return await eventually('one of the hosts has the guest', async () => {
    const found: { host: TestHost; seen: Seen }[] = []
    for (const host of [from, to]) {
      for (const seen of await guestsOf(host)) if (seen.name === 'web') found.push({ host, seen })
    }
    return found.length === 1 && found[0]!.seen.phase === 'running' ? found[0] : undefined
  })
}
