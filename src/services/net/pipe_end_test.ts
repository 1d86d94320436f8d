// services/net/pipe_end_test.ts: connections within the process: on one thread, and over a trunk as between two.
//
// Each behaviour is tested in both ways. `settled` lets what is under way arrive: on one thread nothing ever is.

import assert from 'node:assert/strict'
import { MessageChannel } from 'node:worker_threads'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { EAGAIN, ECONNREFUSED, ECONNRESET, ENOTCONN, EPIPE } from '../../base/errno.ts'
import { SOCKET_BUFFER_BYTES_MAX } from '../../base/limits.ts'
import { linkedEnds, OPENING_BYTES, PipeEnd, type Far } from './pipe_end.ts'
import { DATA, memory, put, ranges, readable, receive, textOf, writable } from './test_support.ts'
import { Trunk, type Mail } from './trunk.ts'

type Pair = { dialing: PipeEnd; accepting: PipeEnd; settled(): Promise<void>; close(): void }

const mail = { control: undefined, read: () => {}, announce: () => {} }

function dialingEnd(far: Far): PipeEnd {
  const end = new PipeEnd('dials')
  end.link(far)
  return end
}

async function overTrunk(): Promise<Pair> {
  const { port1, port2 } = new MessageChannel()
  const accepted = Promise.withResolvers<PipeEnd>()
  const near = new Trunk(port1, { parity: 0, mail, accept: async () => {} })
  const far = new Trunk(port2, { parity: 1, mail, accept: async (guest, port, take) => {
    if (guest === 'server' && port === 80) accepted.resolve(take())
  } })
  port1.ref()
  const dialing = await near.open('server', 80, dialingEnd)
  assert.ok(typeof dialing !== 'number')
  const settled = async (): Promise<void> => {
    // Nobody is called so: the answers come after all that was sent before, in both directions.
    assert.equal(await near.open('nobody', 1, dialingEnd), ECONNREFUSED)
    assert.equal(await far.open('nobody', 1, dialingEnd), ECONNREFUSED)
    assert.equal(await near.open('nobody', 1, dialingEnd), ECONNREFUSED)
  }
  return { dialing, accepting: await accepted.promise, settled, close: () => near.close() }
}

const WAYS: Record<string, () => Promise<Pair>> = {
  'on one thread': async () => {
    const [dialing, accepting] = linkedEnds()
    return { dialing, accepting, settled: async () => {}, close: () => {} }
  },
  'over a trunk': overTrunk,
}

