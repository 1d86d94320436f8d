// services/net/connection_test.ts: connections against real sockets on the loopback interface.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import { describe, test, type TestContext } from 'node:test'
import { EAGAIN, ECONNRESET, ENOTCONN, EPIPE } from '../../base/errno.ts'
import { SOCKET_BUFFER_BYTES_MAX, TRANSFER_BYTES_MAX } from '../../base/limits.ts'
import { flushed, type Connection } from './connection.ts'
import { listen } from './listener.ts'
import { DATA, memory, put, ranges, readable, receive, textOf, writable } from './test_support.ts'

/** Waits for what the event loop brings sooner or later; a test that waits in vain fails by its own assertion. */
async function until(condition: () => boolean, ms = 5000): Promise<void> {
  for (const end = Date.now() + ms; !condition() && Date.now() < end;) await sleep(2)
}

/** A connected pair: the guest's side and the peer's. */
async function pair(context: TestContext, options: { allowHalfOpen?: boolean } = {}): Promise<[Connection, Socket]> {
  const listener = await listen('tcp:127.0.0.1:0')
  const peer = connect({ port: listener.port, host: '127.0.0.1', ...options })
  peer.on('error', () => {})
  const waiting = readable(listener)
  await Promise.all([once(peer, 'connect'), waiting])
  const connection = listener.accept()
  assert.ok(typeof connection !== 'number')
  listener.close()
  context.after(() => {
    peer.destroy()
    connection.reset()
  })
  return [connection, peer]
}

/** All that `peer` gets until the FIN. */
async function drain(peer: Socket): Promise<Buffer> {
  const chunks: Buffer[] = []
  peer.on('data', (chunk: Buffer) => chunks.push(chunk))
  peer.resume()
  await once(peer, 'end')
  return Buffer.concat(chunks)
}

describe('receiving', () => {
  test('recv() would wait, then gives what came, scattered over the ranges in order', async (context) => {
    const [connection, peer] = await pair(context)
    assert.equal(connection.recv(ranges(10)), -EAGAIN)
    assert.equal(connection.pollRead(), -EAGAIN)
    peer.write('hello world')
    await readable(connection)
    assert.equal(connection.pollRead(), 11)
    assert.equal(connection.recv(ranges(3, 0, 4)), 7)
    assert.equal(textOf(7), 'hello w')
    assert.equal(connection.recv(ranges(100)), 4)
    assert.equal(textOf(4), 'orld')
    assert.equal(connection.recv(ranges(100)), -EAGAIN)
  })

  test('recv() joins several pieces and leaves the first `from` bytes of the ranges alone', async (context) => {
    const [connection, peer] = await pair(context)
    for (const piece of ['ab', 'cd', 'ef']) {
      peer.write(piece)
      await readable(connection)
    }
    memory.at(DATA, 8).fill('.'.charCodeAt(0))
    assert.equal(connection.recv(ranges(1, 1, 3, 3), 3), 5)
    assert.equal(textOf(8), '...abcde')
    assert.equal(connection.unread, 1)
    assert.equal(await receive(connection), 'f')
  })

  test('peek() gives the bytes and leaves them', async (context) => {
    const [connection, peer] = await pair(context)
    peer.write('again')
    await readable(connection)
    assert.equal(connection.peek(ranges(3)), 3)
    assert.equal(connection.peek(ranges(9)), 5)
    assert.equal(await receive(connection), 'again')
  })

  test('recv() into no bytes is 0 and takes nothing', async (context) => {
    const [connection] = await pair(context)
    assert.equal(connection.recv(ranges(0)), 0)
  })

  test('what a peer sends to a guest that does not read is bounded, and all of it arrives', async (context) => {
    const [connection, peer] = await pair(context)
    const sent = 8 * 1024 * 1024
    const pattern = Buffer.alloc(sent, Buffer.from(Array.from({ length: 251 }, (_, i) => i)))
    peer.end(pattern)
    await until(() => connection.complete)
    await sleep(50)
    assert.ok(connection.complete, 'stopped reading')
    assert.ok(connection.unread > 0 && connection.unread <= SOCKET_BUFFER_BYTES_MAX, `${connection.unread} unread`)
    assert.ok(peer.writableLength > 0, 'the peer is held up')

    let received = 0
    for (;;) {
      const count = connection.recv(ranges(100_000))
      if (count === 0) break
      if (count === -EAGAIN) { await readable(connection); continue }
      assert.ok(count > 0)
      const expected = pattern.subarray(received, received + count)
      assert.equal(Buffer.compare(memory.at(DATA, count), expected), 0, `byte ${received} and after`)
      received += count
      assert.ok(connection.unread <= SOCKET_BUFFER_BYTES_MAX)
    }
    assert.equal(received, sent)
  })

  test('a peer that sends byte by byte is bounded by pieces, not by bytes', async (context) => {
    const [connection, peer] = await pair(context)
    peer.setNoDelay(true)
    for (let i = 0; i < 20_000 && !connection.complete; i++) {
      peer.write('x')
      if (i % 4 === 0) await turn()
    }
    await until(() => connection.complete, 500)
    // Either the kernel joined the bytes into few pieces, or reading stopped after about PAUSE_BYTES / PIECE_BYTES.
    assert.ok(connection.complete || connection.unread === 20_000)
    if (connection.complete) assert.ok(connection.unread < 20_000, `${connection.unread} unread`)
  })
})

