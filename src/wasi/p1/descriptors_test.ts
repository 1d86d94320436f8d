// wasi/p1/descriptors_test.ts: numbers of descriptors: lowest first, each closed once.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { EBADF, EMFILE, ENOTCAPABLE } from '../../base/errno.ts'
import { DESCRIPTORS_MAX } from '../../base/limits.ts'
import { FILETYPE_UNKNOWN, type GrantKind } from '../../services/descriptor.ts'
import { Descriptors, lacks, type Entry } from './descriptors.ts'

type Counted = Entry & { closed: number }

function entry(rightsBase = 0): Counted {
  const made: Counted = {
    closed: 0, rightsBase, rightsInheriting: 0, flags: 0,
    descriptor: { filetype: FILETYPE_UNKNOWN, close: () => { made.closed++ } },
  }
  return made
}

test('numbers are given lowest first, and given again after they were closed', () => {
  const descriptors = new Descriptors()
  const entries = Array.from({ length: 5 }, () => entry())
  assert.deepEqual(entries.map((one) => descriptors.add(one)), [0, 1, 2, 3, 4])
  assert.equal(descriptors.get(3), entries[3])
  for (const fd of [3, 1]) assert.equal(descriptors.close(fd), 0)
  assert.deepEqual(entries.map(({ closed }) => closed), [0, 1, 0, 1, 0])
  assert.deepEqual([1, 2, 3].map(() => descriptors.add(entry())), [1, 3, 5])
})

test('a number that isn\'t open is EBADF, however it is written', () => {
  const descriptors = new Descriptors()
  descriptors.add(entry())
  for (const fd of [1, 100, -1, -(2 ** 31), DESCRIPTORS_MAX]) {
    assert.equal(descriptors.get(fd), undefined)
    assert.equal(descriptors.close(fd), -EBADF)
    assert.equal(descriptors.renumber(0, fd), -EBADF)
    assert.equal(descriptors.renumber(fd, 0), -EBADF)
  }
  assert.notEqual(descriptors.get(0), undefined)
})

test('renumber closes what was there, and frees the number that it moves', () => {
  const descriptors = new Descriptors()
  const [first, second, third] = [entry(), entry(), entry()]
  for (const one of [first, second, third]) descriptors.add(one)
  assert.equal(descriptors.renumber(0, 2), 0)
  assert.deepEqual([first.closed, second.closed, third.closed], [0, 0, 1])
  assert.equal(descriptors.get(2), first)
  assert.equal(descriptors.get(0), undefined)
  assert.equal(descriptors.add(entry()), 0)
  assert.equal(descriptors.renumber(1, 1), 0)
  assert.equal(second.closed, 0, 'onto itself does nothing')
})

test('beyond DESCRIPTORS_MAX it is EMFILE, and what was to be added is closed', () => {
  const descriptors = new Descriptors()
  const one = entry()
  for (let fd = 0; fd < DESCRIPTORS_MAX; fd++) assert.equal(descriptors.add(one), fd)
  const late = entry()
  assert.equal(descriptors.add(late), -EMFILE)
  assert.equal(late.closed, 1)
  descriptors.close(40_000)
  assert.equal(descriptors.add(entry()), 40_000)
  assert.equal(descriptors.add(entry()), -EMFILE)
})

test('closeAll closes everything that is open, once', () => {
  const descriptors = new Descriptors()
  const entries = [entry(), entry(), entry()]
  for (const one of entries) descriptors.add(one)
  descriptors.close(1)
  descriptors.closeAll()
  descriptors.closeAll()
  assert.deepEqual(entries.map(({ closed }) => closed), [1, 1, 1])
  assert.equal(descriptors.get(0), undefined)
})

