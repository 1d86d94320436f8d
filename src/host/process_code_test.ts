// host/process_code_test.ts: a cell process runs from the joined files, in its jail.

import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync }
  from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { jailCommand, ownFolder, uidOf } from './jail.ts'
import { writeProcessCode } from './process_code.ts'
import { ProcessLink } from './process_link.ts'
import type { FromProcess, GuestLaunch, ProcessConfig } from './protocol.ts'
import { canSeparate } from './reachable.ts'
import { disposableFolder, padded } from './test_support.ts'

/** A project that no other test has. */
const PROJECT = 0x4711

/** A cell process in its jail, from joined files, and what it has said. */
class Jailed {
  readonly at: (name: string) => string
  readonly heard: FromProcess[] = []
  readonly child: ChildProcess
  link!: ProcessLink
  #said = ''

  private constructor(folder: string) {
    const at = this.at = (name) => join(folder, name)
    const uid = canSeparate(folder) === true ? uidOf(PROJECT) : undefined
    for (const name of ['run', 'project', 'project/snapshots', 'project/cache', 'project/logs', 'project/logs/a',
      'project/logs/b']) ownFolder(at(name), uid)
    const config: ProcessConfig = { process: 1, project: 'p', runFolder: at('run'), blobFolder: at('blobs'),
      cacheFolder: at('project/cache'), logFolder: at('project/logs'), snapshotFolder: at('project/snapshots'),
      quantumNs: 1e6 }
    writeFileSync(at('run/config.json'), JSON.stringify(config))
    if (uid !== undefined) chownSync(at('run/config.json'), uid, uid)
    const { file, args, env } = jailCommand({ runFolder: at('run'), projectFolder: at('project'),
      blobFolder: at('blobs'), codeFolder: at('code'), ...(uid === undefined ? {} : { uid }) })
    this.child = spawn(file, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
    this.child.stderr!.on('data', (data: Buffer) => { this.#said += data.toString() })
  }

  static async start(folder: string): Promise<Jailed> {
    const jailed = new Jailed(folder)
    while (!existsSync(jailed.at('run/c'))) {
      assert.equal(jailed.child.exitCode, null, jailed.#said)
      await sleep(5)
    }
    jailed.link = await ProcessLink.connect(jailed.at('run'),
      { message: (message) => jailed.heard.push(message), closed: () => {} })
    return jailed
  }

  /** What it says with this key, of a guest. */
  async hear<K extends string>(key: K, id: string): Promise<Extract<FromProcess, Record<K, unknown>>> {
    for (const until = performance.now() + 20_000; performance.now() < until; await sleep(5)) {
      const found = this.heard.find((one) => key in one && JSON.stringify(one).includes(`"${id}"`))
      if (found !== undefined) return found as Extract<FromProcess, Record<K, unknown>>
    }
    throw new Error(`"${key}" was not said, but ${JSON.stringify(this.heard)} and ${this.#said}`)
  }

  /** Ends all of its guests, and then it. */
  async end(...guests: string[]): Promise<void> {
    const ended = new Promise((resolve) => this.child.once('exit', resolve))
    for (const id of guests) {
      this.link.send({ stop: id, run: 1, signal: 9 })
      assert.deepEqual((await this.hear('ended', id)).ended.outcome, { kind: 'signal', signal: 9 })
      this.link.send({ ack: id, run: 1 })
    }
    this.link.send({ drain: true })
    assert.equal(await ended, 0, this.#said)
    this.link.close()
  }

  [Symbol.dispose](): void { this.child.kill('SIGKILL') }
}

/** The host's own folders for a process: its code and blobs. */
function hostFolders(folder: string): void {
  chmodSync(folder, 0o711)
  writeProcessCode(join(folder, 'code'))
  mkdirSync(join(folder, 'blobs/sha256'), { recursive: true })
  chmodSync(join(folder, 'blobs'), 0o711)
}

test('what writeProcessCode writes becomes a cell process that answers, in the jail and from these files', async () => {
  using folder = disposableFolder()
  hostFolders(folder.path)
  using jailed = await Jailed.start(folder.path)
  assert.equal(jailed.link.hello.pid, jailed.child.pid)
  const words = readFileSync(`/proc/${jailed.child.pid}/cmdline`, 'utf8').split('\0')
  assert.ok(words.includes(jailed.at('code/cell_process.cjs')), words.join(' '))
  await jailed.end()
})

test('in the jail a guest is translated apart and saved, and goes on in another process', async () => {
  using folder = disposableFolder()
  hostFolders(folder.path)
  // Large enough for a thread of its own, and to be kept when it is translated.
  const ticker = readFileSync(fileURLToPath(new URL('../../guests/ticker.wasm', import.meta.url)))
  const bytes = padded(ticker, 2 * 1024 * 1024)
  const hex = createHash('sha256').update(bytes).digest('hex')
  writeFileSync(join(folder.path, 'blobs/sha256', hex), bytes)
  const launch: GuestLaunch = { id: 'a', run: 1, name: 'a', module: `sha256:${hex}`, args: ['ticker', '10', '0', '4'],
    env: [], memoryPagesMax: 1024, stubs: [], deterministic: false, unbounded: false, terms: DEFAULT_TERMS,
    volumes: [], ports: [], connect: [], networks: [], stdin: false }
  using first = await Jailed.start(folder.path)
  first.link.send({ start: launch })
  await first.hear('started', 'a')
  await sleep(50)
  first.link.send({ capture: 'a', run: 1, request: 1, next: 'hold', durable: true })
  const { written } = await first.hear('captured', 'a')
  assert.ok(written!.chunks >= 64, JSON.stringify(first.heard))
  first.link.send({ release: 'a', run: 1 })
  await first.hear('released', 'a')
  await first.end()
  assert.equal(readdirSync(first.at('project/cache')).length, 1)
  using second = await Jailed.start(folder.path)
  second.link.send({ start: { ...launch, id: 'b', from: { snapshot: written!.snapshot, event: 'restore' } } })
  await second.hear('started', 'b')
  await second.end('b')
})

test('writeProcessCode writes files that others may read only, and that need nothing but Node', () => {
  using folder = disposableFolder()
  const code = join(folder.path, 'code')
  writeProcessCode(code)
  assert.deepEqual(readdirSync(code).toSorted(),
    ['cell_process.cjs', 'crew_worker.cjs', 'device_thread.cjs', 'flush_worker.cjs', 'jail_launch.cjs',
      'machine_process.cjs', 'pcpu_worker.cjs', 'sources.json', 'timer_worker.cjs', 'translation_worker.cjs',
      'vcpu_worker.cjs'])
  assert.equal(statSync(code).mode & 0o777, 0o755)
  for (const name of readdirSync(code).filter((one) => one.endsWith('.cjs'))) {
    const text = readFileSync(join(code, name), 'utf8')
    assert.equal(statSync(join(code, name)).mode & 0o777, 0o644)
    assert.doesNotMatch(text, /= require\(/)
    assert.doesNotMatch(text, /[^\0-\x7f]/)
  }
})

test('writeProcessCode writes anew what was made of other sources, and leaves alone what is as they are', () => {
  using folder = disposableFolder()
  const [process, sources] = [join(folder.path, 'cell_process.cjs'), join(folder.path, 'sources.json')]
  writeProcessCode(folder.path)
  const { ino } = statSync(process)
  writeProcessCode(folder.path)
  assert.equal(statSync(process).ino, ino)
  const made = JSON.parse(readFileSync(sources, 'utf8')) as { digest: string }
  for (const text of [JSON.stringify({ ...made, digest: 'other' }), JSON.stringify({ ...made, paths: [] }), '{']) {
    writeFileSync(sources, text)
    writeFileSync(process, 'older')
    writeProcessCode(folder.path)
    assert.match(readFileSync(process, 'utf8'), /cell_process\.ts: /)
    assert.deepEqual(JSON.parse(readFileSync(sources, 'utf8')), made)
  }
})
