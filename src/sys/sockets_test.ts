// sys/sockets_test.ts: real sockets, and descriptors that go from one process to another.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, rmSync, statSync } from 'node:fs'
import { connect, createServer, Socket, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { EADDRINUSE, EADDRNOTAVAIL, EBADF, EINVAL, ENAMETOOLONG, ENOENT, errnoOf } from '../base/errno.ts'
import { DESCRIPTORS_WAITING_MAX } from '../base/limits.ts'
import { isSupported } from './libc.ts'
import { close, read } from './linux_files.ts'
import {
  closeFd, listenTcp, openFdReceiver, peerCredentials, sendDatagram, sendFd, socketPair, type FdReceiver,
} from './sockets.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

function temporary(): { path: string; at(name: string): string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'cellar-sockets-'))
  return { path, at: (name) => join(path, name), [Symbol.dispose]: () => rmSync(path, { recursive: true }) }
}

function disposable(receiver: FdReceiver): FdReceiver & Disposable {
  return Object.assign(receiver, { [Symbol.dispose]: () => receiver.close() })
}

const openFds = (): number => readdirSync('/proc/self/fd').length

test('FdReceiver.take gives each descriptor by its ticket, whatever the order', { skip }, () => {
  using folder = temporary()
  using receiver = disposable(openFdReceiver(folder.at('f')))
  assert.equal(statSync(folder.at('f')).mode & 0o777, 0o600)
  assert.equal(receiver.take(1), undefined)
  const [a, b] = [openSync(folder.at('a'), 'w'), openSync(folder.at('b'), 'w')]
  sendFd(folder.at('f'), a, 1)
  sendFd(folder.at('f'), b, Number.MAX_SAFE_INTEGER)
  const received = [receiver.take(Number.MAX_SAFE_INTEGER)!, receiver.take(1)!]
  assert.deepEqual(received.map((fd) => fstatSync(fd).ino), [b, a].map((fd) => fstatSync(fd).ino))
  assert.equal(receiver.take(1), undefined)
  for (const fd of [a, b, ...received]) closeSync(fd)
})

test('sendFd fails with EAGAIN when the queue is full, and works again when it was read', { skip }, () => {
  using folder = temporary()
  using receiver = disposable(openFdReceiver(folder.at('f')))
  const fd = openSync('/dev/null', 'r')
  assert.throws(() => { for (let i = 0; i < 100_000; i++) sendFd(folder.at('f'), fd, i) }, { code: 'EAGAIN' })
  closeSync(receiver.take(0)!)
  sendFd(folder.at('f'), fd, 100_001)
  closeSync(receiver.take(100_001)!)
  closeSync(fd)
})

test('FdReceiver keeps a bounded number of descriptors that nobody takes, and close ends them', { skip }, () => {
  using folder = temporary()
  // This thread's own socket to send from is kept.
  sendDatagram(folder.at('none'), '')
  const before = openFds()
  const receiver = openFdReceiver(folder.at('f'))
  const fd = openSync('/dev/null', 'r')
  for (let i = 0; i < DESCRIPTORS_WAITING_MAX + 10; i++) {
    sendFd(folder.at('f'), fd, i)
    receiver.take(-1)
  }
  assert.equal(openFds(), before + 2 + DESCRIPTORS_WAITING_MAX)
  assert.equal(receiver.take(9), undefined)
  closeSync(receiver.take(10)!)
  receiver.close()
  receiver.close()
  closeSync(fd)
  assert.equal(openFds(), before)
  assert.equal(receiver.take(11), undefined)
})

test('FdReceiver passes over datagrams that are none of sendFd', { skip }, () => {
  using folder = temporary()
  using receiver = disposable(openFdReceiver(folder.at('f')))
  const before = openFds()
  assert.equal(sendDatagram(folder.at('f'), 'eight by'), 0)
  assert.equal(sendDatagram(folder.at('f'), 'more than eight bytes'), 0)
  assert.equal(sendDatagram(folder.at('f'), ''), 0)
  assert.equal(receiver.take(Number(Buffer.from('eight by').readBigUInt64LE())), undefined)
  assert.equal(openFds(), before)
})

