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

const run = (path: string): string => execFileSync(process.execPath, [path], { encoding: 'utf8' })

test('joined modules do what they do apart', () => {
  withSources((folder, entry) => {
    assert.equal(run(join(folder, 'main.ts')), EXPECTED)
    writeFileSync(join(folder, 'image.cjs'), joinModules(entry, folder))
    assert.equal(run(join(folder, 'image.cjs')), EXPECTED)
  })
})

test('an image whose sources have changed runs the sources', () => {
  withSources((folder, entry) => {
    writeFileSync(join(folder, 'image.cjs'), joinModules(entry, folder))
    writeFileSync(join(folder, 'numbers.ts'), SOURCES['numbers.ts'].replace('21', '50'))
    utimesSync(join(folder, 'numbers.ts'), 1, 1)
    assert.equal(run(join(folder, 'image.cjs')), EXPECTED.replace('42', '100'))
  })
})

test('an image moves with its sources', () => {
  withSources((folder, entry) => {
    writeFileSync(join(folder, 'image.cjs'), joinModules(entry, folder))
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
  const image = joinModules(join(import.meta.dirname, 'main.ts'), tmpdir())
  assert.match(image, /cli\/run\.ts/)
  // A foreground run has its modules compiled with the file; what only other commands need is compiled by them.
  assert.match(image, /= once\(\(\(\) => \{\/\/ cli\/run\.ts: /)
  assert.match(image, /= once\(\(\) => \{\/\/ cli\/dispatch\.ts: /)
  assert.match(image, /= once\(\(\) => \{\/\/ cli\/commands\.ts: /)
  // A host runs from its sources.
  assert.match(image, /import\(urlOf\("[^"]*cli\/host\.ts"\)\)/)
  assert.doesNotMatch(image, /\/\/ (?:api|cli)\/(?:server|host)\.ts: /)
  assert.doesNotMatch(image, /[^\0-\x7f]/)
  assert.doesNotMatch(image, /^(?:import|export) /m)
})

test('a form that the image does not know is refused by name', () => {
  withSources((folder, entry) => {
    writeFileSync(join(folder, 'late.ts'), 'export default 1\n')
    assert.throws(() => joinModules(entry, folder), /late\.ts: "export default 1"/)
  })
})
