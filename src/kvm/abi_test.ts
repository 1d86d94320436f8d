// kvm/abi_test.ts: the C compiler prints what <linux/kvm.h> says, and abi.ts says the same.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import * as abi from './abi.ts'

import type { Struct } from './struct.ts'

// Each expression of C, and what we say that it is.
function claims(): Map<string, bigint> {
  const expected = new Map<string, bigint>()
  for (const [name, value] of Object.entries(abi) as [string, bigint | number | Struct][]) {
    if (typeof value !== 'object') {
      expected.set(name, BigInt(value))
      continue
    }
    const prefix = value.member === undefined ? '' : `${value.member}.`
    if (prefix === '') expected.set(`sizeof(struct ${value.name})`, BigInt(value.size))
    for (const [field, at] of Object.entries(value.at)) {
      expected.set(`offsetof(struct ${value.name}, ${prefix}${field})`, BigInt(at))
    }
  }
  return expected
}

// What cc makes of them, in that order; or why it can't be asked.
function printed(expressions: readonly string[]): bigint[] | string {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'the structs are those of Linux on x86-64'
  if (!existsSync('/usr/include/linux/kvm.h')) return 'there is no <linux/kvm.h>'
  const folder = mkdtempSync(join(tmpdir(), 'cellar-abi-'))
  try {
    const lines = expressions.map((expression) => `printf("%llu\\n", (unsigned long long)(${expression}));`)
    writeFileSync(join(folder, 'abi.c'),
      `#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {\n${lines.join('\n')}\n}\n`)
    try {
      execFileSync('cc', ['-o', join(folder, 'abi'), join(folder, 'abi.c')], { stdio: 'pipe' })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'there is no C compiler "cc"'
      throw error
    }
    return execFileSync(join(folder, 'abi'), { encoding: 'utf8' }).trim().split('\n').map(BigInt)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

test('every size, offset, request and constant of abi.ts is that of <linux/kvm.h>', (t) => {
  const expected = claims()
  const found = printed([...expected.keys()])
  if (typeof found === 'string') return t.skip(found)
  assert.ok(found.length > 200, `${found.length} numbers`)
  const actual = new Map([...expected.keys()].map((expression, i) => [expression, found[i]!]))
  assert.deepEqual(actual, expected)
})
