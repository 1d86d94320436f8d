// host/volumes_test.ts: volumes as folders: clones that share files until somebody writes, also under real guests,
// removal, and what is left when the host is killed.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chownSync, existsSync, linkSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, readlinkSync, rmSync,
  statSync, symlinkSync, utimesSync, writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { CellarError } from '../base/errors.ts'
import { VOLUME_ENTRY_BYTES } from '../base/limits.ts'
import { HYPERCALL_NAMES } from '../cell/hypercalls.ts'
import type { Grants } from '../cell/pcpu.ts'
import { loadPreemptible } from '../cell/preemptible.ts'
import { Stack } from '../cell/stack.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { openQuota } from '../services/file/open_quota.ts'
import { quotaOf } from '../services/file/quota.ts'
import { isSupported } from '../sys/libc.ts'
import { VolumeFolders } from './volumes.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'
const ENTRY = VOLUME_ENTRY_BYTES

class Project {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-volumes-'))
  readonly volumes = new VolumeFolders(this.folder)
  path(...names: string[]): string { return join(this.folder, 'volumes', ...names) }
  all(): string[] { return readdirSync(this.path()).sort() }
  [Symbol.dispose](): void { rmSync(this.folder, { recursive: true, force: true }) }
}

const code = (expected: string) => (error: unknown) => error instanceof CellarError && error.code === expected

async function withSource(): Promise<Project> {
  const made = new Project()
  await made.volumes.create('data')
  mkdirSync(made.path('data/d/e'), { recursive: true })
  writeFileSync(made.path('data/f'), 'first')
  writeFileSync(made.path('data/d/g'), 'second', { mode: 0o600 })
  writeFileSync(made.path('data/twice'), 'two names')
  linkSync(made.path('data/twice'), made.path('data/d/e/twice'))
  symlinkSync('../f', made.path('data/d/l'))
  utimesSync(made.path('data/d/g'), 1000, 2000)
  utimesSync(made.path('data/d'), 1000, 3000)
  return made
}

function checkClone(made: Project, name: string): void {
  assert.equal(readFileSync(made.path(name, 'f'), 'utf8'), 'first')
  assert.equal(readFileSync(made.path(name, 'd/g'), 'utf8'), 'second')
  assert.equal(readlinkSync(made.path(name, 'd/l')), '../f')
  assert.deepEqual([statSync(made.path(name, 'd/g')).mtimeMs, statSync(made.path(name, 'd')).mtimeMs],
    [2_000_000, 3_000_000])
  const [one, other] = [statSync(made.path(name, 'twice')), statSync(made.path(name, 'd/e/twice'))]
  assert.deepEqual([one.ino, one.nlink], [other.ino, 2])
  assert.notEqual(one.ino, statSync(made.path('data/twice')).ino)
}

test('VolumeFolders makes volumes, says what they hold, and removes them', { skip }, async () => {
  using made = await withSource()
  const { volumes } = made
  assert.equal(await volumes.usage('data'), 7 * ENTRY + 5 + 6 + 9)
  await assert.rejects(volumes.create('data'), code('EXISTS'))
  for (const name of ['', '.', '..', 'a/b', '.trash-x', 'a'.repeat(41), 'x\0']) {
    await assert.rejects(volumes.create(name), code('NAME_INVALID'))
    await assert.rejects(volumes.remove(name), code('NAME_INVALID'))
  }
  const steps: [number, number][] = []
  await volumes.remove('data', { progress: (done, total) => { steps.push([done, total]) } })
  assert.deepEqual(steps.at(-1), [7, 7])
  assert.deepEqual(made.all(), [])
  await assert.rejects(volumes.remove('data'), code('NOT_FOUND'))
  await assert.rejects(volumes.usage('data'), code('VOLUME_NOT_FOUND'))
})

test('a clone shares the files of a volume that nobody uses, and copies one with several names', { skip }, async () => {
  using made = await withSource()
  const steps: [number, number][] = []
  await made.volumes.clone('data', 'copy', { inUse: false, progress: (done, total) => { steps.push([done, total]) } })
  assert.deepEqual(steps.at(-1), [7, 7])
  checkClone(made, 'copy')
  const [source, clone] = [statSync(made.path('data/f')), statSync(made.path('copy/f'))]
  if (source.ino === clone.ino) assert.equal(source.mode & 0o7777, 0o1644)
  await made.volumes.clone('copy', 'third', { inUse: false })
  checkClone(made, 'third')
  assert.deepEqual(made.all(), ['copy', 'data', 'third'])
  assert.equal(await made.volumes.usage('third'), await made.volumes.usage('data'))
  await made.volumes.remove('data')
  assert.equal(readFileSync(made.path('third/d/g'), 'utf8'), 'second')
})

