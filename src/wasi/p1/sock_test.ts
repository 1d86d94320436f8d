// wasi/p1/sock_test.ts: the socket calls over a real memory and real sockets on the loopback interface.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, test, type TestContext } from 'node:test'
import {
  EAGAIN, EBADF, ECONNRESET, EINVAL, EMFILE, ENOTCAPABLE, ENOTCONN, ENOTSOCK, EPIPE, ESUCCESS,
} from '../../base/errno.ts'
import { DESCRIPTORS_MAX, IOVECS_MAX, SOCKET_BUFFER_BYTES_MAX, TRANSFER_BYTES_MAX } from '../../base/limits.ts'
import { FILETYPE_CHARACTER_DEVICE, type Descriptor } from '../../services/descriptor.ts'
import { GuestFault, GuestMemory } from '../../services/guest_memory.ts'
import { Iovecs } from '../../services/iovecs.ts'
import { listen, type Listener } from '../../services/net/listener.ts'
import {
  FDFLAGS_APPEND, FDFLAGS_NONBLOCK, RIFLAGS_RECV_PEEK, RIFLAGS_RECV_WAITALL, RIGHTS_LISTENER, RIGHTS_SOCKET,
  RIGHTS_STREAM, SDFLAGS_RD, SDFLAGS_WR,
} from './abi.ts'
import { Context, WAIT, type Hypercall } from './context.ts'
import { Descriptors } from './descriptors.ts'
import { sock_accept, sock_recv, sock_send, sock_shutdown } from './sock.ts'
import { wouldBlock } from './nonblock.ts'

const [LIST, OUT, OUT_FLAGS, DATA] = [0, 16_384, 16_388, 65_536]
const BEYOND = 0x7fff_fff0
const LISTENING = 1

/** A cell with a console as descriptor 0, a listening socket as 1, and as `peer` a client of it. */
class Rig {
  readonly memory = new GuestMemory(new WebAssembly.Memory({ initial: 48 }))
  readonly descriptors = new Descriptors()
  readonly context: Context
  readonly listener: Listener
  waits = 0

  static async start(test: TestContext): Promise<Rig> {
    const rig = new Rig(await listen('tcp:127.0.0.1:0'))
    test.after(() => rig.descriptors.closeAll())
    return rig
  }

  private constructor(listener: Listener) {
    this.listener = listener
    const console: Descriptor = { filetype: FILETYPE_CHARACTER_DEVICE, read: () => 0, write: () => 0, close: () => {} }
    this.descriptors.add({ descriptor: console, rightsBase: RIGHTS_STREAM, rightsInheriting: 0, flags: 0 })
    this.descriptors.add({
      descriptor: listener, rightsBase: RIGHTS_LISTENER, rightsInheriting: RIGHTS_SOCKET, flags: 0,
    })
    const clock = { monotonic: () => 0, realtime: () => new Float64Array(2), resolution: 1 }
    const { memory, descriptors } = this
    const rest = { args: [], env: [], clock, entropy: { fill: () => {} } }
    this.context = new Context({ memory, descriptors, iovecs: new Iovecs(), ...rest } as never)
  }

  /** What the gate does: tries, and parks the vCPU as long as the answer is WAIT. */
  async call(hypercall: Hypercall, ...args: number[]): Promise<number> {
    for (;;) {
      const answer = hypercall(this.context, ...args)
      if (answer !== WAIT) return answer
      this.waits++
      await this.context.parked()
    }
  }

  async connect(): Promise<Socket> {
    const peer = connect({ port: this.listener.port, host: '127.0.0.1', allowHalfOpen: true })
    peer.on('error', () => {})
    await once(peer, 'connect')
    return peer
  }

  /** A connection: its number and its peer. */
  async pair(fdflags = 0): Promise<[number, Socket]> {
    const [answer, peer] = await Promise.all([this.call(sock_accept, LISTENING, fdflags, OUT), this.connect()])
    assert.equal(answer, ESUCCESS)
    return [this.memory.u32(OUT), peer]
  }

