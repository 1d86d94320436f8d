// machine/cpuid_test.ts: what vCPUs say of themselves, made of what a made-up host can show.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { kvm_cpuid_entry2 as entry } from '../kvm/abi.ts'
import { vcpuCpuid } from './cpuid.ts'

type Leaf = readonly [leaf: number, index: number, eax: number, ebx: number, ecx: number, edx: number]

function bytesOf(leaves: readonly Leaf[]): Uint8Array {
  const bytes = new Uint8Array(leaves.length * entry.size)
  const view = new DataView(bytes.buffer)
  leaves.forEach(([leaf, index, ...registers], i) => {
    view.setUint32(i * entry.size, leaf, true)
    view.setUint32(i * entry.size + entry.at.index, index, true)
    registers.forEach((value, r) => view.setUint32(i * entry.size + entry.at.eax + 4 * r, value, true))
  })
  return bytes
}

function leafOf(bytes: Uint8Array, leaf: number, index = 0): number[] | undefined {
  const view = new DataView(bytes.buffer)
  for (let at = 0; at < bytes.length; at += entry.size) {
    if (view.getUint32(at, true) === leaf && view.getUint32(at + entry.at.index, true) === index) {
      return [0, 4, 8, 12].map((offset) => view.getUint32(at + entry.at.eax + offset, true))
    }
  }
  return undefined
}

const ALL = 0xffff_ffff
const HOST: readonly Leaf[] = [
  [0, 0, 0x1f, 0, 0, 0], [1, 0, 0x806f8, ALL, ALL, ALL], [4, 0, ALL, 0, 0, 0], [4, 3, 0x163, 0, 0, 0],
  [7, 0, 0, ALL, 0, 0], [0xa, 0, ALL, 0, 0, 0], [0xb, 0, 9, 9, 9, 9], [0x1f, 0, 9, 9, 9, 9],
  [0x4000_0000, 0, 0x4000_0001, 0x4b4d564b, 0x564b4d56, 0x4d], [0x4000_0001, 0, 0x100_0007b, 0, 0, 0],
  [0x8000_0001, 0, 0, 0, ALL, ALL], [0x8000_0008, 0, 0x3030, 0, ALL, 0], [0x8000_000a, 0, 1, 1, 1, 1],
  [0x8000_001e, 0, 9, 9, 9, 9],
]

test('vcpuCpuid says which vCPU it is, in every leaf that does', () => {
  for (const id of [0, 2]) {
    const made = vcpuCpuid(bytesOf(HOST), id, 3, true)
    assert.equal(leafOf(made, 1)![1]! >>> 24, id)
    assert.equal(leafOf(made, 1)![1]! >>> 16 & 0xff, 3)
    assert.deepEqual(leafOf(made, 0xb, 0), [0, 1, 0x100, id])
    assert.deepEqual(leafOf(made, 0xb, 1), [2, 3, 0x201, id])
    assert.equal(leafOf(made, 4, 3)![0]! >>> 26, 2, 'cores of the socket, less one')
    assert.equal(leafOf(made, 0x8000_0008)![2], 2 | 2 << 12)
  }
})

test('vcpuCpuid says that there is a hypervisor, and keeps the leaves of KVM', () => {
  const made = vcpuCpuid(bytesOf([[1, 0, 0, 0, 0, 0], ...HOST.slice(8)]), 0, 1, true)
  assert.equal(leafOf(made, 1)![2]! >>> 0, (1 << 31 | 1 << 24 | 1 << 21) >>> 0)
  assert.equal(leafOf(made, 0x4000_0000)![1], 0x4b4d564b)
  assert.ok(leafOf(made, 0x4000_0001) !== undefined)
  const plain = vcpuCpuid(bytesOf([[1, 0, 0, 0, 0, 0]]), 0, 1, false)
  assert.equal(leafOf(plain, 1)![2]! >>> 24 & 1, 0, 'a deadline timer only where KVM has one')
})

test('vcpuCpuid hides nested virtualisation and what only a host needs', () => {
  const made = vcpuCpuid(bytesOf(HOST), 0, 1, true)
  assert.equal(leafOf(made, 1)![2]! & (1 << 5 | 1 << 6), 0, 'VMX, SMX')
  assert.equal(leafOf(made, 0x8000_0001)![2]! & 1 << 2, 0, 'SVM')
  assert.equal(leafOf(made, 7)![1]! & 1 << 14, 0, 'MPX')
  for (const leaf of [0xa, 0x1f, 0x8000_000a, 0x8000_001e]) assert.equal(leafOf(made, leaf), undefined)
})

test('vcpuCpuid says one core without company for a machine with one vCPU', () => {
  const made = vcpuCpuid(bytesOf(HOST), 0, 1, true)
  assert.equal(leafOf(made, 1)![3]! >>> 28 & 1, 0)
  assert.deepEqual(leafOf(made, 0xb, 1), [0, 1, 0x201, 0])
  assert.equal(leafOf(made, 0x8000_0008)![2], 0)
})
