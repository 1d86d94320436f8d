// base/joined_test.ts: modules that are joined do what they did apart.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { runInNewContext } from 'node:vm'
import { ascii, collect, definitionOf, JOINED_PRELUDE, namesOf } from './joined.ts'

/** What the module `text` exports as `answer`, when it was joined. */
async function joinedAnswer(text: string): Promise<unknown> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-joined-'))
  try {
    const path = join(folder, 'a.ts')
    writeFileSync(path, text)
    const codes = new Map<string, string>()
    collect([path], codes, { urlOf: JSON.stringify }, () => false)
    const names = namesOf(codes)
    const made = [...codes].map(([source, code]) => definitionOf(source, code, names, false)).join('\n')
    return (await (runInNewContext(`${JOINED_PRELUDE}\n${ascii(made)}\n$0()`) as Promise<{ answer: unknown }>)).answer
  } finally {
    rmSync(folder, { recursive: true })
  }
}

test('what is in a type or a comment within one may be of any characters', async () => {
  assert.equal(await joinedAnswer(
    'type A = {\n  /** \u2212 \u00e9 \u{1f30d} */\n  readonly a: \'\u00e9\'\n}\nexport const answer = 1'), 1)
})

test('strings keep their characters', async () => {
  assert.equal(await joinedAnswer("export const answer = '\u2212 \u00e9'"), '\u2212 \u00e9')
})
