// machine/board_test.ts: a board's state, saved, set and refused; on any KVM that makes machines, as none of them runs.

import assert from 'node:assert/strict'
import { closeSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import { CellarError } from '../base/errors.ts'
import * as abi from '../kvm/abi.ts'
import { Kvm } from '../kvm/kvm.ts'
import { makeRam, mapRam, unmapRam } from '../sys/guest_ram.ts'
import { Board } from './board.ts'
import { restoreBoard, saveBoard } from './board_state.ts'
import { LOW_RAM_BYTES_MAX } from '../services/guest_ram.ts'

const MIB = 1024 * 1024

// Why boards can't be made here; false if they can.
function missing(): string | false {
  try {
    using kvm = new Kvm()
    kvm.createVm().close()
    return false
  } catch (error) {
    return `no machine can be made here: ${(error as Error).message}`
  }
}

const skip = missing()

// A board of 2 vCPUs, with a kernel about to be entered.
function withBoard<T>(work: (board: Board, ram: Uint8Array) => T, { vcpus = 2, sizeBytes = 4 * MIB } = {}): T {
  const fd = makeRam(sizeBytes)
  const ram = mapRam(fd, sizeBytes, false)
  const board = new Board({ vcpus, ram })
  try {
    board.begin({ mode: 64, start: 0x10_0200, info: 0x7000 })
    return work(board, ram.bytes)
  } finally {
    board.close()
    unmapRam(ram)
    closeSync(fd)
  }
}

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0

// Sections that the passing of time changes.
const CLOCKS = /^board\/clock$|\/msrs$|\/lapic$/

test('a board that was restored saves what was restored', { skip }, () => {
  const saved = withBoard((board) => {
    const [first] = board.vcpus
    const regs = first!.get(abi.KVM_GET_REGS, abi.kvm_regs)
    new DataView(regs.buffer).setBigUint64(abi.kvm_regs.at.r13, 0x1234_5678_9abc_def0n, true)
    first!.set(abi.KVM_SET_REGS, regs)
    return saveBoard(board)
  })
  withBoard((board) => {
    restoreBoard(board, saved)
    const again = saveBoard(board)
    assert.deepEqual([...again.keys()], [...saved.keys()])
    for (const [name, bytes] of saved) {
      if (!CLOCKS.test(name)) assert.ok(same(again.get(name)!, bytes), name)
    }
    const regs = board.vcpus[0]!.get(abi.KVM_GET_REGS, abi.kvm_regs)
    const { r13, rip, rsi } = abi.kvm_regs.at
    const view = new DataView(regs.buffer)
    assert.deepEqual([r13, rip, rsi].map((at) => view.getBigUint64(at, true)),
      [0x1234_5678_9abc_def0n, 0x10_0200n, 0x7000n])
  })
})

test('restoreBoard refuses sections that are missing, cut off, too long or of another version', { skip }, () => {
  const saved = withBoard((board) => saveBoard(board))
  for (const [name, bytes] of saved) {
    const longer = new Uint8Array(bytes.length + 1)
    longer.set(bytes)
    const newer = bytes.slice()
    newer[0] = 9
    for (const damaged of [undefined, bytes.subarray(0, 1), bytes.subarray(0, -1), longer, newer]) {
      const sections = new Map(saved)
      if (damaged === undefined) sections.delete(name)
      else sections.set(name, damaged)
      withBoard((board) => assert.throws(() => restoreBoard(board, sections),
        (error) => error instanceof CellarError && /^SNAPSHOT_(DAMAGED|FOREIGN)$/.test(error.code), name))
    }
  }
})

test('restoreBoard refuses a machine with other features, or more vCPUs, than this one', { skip }, () => {
  const saved = withBoard((board) => saveBoard(board))
  const foreign = new Map(saved)
  const cpuid = saved.get('vcpu0/cpuid')!.slice()
  cpuid[2 + abi.kvm_cpuid_entry2.size * 2 + abi.kvm_cpuid_entry2.at.ecx]! ^= 1
  foreign.set('vcpu0/cpuid', cpuid)
  withBoard((board) => assert.throws(() => restoreBoard(board, foreign), { code: 'SNAPSHOT_FOREIGN' }))
  withBoard((board) => assert.throws(() => restoreBoard(board, saved),
    (error) => error instanceof CellarError && error.code.startsWith('SNAPSHOT_')), { vcpus: 1 })
})

test('no damage to a snapshot makes restoreBoard fail in another way than by refusing', { skip }, () => {
  const saved = [...withBoard((board) => saveBoard(board))].filter(([name]) => !name.endsWith('/cpuid'))
  const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 8 })
  const damage = fc.tuple(fc.nat(saved.length - 1), changes)
  fc.assert(fc.property(damage, ([which, changes]) => {
    const sections = withBoard((board) => saveBoard(board))
    const [name] = saved[which]!
    const bytes = sections.get(name)!.slice()
    for (const [at, value] of changes) bytes[2 + at % (bytes.length - 2)] = value
    sections.set(name, bytes)
    withBoard((board) => {
      try {
        restoreBoard(board, sections)
      } catch (error) {
        assert.ok(error instanceof CellarError && error.code.startsWith('SNAPSHOT_'), `${name}: ${String(error)}`)
      }
    })
  }), { numRuns: 60 })
})

test('a board refuses more vCPUs than KVM has', { skip }, () => {
  assert.throws(() => withBoard(() => {}, { vcpus: 5000 }), { code: 'MACHINE_VCPUS_MANY' })
})

test('a board tells which pages were written since it watches, on both sides of the hole', { skip }, () => {
  withBoard((board) => {
    board.watchWrites()
    const written = board.takeWritten()
    assert.equal(written.length, (LOW_RAM_BYTES_MAX + 64 * MIB) / 4096 / 8)
    assert.equal(written.every((byte) => byte === 0), true)
  }, { sizeBytes: LOW_RAM_BYTES_MAX + 64 * MIB })
})
