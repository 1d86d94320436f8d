// sys/flush_test.ts: what is flushed is answered as the kernel does, by Node's pool or by threads of ours.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { EBADF, EINVAL } from '../base/errno.ts'
import { flush, flushApart } from './flush.ts'
import { isSupported } from './libc.ts'

const options = { timeout: 60_000, skip: isSupported() ? false : 'needs Linux and a Node with FFI' }
/** A descriptor that nobody has. */
const NOBODYS = 1_000_000

test('flush and flushApart answer alike, more at once than there are threads', options, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-flush-'))
  const [file, directory, device] = [openSync(join(folder, 'a'), 'w'), openSync(folder, 'r'),
    openSync('/dev/null', 'r')] as const
  try {
    writeSync(file, 'x')
    for (const how of [flush, flushApart]) {
      const asked = Array.from({ length: 20 }, (_, i) => how(file, i % 2 === 1))
      assert.deepEqual(await Promise.all([...asked, how(directory, false), how(device, false), how(NOBODYS, true)]),
        [...asked.map(() => 0), 0, -EINVAL, -EBADF])
    }
  } finally {
    for (const fd of [file, directory, device]) closeSync(fd)
    rmSync(folder, { recursive: true })
  }
})

test('flush works under the permission model, where Node refuses fsync, and lets the process end', options, () => {
  const module = fileURLToPath(new URL('./flush.ts', import.meta.url))
  const code = `import { flush } from ${JSON.stringify(module)}
    console.log(await flush(1), await flush(${NOBODYS}, true))`
  const { stdout, stderr, status } = spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning',
    '--disable-warning=SecurityWarning', '--permission', '--allow-ffi', '--allow-worker', '--allow-fs-read=/',
    '-e', code], { encoding: 'utf8', timeout: 20_000 })
  assert.deepEqual([stdout, stderr, status], [`${-EINVAL} ${-EBADF}\n`, '', 0])
})
