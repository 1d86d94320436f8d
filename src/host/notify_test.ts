// host/notify_test.ts: what a service manager hears. Python's socket hears it: Node has no datagrams on Unix sockets.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { isSupported } from '../sys/libc.ts'
import { Notifier } from './notify.ts'

const hasPython = spawnSync('python3', ['-c', '']).status === 0
const skip = !isSupported() ? 'needs Linux and a Node with FFI' : hasPython ? false : 'needs python3 to listen with'

/** Hears datagrams at `address` for as long as `body` runs. */
async function listening(address: string, body: (next: () => Promise<string>) => Promise<void>): Promise<void> {
  const script = `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
a = sys.argv[1]
s.bind('\\0' + a[1:] if a[0] == '@' else a)
print('ready', flush=True)
while True: print(s.recv(4096).decode().replace('\\n', '|'), flush=True)`
  const child = spawn('python3', ['-c', script, address], { stdio: ['ignore', 'pipe', 'inherit'] })
  try {
    const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
    const next = async (): Promise<string> => String((await lines.next()).value)
    assert.equal(await next(), 'ready')
    await body(next)
  } finally {
    child.kill('SIGKILL')
    await once(child, 'close')
  }
}

test('Notifier tells a socket, by path or abstract, what the host does', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-notify-'))
  try {
    for (const address of [join(folder, 'n'), `@cellar-test-${process.pid}`]) {
      await listening(address, async (next) => {
        const env: Record<string, string | undefined> = { NOTIFY_SOCKET: address, OTHER: 'x' }
        const notifier = new Notifier(env)
        assert.deepEqual(env, { OTHER: 'x' })
        notifier.ready('3 guests\nrun')
        notifier.reloading()
        notifier.stopping()
        assert.equal(await next(), `READY=1|MAINPID=${process.pid}|STATUS=3 guests run`)
        assert.match(await next(), /^RELOADING=1\|MONOTONIC_USEC=\d+$/)
        assert.equal(await next(), 'STOPPING=1')
      })
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('Notifier feeds the watchdog that is meant for it', { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-notify-'))
  const address = join(folder, 'n')
  try {
    await listening(address, async (next) => {
      const others = new Notifier({ NOTIFY_SOCKET: address, WATCHDOG_USEC: '20000', WATCHDOG_PID: '1' })
      const notifier = new Notifier({ NOTIFY_SOCKET: address, WATCHDOG_USEC: '20000',
        WATCHDOG_PID: String(process.pid) })
      // Its timer keeps no process alive, so the test does.
      const alive = setTimeout(() => {}, 30_000)
      assert.equal(await next(), 'WATCHDOG=1')
      assert.equal(await next(), 'WATCHDOG=1')
      clearTimeout(alive)
      notifier.stopping()
      others.stopping()
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('Notifier says nothing and fails at nothing where nobody listens', { skip }, () => {
  for (const env of [{}, { NOTIFY_SOCKET: '' }, { NOTIFY_SOCKET: '/no/such', WATCHDOG_USEC: 'x' }]) {
    const notifier = new Notifier(env)
    notifier.ready('')
    notifier.stopping()
  }
})
