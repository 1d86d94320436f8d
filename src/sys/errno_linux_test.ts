// sys/errno_linux_test.ts: Linux's errno numbers against those that Node knows.

import assert from 'node:assert/strict'
import { constants } from 'node:os'
import { test } from 'node:test'
import { EIO, ENOTSUP, EAGAIN, ERRNO_NAMES } from '../base/errno.ts'
import { errnoFromLinux } from './errno_linux.ts'

const skip = process.platform === 'linux' ? false : 'compares with the numbers of Linux'

test('errnoFromLinux agrees with the C library about every name that both know', { skip }, () => {
  let compared = 0
  for (const [name, linux] of Object.entries(constants.errno)) {
    const ours = ERRNO_NAMES.indexOf(name)
    if (ours < 0) continue
    compared++
    assert.equal(ERRNO_NAMES[errnoFromLinux(linux)], name)
  }
  assert.ok(compared > 65, `compared ${compared}`)
})

test('errnoFromLinux takes aliases for what they are, and numbers without a name for EIO', () => {
  assert.equal(errnoFromLinux(95), ENOTSUP, 'EOPNOTSUPP')
  assert.equal(errnoFromLinux(11), EAGAIN, 'EWOULDBLOCK')
  for (const linux of [41, 61, 133, 134, 4095]) assert.equal(errnoFromLinux(linux), EIO)
})
