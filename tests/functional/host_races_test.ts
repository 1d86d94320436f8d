// tests/functional/host_races_test.ts: clients that ask a host for things that contradict each other, at the same time.
//
// Requests of one batch are sent without waiting for answers: what they ask for meets in the host. However that goes,
// nothing may be stuck, come back, or be kept from others by something that is gone.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createConnection, createServer, type AddressInfo } from 'node:net'
import { after, before, test } from 'node:test'
import { eventually, startHost, type ApiAnswer, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'

type Guest = { readonly phase: string; readonly desired: string; readonly ports: readonly { readonly port: number }[]
  readonly process?: number; readonly exit?: { readonly reason: string } }

let host: TestHost
before(async () => {
  host = await startHost()
  for (const name of ['nap', 'echo', 'hello']) {
    const { status } = await host.api('POST', `/v1/images?name=${name}`, readFileSync(guest(name)))
    assert.equal(status, 201)
  }
})
after(async () => { await host[Symbol.asyncDispose]() })

/** A program that runs until it is ended. */
const NAP = { image: 'nap', args: ['nap', '1000000'] }

function at(project: string, ...words: string[]): string {
  return ['/v1/projects', project, ...words].join('/')
}

async function create(project: string, name: string, spec: object, start = true): Promise<ApiAnswer> {
  return await host.api('POST', at(project, 'guests'), { name, spec, start })
}

async function must(answer: Promise<ApiAnswer>): Promise<unknown> {
  const { status, body } = await answer
  assert.ok(status < 300, JSON.stringify(body))
  return body
}

async function look(project: string, name: string): Promise<Guest> {
  return await must(host.api('GET', at(project, 'guests', name))) as Guest
}

async function reaches(project: string, name: string, ...phases: string[]): Promise<Guest> {
  return await eventually(`${name} is ${phases.join(' or ')}`, async () => {
    const found = await look(project, name)
    return phases.includes(found.phase) && found
  })
}

async function removed(project: string): Promise<void> {
  await must(host.api('DELETE', `${at(project)}?force`))
  await eventually(`${project} is gone`, async () => (await host.api('GET', at(project))).status === 404)
}

test('a stop that meets a start ends what the start has not begun yet', async () => {
  await must(create('meet', 'a', NAP, false))
  for (let i = 0; i < 5; i++) {
    await Promise.all([host.api('POST', at('meet', 'guests', 'a', 'start')),
      host.api('POST', at('meet', 'guests', 'a', 'stop'))])
    await reaches('meet', 'a', 'stopped')
  }
  await removed('meet')
})

test('a guest that is removed while it is started is gone, and stays so', async () => {
  for (let i = 0; i < 5; i++) {
    await must(create('gone', `g${i}`, NAP, false))
    await Promise.all([host.api('DELETE', at('gone', 'guests', `g${i}`)),
      host.api('POST', at('gone', 'guests', `g${i}`, 'start')),
      host.api('PUT', at('gone', 'guests', `g${i}`), { spec: { ...NAP, memory: '1MiB' } })])
  }
  await host.killAndRestart()
  const left = await must(host.api('GET', at('gone', 'guests'))) as { items: unknown[] }
  assert.deepEqual(left.items, [])
  await removed('gone')
})
