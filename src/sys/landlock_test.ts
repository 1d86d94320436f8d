// sys/landlock_test.ts: Landlock as this kernel has it, and as others do. The wall itself: tests/security/jail_test.ts.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { ENOSYS, ENOTSUP } from '../base/errno.ts'
import { landlockAbi, refusable } from './landlock.ts'
import { isSupported } from './libc.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'
const url = (name: string): string => JSON.stringify(new URL(name, import.meta.url).href)

function run(script: string): { status: number | null; stdout: string; stderr: string } {
  const flags = ['--disable-warning=ExperimentalWarning', '--input-type=module']
  return spawnSync(process.execPath, [...flags, '-e', script], { encoding: 'utf8' })
}

test('landlockAbi is a number of the kernel, or says that there is none', { skip }, () => {
  const abi = landlockAbi()
  assert.ok(abi >= 1 || abi === -ENOSYS || abi === -ENOTSUP, String(abi))
})

test('refusable asks of an ABI no more than it knows, in a struct no longer than its own', () => {
  assert.deepEqual(refusable(1), { files: 0x1fffn, network: 0n, scoped: 0n, bytes: 8 })
  assert.deepEqual(refusable(2), { files: 0x3fffn, network: 0n, scoped: 0n, bytes: 8 })
  assert.deepEqual(refusable(3), { files: 0x7fffn, network: 0n, scoped: 0n, bytes: 8 })
  assert.deepEqual(refusable(4), { files: 0x7fffn, network: 3n, scoped: 0n, bytes: 16 })
  assert.deepEqual(refusable(5), { files: 0xffffn, network: 3n, scoped: 0n, bytes: 16 })
  assert.deepEqual(refusable(6), { files: 0xffffn, network: 3n, scoped: 3n, bytes: 24 })
  assert.deepEqual(refusable(99), refusable(6))
})

test('restrictFiles answers an errno and changes nothing where the kernel has no Landlock', { skip }, () => {
  // A filter that answers as such a kernel does.
  for (const [errno, linux] of [['ENOSYS', 38], ['ENOTSUP', 95]] as const) {
    const { stdout, stderr } = run(`import { installFilter } from ${url('seccomp.ts')}
      import { restrictFiles } from ${url('landlock.ts')}
      import { ERRNO_NAMES } from ${url('../base/errno.ts')}
      import { readFileSync } from 'node:fs'
      const installed = installFilter([[0x20, 0, 0, 0], [0x15, 0, 1, 444], [6, 0, 0, ${0x50000 + linux}],
        [6, 0, 0, 0x7fff0000]])
      console.log(installed, ERRNO_NAMES[-restrictFiles([{ path: '/proc/self', access: 'read' }])],
        readFileSync('/proc/version').length > 0)`)
    assert.deepEqual([stdout, stderr], [`0 ${errno} true\n`, ''])
  }
})

test('restrictFiles passes over an optional path that is not there, and throws for another', { skip }, (t) => {
  if (landlockAbi() < 0) return t.skip('this kernel has no Landlock')
  const { stdout, stderr } = run(`import { restrictFiles } from ${url('landlock.ts')}
    import { giveUpNewPrivileges } from ${url('confine.ts')}
    import { readFileSync } from 'node:fs'
    giveUpNewPrivileges()
    try { restrictFiles([{ path: '/no/such', access: 'read' }]) } catch (error) { console.log(error.code) }
    console.log(restrictFiles([{ path: '/no/such', access: 'read', optional: true },
      { path: '/proc/version', access: 'read' }]))
    console.log(readFileSync('/proc/version').length > 0)
    try { readFileSync('/etc/passwd') } catch (error) { console.log(error.code) }`)
  assert.deepEqual([stdout, stderr], ['ENOENT\n0\ntrue\nEACCES\n', ''])
})