test('sendFd and sendDatagram tell why they can\'t', { skip }, () => {
  using folder = temporary()
  assert.throws(() => sendFd(folder.at('none'), 0, 1), { code: 'ENOENT', syscall: 'sendmsg' })
  assert.throws(() => sendFd(`/${'x'.repeat(200)}`, 0, 1), { code: 'ENAMETOOLONG' })
  openFdReceiver(folder.at('f')).close()
  assert.throws(() => sendFd(folder.at('f'), 0, 1), { code: 'ENOENT' })
  using receiver = disposable(openFdReceiver(folder.at('f')))
  assert.throws(() => sendFd(folder.at('f'), 1_000_000, 1), (error) => errnoOf(error) === EBADF)
  assert.equal(receiver.take(1), undefined)
  assert.equal(sendDatagram(folder.at('none'), 'x'), -ENOENT)
  assert.equal(sendDatagram('@cellar-nobody-listens-here', 'x') < 0, true)
  assert.equal(sendDatagram('', 'x'), -EINVAL)
  assert.equal(sendDatagram('x'.repeat(108), 'x'), -ENAMETOOLONG)
})

test('a socket of listenTcp is accepted from by another process that was sent it', { skip }, async () => {
  using folder = temporary()
  const script = `import { openFdReceiver } from ${JSON.stringify(new URL('sockets.ts', import.meta.url).href)}
    import { Server } from 'node:net'
    const receiver = openFdReceiver(${JSON.stringify(folder.at('f'))})
    console.log('ready')
    for (;;) {
      const fd = receiver.take(7)
      if (fd !== undefined) { new Server((socket) => socket.end('child')).listen({ fd }); break }
      await new Promise((done) => setTimeout(done, 5))
    }`
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  try {
    await once(child.stdout, 'data')
    const { fd, port } = listenTcp('127.0.0.1', 0, 16) as { fd: number; port: number }
    sendFd(folder.at('f'), fd, 7)
    assert.equal(closeFd(fd), 0)
    const [data] = await once(connect(port, '127.0.0.1'), 'data') as [Buffer]
    assert.equal(String(data), 'child')
  } finally {
    child.kill('SIGKILL')
  }
})

test('listenTcp takes IPv4 and IPv6 addresses and answers an errno for others', { skip }, async () => {
  const four = listenTcp('127.0.0.1', 0, 1) as { fd: number; port: number }
  assert.equal(listenTcp('127.0.0.1', four.port, 1), -EADDRINUSE)
  closeFd(four.fd)
  const six = listenTcp('::1', 0, 1)
  if (typeof six !== 'number') {
    const server = createServer().listen({ fd: six.fd })
    await once(server, 'listening')
    assert.deepEqual(server.address() as AddressInfo, { address: '::1', family: 'IPv6', port: six.port })
    server.close()
  } else assert.equal(six, -EADDRNOTAVAIL)
  for (const [address, port] of [['localhost', 0], ['', 0], ['1.2.3', 0], ['fe80::1%lo', 0], ['127.0.0.1', 65_536],
    ['127.0.0.1', -1], ['127.0.0.1', NaN], ['1'.repeat(100), 0], ['127.0.0.1\0', 0]] as const) {
    assert.equal(listenTcp(address, port, 1), -EINVAL, `${address}:${port}`)
  }
  assert.equal(listenTcp('192.0.2.1', 0, 1), -EADDRNOTAVAIL)
  assert.equal(closeFd(-1), -EBADF)
})

test('socketPair connects its two ends, and peerCredentials says who made them', { skip }, async () => {
  const [a, b] = socketPair()
  assert.deepEqual(peerCredentials(a), { pid: process.pid, uid: process.getuid!(), gid: process.getgid!() })
  const memory = new Uint8Array(8)
  assert.ok(read(b, memory, 0, 8) < 0)
  const socket = new Socket({ fd: a })
  socket.end('x')
  await once(socket, 'finish')
  assert.equal(read(b, memory, 0, 8), 1)
  close(b)
  socket.destroy()
  assert.throws(() => peerCredentials(1_000_000), { code: 'EBADF' })
})