test('a volume in use is copied; a clone that fails or is cancelled leaves nothing', { skip }, async () => {
  using made = await withSource()
  await made.volumes.clone('data', 'copy', { inUse: true })
  checkClone(made, 'copy')
  assert.notEqual(statSync(made.path('data/f')).ino, statSync(made.path('copy/f')).ino)
  assert.equal(statSync(made.path('data/f')).mode & 0o7777, 0o644)
  await assert.rejects(made.volumes.clone('data', 'copy', { inUse: false }), code('EXISTS'))
  await assert.rejects(made.volumes.clone('none', 'other', { inUse: false }), code('NOT_FOUND'))
  const abort = new AbortController()
  await assert.rejects(made.volumes.clone('data', 'other', {
    inUse: true, signal: abort.signal, progress: (done) => { if (done === 4) abort.abort() },
  }), code('OPERATION_CANCELLED'))
  assert.deepEqual(made.all(), ['copy', 'data'])
  checkClone(made, 'copy')
})

test('a clone that the disk has no room for is HOST_DISK_FULL, and leaves nothing', { skip }, async (context) => {
  using made = new Project()
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', made.folder]).status !== 0) {
    context.skip('no file system can be mounted here')
    return
  }
  try {
    await made.volumes.create('data')
    for (const name of 'abcde') writeFileSync(made.path('data', name), Buffer.alloc(60_000, name))
    await assert.rejects(made.volumes.clone('data', 'copy', { inUse: true }), code('HOST_DISK_FULL'))
    assert.deepEqual(made.all(), ['data'])
    await made.volumes.clone('data', 'copy', { inUse: false })
    assert.equal(await made.volumes.usage('copy'), await made.volumes.usage('data'))
  } finally {
    spawnSync('umount', [made.folder])
  }
})

test('volumes belong to whom they are made for', { skip: skip || (process.getuid?.() === 0 ? false : 'needs root') },
  async () => {
    using made = await withSource()
    for (const path of ['data/f', 'data/d', 'data/d/l']) {
      if (path !== 'data/d/l') chownSync(made.path(path), 12_345, 12_345)
    }
    const volumes = new VolumeFolders(made.folder, 12_345)
    await volumes.clone('data', 'copy', { inUse: true })
    await volumes.create('new')
    for (const path of ['new', 'copy', 'copy/f', 'copy/d', 'copy/d/e', 'copy/d/l', 'copy/twice']) {
      assert.deepEqual([path, lstatSync(made.path(path)).uid, lstatSync(made.path(path)).gid], [path, 12_345, 12_345])
    }
  })

test('what is nested deeper than a path is long is cloned and removed', { skip }, async () => {
  using made = new Project()
  await made.volumes.create('data')
  const name = 'n'.repeat(200)
  const script = `for (let i = 0; i < 60; i++) { fs.mkdirSync('${name}'); process.chdir('${name}') }
    fs.writeFileSync('deep', 'x')`
  await once(spawn(process.execPath, ['-e', script], { cwd: made.path('data') }), 'exit')
  assert.equal(await made.volumes.usage('data'), 61 * ENTRY + 1)
  for (const inUse of [false, true]) {
    await made.volumes.clone('data', 'copy', { inUse })
    assert.equal(await made.volumes.usage('copy'), 61 * ENTRY + 1)
    await made.volumes.remove('copy')
  }
  await made.volumes.remove('data')
  assert.deepEqual(made.all(), [])
})

test('a host that is killed while it clones leaves a whole clone or none, and the source as it was',
  { skip, timeout: 120_000 }, async () => {
    using made = new Project()
    await made.volumes.create('data')
    for (let i = 0; i < 1500; i++) {
      mkdirSync(made.path(`data/${i % 50}`), { recursive: true })
      writeFileSync(made.path(`data/${i % 50}/${i}`), `file ${i}`)
    }
    const whole = await made.volumes.usage('data')
    const module = new URL('./volumes.ts', import.meta.url).href
    const script = `const { VolumeFolders } = await import('${module}')
      const volumes = new VolumeFolders(${JSON.stringify(made.folder)})
      console.log('begins')
      for (let i = 0; ; i++) { await volumes.clone('data', 'copy' + i, { inUse: i % 2 === 1 }) }`
    for (const ms of [0, 7, 31, 70, 150]) {
      const child = spawn(process.execPath,
        ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script],
        { stdio: ['ignore', 'pipe', 'inherit'] })
      try {
        await once(child.stdout, 'data')
        await sleep(ms)
      } finally {
        child.kill('SIGKILL')
        await once(child, 'exit')
      }
      await made.volumes.sweep()
      for (const name of made.all()) {
        assert.match(name, /^(data|copy\d+)$/)
        assert.equal(await made.volumes.usage(name), whole)
        if (name !== 'data') await made.volumes.remove(name)
      }
      for (let i = 0; i < 1500; i += 97) {
        assert.equal(readFileSync(made.path(`data/${i % 50}/${i}`), 'utf8'), `file ${i}`)
      }
    }
  })

