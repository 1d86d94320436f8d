// qemu/vm_state_test.ts: states of machines that are not this one's, or nobody's, are refused before QEMU sees them.

import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Sections } from '../machine/engine.ts'
import { checkState } from './vm_state.ts'

const SHAPE = [2, 2 ** 28, 1, 1]
const MACHINE = { machineType: 'pc-q35-7.2', accelerator: 'tcg', shape: SHAPE }

function sections(machine: unknown, version = 1, state = Buffer.from('state')): Sections {
  const head = Buffer.of(version & 255, version >> 8)
  const text = typeof machine === 'string' ? machine : JSON.stringify(machine)
  return new Map([['qemu/machine', Buffer.concat([head, Buffer.from(text)])],
    ['qemu/vmstate', Buffer.concat([head, state])]])
}

const without = (name: string): Sections => new Map([...sections(MACHINE)].filter(([key]) => key !== name))

describe('a saved state', () => {
  test('of a machine like this one names the version of its machine type', () => {
    assert.equal(checkState('m', sections(MACHINE), 'tcg', SHAPE), 'pc-q35-7.2')
  })

  for (const [what, from, code] of [
    ['of another engine', new Map([['vcpu0/regs', new Uint8Array(10)]]), 'SNAPSHOT_FOREIGN'],
    ['without its stream', without('qemu/vmstate'), 'SNAPSHOT_FOREIGN'],
    ['without its machine', without('qemu/machine'), 'SNAPSHOT_FOREIGN'],
    ['of a newer version', sections(MACHINE, 2), 'SNAPSHOT_NEWER'],
    ['of version 0', sections(MACHINE, 0), 'SNAPSHOT_DAMAGED'],
    ['of a byte', new Map([['qemu/machine', Buffer.of(1)], ['qemu/vmstate', Buffer.of(1)]]), 'SNAPSHOT_DAMAGED'],
    ['that is no JSON', sections('{'), 'SNAPSHOT_DAMAGED'], ['that is null', sections('null'), 'SNAPSHOT_DAMAGED'],
    ['with arguments of its own', sections({ ...MACHINE, machineType: 'pc-q35-7.2,accel=kvm' }), 'SNAPSHOT_DAMAGED'],
    ['with a machine that is a number', sections({ ...MACHINE, machineType: 7 }), 'SNAPSHOT_DAMAGED'],
    ['with a description as long as a book', sections('x'.repeat(2000)), 'SNAPSHOT_DAMAGED'],
    ['taken under KVM', sections({ ...MACHINE, accelerator: 'kvm' }), 'SNAPSHOT_FOREIGN'],
    ['of a machine with more vCPUs', sections({ ...MACHINE, shape: [4, 2 ** 28, 1, 1] }), 'SNAPSHOT_FOREIGN'],
    ['of no shape', sections({ ...MACHINE, shape: undefined }), 'SNAPSHOT_FOREIGN'],
  ] as const) {
    test(`one ${what} is refused with ${code}`, () => {
      assert.throws(() => checkState('m', from, 'tcg', SHAPE), { code })
    })
  }
})
