// sys/libc_test.ts: calls into the real C library.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { test } from 'node:test'
import { EBADF, EINVAL } from '../base/errno.ts'
import { POLLIN, POLLNVAL, POLLOUT, Scratch, answer, bind, clockGettime, isSupported, poll1 } from './libc.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

test('bind finds a function at its first call, and answer gives the errno of that very call', { skip }, () => {
  const { close, getpid } = bind({
    close: { arguments: ['int32'], return: 'int32' }, getpid: { arguments: [], return: 'int32' },
  })
  assert.equal(answer(close(-1)), -EBADF)
  assert.equal(answer(close(-1)), -EBADF)
  assert.equal(answer(getpid()), process.pid)
})

test('bind throws at the first call of a function that the C library lacks, not before', { skip }, () => {
  const functions = bind({ cellar_no_such_function: { arguments: [], return: 'int32' } })
  assert.throws(() => functions.cellar_no_such_function())
})

test('poll1 tells what is ready without waiting', { skip }, () => {
  const fd = openSync('/dev/null', 'r+')
  assert.equal(poll1(fd, POLLIN | POLLOUT), POLLIN | POLLOUT)
  assert.equal(poll1(fd, POLLOUT), POLLOUT)
  closeSync(fd)
  assert.equal(poll1(1_000_000, POLLIN), POLLNVAL)
})

test('clockGettime reads the clock that Node reads', { skip }, () => {
  const out = new Float64Array(2)
  const before = Date.now()
  assert.equal(clockGettime(0, out), 0)
  const ms = out[0]! * 1000 + Math.floor(out[1]! / 1e6)
  assert.ok(ms >= before && ms <= Date.now() + 1, `${before} ≤ ${ms}`)
  assert.equal(clockGettime(1, out), 0)
  assert.ok(Math.abs(out[0]! * 1e9 + out[1]! - Number(process.hrtime.bigint())) < 1e9)
  assert.equal(clockGettime(12345, out), -EINVAL)
})

test('exitNow ends the process with its code and runs no exit handler', { skip }, () => {
  const script = `process.on('exit', () => console.log('handler'))
    const { exitNow } = await import(${JSON.stringify(new URL('libc.ts', import.meta.url).href)})
    exitNow(37)`
  const flags = ['--disable-warning=ExperimentalWarning', '--input-type=module']
  const child = spawnSync(process.execPath, [...flags, '-e', script])
  assert.equal(child.status, 37)
  assert.equal(String(child.stdout), '')
})

test('Scratch has one address, and C writes where JavaScript reads', { skip }, () => {
  const scratch = new Scratch(16)
  const { memset } = bind({ memset: { arguments: ['pointer', 'int32', 'uint64'], return: 'pointer' } })
  assert.equal(scratch.address, scratch.address)
  memset(scratch.address + 4n, 0xab, 2n)
  assert.deepEqual([...scratch.bytes], [0, 0, 0, 0, 0xab, 0xab, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
})
