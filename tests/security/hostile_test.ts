// tests/security/hostile_test.ts: guests/hostile.c against the hypervisor as operators start it.
//
// The guest judges the answers it gets; here the host is judged: nothing outside of the granted folder has changed.
// A hypervisor that is broken on purpose must not be run as root, not even to see this test fail: as root, the guest is
// run as nobody, too, and first.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { lstatSync, readFileSync, readlinkSync } from 'node:fs'
import { test } from 'node:test'
import { cellar, Folder, guest, isRoot, NOBODY, type Options } from '../support.ts'
import { runnable } from '../functional/refusal.ts'

const asNobody: Options = { uid: NOBODY, env: { HOME: '/nonexistent', NODE_COMPILE_CACHE: undefined } }
const users: { who: string; options: Options; skip: string | false }[] = [
  ...isRoot ? [{ who: 'nobody', options: asNobody, skip: await runnable(asNobody) }] : [],
  { who: isRoot ? 'root' : 'this user', options: {}, skip: false },
]

for (const { who, options, skip } of users) {
  for (const [what, flags, guestFlags] of [
    ['a folder', [], ''], ['a folder, read-only', [], ':ro'],
    ['a folder and a socket', ['--listen', 'tcp:127.0.0.1:0'], ''],
    ['a folder, under supervision', ['--timeout', '50s', '--memory', '64MiB'], ''],
  ] as const) {
    test(`a hostile guest run as ${who} with ${what} gets nowhere`, { skip }, async () => {
      using folder = new Folder()
      folder.write('secret', 'the decoy')
      folder.write('beside/file', 'a neighbour')
      folder.write('granted/file', 'its own')
      if (options.uid !== undefined) folder.giveTo(options.uid)
      const before = fingerprint(folder)
      const { status, stdout, stderr } = await cellar(
        ['run', ...flags, '--dir', `${folder.at('granted')}:/granted${guestFlags}`, guest('hostile')], options)
      assert.match(stdout.toString(), /^ok \d+ checks\n$/, stderr)
      assert.equal(status, 0)
      assert.ok(Number(stdout.toString().split(' ')[1]) >= (guestFlags === ':ro' ? 10 : 1000), stdout.toString())
      assert.deepEqual(fingerprint(folder), before)
    })
  }
}

/** Every file, folder and link: its name, mode, owner, times of change, and content. The granted folder's own times may
 * change: the guest writes in it. */
function fingerprint(folder: Folder): Record<string, string> {
  return Object.fromEntries(['.', ...folder.list()].map((name) => {
    const path = folder.at(name)
    const stat = lstatSync(path)
    const content = stat.isFile() ? createHash('sha256').update(readFileSync(path)).digest('hex')
      : stat.isSymbolicLink() ? readlinkSync(path) : ''
    const times = name === 'granted' ? '' : `${stat.mtimeMs} ${stat.ctimeMs}`
    return [name, `${stat.mode.toString(8)} ${stat.uid}:${stat.gid} ${stat.size} ${times} ${content}`]
  }))
}
