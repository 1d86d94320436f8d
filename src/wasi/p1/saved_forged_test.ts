// wasi/p1/saved_forged_test.ts: sets of descriptors that no guest had: what somebody writes who forges a snapshot.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import { EAGAIN } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import { DESCRIPTORS_MAX } from '../../base/limits.ts'
import type { SavedDescriptor } from '../../services/saved.ts'
import * as abi from './abi.ts'
import type { Descriptors } from './descriptors.ts'
import { restoreDescriptors } from './saved_descriptors.ts'
import { A, B, Caller, Host, inodes, kindOf, SECRET, skip, written } from './test_support.ts'

const ALL = abi.RIGHTS_DIRECTORY | abi.RIGHTS_FILE
const open = (): number => readdirSync('/proc/self/fd').length

/** Mostly what makes sense: a set of which each part is forged gets nowhere. */
const mostly = <T, U>(good: fc.Arbitrary<T>, bad: fc.Arbitrary<U>): fc.Arbitrary<T | U> =>
  fc.oneof({ weight: 30, arbitrary: good }, { weight: 1, arbitrary: bad })
const path = fc.oneof(
  { weight: 12, arbitrary: fc.constantFrom('sub/file', 'sub', 'link/file', 'up/secret', 'absolute/secret') },
  fc.constantFrom('sub/..', '..', '.', '/', '/etc/passwd', '../outside/secret', 'up',
    'link/../../outside/secret', 'sub/../../outside/secret', 'absolute', 'file/', 'sub/', '', 'a\0b',
    'x'.repeat(5000), 'sub//file', '\ud800', 'fifo'),
  fc.array(fc.constantFrom('..', '.', '', 'sub', 'up', 'link', 'absolute', 'secret', 'file', 'outside'))
    .map((names) => names.join('/')))
const noNumber = fc.constantFrom(-1, 3, 0.5, NaN, Infinity, 2 ** 53, DESCRIPTORS_MAX, -0, 1e300, '0', null, {})
const number = mostly(fc.integer({ min: 0, max: 1 }), noNumber)
const bool = mostly(fc.boolean(), fc.constantFrom(1, null, 'x'))
const forgedIs = fc.oneof(
  fc.record({ kind: fc.constant('file'), volume: number, path, offset: number, read: bool, write: bool, append: bool }),
  fc.record({ kind: fc.constant('directory'), volume: number, path }),
  fc.record({ kind: fc.constant('console'), stream: number }),
  fc.record({ kind: fc.constant('listener'), port: number }),
  fc.record({ kind: fc.constant('lost'), filetype: number, errno: number,
    why: mostly(fc.constantFrom('x', 'y'.repeat(999)), fc.constant(1)) }))
const noIs = fc.oneof(
  fc.record({ kind: fc.constantFrom('events', 'constructor', 'volume') }, { requiredKeys: [] }),
  fc.constantFrom(null, undefined, 'file', 7))
const forged = fc.record({
  fd: mostly(fc.integer({ min: 0, max: 40 }), noNumber),
  rightsBase: mostly(fc.constantFrom(abi.RIGHTS_ALL, ALL, abi.RIGHTS_FILE, abi.RIGHTS_DIRECTORY), noNumber),
  rightsInheriting: fc.constantFrom(abi.RIGHTS_ALL, ALL, 0),
  flags: mostly(fc.integer({ min: 0, max: abi.FDFLAGS_ALL }), noNumber),
  preopen: mostly(fc.constant(undefined), fc.constantFrom('/a', '/b', '/', 1)),
  is: mostly(forgedIs, noIs),
}, { requiredKeys: ['fd', 'rightsBase', 'rightsInheriting', 'flags', 'is'] })

