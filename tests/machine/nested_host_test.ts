// tests/machine/nested_host_test.ts: what the other tests of machines rely on: commands run as if they ran here.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { tmpdir } from 'node:os'
import { after, before, suite, test } from 'node:test'
import { runTwice } from './guests.ts'
import { findKvm, type KvmPlace } from './kvm_place.ts'

const kvm = await findKvm('host-test')

suite('a place with an ordinary /dev/kvm', { skip: kvm.skip }, () => {
  let place: KvmPlace

  before(() => { place = kvm.open() })
  after(() => place[Symbol.asyncDispose]())

  test('a command gives stdout, stderr and status apart', async (t) => {
    t.diagnostic(place.way)
    const { status, stdout, stderr, timedOut } = await place.run('printf "a\\0b"; printf c >&2; exit 7')
    assert.deepEqual({ status, stdout: stdout.toString(), stderr: stderr.toString(), timedOut },
      { status: 7, stdout: 'a\0b', stderr: 'c', timedOut: false })
  })

  test('a command that is killed gives its signal as a shell does', async () => {
    assert.equal((await place.run('kill -9 $$')).status, 137)
  })

  test('a command that takes too long is ended, and the next one runs', async () => {
    const late = await place.run('echo begun; sleep 100', { timeoutMs: 2_000 })
    assert.equal(late.timedOut, true)
    assert.equal(late.stdout.toString(), 'begun\n')
    assert.equal((await place.run('echo next')).stdout.toString(), 'next\n')
  })

  test('a file that changes is sent again, and large output arrives whole', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'cellar-nested-test-'))
    try {
      const path = join(folder, 'file')
      for (const text of ['first', 'second, longer']) {
        writeFileSync(path, text)
        assert.equal((await place.run(`cat ${path}`, { files: [path] })).stdout.toString(), text)
      }
      const { stdout } = await place.run('head -c 3000000 /dev/zero | tr "\\0" x')
      assert.equal(stdout.length, 3_000_000)
      assert.ok(stdout.every((byte) => byte === 0x78))
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test('KVM runs an ordinary guest', async (t) => {
    const line = "import('./src/machine/kvm_probe.ts').then((probe) => probe.probeMachines()).then((found) => " +
      'console.log(JSON.stringify(found)))'
    const { status, stdout, stderr } = await runTwice(place, `node --no-warnings -e "${line}"`, {},
      (text) => t.diagnostic(text))
    assert.match(stdout.toString(), /^\{"ok":true,/, `${stdout} ${stderr}`)
    assert.equal(status, 0)
  })
})
