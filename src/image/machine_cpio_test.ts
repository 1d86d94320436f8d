// image/machine_cpio_test.ts: archives for Linux's first root file system, against Debian's cpio and bad bytes.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { suite, test } from 'node:test'
import { CpioError, CpioWriter, readCpio } from './machine_cpio.ts'

const HAS_CPIO = spawnSync('cpio', ['--version']).status === 0

function sample(): Buffer {
  return new CpioWriter().device('dev/console', 'char', 5, 1).device('dev/vda', 'block', 254, 0, 0o660)
    .file('init', '#!/bin/sh\n', 0o755).link('bin/sh', 'busybox').file('empty', '').finish()
}

suite('machine_cpio', () => {
  test('what CpioWriter writes, readCpio reads, with the folders that were missing', () => {
    const entries = readCpio(sample()).map(({ name, type, mode, content, major, minor }) =>
      [name, type, mode, Buffer.from(content).toString(), major, minor])
    assert.deepEqual(entries, [
      ['dev', 'folder', 0o755, '', 0, 0], ['dev/console', 'char', 0o600, '', 5, 1],
      ['dev/vda', 'block', 0o660, '', 254, 0], ['init', 'file', 0o755, '#!/bin/sh\n', 0, 0],
      ['bin', 'folder', 0o755, '', 0, 0], ['bin/sh', 'link', 0o777, 'busybox', 0, 0],
      ['empty', 'file', 0o644, '', 0, 0],
    ])
  })

  test('the same entries give the same bytes', () => {
    assert.deepEqual(sample(), sample())
  })

  test("Debian's cpio lists the entries", { skip: !HAS_CPIO && 'no cpio here' }, () => {
    const { stdout, status } = spawnSync('cpio', ['-itv', '--quiet'], { input: sample(), encoding: 'utf8' })
    assert.equal(status, 0)
    assert.match(stdout, /^crw------- .* 5, +1 .* dev\/console$/m)
    assert.match(stdout, /^brw-rw---- .*254, +0 .* dev\/vda$/m)
    assert.match(stdout, /^-rwxr-xr-x .* init$/m)
    assert.match(stdout, /^lrwxrwxrwx .* bin\/sh -> busybox$/m)
  })

  test('readCpio reads archives one behind the other, with zeroes between', () => {
    const other = new CpioWriter().file('more', 'x').finish()
    const names = readCpio(Buffer.concat([sample(), Buffer.alloc(512), other])).map(({ name }) => name)
    assert.deepEqual(names.slice(-2), ['empty', 'more'])
  })

  test('readCpio refuses what is no archive', () => {
    const good = sample()
    const changed = (at: number, text: string): Buffer => {
      const copy = Buffer.from(good)
      copy.write(text, at, 'latin1')
      return copy
    }
    for (const [bytes, pattern] of [
      [Buffer.from('hello'), /cut off/], [good.subarray(0, 300), /cut off/], [changed(0, '070707'), /no entry/],
      [changed(14, 'zzzzzzzz'), /is none/], [changed(54, 'ffffffff'), /cut off/], [changed(94, '00000000'), /0 bytes/],
      [changed(94, 'ffffffff'), /bytes/], [changed(94, '00000003'), /doesn't end/],
      [Buffer.concat([Buffer.alloc(2), good]), /multiple of 4/],
    ] as const) {
      assert.throws(() => readCpio(bytes), (error: Error) => error instanceof CpioError && pattern.test(error.message))
    }
  })

  test('CpioWriter takes no name that leads out, and none twice', () => {
    assert.throws(() => new CpioWriter().file('../x', ''), /below it/)
    assert.throws(() => new CpioWriter().file('/x', ''), /below it/)
    assert.throws(() => new CpioWriter().file('x', '').file('x', ''), /once/)
  })
})
