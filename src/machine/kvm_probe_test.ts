// machine/kvm_probe_test.ts: the probe says yes or no on any machine, in words, and comes back.

import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { probeMachines } from './kvm_probe.ts'

test('probeMachines comes back with a reason in words, and leaves no handler behind', async () => {
  const before = process.listenerCount('SIGURG')
  const { ok, reason } = await probeMachines()
  assert.ok(reason.split(' ').length > 4, reason)
  assert.equal(process.listenerCount('SIGURG'), before)
  if (!existsSync('/dev/kvm')) assert.equal(ok, false)
})

test('probeMachines finds no ordinary KVM where the processor has no virtualisation', async (t) => {
  const path = '/proc/cpuinfo'
  if (!existsSync(path)) return t.skip('there is no /proc/cpuinfo')
  if (/\b(svm|vmx)\b/.test(readFileSync(path, 'utf8'))) return t.skip('this processor has virtualisation')
  assert.equal((await probeMachines()).ok, false)
})
