// sys/flock_test.ts: a lock that two processes want.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { lockFile } from './flock.ts'
import { isSupported } from './libc.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

test('lockFile locks out another process until the one that has it dies', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-flock-'))
  const path = join(folder, 'lock')
  const script = `import { lockFile } from ${JSON.stringify(new URL('flock.ts', import.meta.url).href)}
    console.log(lockFile(${JSON.stringify(path)}) !== undefined)
    setInterval(() => {}, 1000)`
  writeFileSync(path, 'an old and longer text')
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  try {
    assert.equal(String((await once(child.stdout, 'data'))[0]), 'true\n')
    assert.equal(lockFile(path), undefined)
    assert.equal(readFileSync(path, 'utf8'), `${child.pid}\n`)
    child.kill('SIGKILL')
    await once(child, 'close')
    const lock = lockFile(path)!
    assert.equal(readFileSync(path, 'utf8'), `${process.pid}\n`)
    assert.equal(lockFile(path), undefined)
    closeSync(lock.fd)
    closeSync(lockFile(path)!.fd)
  } finally {
    child.kill('SIGKILL')
    rmSync(folder, { recursive: true })
  }
})

test('lockFile throws where it can\'t make the file, and follows no link', { skip }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-flock-'))
  try {
    assert.throws(() => lockFile(join(folder, 'none', 'lock')), { code: 'ENOENT' })
    symlinkSync('elsewhere', join(folder, 'link'))
    assert.throws(() => lockFile(join(folder, 'link')), { code: 'ELOOP' })
  } finally {
    rmSync(folder, { recursive: true })
  }
})
