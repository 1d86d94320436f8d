// host/cgroup_test.ts: groups of machines, in the kernel's own files where they may be made, else in files like them.

import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { Cgroups } from './cgroup.ts'

const TERMS = { shares: 300, reservation: 0, limit: 0.5 }

/** A folder with the files that a root group has. */
function fakeRoot(controllers: string): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'cellar-cgroup-'))
  if (controllers !== '') writeFileSync(join(path, 'cgroup.controllers'), controllers)
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) }
}

test('a machine\'s group has its weight, its limit and its process', () => {
  using root = fakeRoot('cpuset cpu io memory')
  const groups = new Cgroups(root.path)
  assert.equal(groups.why, undefined)
  assert.equal(readFileSync(join(root.path, 'cgroup.subtree_control'), 'utf8'), '+cpu +memory')
  const group = join(root.path, 'cellar/machine-a1')
  mkdirSync(group)
  for (const file of ['cpu.weight', 'cpu.max', 'memory.max']) writeFileSync(join(group, file), '')
  groups.put('a1', 4711, TERMS, 256 * 1024 * 1024)
  const read = (file: string): string => readFileSync(join(group, file), 'utf8')
  assert.deepEqual(['cpu.weight', 'cpu.max', 'memory.max', 'cgroup.procs'].map(read),
    ['300', '50000 100000', String(1280 * 1024 * 1024), '4711'])
  groups.setTerms('a1', { shares: 100, reservation: 0, limit: Infinity })
  assert.deepEqual(['cpu.weight', 'cpu.max'].map(read), ['100', 'max 100000'])
  groups.setTerms('a1', { shares: 1, reservation: 0, limit: 0.001 })
  assert.equal(read('cpu.max'), '1000 100000')
})

test('where there is no cgroup v2, or none for the CPU, it is said and nothing is done', () => {
  using none = fakeRoot('')
  const without = new Cgroups(none.path)
  assert.equal(without.why, 'there is no cgroup v2 at /sys/fs/cgroup')
  without.put('a', 1, TERMS, 1)
  without.setTerms('a', TERMS)
  assert.equal(existsSync(join(none.path, 'cellar')), false)
  using other = fakeRoot('io pids')
  assert.equal(new Cgroups(other.path).why, 'cgroup v2 has no CPU controller here')
})

test('groups of machines that are gone are swept with the next', () => {
  using root = fakeRoot('cpu')
  const groups = new Cgroups(root.path)
  assert.equal(groups.why, undefined)
  mkdirSync(join(root.path, 'cellar/machine-gone'))
  mkdirSync(join(root.path, 'cellar/other'))
  groups.put('b', 2, TERMS, 1)
  assert.deepEqual(['machine-gone', 'other', 'machine-b'].map((name) => existsSync(join(root.path, 'cellar', name))),
    [false, true, true])
})
