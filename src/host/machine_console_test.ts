// host/machine_console_test.ts: a machine's console: its window, what is replayed, input that is taken bit by bit.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX } from '../base/limits.ts'
import type { Engine } from '../machine/engine.ts'
import type { Consoles } from './consoles.ts'
import { MachineConsole } from './machine_console.ts'

const REPLAYED = 16 * 1024

/** A console between consoles and an engine that only note what they are told. `takes`: bytes at once. */
function rig() {
  const did = { held: [] as boolean[], output: [] as string[], taken: 0, input: '' }
  const engine = { takes: Infinity }
  const fake = {
    holdConsole: (isHeld: boolean) => { did.held.push(isHeld) },
    input: (bytes: Uint8Array) => {
      const taken = Math.min(engine.takes, bytes.length)
      did.input += Buffer.from(bytes.subarray(0, taken)).toString()
      return taken
    },
  } as unknown as Engine
  const screen = new MachineConsole(1, {
    output: (_number: number, _channel: number, bytes: Uint8Array) => {
      did.output.push(Buffer.from(bytes).toString())
    },
    taken: (_number: number, bytes: number) => { did.taken += bytes },
  } as unknown as Consoles)
  return { did, engine, fake, screen }
}

const replayed = (screen: MachineConsole): string => {
  let text = ''
  screen.replay((bytes) => { text += Buffer.from(bytes).toString() })
  return text
}

test('a guest that writes more than a window waits until that is done with, and is told once', () => {
  const { did, fake, screen } = rig()
  screen.connect(fake)
  const piece = Buffer.alloc(OUTPUT_PIECE_BYTES, 'x')
  const pieces = Math.floor(OUTPUT_WINDOW_BYTES_MAX / (2 * OUTPUT_PIECE_BYTES)) + 1
  for (let i = 0; i < pieces + 3; i++) screen.write(piece)
  assert.deepEqual(did.held, [true])
  assert.equal(did.output.length, pieces + 3)
  for (let i = 0; i < pieces + 3; i++) screen.credit(2 * OUTPUT_PIECE_BYTES)
  assert.deepEqual(did.held, [true, false])
  screen.credit(1e9)
  screen.write(Buffer.from('on'))
  assert.deepEqual(did.held, [true, false], 'credit that nobody owed opens no larger window')
})

test('an engine that comes while the window is full takes no output either', () => {
  const { did, fake, screen } = rig()
  screen.connect(fake)
  screen.write(Buffer.alloc(OUTPUT_WINDOW_BYTES_MAX + 1))
  screen.connect(undefined)
  screen.connect(fake)
  assert.deepEqual(did.held, [true, true])
  screen.credit(OUTPUT_WINDOW_BYTES_MAX + 1 + OUTPUT_PIECE_BYTES)
  assert.deepEqual(did.held, [true, true, false])
})

test('who comes later sees the last that was written, and never more than some screens', () => {
  const { fake, screen } = rig()
  assert.equal(replayed(screen), '')
  screen.connect(fake)
  screen.write(Buffer.from('one '))
  screen.write(Buffer.from('two'))
  assert.equal(replayed(screen), 'one two')
  screen.connect(undefined)
  assert.equal(replayed(screen), 'one two', 'it stays when the engine is gone')
  for (let i = 0; i < 3000; i++) screen.write(Buffer.from(`line ${i}\n`))
  const text = replayed(screen)
  assert.ok(text.length <= REPLAYED && text.length > REPLAYED - 20, String(text.length))
  assert.ok(text.endsWith('line 2999\n'))
})

test('one write that is larger than what is kept is seen by its end', () => {
  const { screen } = rig()
  screen.write(Buffer.from(`${'x'.repeat(100_000)}login: `))
  const text = replayed(screen)
  assert.ok(text.endsWith('xxlogin: '))
  assert.ok(text.length <= REPLAYED)
})

test('input that the guest does not take at once is offered again, in its order', async () => {
  const { did, engine, fake, screen } = rig()
  engine.takes = 3
  screen.connect(fake)
  screen.read(Buffer.from('hello '))
  screen.read(Buffer.from('world'))
  assert.equal(did.input, 'hel')
  while (did.taken < 11) await sleep(5)
  assert.equal(did.input, 'hello world')
  screen.read(null)
  assert.equal(did.taken, 11)
})

test('input before there is an engine waits for it; input beyond a bound is dropped, and told as taken', () => {
  const { did, fake, screen } = rig()
  screen.read(Buffer.from('early'))
  assert.equal(did.taken, 0)
  screen.read(Buffer.alloc(2 ** 20))
  assert.equal(did.taken, 2 ** 20, 'who sent it may send more')
  screen.connect(fake)
  assert.equal(did.input, 'early')
  assert.equal(did.taken, 2 ** 20 + 5)
})

test('input that waits when the guest is reset is gone, and leaves room for as much again', () => {
  const { did, engine, fake, screen } = rig()
  for (let i = 0; i < 3; i++) {
    engine.takes = 0
    screen.connect(fake)
    screen.read(Buffer.alloc(2 ** 20, 'x'))
    screen.connect(undefined)
    assert.equal(did.taken, (i + 1) * 2 ** 20)
  }
  engine.takes = Infinity
  screen.connect(fake)
  screen.read(Buffer.from('here'))
  assert.equal(did.input, 'here')
})
