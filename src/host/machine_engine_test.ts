// host/machine_engine_test.ts: which engine runs a machine, and why, whatever is there of KVM and QEMU.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Engines } from './machine_engine.ts'

const KVM_WHY = { true: 'KVM has run a guest', false: 'KVM runs nothing' }
const QEMU_WHY = { true: '/usr/bin/qemu', false: 'QEMU is not installed' }

function engines(kvm: boolean, qemu: boolean): { choice: Engines; probes: string[] } {
  const probes: string[] = []
  return { probes, choice: new Engines({
    kvm: async () => { probes.push('kvm'); return { ok: kvm, reason: KVM_WHY[`${kvm}`] } },
    qemu: async () => { probes.push('qemu'); return { ok: qemu, reason: QEMU_WHY[`${qemu}`] } },
  }) }
}

const FIRMWARE = 'it begins with firmware, as its image has no kernel'
const KVM = `kvm: ${KVM_WHY.true}`
const ASKED = 'qemu: it is asked for'
const NONE = (kvm: string): string => `KVM: ${kvm}; QEMU: ${QEMU_WHY.false}`

/** What is there, what is asked for, whether there is a kernel; who runs it and why, or why nobody does. */
type Case = readonly [kvm: boolean, qemu: boolean, wanted: 'auto' | 'kvm' | 'qemu', kernel: boolean, is: string]
const CASES: readonly Case[] = [
  [true, true, 'auto', true, KVM], [true, true, 'kvm', true, KVM], [true, true, 'qemu', true, ASKED],
  [true, false, 'auto', true, KVM], [true, false, 'kvm', true, KVM], [true, false, 'qemu', true, NONE(KVM_WHY.true)],
  [false, true, 'auto', true, `qemu: ${KVM_WHY.false}`], [false, true, 'qemu', true, ASKED],
  [false, true, 'kvm', true, `KVM can't run it: ${KVM_WHY.false}`],
  [false, false, 'auto', true, NONE(KVM_WHY.false)], [false, false, 'qemu', true, NONE(KVM_WHY.false)],
  [false, false, 'kvm', true, `KVM can't run it: ${KVM_WHY.false}`],
  [true, true, 'auto', false, `qemu: ${FIRMWARE}`], [true, true, 'qemu', false, ASKED],
  [true, true, 'kvm', false, `KVM can't run it: ${FIRMWARE}`],
  [true, false, 'auto', false, NONE(FIRMWARE)], [true, false, 'kvm', false, `KVM can't run it: ${FIRMWARE}`],
  [true, false, 'qemu', false, NONE(FIRMWARE)],
  [false, true, 'auto', false, `qemu: ${FIRMWARE}`], [false, true, 'kvm', false, `KVM can't run it: ${FIRMWARE}`],
  [false, true, 'qemu', false, ASKED],
  [false, false, 'auto', false, NONE(FIRMWARE)], [false, false, 'qemu', false, NONE(FIRMWARE)],
  [false, false, 'kvm', false, `KVM can't run it: ${FIRMWARE}`],
]

test('a machine runs under KVM if that can run it, else under QEMU, else not at all: with the reason', async () => {
  for (const [kvm, qemu, wanted, kernel, expected] of CASES) {
    const chosen = await engines(kvm, qemu).choice.choose('vm', wanted, kernel).then(
      ({ name, why }) => `${name}: ${why}`, (error: { code: string; values: readonly unknown[] }) => {
        assert.equal(error.code, 'MACHINE_NO_ENGINE')
        assert.equal(error.values[0], 'vm')
        return error.values[1]
      })
    assert.equal(chosen, expected, `kvm ${kvm}, qemu ${qemu}, wanted ${wanted}, kernel ${kernel}`)
  }
})

test('what is there is found out once, however many ask at once', async () => {
  const { choice, probes } = engines(true, true)
  await Promise.all([choice.choose('a', 'auto', true), choice.choose('b', 'qemu', true), choice.hasKvm()])
  assert.deepEqual(probes.toSorted(), ['kvm', 'qemu'])
  assert.equal(await choice.hasKvm(), true)
  assert.equal(await engines(false, true).choice.hasKvm(), false)
})