  /** Writes a list of ranges, one after another from DATA: its length. */
  list(...lengths: number[]): number {
    let at = DATA
    lengths.forEach((length, i) => {
      this.memory.setU32(LIST + 8 * i, at)
      this.memory.setU32(LIST + 8 * i + 4, length)
      at += length
    })
    return lengths.length
  }

  recv(fd: number, length: number, riflags = 0): Promise<number> {
    this.memory.setU16(OUT_FLAGS, 0xffff)
    return this.call(sock_recv, fd, LIST, this.list(length), riflags, OUT, OUT_FLAGS)
  }

  send(fd: number, text: string): Promise<number> {
    this.memory.at(DATA, text.length).set(Buffer.from(text))
    return this.call(sock_send, fd, LIST, this.list(text.length), 0, OUT)
  }

  /** What the last recv() received. */
  get received(): string { return Buffer.from(this.memory.at(DATA, this.memory.u32(OUT))).toString() }

  /** Tries a hypercall that must fault. */
  faults(hypercall: Hypercall, ...args: number[]): void {
    assert.throws(() => hypercall(this.context, ...args), GuestFault)
  }

  async arrived(fd: number, bytes: number): Promise<void> {
    const { descriptor } = this.descriptors.get(fd)!
    for (let i = 0; i < 1000 && descriptor.pollRead!() < bytes; i++) await sleep(2)
    assert.ok(descriptor.pollRead!() >= bytes)
  }
}

describe('sock_accept', () => {
  test('it waits for a connection and gives it the lowest free number', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    assert.equal(fd, 2)
    assert.equal(rig.waits, 1)
    const entry = rig.descriptors.get(fd)!
    assert.deepEqual([entry.rightsBase, entry.rightsInheriting, entry.flags], [RIGHTS_SOCKET, 0, 0])
    assert.equal(await rig.send(fd, 'hello'), ESUCCESS)
    assert.equal(String((await once(peer, 'data'))[0]), 'hello')
    peer.destroy()
  })

  test('fdflags are the connection\'s, and only NONBLOCK is possible', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair(FDFLAGS_NONBLOCK)
    assert.equal(rig.descriptors.get(fd)!.flags, FDFLAGS_NONBLOCK)
    assert.equal(sock_accept(rig.context, LISTENING, FDFLAGS_APPEND, OUT), EINVAL)
    assert.equal(sock_accept(rig.context, LISTENING, -1, OUT), EINVAL)
    peer.destroy()
  })

  test('a listening socket that is non-blocking answers EAGAIN', async (context) => {
    const rig = await Rig.start(context)
    rig.descriptors.get(LISTENING)!.flags = FDFLAGS_NONBLOCK
    assert.equal(sock_accept(rig.context, LISTENING, 0, OUT), EAGAIN)
  })

  test('a bad pointer costs no connection', async (context) => {
    const rig = await Rig.start(context)
    const peer = await rig.connect()
    await rig.arrived(LISTENING, 1)
    rig.faults(sock_accept, LISTENING, 0, BEYOND)
    rig.faults(sock_accept, LISTENING, 0, -2)
    assert.equal(rig.descriptors.get(2), undefined)
    assert.equal(sock_accept(rig.context, LISTENING, 0, OUT), ESUCCESS)
    peer.destroy()
  })

  test('without a free number it answers EMFILE and the connection goes on waiting', async (context) => {
    const rig = await Rig.start(context)
    const filler: Descriptor = { filetype: FILETYPE_CHARACTER_DEVICE, close: () => {} }
    const entry = { descriptor: filler, rightsBase: 0, rightsInheriting: 0, flags: 0 }
    for (let fd = 2; fd < DESCRIPTORS_MAX; fd++) assert.equal(rig.descriptors.add(entry), fd)
    const peer = await rig.connect()
    await rig.arrived(LISTENING, 1)
    assert.equal(sock_accept(rig.context, LISTENING, 0, OUT), EMFILE)
    rig.descriptors.close(1000)
    assert.equal(sock_accept(rig.context, LISTENING, 0, OUT), ESUCCESS)
    assert.equal(rig.memory.u32(OUT), 1000)
    assert.equal(await rig.send(1000, 'there'), ESUCCESS)
    assert.equal(String((await once(peer, 'data'))[0]), 'there')
    peer.destroy()
  })

  test('a connection has no right that the listening socket does not hand on', async (context) => {
    const rig = await Rig.start(context)
    rig.descriptors.get(LISTENING)!.rightsInheriting = 0
    const [fd, peer] = await rig.pair()
    assert.equal(await rig.send(fd, 'x'), ENOTCAPABLE)
    assert.equal(await rig.recv(fd, 1), ENOTCAPABLE)
    assert.equal(sock_shutdown(rig.context, fd, SDFLAGS_WR), ENOTCAPABLE)
    peer.destroy()
  })
})