for (const [way, make] of Object.entries(WAYS)) {
  const pipe = (body: (pair: Pair) => Promise<void>, start = true) => async (): Promise<void> => {
    const pair = await make()
    try {
      if (start) pair.accepting.start()
      await pair.settled()
      await body(pair)
    } finally {
      pair.close()
    }
  }

  describe(`PipeEnd ${way}`, () => {
    test('recv() would wait, then gives what came, in order', pipe(async ({ dialing, accepting }) => {
      assert.equal(accepting.recv(ranges(10)), -EAGAIN)
      assert.equal(accepting.pollRead(), -EAGAIN)
      const arrived = readable(accepting)
      assert.equal(dialing.send(put('hello world')), 11)
      await arrived
      assert.equal(accepting.pollRead(), 11)
      assert.equal(accepting.peek(ranges(5)), 5)
      assert.equal(accepting.recv(ranges(3, 0, 4)), 7)
      assert.equal(textOf(7), 'hello w')
      assert.equal(accepting.recv(ranges(100)), 4)
      assert.equal(accepting.recv(ranges(100)), -EAGAIN)
    }))

    test('send() takes little before the connection is accepted, then a whole buffer', pipe(async (pair) => {
      assert.equal(pair.dialing.send(ranges(100_000)), OPENING_BYTES)
      assert.equal(pair.dialing.send(ranges(1)), -EAGAIN)
      pair.accepting.start()
      await pair.settled()
      assert.equal(pair.dialing.send(ranges(1_000_000)), SOCKET_BUFFER_BYTES_MAX - OPENING_BYTES - 256)
    }, false))

    test('send() answers EAGAIN to who sends byte by byte to one who does not read', pipe(async ({ dialing }) => {
      let sent = 0
      while (dialing.send(put('x')) === 1) sent++
      assert.ok(sent <= SOCKET_BUFFER_BYTES_MAX / 256 + 1, String(sent))
      assert.equal(dialing.pollWrite(), -EAGAIN)
    }))

    test('awaitWritable() wakes when half of the buffer was read', pipe(async ({ dialing, accepting, settled }) => {
      while (dialing.send(ranges(65_536)) > 0);
      await settled()
      let woken = false
      const room = writable(dialing).then(() => { woken = true })
      assert.ok(accepting.complete)
      accepting.recv(ranges(60_000))
      await settled()
      assert.equal(woken, false)
      while (accepting.recv(ranges(100_000)) > 0);
      await room
      assert.ok(dialing.pollWrite() >= SOCKET_BUFFER_BYTES_MAX / 2)
    }))

    test('is complete as long as its peer waits for room, also when some was read', pipe(async (pair) => {
      const { dialing, accepting, settled } = pair
      while (dialing.send(ranges(65_536)) > 0);
      let woken = false
      const room = writable(dialing).then(() => { woken = true })
      await settled()
      // The second step is too small to be told of.
      accepting.recv(ranges(100_000))
      accepting.recv(ranges(50_000))
      await settled()
      assert.equal(woken, false)
      assert.ok(accepting.complete)
      while (accepting.recv(ranges(100_000)) > 0);
      await room
    }))

    test('shutdown() of writing ends one direction only', pipe(async ({ dialing, accepting, settled }) => {
      dialing.send(put('question'))
      assert.equal(dialing.shutdown({ read: false, write: true }), 0)
      assert.equal(dialing.send(put('more')), -EPIPE)
      await settled()
      assert.equal(await receive(accepting), 'question')
      assert.equal(await receive(accepting), '')
      assert.equal(accepting.hangup(), false)
      accepting.send(put('answer'))
      accepting.shutdown({ read: false, write: true })
      assert.equal(await receive(dialing), 'answer')
      assert.equal(await receive(dialing), '')
      assert.ok(dialing.hangup() && accepting.hangup())
    }))

    test('shutdown() of reading drops what comes', pipe(async ({ dialing, accepting, settled }) => {
      accepting.shutdown({ read: true, write: false })
      for (let i = 0; i < 20; i++) {
        assert.ok(dialing.send(ranges(100_000)) > 0, `round ${i}`)
        await settled()
      }
      assert.equal(accepting.recv(ranges(10)), 0)
    }))

    test('close() lets what was sent be read; sending breaks', pipe(async ({ dialing, accepting, settled }) => {
      dialing.send(put('bye'))
      dialing.close()
      dialing.close()
      await settled()
      assert.equal(accepting.pollWrite() > 0, true)
      assert.equal(accepting.send(put('too late')), 8)
      await settled()
      assert.equal(accepting.send(put('too late')), -EPIPE)
      assert.equal(await receive(accepting), 'bye')
      assert.equal(await receive(accepting), '')
      assert.equal(accepting.shutdown({ read: true, write: true }), -ENOTCONN)
    }))

    test('close() with unread data resets, and so does abort()', pipe(async ({ dialing, accepting, settled }) => {
      dialing.send(put('unread'))
      accepting.send(put('an answer'))
      await settled()
      accepting.close()
      await settled()
      assert.equal(await receive(dialing), 'an answer')
      assert.equal(await receive(dialing), `error ${ECONNRESET}`)
      assert.equal(dialing.send(put('x')), -EPIPE)
      assert.equal(dialing.pollRead(), 0)
      assert.ok(dialing.hangup())
    }))

    test('abort() without unread data breaks the connection, too', pipe(async ({ dialing, accepting, settled }) => {
      accepting.send(put('half'))
      const arrived = readable(dialing)
      accepting.abort()
      await arrived
      await settled()
      assert.equal(await receive(dialing), 'half')
      assert.equal(await receive(dialing), `error ${ECONNRESET}`)
    }))

    test('any order of sends, reads and ends keeps bytes in order and ends once', async () => {
      await fc.assert(fc.asyncProperty(fc.array(STEP, { maxLength: 60 }), async (steps) => {
        const pair = await make()
        try {
          await followed(pair, steps)
        } finally {
          pair.close()
        }
      }), { numRuns: 60 })
    })
  })
}