describe('sending', () => {
  test('send() accepts the ranges in order and copies them', async (context) => {
    const [connection, peer] = await pair(context)
    memory.at(DATA, 11).set(Buffer.from('hello world'))
    assert.equal(connection.send(ranges(5, 0, 6)), 11)
    memory.at(DATA, 11).fill(0)
    const [got] = await once(peer, 'data') as [Buffer]
    assert.equal(got.toString(), 'hello world')
  })

  test('what a guest sends to a peer that does not read is bounded, and all of it arrives', async (context) => {
    const [connection, peer] = await pair(context)
    peer.pause()
    let accepted = 0
    let refusals = 0
    const sum = (bytes: Uint8Array): number => bytes.reduce((total, byte) => total + byte, 0)
    let sentSum = 0
    // The kernel takes a few MiB before the peer's silence reaches us.
    for (let i = 0; refusals < 20 && i < 2000; i++) {
      memory.at(DATA, TRANSFER_BYTES_MAX).fill(i % 256)
      const count = connection.send(ranges(TRANSFER_BYTES_MAX))
      if (count === -EAGAIN) {
        refusals++
        await sleep(5)
        continue
      }
      assert.ok(count > 0 && count <= SOCKET_BUFFER_BYTES_MAX)
      sentSum += sum(memory.at(DATA, count))
      accepted += count
      assert.ok(connection.unsent <= SOCKET_BUFFER_BYTES_MAX, `${connection.unsent} unsent`)
    }
    assert.equal(refusals, 20)
    assert.equal(connection.pollWrite(), -EAGAIN)

    let woken = false
    const wake = writable(connection).then(() => { woken = true })
    await sleep(20)
    assert.equal(woken, false, 'no room has come')
    let received = 0
    let receivedSum = 0
    peer.on('data', (chunk: Buffer) => {
      received += chunk.length
      receivedSum += sum(chunk)
    })
    peer.resume()
    await wake
    assert.ok(connection.pollWrite() >= SOCKET_BUFFER_BYTES_MAX / 2)
    connection.close()
    await once(peer, 'end')
    assert.equal(received, accepted)
    assert.equal(receivedSum, sentSum)
  })

  test('many small sends without a turn of the event loop come to an end, and go on after one', async (context) => {
    const [connection, peer] = await pair(context)
    let count = 0
    while (count < 100_000 && connection.send(put('x')) === 1) count++
    assert.ok(count >= 100 && count <= 2000, `${count} sends were accepted`)
    await writable(connection)
    assert.equal(connection.send(put('y')), 1)
    connection.close()
    assert.equal((await drain(peer)).toString(), `${'x'.repeat(count)}y`)
  })
})

describe('the two directions', () => {
  test('after the peer\'s FIN the rest can be read, recv() says 0, and the guest can still answer', async (context) => {
    const [connection, peer] = await pair(context, { allowHalfOpen: true })
    peer.end('question')
    await readable(connection)
    await until(() => connection.complete)
    assert.equal(connection.pollRead(), 8)
    assert.equal(await receive(connection), 'question')
    assert.equal(connection.recv(ranges(10)), 0)
    assert.equal(connection.pollRead(), 0)
    assert.equal(connection.hangup(), false)
    assert.equal(connection.send(put('answer')), 6)
    assert.equal(connection.shutdown({ read: false, write: true }), 0)
    assert.equal(connection.hangup(), true)
    assert.equal((await drain(peer)).toString(), 'answer')
  })

  test('shutdown for writing sends a FIN after the data; receiving goes on', async (context) => {
    const [connection, peer] = await pair(context, { allowHalfOpen: true })
    assert.equal(connection.send(put('last')), 4)
    assert.equal(connection.shutdown({ read: false, write: true }), 0)
    assert.equal(connection.shutdown({ read: false, write: true }), 0)
    assert.equal(connection.send(put('more')), -EPIPE)
    assert.equal(connection.pollWrite(), 0)
    assert.equal((await drain(peer)).toString(), 'last')
    peer.end('reply')
    assert.equal(await receive(connection), 'reply')
    assert.equal(await receive(connection), '')
  })

  test('shutdown for reading ends receiving and wakes who waits; sending goes on', async (context) => {
    const [connection, peer] = await pair(context)
    peer.write('unread')
    await readable(connection)
    const woken = readable(connection)
    assert.equal(connection.shutdown({ read: true, write: false }), 0)
    await woken
    assert.equal(connection.recv(ranges(10)), 0)
    // The peer isn't held up by what nobody reads.
    peer.write(Buffer.alloc(4 * SOCKET_BUFFER_BYTES_MAX))
    await until(() => peer.writableLength === 0)
    assert.equal(peer.writableLength, 0)
    assert.equal(connection.unread, 0)
    assert.equal(connection.send(put('still')), 5)
    assert.equal(String((await once(peer, 'data'))[0]), 'still')
  })

  test('after a reset the rest can be read, then recv() says ECONNRESET and send() EPIPE', async (context) => {
    const [connection, peer] = await pair(context)
    peer.write('rest')
    await readable(connection)
    const woken = [readable(connection), writable(connection)]
    peer.resetAndDestroy()
    await Promise.all(woken)
    assert.equal(connection.hangup(), true)
    assert.equal(connection.pollRead(), 4)
    assert.equal(await receive(connection), 'rest')
    assert.equal(connection.recv(ranges(10)), -ECONNRESET)
    assert.equal(connection.peek(ranges(10)), -ECONNRESET)
    assert.equal(connection.pollRead(), 0)
    assert.equal(connection.pollWrite(), 0)
    assert.equal(connection.send(put('x')), -EPIPE)
    assert.equal(connection.shutdown({ read: true, write: true }), -ENOTCONN)
    connection.close()
  })

  test('forget() takes the waker back', async (context) => {
    const [connection, peer] = await pair(context)
    let wakes = 0
    const wake = (): void => { wakes++ }
    connection.awaitReadable(wake)
    connection.awaitWritable(wake)
    connection.forget(wake)
    peer.write('x')
    await readable(connection)
    peer.resetAndDestroy()
    await until(() => connection.hangup())
    assert.equal(wakes, 0)
  })
})

