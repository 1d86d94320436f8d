// api/migration_routes_test.ts: what a source asks of its destination, as the API takes it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { app } from './dispatch.ts'
import { bearer, FakeOperator, sending, specOf } from './test_support.ts'

const MOVE = '/v1/projects/a/moves/0123456789abcdef'
const OFFER = { id: '0123456789ab', name: 'web', spec: specOf(), module: `sha256:${'1'.repeat(64)}`, generation: 1,
  createdAt: 1, restarts: 0, run: 1, isManaged: false, from: 'here' }

test('a move is offered, sent, activated and acknowledged', async () => {
  const operator = new FakeOperator()
  const api = app(operator)
  const send = async (method: string, path: string, body?: Uint8Array, type = 'application/octet-stream') =>
    await api.request(MOVE + path, { method, ...body === undefined ? {} : { body: Buffer.from(body), duplex: 'half' },
      headers: bearer('writer', body === undefined ? {} : { 'content-type': type }) } as RequestInit)
  const offered = await api.request(MOVE, sending('PUT', OFFER))
  assert.deepEqual(await offered.json(), { host: 'fake', needsModule: true })
  assert.equal((await send('PUT', '/module', Buffer.alloc(9), 'application/wasm')).status, 204)
  assert.deepEqual(await (await send('PUT', '/snapshot', Buffer.alloc(8))).json(), { missing: ['ab'] })
  assert.deepEqual(await (await send('PUT', '/snapshot?last', Buffer.alloc(7))).json(), { missing: [] })
  const activated = await api.request(`${MOVE}/activate`, sending('POST', { host: 'fake', stoppedAt: 5 }))
  assert.deepEqual(await activated.json(), { state: 'active' })
  assert.equal((await send('POST', '/acknowledge')).status, 204)
  assert.equal((await send('DELETE', '')).status, 204)
  const which = 'a 0123456789abcdef'
  assert.deepEqual(operator.incoming.asked, [`offer ${which} web`, `module ${which} 9`, `snapshot ${which} 8 false`,
    `snapshot ${which} 7 true`, `activate ${which} fake 5`, `acknowledge ${which}`, `drop ${which}`])
})

const REFUSED: readonly (readonly [what: string, token: string, body: unknown, status: number])[] = [
  ['a token that may only look', 'reader', OFFER, 403],
  ['a guest without its specification', 'writer', { ...OFFER, spec: undefined }, 400],
  ['a module that is no digest', 'writer', { ...OFFER, module: 'sha256:../../etc/passwd' }, 400],
  ['a name that leads elsewhere', 'writer', { ...OFFER, name: '../x' }, 400],
  ['an id that is no guest\'s', 'writer', { ...OFFER, id: '../../../../x' }, 400],
  ['what nobody knows', 'writer', { ...OFFER, more: 1 }, 400],
]
for (const [what, token, body, status] of REFUSED) {
  test(`an offer of a move is refused for ${what}`, async () => {
    const operator = new FakeOperator()
    const answer = await app(operator).request(MOVE, sending('PUT', body, token))
    assert.equal(answer.status, status)
    assert.deepEqual(operator.incoming.asked, [])
  })
}

test('a token that is limited to a project moves guests to no other one', async () => {
  const api = app(new FakeOperator())
  assert.equal((await api.request(MOVE, sending('PUT', OFFER, 'limited'))).status, 200)
  assert.equal((await api.request(MOVE.replace('/a/', '/b/'), sending('PUT', OFFER, 'limited'))).status, 403)
})