describe('what is not a socket', () => {
  const CALLS: readonly [string, (rig: Rig, fd: number) => Promise<number>][] = [
    ['sock_accept', (rig, fd) => rig.call(sock_accept, fd, 0, OUT)],
    ['sock_recv', (rig, fd) => rig.recv(fd, 1)],
    ['sock_send', (rig, fd) => rig.send(fd, 'x')],
    ['sock_shutdown', (rig, fd) => rig.call(sock_shutdown, fd, SDFLAGS_RD)],
  ]
  for (const [name, call] of CALLS) {
    test(`${name} answers EBADF for no descriptor and ENOTSOCK for a console`, async (context) => {
      const rig = await Rig.start(context)
      assert.equal(await call(rig, 7), EBADF)
      assert.equal(await call(rig, -1), EBADF)
      assert.equal(await call(rig, 0), ENOTSOCK)
    })
  }

  test('a listening socket is not connected, and a connection does not accept', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    assert.equal(await rig.recv(LISTENING, 1), ENOTCONN)
    assert.equal(await rig.send(LISTENING, 'x'), ENOTCONN)
    assert.equal(sock_shutdown(rig.context, LISTENING, SDFLAGS_RD), ENOTCONN)
    assert.equal(sock_accept(rig.context, fd, 0, OUT), EINVAL)
    rig.descriptors.get(LISTENING)!.rightsBase = 0
    assert.equal(sock_accept(rig.context, LISTENING, 0, OUT), ENOTCAPABLE)
    peer.destroy()
  })
})