test('a forged set is refused, or reaches what the guest could have opened, and nothing stays open', { skip },
  async () => {
    using host = new Host()
    execFileSync('mkfifo', [host.path('a/fifo')])
    const outside = inodes(host.path('outside'))
    const mine = () => new Set([...inodes(host.path('a')), ...inodes(host.path('b'))]
      .filter((ino) => !outside.has(ino)))
    let [refused, taken, reached] = [0, 0, 0]
    const sets = mostly(fc.array(forged, { minLength: 1, maxLength: 3 }), fc.constantFrom(null, {}, 'x'))
    await fc.assert(fc.asyncProperty(sets, async (saved) => {
      const before = open()
      const granted = host.granted()
      let table: Descriptors
      try {
        table = await restoreDescriptors(saved as never, granted)
      } catch (error) {
        assert.ok(error instanceof CellarError && error.code === 'SNAPSHOT_FOREIGN', String(error))
        assert.deepEqual([...granted.all()], [])
        assert.equal(open(), before, 'all is closed')
        refused++
        return
      }
      taken++
      const guest = new Caller(table)
      for (const [one, { rightsBase, rightsInheriting, descriptor, preopen }] of table.all()) {
        assert.equal(preopen === undefined || ['/a', '/b'].includes(preopen.toString()), true)
        if (descriptor.lost !== undefined) continue
        const kind = kindOf(guest, one)
        const most = kind.kind === 'file' ? abi.RIGHTS_FILE : kind.kind === 'directory' ? abi.RIGHTS_DIRECTORY
          : abi.RIGHTS_STREAM | abi.RIGHTS_LISTENER
        assert.equal(rightsBase & ~most, 0)
        assert.equal(rightsInheriting & ~(ALL | abi.RIGHTS_SOCKET), 0)
        if (kind.kind !== 'file' && kind.kind !== 'directory') continue
        reached++
        assert.ok(mine().has((descriptor.stat!() as { ino: bigint }).ino), JSON.stringify(kind))
        assert.notEqual(await guest.read(one), SECRET)
        for (const way of ['../outside/secret', 'up/secret', '..', '../../outside/secret', 'absolute/secret']) {
          assert.ok(guest.open(one, way, { rights: abi.RIGHTS_FD_READ }) < 0, way)
        }
      }
      table.closeAll()
      assert.equal(open(), before, 'all is closed')
    }), { numRuns: 3000 })
    assert.ok(refused > 500 && taken > 500 && reached > 100, `${refused} refused, ${taken} taken, ${reached} reached`)
    assert.equal(readFileSync(host.path('outside/secret'), 'utf8'), SECRET)
  })

const FORGED: readonly [what: string, over: Partial<SavedDescriptor> | { is: unknown }, why: RegExp][] = [
  ['a number beyond all', { fd: DESCRIPTORS_MAX }, /descriptor "65536"/],
  ['a number twice', { fd: 0 }, /descriptor 0 twice/],
  ['rights that there are not', { rightsBase: abi.RIGHTS_ALL + 1 }, /unknown rights/],
  ['a stream twice', { is: { kind: 'console', stream: 0 } }, /stream 0 twice/],
  ['a folder that isn\'t granted', { is: { kind: 'directory', volume: 2, path: '' } }, /folder "2", and 2 are granted/],
  ['a granted folder twice', { preopen: '/a', is: { kind: 'directory', volume: 0, path: '' } }, /folder 0 twice/],
  ['a granted folder that is another', { preopen: '/b', is: { kind: 'directory', volume: 0, path: 'sub' } },
    /and something else/],
  ['a path that leads up', { is: { kind: 'directory', volume: 0, path: 'sub/../..' } }, /no path beneath/],
  ['a file above', { is: { kind: 'file', volume: 0, path: '../outside/secret', offset: 0, read: true, write: false,
    append: false } }, /no path beneath/],
  ['an absolute path', { is: { kind: 'directory', volume: 0, path: '/etc' } }, /no path beneath/],
  ['a lost one that says "later"', { is: { kind: 'lost', filetype: 4, errno: EAGAIN, why: '' } }, /lost in no way/],
]

for (const [what, over, why] of FORGED) {
  test(`a set with ${what} is refused, with the reason`, { skip }, async () => {
    using host = new Host()
    const one = { fd: 9, rightsBase: 0, rightsInheriting: 0, flags: 0, is: { kind: 'events' }, ...over }
    await assert.rejects(restoreDescriptors([...written(host.guest()), one as SavedDescriptor], host.granted()),
      (error: CellarError) => error.code === 'SNAPSHOT_FOREIGN' && why.test(error.message))
  })
}

test('folders that are granted in another order are refused', { skip }, async () => {
  using host = new Host()
  const saved = written(host.guest())
  const [a, b] = [saved[A]!, saved[B]!]
  const swapped = saved.map((one) => one.fd === A ? { ...one, preopen: b.preopen! }
    : one.fd === B ? { ...one, preopen: a.preopen! } : one)
  await assert.rejects(restoreDescriptors(swapped, host.granted()),
    { code: 'SNAPSHOT_FOREIGN', message: /granted folder 0 is "\/b", and "\/a" is granted/ })
})
