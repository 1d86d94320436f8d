// host/apply_test.ts: what a manifest changes.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { areLive, changedFields, guestSpecs, planApply, type Current } from './apply.ts'
import { GUEST_SPEC, MANIFEST, POOL_SPEC, type Manifest } from './spec.ts'

const DIGEST = `sha256:${'a'.repeat(64)}`

function manifest(fields: object): Manifest {
  return MANIFEST.parse(fields)
}

function current(fields: Partial<Current>): Current {
  return { guests: new Map(), pools: new Map(), volumes: new Map(), networks: new Set(['default']),
    resolve: () => DIGEST, complete: (_name, spec) => spec, ...fields }
}

const having = (name: string, spec: object, managed = true): Current => current({ guests: new Map([[name,
  { spec: GUEST_SPEC.parse(spec), digest: DIGEST, managed }]]) })

test('planApply() creates what is not there, what others need first', () => {
  const changes = planApply(manifest({ networks: { back: {} }, pools: { p: { shares: 10 } },
    volumes: { v: { size: '1MiB' } }, cells: { web: { image: 'web', copies: 2 } } }), current({}), false)
  assert.deepEqual(changes.map(({ kind, name, action }) => `${action} ${kind} ${name}`),
    ['create network back', 'create pool p', 'create volume v', 'create guest web-1', 'create guest web-2'])
})

test('planApply() changes nothing that is as the manifest says', () => {
  const wanted = manifest({ cells: { web: { image: 'web', env: { A: '1' } } } })
  assert.deepEqual(planApply(wanted, having('web', { image: 'web', env: { A: '1' } }), true),
    [{ kind: 'guest', name: 'web', action: 'none' }])
})

test('planApply() restarts a guest only for what it can not take as it runs', () => {
  const before = having('web', { image: 'web', shares: 100 })
  const asItRuns = manifest({ cells: { web: { image: 'web', shares: 200, labels: { a: 'b' } } } })
  assert.deepEqual(planApply(asItRuns, before, false),
    [{ kind: 'guest', name: 'web', action: 'change', fields: ['shares', 'labels'] }])
  assert.deepEqual(planApply(manifest({ cells: { web: { image: 'web', shares: 200, args: ['x'] } } }), before, false),
    [{ kind: 'guest', name: 'web', action: 'restart', fields: ['args', 'shares'] }])
})

test('planApply() restarts a guest whose image\'s name leads elsewhere now', () => {
  const before = { ...having('web', { image: 'web' }), resolve: () => `sha256:${'b'.repeat(64)}` }
  assert.deepEqual(planApply(manifest({ cells: { web: { image: 'web' } } }), before, false),
    [{ kind: 'guest', name: 'web', action: 'restart', fields: ['image'] }])
})

test('planApply() removes with prune, and only what a manifest has made', () => {
  const wanted = manifest({ cells: { web: { image: 'web' } } })
  const removed = { kind: 'guest', name: 'old', action: 'remove' }
  assert.deepEqual(planApply(wanted, having('old', { image: 'x' }), true).at(-1), removed)
  assert.equal(planApply(wanted, having('old', { image: 'x' }), false).length, 1)
  assert.equal(planApply(wanted, having('old', { image: 'x' }, false), true).length, 1)
})

test('planApply() gives a volume another size, and a pool other terms', () => {
  const changes = planApply(manifest({ volumes: { v: { size: '2MiB' } }, pools: { p: { shares: 2 } },
    cells: { web: { image: 'web' } } }), current({ volumes: new Map([['v', { sizeBytes: 1024 ** 2 }]]),
    pools: new Map([['p', POOL_SPEC.parse({ shares: 1 })]]) }), false)
  assert.deepEqual(changes.slice(0, 2), [{ kind: 'pool', name: 'p', action: 'change', fields: ['shares'] },
    { kind: 'volume', name: 'v', action: 'change', fields: ['size'] }])
})

for (const [what, fields, message] of [
  ['a program of the client', { cells: { a: { program: 'a.wasm' } } }, /it names a program of the client/],
  ['a time limit of the whole', { for: '5s', cells: { a: { image: 'a' } } }, /it says "for"/],
  ['sockets of the foreground', { cells: { a: { image: 'a', listen: ['tcp:127.0.0.1:1'] } } }, /say "ports"/],
  ['a folder of the client', { cells: { a: { image: 'a', volumes: ['./here:/data'] } } }, /must be VOLUME:FOLDER/],
  ['copies that publish one port', { cells: { a: { image: 'a', copies: 2, ports: ['8080:80'] } } }, /same port/],
  ['copies named as another cell', { cells: { a: { image: 'a', copies: 2 }, 'a-1': { image: 'a' } } }, /has this name/],
] as const) {
  test(`guestSpecs() refuses ${what}`, () => {
    assert.throws(() => guestSpecs(manifest(fields)), message)
  })
}

test('changedFields() sees fields that came and went', () => {
  assert.deepEqual(changedFields({ a: 1, b: [1] }, { b: [1], c: 2 }), ['a', 'c'])
  assert.equal(areLive(['shares', 'labels']), true)
  assert.equal(areLive(['shares', 'image']), false)
})

test('guestSpecs refuses a manifest with more copies than a host has guests, before it makes them', () => {
  const cells = Object.fromEntries(Array.from({ length: 30_000 },
    (_, i) => [`c${i}`, { image: 'app:1', copies: 10_000 }]))
  assert.throws(() => guestSpecs(MANIFEST.parse({ cells })), { code: 'GUEST_UNSUPPORTED' })
})