describe('sock_recv', () => {
  test('it waits for bytes, gives what is there, and 0 at the end', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    rig.waits = 0
    setTimeout(() => peer.end('late'), 20)
    assert.equal(await rig.recv(fd, 100), ESUCCESS)
    assert.equal(rig.received, 'late')
    assert.equal(rig.memory.u16(OUT_FLAGS), 0)
    assert.equal(rig.waits, 1)
    assert.equal(await rig.recv(fd, 100), ESUCCESS)
    assert.equal(rig.memory.u32(OUT), 0)
  })

  test('RECV_PEEK leaves the bytes', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    peer.write('twice')
    for (const flags of [RIFLAGS_RECV_PEEK, RIFLAGS_RECV_PEEK, 0]) {
      assert.equal(await rig.recv(fd, 100, flags), ESUCCESS)
      assert.equal(rig.received, 'twice')
    }
    peer.destroy()
  })

  test('a non-blocking connection answers EAGAIN until bytes are there', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair(FDFLAGS_NONBLOCK)
    assert.equal(sock_recv(rig.context, fd, LIST, rig.list(10), 0, OUT, OUT_FLAGS), EAGAIN)
    assert.equal(sock_recv(rig.context, fd, LIST, rig.list(10), RIFLAGS_RECV_WAITALL, OUT, OUT_FLAGS), EAGAIN)
    peer.write('x')
    await rig.arrived(fd, 1)
    assert.equal(sock_recv(rig.context, fd, LIST, rig.list(10), RIFLAGS_RECV_WAITALL, OUT, OUT_FLAGS), ESUCCESS)
    assert.equal(rig.received, 'x')
    peer.destroy()
  })

  test('a guest that asks a non-blocking connection in a loop gets what arrives', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair(FDFLAGS_NONBLOCK)
    rig.waits = 0
    peer.write('found')
    let answer = EAGAIN
    for (let tries = 0; answer === EAGAIN && tries < 10_000_000; tries++) {
      answer = sock_recv(rig.context, fd, LIST, rig.list(10), 0, OUT, OUT_FLAGS)
      if (answer !== WAIT) continue
      rig.waits++
      await rig.context.parked()
      answer = EAGAIN
    }
    assert.equal(answer, ESUCCESS)
    assert.equal(rig.received, 'found')
    assert.ok(rig.waits > 0, 'the event loop had its turns')
    assert.equal(wouldBlock(rig.context, { ...rig.descriptors.get(fd)!, flags: 0 }), undefined)
    peer.destroy()
  })

  test('RECV_WAITALL waits until the ranges are full', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    const receiving = rig.recv(fd, 9, RIFLAGS_RECV_WAITALL)
    for (const piece of ['abc', 'def', 'ghi', 'jkl']) {
      peer.write(piece)
      await sleep(10)
    }
    assert.equal(await receiving, ESUCCESS)
    assert.equal(rig.received, 'abcdefghi')
    assert.equal(await rig.recv(fd, 9), ESUCCESS)
    assert.equal(rig.received, 'jkl')
    peer.destroy()
  })

  test('RECV_WAITALL may ask for more than the connection buffers', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    const sent = Buffer.alloc(3 * SOCKET_BUFFER_BYTES_MAX)
    sent.forEach((_, i) => { sent[i] = i * 7 + (i >> 8) })
    assert.ok(sent.length < TRANSFER_BYTES_MAX)
    peer.write(sent)
    assert.equal(await rig.recv(fd, sent.length, RIFLAGS_RECV_WAITALL), ESUCCESS)
    assert.equal(rig.memory.u32(OUT), sent.length)
    assert.equal(Buffer.compare(rig.memory.at(DATA, sent.length), sent), 0)
    // A peek can't empty the buffer; it gives what fits into it.
    peer.write(sent)
    assert.equal(await rig.recv(fd, sent.length, RIFLAGS_RECV_WAITALL | RIFLAGS_RECV_PEEK), ESUCCESS)
    const peeked = rig.memory.u32(OUT)
    assert.ok(peeked > 0 && peeked <= SOCKET_BUFFER_BYTES_MAX)
    assert.equal(Buffer.compare(rig.memory.at(DATA, peeked), sent.subarray(0, peeked)), 0)
    assert.equal(await rig.recv(fd, sent.length, RIFLAGS_RECV_WAITALL), ESUCCESS)
    assert.equal(Buffer.compare(rig.memory.at(DATA, sent.length), sent), 0)
    peer.destroy()
  })

  test('RECV_WAITALL gives what came before the end, or before a reset', async (context) => {
    const rig = await Rig.start(context)
    const [ended, peer] = await rig.pair()
    setTimeout(() => peer.end('short'), 10)
    assert.equal(await rig.recv(ended, 100, RIFLAGS_RECV_WAITALL), ESUCCESS)
    assert.equal(rig.received, 'short')

    const [broken, other] = await rig.pair()
    other.write('torn')
    setTimeout(() => other.resetAndDestroy(), 30)
    assert.equal(await rig.recv(broken, 100, RIFLAGS_RECV_WAITALL), ESUCCESS)
    assert.equal(rig.received, 'torn')
    assert.equal(await rig.recv(broken, 100, RIFLAGS_RECV_WAITALL), ECONNRESET)
    assert.equal(await rig.send(broken, 'x'), EPIPE)
    assert.equal(sock_shutdown(rig.context, broken, SDFLAGS_RD), ENOTCONN)
  })

  test('a bad pointer or flag costs no byte', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    peer.write('kept')
    await rig.arrived(fd, 4)
    rig.faults(sock_recv, fd, LIST, rig.list(4), 0, BEYOND, OUT_FLAGS)
    rig.faults(sock_recv, fd, LIST, rig.list(4), 0, OUT, BEYOND)
    rig.faults(sock_recv, fd, BEYOND, 1, 0, OUT, OUT_FLAGS)
    rig.faults(sock_recv, fd, LIST, rig.list(4, 0x7000_0000), 0, OUT, OUT_FLAGS)
    assert.equal(sock_recv(rig.context, fd, LIST, rig.list(4), 4, OUT, OUT_FLAGS), EINVAL)
    assert.equal(sock_recv(rig.context, fd, LIST, IOVECS_MAX + 1, 0, OUT, OUT_FLAGS), EINVAL)
    assert.equal(await rig.recv(fd, 100), ESUCCESS)
    assert.equal(rig.received, 'kept')
    peer.destroy()
  })
})

