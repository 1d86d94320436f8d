// sys/fd_passing_test.ts: a descriptor comes with the bytes that name it.

import assert from 'node:assert/strict'
import { closeSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { EAGAIN, EPIPE } from '../base/errno.ts'
import { sendWithFd } from './fd_passing.ts'
import { isSupported } from './libc.ts'
import { closeFd, socketPair } from './sockets.ts'

const skip = isSupported() ? false : 'no system calls here'
const hasPython = spawnSync('python3', ['--version']).status === 0

// Reads the bytes and one descriptor from its descriptor 3, and writes them to the file that it was given.
const RECEIVER = `
import array, os, socket
s = socket.socket(fileno=3)
s.setblocking(True)
data, control, _, _ = s.recvmsg(100, socket.CMSG_SPACE(4))
os.write(array.array('i', control[0][2])[0], data)
`

test('a program gets a descriptor with the bytes', { skip: hasPython ? skip : 'no python3 here' }, (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-fd-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const file = openSync(join(folder, 'got'), 'w')
  const [ours, theirs] = socketPair()
  assert.equal(sendWithFd(ours, Buffer.from('with it'), file), 7)
  const { stderr, status } = spawnSync('python3', ['-c', RECEIVER], { stdio: ['ignore', 'pipe', 'pipe', theirs] })
  assert.equal(status, 0, String(stderr))
  assert.equal(readFileSync(join(folder, 'got'), 'utf8'), 'with it')
  // Ours is still open.
  assert.equal(fstatSync(file).size, 7)
  for (const fd of [ours, theirs, file]) closeFd(fd)
})

test('a full socket and a closed one are errors, not waits', { skip }, () => {
  const [ours, theirs] = socketPair()
  const block = Buffer.alloc(64 * 1024)
  assert.throws(() => { for (;;) writeSync(ours, block) }, { code: 'EAGAIN' })
  assert.equal(sendWithFd(ours, block, ours), -EAGAIN)
  closeFd(theirs)
  assert.equal(sendWithFd(ours, Buffer.from('x'), ours), -EPIPE)
  closeSync(ours)
})