const guest = (name: string): string => fileURLToPath(new URL(`../../guests/${name}.wasm`, import.meta.url))

/** Runs cells at once on two pCPUs, each with its own grants: their exit codes. */
async function run(...cells: { args: readonly string[]; volumes: Grants['volumes'] }[]): Promise<unknown[]> {
  const stack = new Stack({ pcpus: 2, quantumNs: 1e6 })
  try {
    const members = cells.map(({ args, volumes = [] }, i) => ({
      name: `cell${i}`, executable: loadPreemptible(guest(args[0]!)), grants: { args, env: [], volumes },
      calls: undefined, trace: false, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)),
      terms: DEFAULT_TERMS, remote: { stdin: false },
    }))
    const places = stack.plan(members)
    return await Promise.all(members.map(async (member, i) => (await stack.start(member, places[i]!).ended).outcome))
  } finally {
    await stack.close()
  }
}

const ENDED = { kind: 'exit', code: 0 }

test('a guest that writes in a clone changes nothing in its source, and the other way', { skip, timeout: 60_000 },
  async () => {
    using made = new Project()
    const { volumes } = made
    await volumes.create('data')
    for (const name of ['a', 'b', 'untouched']) writeFileSync(made.path('data', name), `${name} as it was`)
    writeFileSync(made.path('data/large'), Buffer.alloc(5_000_000, 'l'))
    utimesSync(made.path('data/b'), 1000, 2000)
    await volumes.clone('data', 'copy', { inUse: false })
    const grant = async (name: string) => [{ host: volumes.path(name), guest: '/', readOnly: false,
      quota: await openQuota(volumes.path(name), 2 ** 24) }]
    const [data, copy] = [await grant('data'), await grant('copy')]
    assert.deepEqual(await run({ args: ['fill', 'write', '/a', 'COPY'], volumes: copy },
      { args: ['fill', 'write', '/b', 'DATA'], volumes: data }), [ENDED, ENDED])
    assert.deepEqual(await run({ args: ['fill', 'write', '/large', 'COPY'], volumes: copy },
      { args: ['fill', 'times', '/b'], volumes: copy }), [ENDED, ENDED])
    const text = (name: string): string => readFileSync(made.path(name), 'utf8').slice(0, 8)
    assert.deepEqual(['data/a', 'copy/a', 'data/b', 'copy/b', 'data/large', 'copy/large'].map(text),
      ['a as it ', 'COPY it ', 'DATA it ', 'b as it ', 'llllllll', 'COPYllll'])
    assert.deepEqual([statSync(made.path('copy/b')).mtimeMs, statSync(made.path('data/large')).size], [1000, 5_000_000])
    assert.equal(quotaOf(data[0]!.quota).usedBytes, await volumes.usage('data'))
    assert.equal(quotaOf(copy[0]!.quota).usedBytes, await volumes.usage('copy'))
    assert.deepEqual(await run({ args: ['files', '/'], volumes: copy }), [ENDED], 'everything else as ever')
    assert.equal(quotaOf(copy[0]!.quota).usedBytes, await volumes.usage('copy'))
  })

test('cells of a process that fill one volume in every way never get beyond its size', { skip, timeout: 120_000 },
  async () => {
    using made = new Project()
    const { volumes } = made
    await volumes.create('data')
    const sizeBytes = 300_000
    const quota = await openQuota(volumes.path('data'), sizeBytes)
    const grants = [{ host: volumes.path('data'), guest: '/', readOnly: false, quota }]
    const ways = [
      [['bytes', '/a', '100'], ['bytes', '/b', '777']], [['bytes', '/a', '5'], ['names', '/n']],
      [['grow', '/a'], ['names', '/n']], [['keep', '/a', '1000'], ['keep', '/b', '1000']],
      [['bytes', '/same', '13'], ['bytes', '/same', '7']],
    ]
    for (const cells of ways) {
      const outcomes = await run(...cells.map((args) => ({ args: ['fill', ...args], volumes: grants })))
      assert.deepEqual(outcomes, [ENDED, ENDED], cells.join('; '))
      const used = await volumes.usage('data')
      assert.equal(quotaOf(quota).usedBytes, used, cells.join('; '))
      if (cells[0]![0] !== 'keep') assert.ok(used <= sizeBytes && used > sizeBytes - 8192, `${used}`)
      // As a guest that empties it would: the counter is that of the empty volume.
      for (const name of readdirSync(volumes.path('data'))) rmSync(join(volumes.path('data'), name))
      quotaOf(quota).giveBack(used)
    }
    assert.equal(existsSync(volumes.path('data')), true)
  })
