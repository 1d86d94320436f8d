// tools/reference_test.ts: the reference pages say what the tables say.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ERRORS } from '../src/base/errors.ts'
import * as limits from '../src/base/limits.ts'
import { RUN_FLAGS } from '../src/cli/flags.ts'
import { CELL_MANIFEST, POOL_MANIFEST, STACK_CELL_MANIFEST, STACK_MANIFEST } from '../src/cli/manifest.ts'
import { wasi_snapshot_preview1 } from '../src/wasi/p1/table.ts'
import { pages } from './reference.ts'

const {
  'hypercalls.md': hypercalls, 'errors.md': errors, 'limits.md': limitsPage, 'cli.md': cli, 'manifest.md': manifest,
} = pages()

test('pages has a row for every hypercall, error, limit and flag', () => {
  const hasRow = (text: string, name: string): void => assert.match(text, new RegExp(`^\\| \`${name}[ \`].*\\|$`, 'm'))
  for (const name of Object.keys(wasi_snapshot_preview1)) hasRow(hypercalls!, name)
  for (const name of Object.keys(ERRORS)) hasRow(errors!, name)
  for (const name of Object.keys(limits)) hasRow(limitsPage!, name)
  for (const name of Object.keys(RUN_FLAGS)) hasRow(cli!, `--${name}`)
})

test('pages has a row for every key of a cell, a stack, a cell of a stack and a pool, each with its type', () => {
  const [, cell, stack, ofStack, pool] = manifest!.split('\n## ')
  const hasKeys = (text: string, schema: { readonly shape: object }): void => {
    for (const name of Object.keys(schema.shape)) {
      assert.match(text, new RegExp(`^\\| \`${name}\` \\| [a-z]+( or [a-z]+)* \\| (yes|no) \\| .+ \\|$`, 'm'))
    }
  }
  hasKeys(cell!, CELL_MANIFEST)
  hasKeys(stack!, STACK_MANIFEST)
  hasKeys(cell! + ofStack!, STACK_CELL_MANIFEST)
  hasKeys(pool!, POOL_MANIFEST)
  assert.doesNotMatch(ofStack!, /`program`/)
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
  for (const text of [hypercalls!, errors!, limitsPage!, cli!, manifest!]) {
    let width = 0
    for (const line of text.split('\n')) {
      const cells = line.replaceAll('\\|', '').split('|').length
      if (cells > 1 && width > 0) assert.equal(cells, width, line)
      width = cells > 1 ? cells : 0
    }
  }
})
