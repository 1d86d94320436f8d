// tools/reference_test.ts: the reference pages say what the tables say.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ERRORS } from '../src/base/errors.ts'
import * as limits from '../src/base/limits.ts'
import { COMMANDS } from '../src/cli/commands.ts'
import {
  CELL_MANIFEST, HEALTH, MACHINE, MANIFEST, MANIFEST_CELL, POOL_SPEC, VOLUME_SPEC,
} from '../src/host/spec.ts'
import { VIRTIO_SUPPORT } from '../src/virtio/support.ts'
import { HYPERCALLS } from '../src/wasi/cellar/table.ts'
import { pages } from './reference.ts'

const {
  'hypercalls.md': hypercalls, 'errors.md': errors, 'limits.md': limitsPage, 'cli.md': cli, 'manifest.md': manifest,
  'virtio.md': virtio, 'snapshots.md': snapshots,
} = pages()

test('pages has a row for every hypercall, error, limit, and flag of a command', () => {
  const hasRow = (text: string, name: string): void => assert.match(text, new RegExp(`^\\| \`${name}[ \`].*\\|$`, 'm'))
  for (const name of Object.keys(HYPERCALLS)) hasRow(hypercalls!, name)
  for (const name of Object.keys(ERRORS)) hasRow(errors!, name)
  for (const name of Object.keys(limits)) hasRow(limitsPage!, name)
  const sections = new Map(cli!.split('\n## ').map((text) => [text.split('\n', 1)[0]!, text]))
  for (const { name, flags, hidden } of COMMANDS) {
    assert.equal(sections.has(`cellar ${name}`), hidden !== true)
    for (const flag of Object.keys(flags)) hasRow(sections.get(`cellar ${name}`)!, `--${flag}`)
  }
})

test('pages has a row for every key of cells, stacks, pools and machines, each with its type', () => {
  const [, cell, stack, ofStack, pool, health, volume, machine] = manifest!.split('\n## ')
  const hasKeys = (text: string, schema: { readonly shape: object }): void => {
    for (const name of Object.keys(schema.shape)) {
      assert.match(text, new RegExp(`^\\| \`${name}\` \\| [a-z]+( or [a-z]+)* \\| (yes|no) \\| .+ \\|$`, 'm'))
    }
  }
  hasKeys(cell!, CELL_MANIFEST)
  hasKeys(stack!, MANIFEST)
  hasKeys(cell! + ofStack!, MANIFEST_CELL)
  hasKeys(pool!, POOL_SPEC)
  hasKeys(health!, HEALTH)
  hasKeys(volume!, VOLUME_SPEC)
  hasKeys(machine!, MACHINE)
  assert.doesNotMatch(ofStack!, /`args`/)
})

test('pages has a row for everything of Virtio, with a reason for what is not there or not whole', () => {
  const rows = virtio!.split('\n').filter((line) => /^\| \d/.test(line)).map((line) => line.split(' | '))
  assert.equal(rows.length, VIRTIO_SUPPORT.length)
  for (const [section, name, level, note] of rows) {
    if (level !== 'full') assert.match(note!, /\w/, `${section} ${name}`)
  }
})

test('pages has the fields of both kinds of snapshots', () => {
  const [, , cell, machine] = snapshots!.split('\n## ')
  for (const name of ['meta.kind', 'chunks', 'frames', 'descriptors.is']) assert.ok(cell!.includes(`\`${name}`), name)
  for (const name of ['meta.kind', 'chunks', 'machine.engine', 'machine.sections.bytes']) {
    assert.ok(machine!.includes(`\`${name}\``), name)
  }
})

test('pages shows an example of a cell and one of a stack', () => {
  const examples = [...manifest!.matchAll(/```yaml\n([^]*?)```/g)].map(([, text]) => text!)
  assert.equal(examples.length, 2)
  assert.match(examples[0]!, /^program: /)
  assert.match(examples[1]!, /^cells:/m)
})

test('pages shows the values of a message as names in brackets', () => {
  assert.match(errors!, /Cannot find program "&lt;path&gt;"/)
  assert.doesNotMatch(errors!, /undefined/)
})

test('pages gives each row as many cells as its head', () => {
  for (const text of [hypercalls!, errors!, limitsPage!, cli!, manifest!, virtio!, snapshots!]) {
    let width = 0
    for (const line of text.split('\n')) {
      const cells = line.replaceAll('\\|', '').split('|').length
      if (cells > 1 && width > 0) assert.equal(cells, width, line)
      width = cells > 1 ? cells : 0
    }
  }
})
