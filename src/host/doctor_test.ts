// host/doctor_test.ts: findings about this machine, which must be true of it.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { confinement } from './confinement.ts'
import { canRun, examine, type Finding } from './doctor.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'
const named = (findings: readonly Finding[], name: string): Finding => findings.find((one) => one.name === name)!

test('examine finds what this machine has, says what to do about the rest, and leaves nothing behind', {
  skip,
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-doctor-'))
  try {
    const findings = await examine(join(folder, 'not', 'there', 'yet'))
    assert.deepEqual(readdirSync(folder), [])
    for (const { name, ok, detail, hint } of findings) {
      assert.equal(hint === undefined, ok, name)
      assert.doesNotMatch(detail + (hint ?? ''), /undefined|NaN/, name)
    }
    assert.equal(new Set(findings.map(({ name }) => name)).size, findings.length)
    for (const name of ['node', 'jspi', 'ffi', 'state folder']) assert.equal(named(findings, name).ok, true, name)
    assert.equal(named(findings, 'systemd').ok, existsSync('/run/systemd/system'))
    const [machines, kvm, qemu] = ['machines', 'machines: kvm', 'machines: qemu'].map((name) => named(findings, name))
    assert.equal(machines!.ok, kvm!.ok || qemu!.ok)
    assert.match(machines!.detail, kvm!.ok ? /kvm/ : qemu!.ok ? /qemu/ : /nothing/)
    const { walls, failure } = confinement()
    assert.equal(named(findings, 'cell process').ok, failure === undefined)
    if (failure === undefined) {
      for (const { layer, on } of walls) assert.equal(named(findings, `wall: ${layer}`).ok, on, layer)
    }
    assert.equal(canRun(findings), failure === undefined)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('examine finds that a state folder can\'t be written, and canRun says no', { skip }, async () => {
  const findings = await examine('/proc/self')
  const found = named(findings, 'state folder')
  assert.match(found.detail, /^\/proc\/self can't be written: E[A-Z]+$/)
  assert.equal(canRun([found]), false)
  assert.equal(canRun([{ ...found, ok: false, level: 'needed' }]), false)
  assert.equal(canRun([{ ...found, ok: false, level: 'wanted' }]), true)
})
