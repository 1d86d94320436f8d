// tests/functional/bad_manifest_test.ts: what an operator may get wrong in a manifest, and where he is told it is.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { cellar, Folder, guest } from '../support.ts'
import { refuses, type Refusal } from './refusal.ts'

const HELLO = readFileSync(guest('hello'))
const CASES: (Partial<Refusal> & { what: string; text: string; names: RegExp })[] = [
  { what: 'an empty manifest', text: '', names: /the whole: .*\(line 1, column 1\)/ },
  { what: 'a manifest that is a list', text: '- program: hello.wasm\n',
    names: /expected object.*\(line 1, column 1\)/ },
  { what: 'a manifest that is no YAML', text: 'program: hello.wasm\nenv: { A: b\n', names: /\(line 3, column 1\)/ },
  { what: 'a mapping within a word', text: 'program: hello.wasm\n  memory: 1MiB\n', names: /\(line \d, column \d+\)/ },
  { what: 'a key given twice', text: 'program: a.wasm\nprogram: b.wasm\n', names: /unique.*\(line 2, column 1\)/ },
  { what: 'an anchor that is not there', text: 'program: *nowhere\n', names: /nowhere/ },
  { what: 'a manifest that explodes', text: bomb(), names: /alias/i },
  { what: 'no program in it', text: 'args: [x]\n', names: /program: .*expected string/ },
  { what: 'an unknown key', text: 'program: hello.wasm\nmemroy: 64MiB\n', names: /"memroy".*\(line 2, column 1\)/ },
  { what: 'an unknown key in a call', text: 'program: hello.wasm\ncalls:\n  - call: f\n    wiht: []\n',
    names: /"wiht".*\(line 4, column 5\)/ },
  { what: 'a program that is a number', text: 'program: 5\n', names: /program: .*\(line 1, column 10\)/ },
  { what: 'a limit that is nonsense', text: 'program: hello.wasm\nmemory: lots\n',
    names: /memory: must be a size .*\(line 2, column 9\)/ },
  { what: 'an argument that is a mapping', text: 'program: hello.wasm\nargs:\n  - a\n  - {b: c}\n',
    names: /args\.1: .*\(line 4, column 5\)/ },
  { what: 'a variable without a name', text: 'program: hello.wasm\nenv: { "": x }\n', names: /env/ },
  { what: 'no calls', text: 'program: hello.wasm\ncalls: []\n', names: /calls: .*\(line 2, column 8\)/ },
  { what: 'a volume that is nonsense', text: 'program: hello.wasm\nvolumes: ["a:b:c:d"]\n', code: 'FLAG_VALUE_INVALID',
    names: /"a:b:c:d"/ },
  { what: 'a volume that is not there', text: 'program: hello.wasm\nvolumes: [nowhere]\n', code: 'VOLUME_NOT_FOUND',
    names: /nowhere/ },
  { what: 'an address that is nonsense', text: 'program: hello.wasm\nlisten: [8080/tcp]\n', code: 'FLAG_VALUE_INVALID',
    names: /8080/ },
  { what: 'a program that is not there', text: 'program: nowhere.wasm\n', code: 'PROGRAM_NOT_FOUND', status: 127,
    names: /nowhere\.wasm/ },
  { what: 'a call of what is not exported', text: 'program: hello.wasm\ncalls: [{call: nothing}]\n', status: 126,
    code: 'EXPORT_UNKNOWN', names: /"nothing"/ },
  { what: 'a call with a string of a program without cabi_realloc', status: 126, code: 'EXPORT_UNKNOWN',
    text: 'program: hello.wasm\ncalls: [{call: _start, with: ["text"]}]\n', names: /"cabi_realloc"/ },
]

for (const { what, text, status = 125, code = 'MANIFEST_INVALID', names } of CASES) {
  test(`cellar run -f refuses ${what}`, async () => {
    await refuses({ status, code, names }, (folder) => {
      folder.write('hello.wasm', HELLO)
      return ['-f', folder.write('cell.yaml', text)]
    })
  })
}

test('cellar run -f refuses a manifest that is not there, or is a folder', async () => {
  await refuses({ status: 125, code: 'MANIFEST_INVALID', names: /nowhere\.yaml/ }, () => ['-f', 'nowhere.yaml'])
  await refuses({ status: 125, code: 'MANIFEST_INVALID', names: /"\."/ }, () => ['-f', '.'])
})

test('flags add to what a manifest says, and limits of both hold', async () => {
  using folder = new Folder()
  folder.write('data/text', 'of the manifest\n')
  folder.write('more/text', 'of the flag\n')
  folder.write('sub/cell.yaml', `program: ${guest('cat')}\nargs: [cat, /data/text]\nvolumes: ["../data:/data:ro"]\n`)
  const added = ['--dir', `${folder.at('more')}:/more`, '-f', folder.at('sub/cell.yaml'), '/more/text']
  const { stdout, stderr } = await cellar(['run', ...added], { cwd: '/' })
  assert.equal(stdout.toString(), 'of the manifest\nof the flag\n', stderr)

  folder.write('grow.yaml', `program: ${guest('grow')}\nmemory: 4MiB\n`)
  for (const [limit, size] of [['2MiB', '2 MiB\n'], ['8MiB', '4 MiB\n']] as const) {
    const grown = await cellar(['run', '--memory', limit, '-f', folder.at('grow.yaml')])
    assert.equal(grown.stdout.toString(), size, grown.stderr)
  }

  await folder.writeProgram('stub.wasm', '(module (import "env" "f" (func)) (func (export "_start")))')
  folder.write('stub.yaml', 'program: stub.wasm\n')
  const stubbed = await cellar(['run', '--stub', 'env', '-f', folder.at('stub.yaml')])
  assert.equal(stubbed.status, 0, stubbed.stderr)
})

// "Billion laughs": a few hundred bytes that mean a billion words.
function bomb(): string {
  const ten = (name: string): string => `[${Array.from({ length: 10 }, () => name).join(', ')}]`
  const lines = ['a: &a laugh']
  for (let i = 1; i < 10; i++) lines.push(`${'abcdefghij'[i]}: &${'abcdefghij'[i]} ${ten(`*${'abcdefghij'[i - 1]}`)}`)
  return `${lines.join('\n')}\nprogram: hello.wasm\n`
}
