// host/process_code_test.ts: a cell process runs from the joined files, in its jail.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync }
  from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { jailCommand, ownFolder, uidOf } from './jail.ts'
import { writeProcessCode } from './process_code.ts'
import { ProcessLink } from './process_link.ts'
import type { ProcessConfig } from './protocol.ts'
import { canSeparate } from './reachable.ts'
import { disposableFolder } from './test_support.ts'

/** A project that no other test has. */
const PROJECT = 0x4711

test('what writeProcessCode writes becomes a cell process that answers, in the jail and from these files', async () => {
  using folder = disposableFolder()
  const at = (name: string): string => join(folder.path, name)
  chmodSync(folder.path, 0o711)
  writeProcessCode(at('code'))
  const uid = canSeparate(folder.path) === true ? uidOf(PROJECT) : undefined
  for (const name of ['run', 'project', 'project/snapshots']) ownFolder(at(name), uid)
  mkdirSync(at('blobs'))
  chmodSync(at('blobs'), 0o711)
  const config: ProcessConfig = { process: 1, project: 'p', runFolder: at('run'), blobFolder: at('blobs'),
    cacheFolder: at('project'), logFolder: at('project'), snapshotFolder: at('project/snapshots'), quantumNs: 1e6 }
  writeFileSync(at('run/config.json'), JSON.stringify(config))
  if (uid !== undefined) chownSync(at('run/config.json'), uid, uid)
  const { file, args, env } = jailCommand({ runFolder: at('run'), projectFolder: at('project'),
    blobFolder: at('blobs'), codeFolder: at('code'), ...(uid === undefined ? {} : { uid }) })
  const child = spawn(file, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.on('data', (data: Buffer) => { said += data.toString() })
  try {
    while (!existsSync(at('run/c'))) {
      assert.equal(child.exitCode, null, said)
      await sleep(5)
    }
    const link = await ProcessLink.connect(at('run'), { message: () => {}, closed: () => {} })
    assert.equal(link.hello.pid, child.pid)
    const words = readFileSync(`/proc/${child.pid}/cmdline`, 'utf8').split('\0')
    assert.ok(words.includes(at('code/cell_process.cjs')), words.join(' '))
    const ended = new Promise((resolve) => child.once('exit', resolve))
    link.send({ drain: true })
    assert.equal(await ended, 0, said)
    link.close()
  } finally {
    child.kill('SIGKILL')
  }
})

test('writeProcessCode writes files that others may read only, and that need nothing but Node', () => {
  using folder = disposableFolder()
  const code = join(folder.path, 'code')
  writeProcessCode(code)
  assert.deepEqual(readdirSync(code).toSorted(),
    ['cell_process.cjs', 'crew_worker.cjs', 'jail_launch.cjs', 'pcpu_worker.cjs', 'sources.json', 'timer_worker.cjs',
      'translation_worker.cjs'])
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
