// cli/image_test.ts: modules joined into one file behave as they do apart, and step aside when they have changed.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { joinModules } from './image.ts'

const SOURCES = {
  'main.ts': `// A comment with export in it: "import { x } from './nowhere.ts'".
import { readFileSync } from 'node:fs'
import type { Nothing } from './types_only.ts'
import {
  double as twice, LIMIT, type Unused,
} from './numbers.ts'
import * as numbers from './numbers.ts'
const late = await import('./late.ts')
const where = late.where().endsWith('late.ts')
const shown: Nothing = [twice(LIMIT), numbers.double(1), numbers.A + numbers.B, where, typeof readFileSync]
process.stdout.write(JSON.stringify(shown))
`,
  'numbers.ts': `export type Unused = number
export const LIMIT: number = 21
export const { A, B } = { A: 1, B: 2 }
export function double(value: number): number { return value * 2 }
export class Thing { readonly size = LIMIT }
`,
  'late.ts': `import { LIMIT } from './numbers.ts'
export async function unused(): Promise<number> { return LIMIT }
export function where(): string { return import.meta.url }
`,
}
const EXPECTED = '[42,2,3,true,"function"]'

function withSources(body: (folder: string, entry: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-image-'))
  try {
    writeFileSync(join(folder, 'package.json'), '{"type":"module"}')
    for (const [name, source] of Object.entries(SOURCES)) writeFileSync(join(folder, name), source)
    body(folder, join(folder, 'main.ts'))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function writeImageOf(folder: string, entry: string): string {
  const { often, seldom } = joinModules(entry, join(folder, 'seldom.cjs'))
  writeFileSync(join(folder, 'seldom.cjs'), seldom)
  writeFileSync(join(folder, 'image.cjs'), often)
  return join(folder, 'image.cjs')
}

const run = (path: string): string => execFileSync(process.execPath, [path], { encoding: 'utf8' })

test('joined modules do what they do apart', () => {
  withSources((folder, entry) => {
    assert.equal(run(join(folder, 'main.ts')), EXPECTED)
    assert.equal(run(writeImageOf(folder, entry)), EXPECTED)
  })
})

test('an image whose sources have changed runs the sources', () => {
  withSources((folder, entry) => {
    const image = writeImageOf(folder, entry)
    writeFileSync(join(folder, 'numbers.ts'), SOURCES['numbers.ts'].replace('21', '50'))
    utimesSync(join(folder, 'numbers.ts'), 1, 1)
    assert.equal(run(image), EXPECTED.replace('42', '100'))
  })
})

test('an image whose second file is out of date or gone runs the sources', () => {
  withSources((folder, entry) => {
    const image = writeImageOf(folder, entry)
    writeFileSync(join(folder, 'late.ts'), "export function where(): string { return 'none' }\n")
    utimesSync(join(folder, 'late.ts'), 1, 1)
    assert.equal(run(image), EXPECTED.replace('true', 'false'))
    rmSync(join(folder, 'seldom.cjs'))
    assert.equal(run(image), EXPECTED.replace('true', 'false'))
    writeImageOf(folder, entry)
    rmSync(join(folder, 'seldom.cjs'))
    assert.equal(run(image), EXPECTED.replace('true', 'false'))
  })
})

test('an image moves with its sources', () => {
  withSources((folder, entry) => {
    writeImageOf(folder, entry)
    const moved = `${folder}-moved`
    renameSync(folder, moved)
    try {
      assert.equal(run(join(moved, 'image.cjs')), EXPECTED)
      utimesSync(join(moved, 'numbers.ts'), 1, 1)
      assert.equal(run(join(moved, 'image.cjs')), EXPECTED)
    } finally {
      renameSync(moved, folder)
    }
  })
})

test('the sources of Cellar can be joined', () => {
  const { often, seldom } = joinModules(join(import.meta.dirname, 'main.ts'), join(tmpdir(), 'seldom.cjs'))
  // A foreground run has its modules compiled with the file; what only other commands need is compiled by them.
  assert.match(often, /= once\(\(\(\) => \{\/\/ cli\/run\.ts: /)
  assert.match(often, /= once\(\(\(\) => \{\/\/ wasi\/p1\/fd\.ts: /)
  for (const name of ['cli/dispatch', 'cli/commands', 'cell/stack', 'services/net/connection', 'host/spec']) {
    assert.ok(!often.includes(`// ${name}.ts: `), name)
    assert.ok(seldom.includes(`= once(() => {// ${name}.ts: `), name)
  }
  // A host runs from its sources.
  assert.match(seldom, /import\(urlOf\("[^"]*cli\/host\.ts"\)\)/)
  for (const file of [often, seldom]) {
    assert.doesNotMatch(file, /\/\/ (?:api|cli)\/(?:server|host)\.ts: /)
    assert.doesNotMatch(file, /[^\0-\x7f]/)
    assert.doesNotMatch(file, /^(?:import|export) /m)
  }
})

test('a form that the image does not know is refused by name', () => {
  withSources((folder, entry) => {
    writeFileSync(join(folder, 'late.ts'), 'export default 1\n')
    assert.throws(() => joinModules(entry, join(folder, 'seldom.cjs')), /late\.ts: "export default 1"/)
  })
})

// Two declared at once: the second would be undefined in the joined file, and was, in the scheduler.
test('a name that an imported module does not give is refused when modules are joined', () => {
  withSources((folder, entry) => {
    writeFileSync(join(folder, 'numbers.ts'), `export const first = 1, ${'half'} = 2\n`)
    writeFileSync(entry, `import { half } from './numbers.ts'\nprocess.stdout.write(String(half))\n`)
    assert.throws(() => joinModules(entry, join(folder, 'seldom.cjs')),
      /imports half, which .*numbers\.ts doesn't give/)
  })
})
