// host/modules_test.ts: modules are made once for all who wait for them, in their order, and let go when nobody does.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { MODULES_IDLE_MAX } from '../base/limits.ts'
import type { Executable } from '../cell/executable.ts'
import { Modules, type Held } from './modules.ts'
import { disposableFolder, exporting, padded } from './test_support.ts'

const HELLO = readFileSync(fileURLToPath(new URL('../../guests/hello.wasm', import.meta.url)))
const options = { timeout: 60_000 }

type Wanted = Parameters<Modules['hold']>[0]

/** Modules over blobs of a folder; what was let go. */
function modulesIn(folder: string, heapMb?: number): { modules: Modules; forgotten: Executable[];
  launch: (padding: number, end?: string) => Wanted; launchOf: (bytes: Buffer) => Wanted } {
  const forgotten: Executable[] = []
  mkdirSync(join(folder, 'blobs/sha256'), { recursive: true })
  const modules = new Modules({ blobFolder: join(folder, 'blobs'), cacheFolder: join(folder, 'cache'), heapMb,
    forget: (executable) => forgotten.push(executable) })
  const launchOf = (bytes: Buffer): Wanted => {
    const hex = createHash('sha256').update(bytes).digest('hex')
    writeFileSync(join(folder, 'blobs/sha256', hex), bytes)
    return { module: `sha256:${hex}`, stubs: [], deterministic: false, unbounded: false }
  }
  const launch = (padding: number, end = ''): Wanted =>
    launchOf(Buffer.concat([padded(HELLO, padding), Buffer.from(end, 'latin1')]))
  return { modules, forgotten, launch, launchOf }
}

const LARGE = 512 * 1024

test('hold gives a small module at once, and the same one to all who hold it', () => {
  using folder = disposableFolder()
  const { modules, launch } = modulesIn(folder.path)
  const first = modules.hold(launch(0)) as Held
  assert.ok(first.executable.module instanceof WebAssembly.Module)
  assert.equal(modules.hold(launch(0)), first)
  assert.equal(first.users, 2)
})

test('hold translates a large module in a thread, once for all who wait, who go on in the order of their asking',
  options, async () => {
    using folder = disposableFolder()
    const { modules, launch } = modulesIn(folder.path)
    const order: string[] = []
    const wait = async (name: string, wanted: Wanted): Promise<Held> => {
      const held = await modules.hold(wanted)
      order.push(name)
      return held
    }
    const [a, other] = [launch(LARGE), launch(LARGE + 1)]
    const asked = [wait('a1', a), wait('b', other), wait('a2', a)]
    assert.ok(modules.hold(a) instanceof Promise)
    // What is small doesn't wait behind it.
    assert.ok(!(modules.hold(launch(1)) instanceof Promise))
    const [a1, b, a2] = await Promise.all(asked)
    assert.deepEqual(order, ['a1', 'a2', 'b'])
    assert.equal(a1, a2)
    assert.notEqual(a1, b)
    assert.equal(a1!.users, 3)
    assert.ok(a1!.executable.module instanceof WebAssembly.Module)
    assert.equal(modules.hold(a), a1)
  })

test('one of those who waited gives a module back, and the others have it still', options, async () => {
  using folder = disposableFolder()
  const { modules, launch, forgotten } = modulesIn(folder.path)
  const wanted = launch(LARGE)
  const [first, second] = [modules.hold(wanted), modules.hold(wanted)]
  modules.release(await first)
  for (let i = 0; i <= MODULES_IDLE_MAX; i++) modules.release(modules.hold(launch(i)) as Held)
  const { executable, users } = await second
  assert.equal(users, 1)
  assert.ok(!forgotten.includes(executable))
  assert.equal(forgotten.length, 1)
})

test('a large module that is none is refused with the values of its error, and can be asked for again', options,
  async () => {
    using folder = disposableFolder()
    const { modules, launch } = modulesIn(folder.path)
    const broken = launch(LARGE, '\x00\x05')
    for (let i = 0; i < 2; i++) {
      await assert.rejects(async () => await modules.hold(broken), { code: 'MODULE_TRUNCATED' })
    }
    await modules.hold(launch(LARGE))
  })

test('a module that is too much for the thread fails alone, and the thread is made anew', options, async () => {
  using folder = disposableFolder()
  const { modules, launch, launchOf } = modulesIn(folder.path, 24)
  const huge = launchOf(exporting(400_000))
  const [fits, fails, later] = [launch(LARGE), huge, launch(LARGE + 1)].map((one) => modules.hold(one))
  await fits
  await assert.rejects(async () => await fails, { code: 'TRANSLATION_TOO_LARGE' })
  await later
})

test('hold refuses what is no digest, and a blob that isn\'t there', () => {
  using folder = disposableFolder()
  const { modules, launch } = modulesIn(folder.path)
  for (const module of ['../../etc/passwd', `sha256:${'0'.repeat(64)}`]) {
    assert.throws(() => modules.hold({ ...launch(0), module }), { code: 'PROGRAM_NOT_FOUND' })
  }
})