test('Trunk opens nothing more when the other side is gone', async () => {
  const { port1, port2 } = new MessageChannel()
  const trunk = new Trunk(port1, { parity: 0, mail, accept: async () => {} })
  port1.ref()
  const opening = trunk.open('server', 80, dialingEnd)
  port2.close()
  assert.equal(await opening, ECONNRESET)
  assert.equal(await trunk.open('server', 80, dialingEnd), ECONNRESET)
})

test('Trunk breaks the connections when the other side is gone', async () => {
  const pair = await overTrunk()
  const [lost, also] = [readable(pair.accepting), readable(pair.dialing)]
  pair.close()
  await Promise.all([lost, also])
  assert.equal(pair.accepting.recv(ranges(1)), -ECONNRESET)
  assert.equal(pair.dialing.recv(ranges(1)), -ECONNRESET)
})

test('Trunk counts every message that was announced as read, and no other', async () => {
  const { port1, port2 } = new MessageChannel()
  const [near, far] = [new Int32Array(new SharedArrayBuffer(4)), new Int32Array(new SharedArrayBuffer(4))]
  const mailOf = (own: Int32Array<SharedArrayBuffer>): Mail => ({
    control: own.buffer, read: () => { own[0]!-- }, announce: (control: Int32Array) => { control[0]!++ },
  })
  const one = new Trunk(port1, { parity: 0, mail: mailOf(near), accept: async () => {} })
  const other = new Trunk(port2, { parity: 1, mail: mailOf(far), accept: async () => {} })
  port1.ref()
  for (let i = 0; i < 5; i++) {
    assert.equal(await one.open('x', 1, dialingEnd), ECONNREFUSED)
    assert.equal(await other.open('x', 1, dialingEnd), ECONNREFUSED)
  }
  assert.deepEqual([near[0], far[0]], [0, 0])
  one.close()
})

// ---- the model: what each end has sent and the other has read of it, as numbers; byte i of a direction is i mod 251.

const STEP = fc.record({
  who: fc.constantFrom('dialing', 'accepting' as const),
  what: fc.oneof({ weight: 5, arbitrary: fc.constantFrom('send' as const, 'recv' as const) },
    { weight: 1, arbitrary: fc.constant('settle' as const) }, { weight: 1, arbitrary: fc.constant('end' as const) }),
  size: fc.oneof(fc.nat(10), fc.nat(5000), fc.nat(200_000)),
})
type Step = { who: 'dialing' | 'accepting'; what: 'send' | 'recv' | 'settle' | 'end'; size: number }
type Model = { sent: number; read: number; ended: boolean; sawEnd: boolean }

function take(socket: PipeEnd, model: Model, size: number): number {
  const count = socket.recv(ranges(size))
  for (let i = 0; i < count; i++) assert.equal(memory.bytes[DATA + i], (model.read + i) % 251)
  if (count > 0) model.read += count
  if (size > 0 && count === 0) {
    assert.ok(model.ended && model.read === model.sent, 'the end comes after everything')
    model.sawEnd = true
  }
  assert.ok(count >= 0 || count === -EAGAIN)
  assert.ok(model.read <= model.sent)
  return count
}

async function followed(pair: Pair, steps: readonly Step[]): Promise<void> {
  const models = { dialing: newModel(), accepting: newModel() }
  pair.accepting.start()
  for (const { who, what, size } of steps) {
    const own = models[who]
    if (what === 'send') {
      for (let i = 0; i < size; i++) memory.bytes[DATA + i] = (own.sent + i) % 251
      const count = pair[who].send(ranges(size))
      assert.ok(own.ended ? count === -EPIPE : count >= 0 || count === -EAGAIN)
      if (count > 0) own.sent += count
      assert.ok(own.sent - own.read <= SOCKET_BUFFER_BYTES_MAX, 'no more is under way than the buffer holds')
    } else if (what === 'end') {
      pair[who].shutdown({ read: false, write: true })
      own.ended = true
    } else if (what === 'recv') take(pair[who], models[who === 'dialing' ? 'accepting' : 'dialing'], size)
    else await pair.settled()
  }
  for (const [who, reader] of [['dialing', 'accepting'], ['accepting', 'dialing']] as const) {
    pair[who].shutdown({ read: false, write: true })
    models[who].ended = true
    while (!models[who].sawEnd) if (take(pair[reader], models[who], 100_000) < 0) await readable(pair[reader])
    assert.equal(models[who].read, models[who].sent)
  }
}

function newModel(): Model { return { sent: 0, read: 0, ended: false, sawEnd: false } }
