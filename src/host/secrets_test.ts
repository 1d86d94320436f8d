// host/secrets_test.ts: a sealed value opens under its key, for its place, unchanged; and for nothing else.

import assert from 'node:assert/strict'
import { chmodSync, chownSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Secrets } from './secrets.ts'
import { disposableFolder } from './test_support.ts'

const isRoot = process.geteuid?.() === 0
const VALUE = Buffer.from('correct horse battery staple')

test('what seal makes open reads, with the same folder later, too', () => {
  using made = disposableFolder()
  const secrets = Secrets.load(made.path, false)
  for (const value of [VALUE, new Uint8Array(0), new Uint8Array(65_536).fill(7)]) {
    const sealed = secrets.seal('shop', 'key', value)
    assert.deepEqual(Buffer.from(Secrets.load(made.path, true).open('shop', 'key', sealed)), Buffer.from(value))
    assert.notDeepEqual(secrets.seal('shop', 'key', value), sealed)
  }
  assert.equal(Buffer.from(secrets.seal('shop', 'key', VALUE)).includes('horse'), false)
})

test('open refuses a value of another place, of another key, and any change', () => {
  using made = disposableFolder()
  using other = disposableFolder()
  const secrets = Secrets.load(made.path, false)
  const sealed = secrets.seal('shop', 'key', VALUE)
  const refused = (open: () => unknown): void =>
    assert.throws(open, { code: 'HOST_STATE_UNUSABLE', message: /not sealed under this key, or was changed/ })
  refused(() => secrets.open('shop', 'other', sealed))
  refused(() => secrets.open('other', 'key', sealed))
  refused(() => secrets.open('sho', 'pkey', sealed))
  refused(() => Secrets.load(other.path, false).open('shop', 'key', sealed))
  for (let i = 0; i < sealed.length; i++) {
    const changed = Buffer.from(sealed)
    changed[i]! ^= 1 << i % 8
    refused(() => secrets.open('shop', 'key', changed))
    refused(() => secrets.open('shop', 'key', sealed.subarray(0, i)))
  }
})

test('load makes a key that nobody else reads, once', () => {
  using made = disposableFolder()
  const path = join(made.path, 'secret.key')
  // As a crash may leave it.
  writeFileSync(`${path}.new`, 'half')
  Secrets.load(made.path, false)
  const key = readFileSync(path)
  assert.deepEqual([key.length, statSync(path).mode & 0o777, statSync(path).nlink], [32, 0o600, 1])
  Secrets.load(made.path, false)
  assert.deepEqual(readFileSync(path), key)
})

test('load refuses a key that others may read, that is none, or that is gone while there are secrets', () => {
  using made = disposableFolder()
  const path = join(made.path, 'secret.key')
  const refused = (why: RegExp): void =>
    assert.throws(() => Secrets.load(made.path, true), { code: 'HOST_STATE_UNUSABLE', message: why })
  refused(/no such file/)
  Secrets.load(made.path, false)
  for (const mode of [0o640, 0o604, 0o660]) {
    chmodSync(path, mode)
    refused(/mode must be 0600/)
  }
  for (const bytes of [0, 31, 33]) {
    writeFileSync(path, Buffer.alloc(bytes))
    chmodSync(path, 0o600)
    refused(/32 bytes/)
  }
  if (isRoot) {
    writeFileSync(path, Buffer.alloc(32))
    chownSync(path, 65_534, 65_534)
    refused(/another user/)
  }
  renameSync(path, `${path}.old`)
  symlinkSync(`${path}.old`, path)
  refused(/symbolic link|ELOOP/)
  rmSync(path)
})