test('any run of calls gives the numbers that POSIX would', () => {
  const step = fc.oneof(fc.record({ call: fc.constant('add' as const), a: fc.constant(0), b: fc.constant(0) }),
    fc.record({ call: fc.constantFrom('close' as const, 'renumber' as const), a: fc.nat(8), b: fc.nat(8) }))
  fc.assert(fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
    const descriptors = new Descriptors()
    const model = new Map<number, Counted>()
    for (const { call, a, b } of steps) {
      if (call === 'add') {
        const added = entry()
        let lowest = 0
        while (model.has(lowest)) lowest++
        assert.equal(descriptors.add(added), lowest)
        model.set(lowest, added)
      } else if (call === 'close') {
        assert.equal(descriptors.close(a), model.delete(a) ? 0 : -EBADF)
      } else {
        const [from, to] = [model.get(a), model.get(b)]
        assert.equal(descriptors.renumber(a, b), from === undefined || to === undefined ? -EBADF : 0)
        if (from === undefined || to === undefined || a === b) continue
        assert.deepEqual([from.closed, to.closed], [0, 1])
        model.set(b, from)
        model.delete(a)
      }
      for (let fd = 0; fd < 10; fd++) assert.equal(descriptors.get(fd), model.get(fd))
    }
  }))
})

test('lacks tells EBADF for no descriptor and ENOTCAPABLE unless all rights are there', () => {
  assert.equal(lacks(undefined, 0), EBADF)
  assert.equal(lacks(entry(0b110), 0b110), 0)
  assert.equal(lacks(entry(0b110), 0), 0)
  assert.equal(lacks(entry(0b110), 0b111), ENOTCAPABLE)
  assert.equal(lacks(entry(0), 1), ENOTCAPABLE)
})

test('put gives the number that is asked for, and the lowest free one comes next all the same', () => {
  const descriptors = new Descriptors()
  const [high, low] = [entry(), entry()]
  descriptors.put(DESCRIPTORS_MAX - 1, high)
  descriptors.put(1, low)
  assert.deepEqual([...descriptors.all()], [[1, low], [DESCRIPTORS_MAX - 1, high]])
  assert.deepEqual([descriptors.add(entry()), descriptors.add(entry())], [0, 2])
  for (const fd of [1, DESCRIPTORS_MAX, -1]) assert.throws(() => descriptors.put(fd, entry()), /Bug in Cellar/)
  descriptors.closeAll()
  assert.deepEqual([high.closed, low.closed], [1, 1])
})

test('what is granted is numbered by kind in the order in which it is given, also after others were closed', () => {
  const descriptors = new Descriptors()
  const told: [string, number][] = []
  const granted = (grant: GrantKind): Entry => {
    const close = (): void => {}
    const descriptor = { filetype: FILETYPE_UNKNOWN, grant, granted: (n: number) => { told.push([grant, n]) }, close }
    return { descriptor, rightsBase: 0, rightsInheriting: 0, flags: 0 }
  }
  const entries = [granted('console'), granted('volume'), granted('console'), granted('listener'), granted('volume')]
  for (const one of entries) descriptors.close(descriptors.add(one))
  assert.deepEqual(entries.map(({ grant }) => grant), [0, 0, 1, 0, 1])
  assert.deepEqual(told, [['console', 0], ['volume', 0], ['console', 1], ['listener', 0], ['volume', 1]])
})

test('what is ready only after the cell has gone is closed', () => {
  const descriptors = new Descriptors()
  descriptors.add(entry())
  descriptors.closeAll()
  const late = entry()
  assert.equal(descriptors.add(late), -EMFILE)
  assert.equal(late.closed, 1)
})

test('of a guest that goes on elsewhere connections are cut, and everything is closed', () => {
  const heard: string[] = []
  const descriptors = new Descriptors()
  for (const kind of ['connection', 'file']) {
    const note = (what: string) => (): void => { heard.push(`${kind} ${what}`) }
    const leave = kind === 'connection' ? { abort: note('abort'), leave: note('leave') } : {}
    descriptors.add({ descriptor: { filetype: FILETYPE_UNKNOWN, close: note('close'), ...leave }, rightsBase: 0,
      rightsInheriting: 0, flags: 0 })
  }
  descriptors.leaveAll()
  assert.deepEqual(heard, ['connection leave', 'connection close', 'file close'])
  assert.equal(descriptors.get(0), undefined)
})