describe('closing', () => {
  test('data that send() accepted reaches the peer although the guest closes at once', async (context) => {
    const [connection, peer] = await pair(context)
    peer.pause()
    let accepted = 0
    for (let refusals = 0; refusals < 5;) {
      const count = connection.send(ranges(TRANSFER_BYTES_MAX))
      if (count > 0) accepted += count
      else {
        refusals++
        await sleep(5)
      }
    }
    connection.close()
    connection.close()
    let done = false
    const all = flushed(10_000).then(() => { done = true })
    await sleep(30)
    assert.equal(done, false, 'flushed() waits for the peer')
    assert.equal((await drain(peer)).length, accepted)
    await all
  })

  test('data reaches the peer although the guest closes with received data unread', async (context) => {
    const [connection, peer] = await pair(context, { allowHalfOpen: true })
    peer.pause()
    let failure: Error | undefined
    peer.on('error', (error) => { failure = error })
    // Both ways are full: the kernel would answer a plain close with a reset, and drop what it has of the answer.
    peer.end(Buffer.alloc(32 * 1024 * 1024))
    await until(() => connection.complete)
    let accepted = 0
    for (let count = 1; count > 0; accepted += Math.max(count, 0)) {
      count = connection.send(ranges(TRANSFER_BYTES_MAX))
      await turn()
    }
    connection.close()
    const got = drain(peer)
    await flushed(10_000)
    assert.equal((await got).length, accepted)
    assert.equal(failure, undefined)
  })

  test('flushed() gives up after its bound when the peer takes nothing', async (context) => {
    const [connection, peer] = await pair(context)
    peer.pause()
    for (let refusals = 0; refusals < 5;) {
      if (connection.send(ranges(TRANSFER_BYTES_MAX)) > 0) continue
      refusals++
      await sleep(5)
    }
    connection.close()
    const start = performance.now()
    await flushed(100)
    const ms = performance.now() - start
    assert.ok(ms >= 90 && ms < 3000, `${ms} ms`)
    peer.destroy()
    await flushed(5000)
  })

  test('a peer that never closes does not keep a closed connection', async (context) => {
    const [connection, peer] = await pair(context, { allowHalfOpen: true })
    peer.write('unread')
    await readable(connection)
    connection.close()
    const start = performance.now()
    await flushed(10_000)
    const ms = performance.now() - start
    assert.ok(ms >= 500 && ms < 5000, `lingered ${ms} ms`)
    assert.equal(peer.destroyed, false)
  })

  test('flushed() answers at once when nothing is left', async () => {
    const start = performance.now()
    await flushed(5000)
    assert.ok(performance.now() - start < 1000)
  })
})

describe('leave()', () => {
  test('resets a connection on which the guest might have sent more', async (context) => {
    const [connection, peer] = await pair(context)
    assert.equal(connection.send(put('half of an ans')), 14)
    const failed = once(peer, 'error')
    peer.resume()
    connection.leave()
    const [error] = await failed
    assert.equal(error.code, 'ECONNRESET')
  })

  test('brings what the guest has ended to its peer in full', async (context) => {
    const [connection, peer] = await pair(context)
    connection.send(put('the answer'))
    connection.shutdown({ read: false, write: true })
    connection.leave()
    assert.equal((await drain(peer)).toString(), 'the answer')
  })
})
