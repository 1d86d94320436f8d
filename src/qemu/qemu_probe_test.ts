// qemu/qemu_probe_test.ts: what is found out of a QEMU, and of what only looks like one.

import assert from 'node:assert/strict'
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { probeQemu } from './qemu_probe.ts'
import { qemuMissing, scratchFolder } from './test_support.ts'

function fake(t: TestContext, { version = 'QEMU emulator version 8.1.0', accelerators = 'Accelerators:\ntcg\nkvm\n',
  machines = 'q35   Standard PC' }): string {
  const path = join(scratchFolder(t), 'qemu')
  writeFileSync(path, `#!/bin/sh\ncase "$1" in\n--version) echo '${version}';;\n` +
    `-accel) printf '${accelerators}';;\n-machine) echo '${machines}';;\nesac\n`)
  chmodSync(path, 0o755)
  return path
}

test('a QEMU that is there is found with its version and accelerators', { skip: qemuMissing ?? false }, () => {
  const found = probeQemu()
  assert.equal(found.ok, true)
  assert.match(found.version!, /^\d+\.\d+/)
  assert.match(found.path!, /qemu-system-x86_64$/)
  assert.ok(found.accelerators.includes('tcg'))
})

test('a program that is no QEMU, or is not there, is told apart with the reason', () => {
  assert.match(probeQemu('/bin/true').reason, /doesn't start/)
  assert.match(probeQemu('/nowhere/qemu').reason, /ENOENT/)
})

for (const [what, of, reason] of [
  ['that is too old', { version: 'QEMU emulator version 7.1.9 (Debian)' }, /7\.1\.9 is too old: 7\.2 is the oldest/],
  ['with no accelerator of ours', { accelerators: 'Accelerators:\nhvf\n' }, /neither TCG nor KVM/],
  ['without the machine q35', { machines: 'microvm   microvm (i386)' }, /without the machine q35/],
] as const) {
  test(`a QEMU ${what} will not do, and the reason says so`, (t) => {
    const found = probeQemu(fake(t, of))
    assert.equal(found.ok, false)
    assert.match(found.reason, reason)
  })
}

test('a newer QEMU will do', (t) => {
  assert.deepEqual([probeQemu(fake(t, {})).ok, probeQemu(fake(t, { version: 'QEMU emulator version 10.0.2' })).ok],
    [true, true])
})
