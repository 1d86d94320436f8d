// tools/tidy_test.ts: each rule of tidy.ts catches a bad sample, and leaves a good one alone.

import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { exportsOf, functions, imports, mask } from './scan.ts'
import { untidy } from './tidy.ts'

/** What tidy says of a tree of these files. */
function tidied(files: Record<string, string>): string[] {
  const root = mkdtempSync(join(tmpdir(), 'tidy-'))
  try {
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true })
      writeFileSync(join(root, path), text)
    }
    return untidy(root)
  } finally {
    rmSync(root, { recursive: true })
  }
}

/** A source file with its header. */
const source = (path: string, code: string): Record<string, string> =>
  ({ [path]: `// ${path.replace(/^src\//, '')}: a sample.\n${code}\n` })

const GOOD = {
  ...source('src/base/good.ts', "export function good(): string { return 'console.log' } // console.log"),
  ...source('src/cli/main.ts', "import { good } from '../base/good.ts'\nconsole.log(good())\nprocess.exit(0)"),
  ...source('src/base/good_test.ts', "import { test } from 'node:test'\ntest('good says so to all', () => {})"),
  'README.md': 'See [the code](src/base/good.ts) and [the web](https://example.org/x).',
}

test('untidy finds nothing in a tidy tree', () => {
  assert.deepEqual(tidied(GOOD), [])
})

const repeat = (line: string, times: number): string => `${line}\n`.repeat(times)

