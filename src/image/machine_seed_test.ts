// image/machine_seed_test.ts: seeds of cloud-init, as mtools, blkid and fsck read them.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite, test } from 'node:test'
import { makeSeed } from './machine_seed.ts'
import { folder } from './test_support.ts'

const PATH = `${process.env['PATH']}:/usr/sbin:/sbin`
function run(tool: string, ...words: string[]): { status: number | null; out: string } {
  const { status, stdout, stderr } = spawnSync(tool, words, { env: { ...process.env, PATH, MTOOLS_SKIP_CHECK: '0' },
    encoding: 'latin1', maxBuffer: 16 * 1024 * 1024 })
  return { status, out: `${stdout ?? ''}${stderr ?? ''}` }
}
const isMissing = (tool: string): false | string => run(tool, '--version').status === null && `${tool} is not here`

const SIZES: readonly number[] = [0, 1, 511, 512, 513, 100_000, 2_200_000, 4 * 1024 * 1024]

suite('machine_seed', () => {
  test('makeSeed() keeps files of all sizes, as mtools reads them', { skip: isMissing('mtype') }, () => {
    using at = folder()
    for (const size of SIZES) {
      const content = Buffer.from(randomBytes(size).toString('latin1').replaceAll(/[^\x20-\x7e]/g, 'x'), 'latin1')
      const [user, meta, network, image] = ['u', 'm', 'n', 'image'].map((name) => join(at.path, name)) as
        [string, string, string, string]
      writeFileSync(user, content)
      writeFileSync(meta, 'instance-id: i-1\nlocal-hostname: box\n')
      writeFileSync(network, 'version: 2\n')
      writeFileSync(image, makeSeed({ userData: user, metaData: meta, networkConfig: network }))
      assert.ok(run('mtype', '-i', image, '::user-data').out === content.toString('latin1'), `${size} bytes`)
      assert.equal(run('mtype', '-i', image, '::meta-data').out, 'instance-id: i-1\nlocal-hostname: box\n')
      assert.equal(run('mtype', '-i', image, '::network-config').out, 'version: 2\n')
    }
  })

  test('a seed has the label and the file system that cloud-init looks for', { skip: isMissing('blkid') }, () => {
    using at = folder()
    const [user, image] = [join(at.path, 'u'), join(at.path, 'image')]
    writeFileSync(user, '#cloud-config\n')
    writeFileSync(image, makeSeed({ userData: user }))
    const { out } = run('blkid', '-p', '-o', 'export', image)
    assert.match(out, /^LABEL=CIDATA$/m)
    assert.match(out, /^TYPE=vfat$/m)
    assert.match(out, /^VERSION=FAT12$/m)
  })

  test('fsck finds nothing wrong with a seed', { skip: isMissing('fsck.fat') }, () => {
    using at = folder()
    for (const size of SIZES) {
      const [user, image] = [join(at.path, 'u'), join(at.path, 'image')]
      writeFileSync(user, Buffer.alloc(size, 'a'))
      writeFileSync(image, makeSeed({ userData: user }))
      const { status, out } = run('fsck.fat', '-n', '-v', image)
      assert.equal(status, 0, `${size} bytes: ${out}`)
      assert.match(out, /2 files|3 files/)
    }
  })

  test('without meta-data the instance is named by its user-data, always alike', () => {
    using at = folder()
    const user = join(at.path, 'u')
    writeFileSync(user, '#cloud-config\n')
    const first = makeSeed({ userData: user })
    assert.match(first.toString('latin1'), /instance-id: cellar-[0-9a-f]{16}\n/)
    assert.ok(makeSeed({ userData: user }).equals(first))
    writeFileSync(user, '#cloud-config\nhostname: x\n')
    assert.ok(!makeSeed({ userData: user }).equals(first))
  })

  test('files that are not there, too large or none are refused by their names', () => {
    using at = folder()
    const user = join(at.path, 'u')
    assert.throws(() => makeSeed({ userData: user }), { code: 'NOT_FOUND' })
    assert.throws(() => makeSeed({ userData: at.path }), { code: 'MACHINE_SEED_INVALID' })
    writeFileSync(user, Buffer.alloc(4 * 1024 * 1024 + 1))
    assert.throws(() => makeSeed({ userData: user }), { code: 'MACHINE_SEED_INVALID', message: /is the most/ })
  })
})
