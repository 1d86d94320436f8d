// host/state_test.ts: addresses of guests in the networks of their project: each has its own, and keeps it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GUEST_SPEC } from './spec.ts'
import { kindOf, peerOf, State } from './state.ts'
import { guestRow } from './test_support.ts'

const MACHINE = GUEST_SPEC.parse({ image: 'vm', machine: {} })

test('guests of a project have addresses that differ, the lowest that are free; projects share none', () => {
  const state = new State()
  const add = (id: string, address: number, project = 'default'): number =>
    state.addGuest(guestRow(id, { address, project })).row.address
  assert.deepEqual([add('a', 0), add('b', 0), add('c', 7), add('d', 7), add('e', 0)], [1, 2, 7, 3, 4])
  assert.deepEqual([add('x', 0, 'other'), add('y', 7, 'other')], [1, 7])
})

test('an address is kept over a restart, in whatever order rows are read, and is free when its guest is gone', () => {
  const [first, second] = [new State(), new State()]
  const guests = ['a', 'b', 'c'].map((id) => first.addGuest(guestRow(id, { address: 0 })))
  for (const { row } of guests.toReversed()) {
    assert.equal(second.addGuest(row).row.address, row.address)
  }
  second.removeGuest(second.byName('default', 'b')!)
  assert.equal(second.addGuest(guestRow('d', { address: 0 })).row.address, 2)
})

test('peers are those who share a network, with what they are; who comes, goes or changes is told', () => {
  const state = new State()
  const told: string[] = []
  state.peersChanged = (project) => { told.push(project) }
  const one = state.addGuest(guestRow('one', { address: 0 }))
  const vm = state.addGuest(guestRow('vm', { address: 0, spec: MACHINE }))
  state.addGuest(guestRow('apart', { address: 0, spec: { ...MACHINE, networks: ['back'] } }))
  state.addGuest(guestRow('elsewhere', { address: 0, project: 'other' }))
  assert.deepEqual(state.peersOf(one), [{ name: 'vm', address: 2, kind: 'machine' }])
  assert.deepEqual(state.peersOf(vm), [{ name: 'one', address: 1, kind: 'cell' }])
  assert.deepEqual([kindOf(vm.row.spec), peerOf(one).kind], ['machine', 'cell'])
  told.length = 0
  state.setRow(one, { ...one.row, phase: 'running' })
  assert.deepEqual(told, [], 'what is running is nobody else\'s business')
  state.setRow(one, { ...one.row, spec: { ...one.row.spec, networks: ['back'] } })
  state.removeGuest(vm)
  assert.deepEqual(told, ['default', 'default'])
  assert.deepEqual(state.peersOf(one).map(({ name }) => name), ['apart'])
})
