// tools/clang_test.ts: what the driver would run, and that it gives the same bytes wherever it runs.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { buildGuest, guestNames, GUEST_FLAGS, GUESTS } from './build_guests.ts'
import { CompileError, compileInCells, compileSteps, unpackResources } from './clang.ts'

/** The command lines that `clang -###` prints. */
async function askDriver(argv: readonly string[]): Promise<string[][]> {
  const { runLLVM } = await import('@yowasp/clang')
  const output: Uint8Array[] = []
  const listen = (bytes: Uint8Array | null) => { if (bytes !== null) output.push(bytes.slice()) }
  const options = { stdout: listen, stderr: listen, fetchProgress() {} }
  await runLLVM(['clang', '-###', ...argv], { src: { 'a.c': '' }, work: {} }, options)
  const lines = Buffer.concat(output).toString().split('\n').filter((line) => line.startsWith(' "'))
  return lines.map((line) => [...line.matchAll(/"([^"]*)"/g)].map((match) => match[1]!).filter((word) => word !== ''))
}

test('compileSteps() gives the command lines that the driver itself would start', async () => {
  for (const flags of [GUEST_FLAGS, ['-O0', '-DNAME=1', '-lm'], []]) {
    const argv = ['/src/a.c', '-o', '/work/a.wasm', ...flags]
    const [cc1, link] = await askDriver(argv)
    const [ourCc1, ourLink] = compileSteps(argv)
    // The driver's object has a random name, and its -dumpdir is for files that aren't asked for. The order of -W and
    // -D among the others has no meaning.
    const dumpdir = cc1!.indexOf('-dumpdir')
    const driver = cc1!.toSpliced(dumpdir, 2).map((word) => word.replace(/^\/tmp\/a-\w+\.o$/, '/work/a.o'))
    assert.deepEqual([...ourCc1!].sort(), driver.sort())
    assert.deepEqual(ourLink, link!.map((word) => word.replace(/^\/tmp\/a-\w+\.o$/, '/work/a.o')))
  }
})

test('compileSteps() refuses flags that it can not pass on', () => {
  for (const argv of [['a.c', '-shared'], ['a.c', 'b.c'], ['a.c', '-march=x'], []]) {
    assert.throws(() => compileSteps(argv), CompileError)
  }
})

test('unpackResources() unpacks once and leaves nothing half done', () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-clang-test-'))
  try {
    const usr = unpackResources(folder)
    assert.ok(existsSync(join(usr, 'include/wasm32-wasip1/wasi/api.h')))
    writeFileSync(join(usr, 'mark'), '')
    assert.equal(unpackResources(folder), usr)
    assert.ok(existsSync(join(usr, 'mark')))
    assert.equal(readdirSync(folder).length, 1)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('every guest that is committed is what its source gives', async () => {
  for (const name of guestNames()) {
    const committed = readFileSync(join(GUESTS, `${name}.wasm`))
    assert.ok(committed.equals(await buildGuest(name, 'node')), `${name}.wasm is stale: run npm run guests`)
  }
})

test('a guest built in cells has the bytes of the one that is committed', async () => {
  assert.ok(readFileSync(join(GUESTS, 'hello.wasm')).equals(await buildGuest('hello', 'cells')))
})

test('a mistake in the source is reported with the compiler’s own words', () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-clang-test-'))
  try {
    const source = join(folder, 'wrong.c')
    writeFileSync(source, 'int main(void) { return nothing; }\n')
    const message = "/src/wrong.c:1:25: error: use of undeclared identifier 'nothing'"
    assert.throws(() => compileInCells(source, join(folder, 'wrong.wasm')), (error: Error) =>
      error instanceof CompileError && error.message.includes(message))
  } finally {
    rmSync(folder, { recursive: true })
  }
})
