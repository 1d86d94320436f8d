// sched/eligible_tree_test.ts: the tree against a list that is searched from end to end.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { EligibleTree, Entry } from './eligible_tree.ts'

type Thing = { name: number }

/** The first inserted of the earliest deadlines among those that have started. */
function firstOf(list: readonly Entry<Thing>[], time: number): Entry<Thing> | undefined {
  return list.filter(({ start }) => start <= time)
    .reduce<Entry<Thing> | undefined>((best, e) => best === undefined || e.deadline < best.deadline ? e : best,
      undefined)
}

const key = fc.integer({ min: 0, max: 20 })
const step = fc.oneof(
  fc.record({ kind: fc.constant('insert' as const), start: key, deadline: key }),
  fc.record({ kind: fc.constant('remove' as const), start: fc.nat(), deadline: key }),
)

test('EligibleTree finds what a search of the whole list finds', () => {
  fc.assert(fc.property(fc.array(step, { maxLength: 120, size: 'max' }), key, (steps, time) => {
    const tree = new EligibleTree<Thing>()
    const list: Entry<Thing>[] = []
    steps.forEach(({ kind, start, deadline }, name) => {
      if (kind === 'insert') {
        const entry = new Entry<Thing>({ name })
        entry.start = start
        entry.deadline = deadline
        tree.insert(entry)
        list.push(entry)
      } else if (list.length > 0) tree.remove(list.splice(start % list.length, 1)[0]!)
      assert.equal(tree.first(time), firstOf(list, time))
      assert.equal(tree.earliest, list.reduce((least, { start }) => Math.min(least, start), Infinity))
    })
  }), { numRuns: 500 })
})

test('EligibleTree takes an entry that is put back with other keys', () => {
  const tree = new EligibleTree<Thing>()
  const [a, b] = [new Entry<Thing>({ name: 1 }), new Entry<Thing>({ name: 2 })]
  Object.assign(a, { start: 0, deadline: 5 })
  Object.assign(b, { start: 3, deadline: 4 })
  tree.insert(a)
  tree.insert(b)
  assert.equal(tree.first(2), a)
  assert.equal(tree.first(3), b)
  tree.remove(a)
  assert.equal(tree.first(2), undefined)
  a.deadline = 3
  tree.insert(a)
  assert.equal(tree.first(3), a)
})

test('EligibleTree is flat, also with keys that come in order', () => {
  const tree = new EligibleTree<Thing>()
  const entries = Array.from({ length: 100_000 }, (_, name) => new Entry<Thing>({ name }))
  for (const entry of entries) {
    entry.start = entry.owner.name
    entry.deadline = entry.owner.name
    tree.insert(entry)
  }
  const below = new Set(entries.flatMap(({ left, right }) => [left, right]))
  const [root, ...others] = entries.filter((entry) => !below.has(entry))
  assert.equal(others.length, 0)
  const depth = (entry: Entry<Thing> | undefined): number =>
    entry === undefined ? 0 : 1 + Math.max(depth(entry.left), depth(entry.right))
  // 2 ln n is 23 on the average; the longest path of a random tree is about twice that.
  assert.ok(depth(root) < 70, `${depth(root)} deep`)
})

test('EligibleTree refuses to remove what it has not', () => {
  assert.throws(() => new EligibleTree<Thing>().remove(new Entry<Thing>({ name: 1 })), /Bug in Cellar/)
})