// The rule, the file, its code, and what tidy says of it.
const BAD: readonly [string, string, string, RegExp][] = [
  ['a forbidden name', 'src/base/utils.ts', '', /utils\.ts: name the one thing/],
  ['a name in camelCase', 'src/base/goodCode.ts', '', /"goodCode" isn't snake_case/],
  ['a long file', 'src/base/a.ts', repeat('//', 499), /a\.ts:500: 501 lines/],
  ['a long line', 'src/base/a.ts', `// ${'x'.repeat(118)}`, /a\.ts:2: 121 columns/],
  ['a long function', 'src/base/a.ts',
    `function long(): { a: number } {\n${repeat('  void 0', 69)}}\nlong()`, /a\.ts:2: long has 71 lines/],
  ['a long method', 'src/base/a.ts',
    `void class {\n  async long(a: Map<string, number>): Promise<void> {\n${repeat('    void 0', 69)}  }\n}`,
    /a\.ts:3: long has 71 lines/],
  ['a long arrow function', 'src/base/a.ts',
    `const long = (): void => {\n${repeat('  if (long) { long() }', 69)}}\nlong()`, /a\.ts:2: long has 71 lines/],
  ['an upward import', 'src/base/a.ts', "import '../cli/main.ts'", /may import itself$/],
  ['an upward type', 'src/sys/a.ts', "import type { X } from '../wasi/x.ts'", /may import itself, base$/],
  ['an upward re-export', 'src/base/a.ts', "export * from '../cli/main.ts'", /may import itself$/],
  ['an upward dynamic import', 'src/base/a.ts', "await import('../cli/main.ts')", /itself$/],
  ['an upward import of a test', 'src/base/a_test.ts', "import '../cli/main.ts'", /itself$/],
  ['a folder without a rule', 'src/other/a.ts', '', /src\/other has no line in MAY_IMPORT/],
  ['Node in a pure folder', 'src/wasm/a.ts', "import 'node:fs'", /nothing of Node/],
  ['node:ffi outside sys', 'src/services/a.ts', "import 'node:ffi'", /raw pointers stay/],
  ['node:ffi in a test outside sys', 'src/base/a_test.ts', "import 'node:ffi'", /raw pointers/],
  ['an unknown package', 'src/cell/a.ts', "import 'left-pad'", /left-pad: not in PACKAGES/],
  ['a test in the core', 'src/cell/a.ts', "import './test_support.ts'", /it is for tests/],
  ['src on tools', 'src/cell/a.ts', "import '../../tools/tidy.ts'", /stands on its own/],
  ['console.log in the core', 'src/cell/a.ts', 'console.log(1)', /a\.ts:2: "console.log"/],
  ['process.exit in the core', 'src/cell/a.ts', 'process.exit(1)', /throw a CellarError/],
  ['as any', 'tools/a.ts', 'void (1 as any)', /"as any": write the type/],
  ['@ts-ignore', 'src/base/a.ts', '// @ts-ignore', /mend the type/],
  ['a lonely test', 'src/base/a_test.ts', "test.only('it is all alone', f)", /run the file alone/],
  ['work left over', 'src/base/a.ts', '// TODO: all of it', /"TODO": do it/],
  ['an enum', 'src/base/a.ts', 'const enum A { B }', /an `as const` object/],
  ['a namespace', 'src/base/a.ts', 'namespace A {}', /a file is a namespace/],
  ['a parameter property', 'src/base/a.ts',
    'void class { constructor(private readonly a: number) {} }', /declare the field/],
  ['a test without a sentence', 'src/base/a_test.ts', "test('poll works', f)", /write a sentence/],
  ['a test that should', 'src/base/a_test.ts', "test('should be so good', f)", /write a sentence/],
  ['a raw pointer', 'src/sys/a.ts', 'void getRawPointer(x)', /a raw pointer without/],
  ['a dead export', 'src/base/a.ts', 'export const unused = 1', /unused is exported and imported/],
  ['a dead type', 'src/base/a.ts', 'export type Unused = 1', /Unused is exported and imported/],
]

for (const [rule, path, code, says] of BAD) {
  test(`untidy catches ${rule} and says what to do`, () => {
    const found = tidied({ ...GOOD, ...source(path, code) })
    assert.ok(found.some((line) => line.startsWith(path) && says.test(line)), `found only: ${found.join('\n')}`)
  })
}

test('untidy catches a file without a header', () => {
  assert.match(tidied({ 'src/base/a.ts': '// a.ts: a sample.\n' })[0]!, /begin with "\/\/ base\/a\.ts: …"/)
})

test('untidy catches a link in the documents that leads nowhere', () => {
  const found = tidied({ 'README.md': '\nSee [it](docs/none.md#part).' })
  assert.match(found[0]!, /README\.md:2: the link to docs\/none\.md/)
})

test('untidy counts an export as used through a namespace or a dynamic import', () => {
  const dead = (code: string): string[] => tidied({
    ...source('src/base/a.ts', 'export const one = 1\nexport const two = 2'),
    ...source('src/base/b_test.ts', code),
  }).filter((line) => line.includes('imported by nobody'))
  assert.equal(dead("import * as a from './a.ts'\nvoid a.one").length, 1)
  assert.equal(dead("import * as a from './a.ts'\nvoid { ...a }").length, 0)
  assert.equal(dead("const { two } = await import('./a.ts')\nvoid two").length, 1)
  assert.equal(dead("import { one as three, two } from './a.ts'\nvoid [three, two]").length, 0)
})

test('untidy accepts a raw pointer that says why it is good', () => {
  const code = '// SAFETY: the buffer outlives the call.\nvoid getRawPointer(x)'
  assert.deepEqual(tidied(source('src/sys/a.ts', code)), [])
})

test('untidy lets tests share a file that takes any package', () => {
  const shared = { ...source('src/cell/test_support.ts', "import 'wabt'"),
    ...source('src/cell/a_test.ts', "import './test_support.ts'") }
  assert.deepEqual(tidied(shared), [])
})

const MASKED: readonly [string, string][] = [
  ["a('b{c') // d", "a('   ')     "],
  ['a("\\"{") /* { */ + b', 'a("   ")         + b'],
  ['`a${b + `c{${d}`}e}` + f', '` ${b + `  ${d}`}  ` + f'],
  ['a = /[/{]"/g.test(b) / c', 'a = /     /g.test(b) / c'],
  ['return /`/.test(a)', 'return / /.test(a)'],
  ['a / b / c // d', 'a / b / c     '],
]

for (const [text, masked] of MASKED) {
  test(`mask blanks out what isn't code in ${text}`, () => assert.equal(mask(text), masked))
}

/** The names of the functions in `code`. */
const names = (code: string): string[] => functions(mask(code)).map(({ name }) => name)

test('functions finds bodies and no other braces', () => {
  assert.deepEqual(names('if (a) { b() } else { for (const c of d) { while (e) { f() } } }'), [])
  assert.deepEqual(names('function a({ b }: C): Promise<{ d: E }> { switch (b) { } }'), ['a'])
  assert.deepEqual(names('class A { get b(): C { return 1 }\n #d(): void { try { } catch (e) { } } }'), ['b', '#d'])
  assert.deepEqual(names('const a = { b: 1 }\ntype C = { d: number }\ninterface E { f(): void }'), [])
})

test('imports finds each form with the names that it takes', () => {
  const code = "import a, { b as c, type d } from './1'\nimport type { e } from './2'\nexport * from './3'\n" +
    "import './4'\nconst f = await import('./5')\nexport const from = 'nowhere'"
  const found = imports(code, mask(code)).map(({ from, names, typeOnly, line }) => [from, names, typeOnly, line])
  assert.deepEqual(found, [
    ['./1', ['b', 'd', 'default'], false, 1], ['./2', ['e'], true, 2], ['./3', '*', false, 3],
    ['./4', '*', false, 4], ['./5', '*', false, 5],
  ])
})

test('exportsOf finds declarations and not the words in a string', () => {
  const code = "export async function a() {}\nexport type B = 1\nconst c = `\nexport const d = 1`\nexport class E {}"
  const found = exportsOf(mask(code)).map(({ name, isType }) => [name, isType])
  assert.deepEqual(found, [['a', false], ['B', true], ['E', false]])
})
