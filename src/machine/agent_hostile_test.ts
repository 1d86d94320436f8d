// machine/agent_hostile_test.ts: an agent that is played by hand does what no agent of ours does; the host bears it.

import assert from 'node:assert/strict'
import { duplexPair, PassThrough, type Duplex } from 'node:stream'
import { mock, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { ESUCCESS } from '../base/errno.ts'
import { Agent } from './agent.ts'
import type { AgentAnswer, AgentRequest } from './agent_line.ts'
import { FRAME_BYTES_MAX, FRAME_MARK, GUEST_ID, HEADER_BYTES, OUTPUT_WINDOW_BYTES, TO_GUEST } from './agent_protocol.ts'

/** A guest that is played by hand. */
class Guest {
  readonly agent: Agent
  readonly asked: AgentRequest[] = []
  readonly why: string[] = []
  readonly line: Duplex
  answer: (asked: AgentRequest) => Promise<AgentAnswer> = async () => ({ errno: ESUCCESS })
  #held: Buffer = Buffer.alloc(0)
  #tag = 0
  #nonce: Buffer = Buffer.alloc(0)
  heard: { kind: number; id: number; body: Buffer }[] = []

  constructor() {
    this.agent = new Agent({
      name: 'evil', generation: 'ab'.repeat(16),
      request: async (asked) => {
        this.asked.push(asked)
        return await this.answer(asked)
      },
      changed: (guest, why) => void (guest === undefined && this.why.push(why)),
    })
    const [near, far] = duplexPair()
    this.line = far
    far.on('error', () => {})
    this.agent.attach(near)
  }

  /** One that has said hello. */
  static async ready(): Promise<Guest> {
    const guest = new Guest()
    guest.listen()
    while (guest.#tag === 0) await turn()
    guest.hello()
    while (!guest.agent.isConnected) await turn()
    return guest
  }

  listen(): void {
    this.line.on('data', (chunk: Buffer) => {
      this.#held = Buffer.concat([this.#held, chunk])
      for (;;) {
        const from = this.#held.findIndex((byte) => byte !== 0)
        if (from < 0) return void (this.#held = Buffer.alloc(0))
        this.#held = this.#held.subarray(from)
        const end = this.#held.length < HEADER_BYTES ? Infinity : HEADER_BYTES + this.#held.readUInt32LE(8) + 4
        if (end > this.#held.length) return
        const body = this.#held.subarray(HEADER_BYTES, end - 4)
        const [kind, id] = [this.#held[1]!, this.#held.readUInt32LE(4)]
        if (kind === 1) [this.#tag, this.#nonce] = [body.readUInt32LE(4), body.subarray(8, 24)]
        this.heard.push({ kind, id, body })
        this.#held = this.#held.subarray(end)
      }
    })
  }

  hello(version = 1, text = 'x'): void {
    const one = Buffer.concat([Buffer.from([text.length & 0xff, text.length >> 8]), Buffer.from(text)])
    this.say(65, 0, Buffer.concat([Buffer.from([version, 0, 0, 0]), this.#nonce, one, one, one, one, one]))
  }

  say(kind: number, id: number, body: readonly number[] | Uint8Array = []): void {
    const bytes = Buffer.alloc(HEADER_BYTES + body.length + 4)
    bytes[0] = FRAME_MARK
    bytes[1] = kind
    bytes.writeUInt32LE(id, 4)
    bytes.writeUInt32LE(body.length, 8)
    bytes.set(body, HEADER_BYTES)
    bytes.writeUInt32LE(this.#tag, HEADER_BYTES + body.length)
    this.line.write(bytes)
  }

  async settle(): Promise<void> {
    for (let i = 0; i < 20; i++) await turn()
  }
}

test('an agent that breaks the protocol loses its line, and what was under way is lost', async () => {
  const cases: { [why: string]: (guest: Guest, id: number) => void } = {
    'more than it was granted': (guest, id) => {
      for (let sent = 0; sent <= OUTPUT_WINDOW_BYTES; sent += 32_768) guest.say(66, id, Buffer.alloc(32_769, 1))
    },
    'a second hello': (guest) => guest.hello(),
    'an unknown kind': (guest) => guest.say(99, 1),
    'an end of an unknown kind': (guest, id) => guest.say(68, id, [9, 0, 0, 0, 0]),
    'a body that is too long': (guest, id) => guest.say(70, id, [1]),
    'no frame': (guest) => void guest.line.write('GET / HTTP/1.1\r\n\r\n'),
    'the end of the line': (guest) => void guest.line.end(),
  }
  for (const [why, act] of Object.entries(cases)) {
    const guest = await Guest.ready()
    const session = guest.agent.exec({ argv: ['x'] })
    const pinged = assert.rejects(guest.agent.ping(), { code: 'AGENT_NOT_CONNECTED' }, why)
    await guest.settle()
    act(guest, guest.heard.find(({ kind }) => kind === TO_GUEST.exec[0])!.id)
    assert.deepEqual((await session.ended).kind, 'lost', why)
    await pinged
    assert.ok(!guest.agent.isConnected && guest.why.length === 1, why)
  }
})

test('an agent that is no agent is left: one of another version, one that answers nothing', async () => {
  const other = new Guest()
  other.listen()
  await other.settle()
  other.hello(2)
  await other.settle()
  assert.ok(other.line.destroyed || other.line.readableEnded)
  mock.timers.enable({ apis: ['setTimeout'] })
  const silent = new Guest()
  mock.timers.tick(20_000)
  mock.timers.reset()
  silent.listen()
  await silent.settle()
  assert.ok(!silent.agent.isConnected && silent.line.readableEnded)
  await assert.rejects(silent.agent.connected(1), { code: 'AGENT_NOT_CONNECTED' })
})

test('what a guest says of itself is short and printable', async () => {
  const guest = new Guest()
  guest.listen()
  await guest.settle()
  guest.hello(1, `\u001b[2J${'x'.repeat(10_000)}`)
  await guest.agent.connected(1000)
  for (const text of Object.values(guest.agent.guest!)) {
    assert.ok(text.length < 140 && /^[\x20-\x7e…]*$/.test(text), text)
  }
  guest.agent.close()
})

test('output of sessions that aren\'t there, and credit without end, do nothing', async () => {
  const guest = await Guest.ready()
  const session = guest.agent.exec({ argv: ['x'] })
  await guest.settle()
  const { id } = guest.heard.find(({ kind }) => kind === TO_GUEST.exec[0])!
  for (let i = 0; i < 1000; i++) guest.say(66, 12_345, Buffer.alloc(1000))
  for (const kind of [67, 70]) guest.say(kind, 12_345)
  guest.say(68, 12_345, [0, 0, 0, 0, 0])
  guest.say(71, 12_345, Buffer.alloc(8))
  for (let i = 0; i < 10; i++) guest.say(69, id, [0xff, 0xff, 0xff, 0xff])
  await guest.settle()
  const written = session.write(Buffer.alloc(1_000_000))
  await guest.settle()
  const sent = guest.heard.filter(({ kind }) => kind === TO_GUEST.input[0])
    .reduce((sum, { body }) => sum + body.length, 0)
  assert.equal(sent, 65_536)
  assert.ok(guest.agent.isConnected)
  guest.agent.close()
  await written
})

test('requests are checked, and there are so many at a time and no more', async () => {
  const guest = await Guest.ready()
  const request = (id: number, what: number, value: number, text: string): void => {
    const body = Buffer.alloc(7)
    body[0] = what
    body.writeUInt32LE(value, 1)
    body.writeUInt16LE(Buffer.byteLength(text), 5)
    guest.say(72, id, Buffer.concat([body, Buffer.from(text)]))
  }
  const errors = (): number[] => guest.heard.filter(({ kind }) => kind === TO_GUEST.answer[0])
    .map(({ body }) => body.readUInt32LE(0))
  const bad = [[1, 0, 0, ''], [GUEST_ID, 9, 0, ''], [GUEST_ID, 1, 0, 'x'.repeat(41)], [GUEST_ID, 2, 0, ''],
    [GUEST_ID, 2, 1_000_000, ''], [GUEST_ID, 4, 0, 'a'], [GUEST_ID, 4, 65_536, 'a'], [GUEST_ID, 4, 1, ''],
    [GUEST_ID, 4, 1, 'x'.repeat(300)]] as const
  for (const [id, what, value, text] of bad) request(id, what, value, text)
  await guest.settle()
  assert.deepEqual([errors(), guest.asked], [bad.map(() => 22), []])
  guest.heard = []
  const waiting: ((answer: AgentAnswer) => void)[] = []
  guest.answer = async () => await new Promise((resolve) => { waiting.push(resolve) })
  for (let i = 0; i < 100; i++) request(GUEST_ID + i, 0, 0, '')
  await guest.settle()
  assert.deepEqual([guest.asked.length, errors()], [32, Array(68).fill(11)])
  for (const resolve of waiting) resolve({ errno: ESUCCESS, text: 'x'.repeat(100_000) })
  await guest.settle()
  assert.deepEqual(errors().slice(68), Array(32).fill(0))
  guest.agent.close()
})

test('connections of a guest are so many and no more, and end with its line', async () => {
  const guest = await Guest.ready()
  const streams: PassThrough[] = []
  guest.answer = async () => {
    streams.push(new PassThrough())
    return { errno: ESUCCESS, stream: streams.at(-1)! }
  }
  for (let i = 0; i < 100; i++) {
    guest.say(72, GUEST_ID + i, [4, 80, 0, 0, 0, 1, 0, 97])
    await turn()
  }
  await guest.settle()
  assert.equal(streams.length, 64)
  guest.say(66, GUEST_ID, [1, 120])
  await guest.settle()
  assert.ok(guest.heard.some(({ kind, id, body }) => kind === TO_GUEST.input[0] && id === GUEST_ID && body[0] === 120))
  guest.line.destroy()
  await guest.settle()
  assert.ok(streams.every((stream) => stream.destroyed))
})

test('an agent that asks and reads no answer is heard no more, until it reads', async () => {
  const guest = await Guest.ready()
  guest.line.pause()
  guest.answer = async () => ({ errno: ESUCCESS, text: 'x'.repeat(60_000) })
  for (let i = 0; i < 400; i++) {
    guest.say(72, GUEST_ID + i, [0, 0, 0, 0, 0, 0, 0])
    await turn()
  }
  assert.ok(guest.asked.length < 60, `${guest.asked.length} were answered`)
  guest.line.resume()
  const answers = (): number => guest.heard.filter(({ kind }) => kind === TO_GUEST.answer[0]).length
  while (answers() < 400) await turn()
  guest.agent.close()
})

test('no frames of an agent make the host throw', async () => {
  const body = fc.oneof(fc.uint8Array({ maxLength: 12 }), fc.constantFrom([0, 0, 0, 0, 0], [1, 2], Array(8).fill(0)))
  const frame = fc.tuple(fc.integer({ min: 65, max: 73 }), fc.constantFrom(1, 2, 3, GUEST_ID, GUEST_ID + 1), body)
  await fc.assert(fc.asyncProperty(fc.array(frame, { maxLength: 20 }), async (frames) => {
    const guest = await Guest.ready()
    guest.answer = async () => ({ errno: ESUCCESS, stream: new PassThrough() })
    const session = guest.agent.exec({ argv: ['x'] })
    const read = (async () => { for await (const _ of session.output) continue })()
    for (const [kind, id, bytes] of frames) guest.say(kind, id, bytes)
    await guest.settle()
    guest.agent.close()
    await read
  }), { numRuns: 100 })
})

test('a host that comes anew begins with zeros for the longest frame', async () => {
  const guest = new Guest()
  const first = guest.line.read() as Buffer | null ?? Buffer.alloc(0)
  await guest.settle()
  const all = Buffer.concat([first, guest.line.read() as Buffer ?? Buffer.alloc(0)])
  assert.equal(all.findIndex((byte) => byte !== 0), FRAME_BYTES_MAX)
  guest.agent.close()
})