describe('sock_send', () => {
  test('it waits while the peer reads nothing, and goes on when it does', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    peer.pause()
    rig.waits = 0
    let sent = 0
    let received = 0
    peer.on('data', (chunk: Buffer) => { received += chunk.length })
    setTimeout(() => peer.resume(), 100)
    while (rig.waits === 0 || sent < 16 * TRANSFER_BYTES_MAX) {
      const answer = await rig.call(sock_send, fd, LIST, rig.list(TRANSFER_BYTES_MAX), 0, OUT)
      assert.equal(answer, ESUCCESS)
      const count = rig.memory.u32(OUT)
      assert.ok(count > 0)
      sent += count
    }
    assert.equal(sock_shutdown(rig.context, fd, SDFLAGS_WR), ESUCCESS)
    await once(peer, 'end')
    assert.equal(received, sent)
    assert.equal(await rig.send(fd, 'x'), EPIPE)
    peer.destroy()
  })

  test('a non-blocking connection answers EAGAIN when its buffer is full', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair(FDFLAGS_NONBLOCK)
    peer.pause()
    let answer = ESUCCESS
    for (let i = 0; i < 1000 && answer === ESUCCESS; i++) {
      answer = sock_send(rig.context, fd, LIST, rig.list(TRANSFER_BYTES_MAX), 0, OUT)
    }
    assert.equal(answer, EAGAIN)
    peer.destroy()
  })

  test('si_flags must be 0, and a bad pointer sends nothing', async (context) => {
    const rig = await Rig.start(context)
    const [fd, peer] = await rig.pair()
    assert.equal(sock_send(rig.context, fd, LIST, rig.list(4), 1, OUT), EINVAL)
    rig.faults(sock_send, fd, LIST, rig.list(4), 0, BEYOND)
    rig.faults(sock_send, fd, BEYOND, 1, 0, OUT)
    rig.faults(sock_send, fd, LIST, rig.list(4, 0x7000_0000), 0, OUT)
    assert.equal(await rig.send(fd, 'only'), ESUCCESS)
    assert.equal(rig.memory.u32(OUT), 4)
    assert.equal(sock_shutdown(rig.context, fd, SDFLAGS_WR), ESUCCESS)
    let text = ''
    for await (const chunk of peer) text += String(chunk)
    assert.equal(text, 'only')
  })
})

test('sock_shutdown takes RD, WR or both and nothing else', async (context) => {
  const rig = await Rig.start(context)
  const [fd, peer] = await rig.pair()
  for (const flags of [0, 4, 7, -1]) assert.equal(sock_shutdown(rig.context, fd, flags), EINVAL)
  assert.equal(sock_shutdown(rig.context, fd, SDFLAGS_RD), ESUCCESS)
  assert.equal(await rig.recv(fd, 10), ESUCCESS)
  assert.equal(rig.memory.u32(OUT), 0)
  assert.equal(await rig.send(fd, 'still'), ESUCCESS)
  assert.equal(sock_shutdown(rig.context, fd, SDFLAGS_RD | SDFLAGS_WR), ESUCCESS)
  let text = ''
  for await (const chunk of peer) text += String(chunk)
  assert.equal(text, 'still')
})
