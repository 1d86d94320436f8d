// image/reference_test.ts: names of images, right and wrong.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { formatReference, isDigest, localName, parseReference } from './reference.ts'

const DIGEST = `sha256:${'ab'.repeat(32)}`

test('parseReference tells local names from those of a registry', () => {
  const cases: [string, string | undefined, string, string | undefined, string | undefined][] = [
    ['app', undefined, 'app', 'latest', undefined],
    ['team/app', undefined, 'team/app', 'latest', undefined],
    ['app:1.2', undefined, 'app', '1.2', undefined],
    ['localhost/app', 'localhost', 'app', 'latest', undefined],
    ['localhost:5000/a/b:x', 'localhost:5000', 'a/b', 'x', undefined],
    ['ghcr.io/a/b', 'ghcr.io', 'a/b', 'latest', undefined],
    ['[::1]:5000/a', '[::1]:5000', 'a', 'latest', undefined],
    [`app@${DIGEST}`, undefined, 'app', undefined, DIGEST],
    [`ghcr.io/a:1@${DIGEST}`, 'ghcr.io', 'a', '1', DIGEST],
  ]
  for (const [text, registry, path, tag, digest] of cases) {
    assert.deepEqual(parseReference(text), { registry, path, tag, digest }, text)
  }
})

test('parseReference refuses what Docker refuses', () => {
  const wrong = ['', 'App', 'a b', 'a/', '/a', 'a//b', 'a:', ':a', 'a@', 'a@sha256:12', `a@sha512:${'ab'.repeat(64)}`,
    `a@${DIGEST.toUpperCase()}`, 'a_.b', '-a', 'a-', 'a:-x', `a:${'x'.repeat(129)}`, 'x'.repeat(300), '../a', 'a/../b',
    'host.io:99999999/a', 'user@host.io/a', 'https://host.io/a', 'host.io/A', 'a\0', 'a\n', 'ho_st.io/a', '.io/a']
  for (const text of wrong) {
    assert.throws(() => parseReference(text), { code: 'IMAGE_REFERENCE_INVALID' }, JSON.stringify(text))
  }
})

test('formatReference writes what parseReference reads', () => {
  const part = fc.stringMatching(/^[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?$/)
  fc.assert(fc.property(
    fc.option(fc.constantFrom('localhost', 'a.b:1', '[::1]:80'), { nil: undefined }),
    fc.array(part, { minLength: 1, maxLength: 3 }),
    fc.option(fc.stringMatching(/^\w[\w.-]{0,10}$/), { nil: undefined }),
    fc.boolean(),
    (registry, path, tag, pinned) => {
      // Of a local name the first part must not look like a registry.
      if (registry === undefined && path.length > 1 && /[.]|^localhost$/.test(path[0]!)) return
      const digest = pinned ? DIGEST : undefined
      const reference = { registry, path: path.join('/'), tag: tag ?? (pinned ? undefined : 'latest'), digest }
      assert.deepEqual(parseReference(formatReference(reference)), reference)
    }))
})

test('parseReference ends soon and throws nothing else, whatever it is given', () => {
  fc.assert(fc.property(fc.oneof(fc.string({ maxLength: 600 }), fc.stringMatching(/^[a-z.:/@_-]{0,500}$/)), (text) => {
    try {
      parseReference(text)
    } catch (error) {
      assert.equal((error as { code: string }).code, 'IMAGE_REFERENCE_INVALID')
    }
  }))
  assert.throws(() => parseReference(`${'a-'.repeat(250)}!`), { code: 'IMAGE_REFERENCE_INVALID' })
  assert.throws(() => parseReference(`${'a'.repeat(254)}!`), { code: 'IMAGE_REFERENCE_INVALID' })
})

test('localName is by tag, or by digest where there is none', () => {
  assert.equal(localName(parseReference(`ghcr.io/a:1@${DIGEST}`)), 'ghcr.io/a:1')
  assert.equal(localName(parseReference(`ghcr.io/a@${DIGEST}`)), `ghcr.io/a@${DIGEST}`)
  assert.equal(localName(parseReference('a')), 'a:latest')
})

test('isDigest knows sha256 only', () => {
  assert.ok(isDigest(DIGEST))
  for (const text of ['', 'sha256:', DIGEST.slice(0, -1), `${DIGEST}0`, `${DIGEST}\n`]) assert.ok(!isDigest(text))
})
