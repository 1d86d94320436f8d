// host/machine_forked_test.ts: what a fork's child finds in its folder, and what is refused there.

import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { MACHINE_SECTION_BYTES_MAX, MACHINE_SECTIONS_MAX } from '../base/limits.ts'
import { readForked, writeForked } from './machine_forked.ts'
import type { GuestLaunch } from './protocol.ts'
import { disposableFolder } from './test_support.ts'

const SECTIONS = new Map([['vcpu0/regs', Uint8Array.of(1, 2, 3)], ['virtio2', new Uint8Array()],
  ['ä', Uint8Array.from({ length: 300 }, (_, i) => i % 256)]])

const launch = (folder: string): GuestLaunch => ({ name: 'child', machine: { folder } } as unknown as GuestLaunch)

function section(name: string, bytes: Uint8Array, lengths: { name?: number; bytes?: number } = {}): Buffer {
  const head = Buffer.alloc(8)
  head.writeUInt32LE(lengths.name ?? Buffer.byteLength(name), 0)
  head.writeUInt32LE(lengths.bytes ?? bytes.length, 4)
  return Buffer.concat([head, Buffer.from(name), bytes])
}

const DAMAGED = { code: 'SNAPSHOT_DAMAGED' }

test('a child reads what its parent has written, once', () => {
  using made = disposableFolder()
  writeForked(made.path, SECTIONS)
  assert.equal(statSync(join(made.path, 'forked')).mode & 0o777, 0o600)
  assert.deepEqual(readForked(launch(made.path)), SECTIONS)
  assert.equal(existsSync(join(made.path, 'forked')), false)
  assert.throws(() => readForked(launch(made.path)), DAMAGED)
})

test('what a child reads does not share memory with what else was read', () => {
  using made = disposableFolder()
  writeForked(made.path, SECTIONS)
  for (const bytes of readForked(launch(made.path)).values()) assert.equal(bytes.buffer.byteLength, bytes.length)
})

test('a parent replaces what lies there, and follows no link', () => {
  using made = disposableFolder()
  const victim = join(made.path, 'victim')
  writeFileSync(victim, 'mine')
  symlinkSync(victim, join(made.path, 'forked'))
  writeForked(made.path, SECTIONS)
  writeForked(made.path, SECTIONS)
  assert.equal(readFileSync(victim, 'utf8'), 'mine')
  assert.deepEqual(readForked(launch(made.path)), SECTIONS)
})

test('what is cut off is refused, but where a section ends', () => {
  using made = disposableFolder()
  const parts = [...SECTIONS].map(([name, bytes]) => section(name, bytes))
  const whole = Buffer.concat(parts)
  const ends = parts.map((_, i) => Buffer.concat(parts.slice(0, i)).length)
  for (let length = 0; length < whole.length; length++) {
    writeFileSync(join(made.path, 'forked'), whole.subarray(0, length))
    if (ends.includes(length)) assert.equal(readForked(launch(made.path)).size, ends.indexOf(length))
    else assert.throws(() => readForked(launch(made.path)), DAMAGED, `${length}`)
  }
})

test('a length is not believed', () => {
  using made = disposableFolder()
  const cases = [
    section('a', Uint8Array.of(1), { bytes: 2 }), section('a', Uint8Array.of(1), { bytes: 0xffff_ffff }),
    section('a', Uint8Array.of(1), { name: 65 }), section('a', Uint8Array.of(1), { name: 0xffff_ffff }),
    section('x'.repeat(65), Uint8Array.of(1)), section('a', Uint8Array.of(1), { bytes: MACHINE_SECTION_BYTES_MAX + 1 }),
    Buffer.concat(Array.from({ length: MACHINE_SECTIONS_MAX + 1 }, (_, i) => section(`${i}`, new Uint8Array()))),
  ]
  for (const [i, bytes] of cases.entries()) {
    writeFileSync(join(made.path, 'forked'), bytes)
    assert.throws(() => readForked(launch(made.path)), DAMAGED, `case ${i}`)
  }
})

test('what is no file is refused', () => {
  using made = disposableFolder()
  mkdirSync(join(made.path, 'forked'))
  assert.throws(() => readForked(launch(made.path)), DAMAGED)
})
