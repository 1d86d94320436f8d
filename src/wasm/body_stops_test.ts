// wasm/body_stops_test.ts: nextOf() goes over exactly what next() reads, and finds the same faults.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import { BodyReader, eachBody, stopsAt } from './body.ts'
import { decodeModule } from './decode.ts'
import { leb, sleb } from './encode.ts'
import { INSTRUCTIONS } from './opcodes.ts'
import { MalformedModule } from './reader.ts'

type Wanted = (opcode: number) => boolean

/** Where a reader stops in the body at [start, end), how many instructions are between, and what stops it at last. */
function stopsBy(how: 'next' | 'nextOf', reader: BodyReader, [start, end]: [number, number], wanted: Wanted): unknown {
  const found: unknown[] = []
  const stops = stopsAt(wanted)
  let passed = 0
  try {
    reader.open(start, end)
    while (how === 'next' ? reader.next() : reader.nextOf(stops)) {
      if (how === 'next' && !wanted(reader.opcode)) {
        passed++
        continue
      }
      found.push([reader.at, reader.end, reader.opcode, reader.depth, how === 'next' ? passed : reader.passed])
      passed = 0
    }
    return [found, reader.at, reader.end]
  } catch (error) {
    if (!(error instanceof MalformedModule)) throw error
    return [found, error.offset, error.what]
  }
}

function checkBody(bytes: Uint8Array, range: [number, number], wanted: Wanted): void {
  assert.deepEqual(stopsBy('nextOf', new BodyReader(bytes), range, wanted),
    stopsBy('next', new BodyReader(bytes), range, wanted))
}

const padded = (bytes: number[], more: number): number[] =>
  more === 0 ? bytes : [...bytes.slice(0, -1), bytes.at(-1)! | 0x80, ...new Array<number>(more - 1).fill(0x80), 0]
const integer = fc.oneof(
  fc.nat(300).map((n) => leb(n)), fc.integer().map((n) => leb(n >>> 0)), fc.integer().map((n) => sleb(n)),
  fc.tuple(fc.nat(100_000), fc.nat(3)).map(([n, more]) => padded(leb(n), more)))
const byte = fc.oneof(fc.nat(0xff), fc.constantFrom(0x40, 0x7f, 0x7b, 0x0b, 0x80))
const instruction = fc.tuple(fc.constantFrom(...INSTRUCTIONS), fc.array(fc.oneof(integer, byte.map((n) => [n])),
  { maxLength: 3 })).map(([{ prefix, code }, immediates]) =>
  [...(prefix === 0 ? [code] : [prefix, ...leb(code)]), ...immediates.flat()])
const plain = fc.oneof(
  fc.constantFrom([0x01], [0x1a], [0x6a], [0x02, 0x40], [0x0b], [0x03, 0x7f], [0x04, 0x05]),
  fc.tuple(fc.constantFrom(0x20, 0x10, 0x41, 0x42, 0x0c, 0x23), integer).map(([code, n]) => [code, ...n]),
  fc.tuple(fc.constantFrom(0x28, 0x37, 0x11), fc.nat(70), integer).map(([code, n, m]) => [code, n, ...m]))
const code = fc.array(fc.oneof({ weight: 6, arbitrary: plain }, instruction, fc.array(byte, { maxLength: 4 })),
  { maxLength: 40 }).map((parts) => parts.flat())

test('nextOf stops where next does, and throws what next throws, in bodies that are mostly not well formed', () => {
  fc.assert(fc.property(
    fc.array(byte, { maxLength: 3 }), code, fc.nat(2), fc.array(byte, { maxLength: 6 }), fc.integer(),
    (before, body, ends, behind, seed) => {
      const content = [0, ...body, ...new Array<number>(ends).fill(0x0b)]
      const bytes = Uint8Array.from([...before, ...content, ...behind])
      const range: [number, number] = [before.length, before.length + content.length]
      checkBody(bytes, range, (opcode) => (seed >> opcode % 31 & 1) === 1)
      checkBody(bytes, range, () => false)
    }), { numRuns: 3000 })
})

const folder = new URL('../../guests/', import.meta.url)
for (const file of readdirSync(folder).filter((name) => name.endsWith('.wasm'))) {
  test(`nextOf stops where next does in the code of guests/${file}`, () => {
    const module = decodeModule(readFileSync(new URL(file, folder)))
    const sets: Wanted[] = [() => false, () => true, (opcode) => opcode === 3, (opcode) => opcode > 1 && opcode < 0x12]
    eachBody(module, (start, end) => {
      for (const wanted of sets) checkBody(module.bytes, [start, end], wanted)
    })
  })
}

test('nextOf takes nothing but what stopsAt made', () => {
  const reader = new BodyReader(Uint8Array.of(0, 0x0b))
  reader.open(0, 2)
  assert.throws(() => reader.nextOf(new Int32Array(3)), RangeError)
})
