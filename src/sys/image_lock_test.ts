// sys/image_lock_test.ts: who may have an image at the same time.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { lockImage } from './image_lock.ts'
import { isSupported } from './libc.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

test('lockImage lets many read or one write, and forgets what is closed or was refused', { skip }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-lock-'))
  const path = join(folder, 'image')
  writeFileSync(path, 'image')
  try {
    const [a, b, c] = [openSync(path, 'r'), openSync(path, 'r'), openSync(path, 'r+')]
    assert.deepEqual([lockImage(a, false), lockImage(b, false), lockImage(c, true)], [1, 1, 0])
    closeSync(a)
    assert.equal(lockImage(c, true), 0)
    closeSync(b)
    assert.equal(lockImage(c, true), 1)
    const d = openSync(path, 'r')
    assert.equal(lockImage(d, false), 0)
    closeSync(c)
    assert.equal(lockImage(d, false), 1)
    closeSync(d)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('a lock on an image ends with the process that has it', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-lock-'))
  const path = join(folder, 'image')
  writeFileSync(path, 'image')
  const script = `import { openSync } from 'node:fs'
    import { lockImage } from ${JSON.stringify(new URL('image_lock.ts', import.meta.url).href)}
    console.log(lockImage(openSync(${JSON.stringify(path)}, 'r+'), true))
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  const fd = openSync(path, 'r')
  try {
    assert.equal(String((await once(child.stdout, 'data'))[0]), '1\n')
    assert.equal(lockImage(fd, false), 0)
    child.kill('SIGKILL')
    await once(child, 'close')
    assert.equal(lockImage(fd, false), 1)
  } finally {
    closeSync(fd)
    child.kill('SIGKILL')
    rmSync(folder, { recursive: true })
  }
})
