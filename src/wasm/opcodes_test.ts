// wasm/opcodes_test.ts: the table of instructions against V8, number by number, and its names against wabt.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import wabt from 'wabt'
import { BodyReader } from './body.ts'
import { BodyWriter } from './body_writer.ts'
import { leb, section, vec } from './encode.ts'
import { INSTRUCTIONS, PREFIX_BASE, instructionOf, opcodeOf } from './opcodes.ts'
import type { Immediate, Instruction } from './opcodes.ts'
import { MalformedModule } from './reader.ts'

const ANY = 0x6e
const EQ = 0x6d
const EMPTY = 0x40
const END = 0x0b
const UNREACHABLE = 0x00

// Something of every kind to refer to. Types: struct, array, func, packed array, array of references, packed struct.
const BEFORE_CODE = [
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
  ...section(1, vec([
    [0x5f, 1, 0x7f, 1], [0x5e, 0x7f, 1], [0x60, 0, 0], [0x5e, 0x78, 1], [0x5e, 0x70, 1], [0x5f, 1, 0x78, 1],
  ])),
  ...section(3, vec([[2]])), ...section(4, vec([[0x70, 0, 1]])), ...section(5, vec([[0, 1]])),
  ...section(13, vec([[0, 2]])), ...section(6, vec([[0x7f, 1, 0x41, 0, END]])),
  ...section(9, vec([[1, 0, 1, 0]])), ...section(12, [1]),
]
const STRUCT = 0
const ARRAY = 1
const FUNC = 2
const PACKED_ARRAY = 3
const REF_ARRAY = 4
const PACKED_STRUCT = 5

/** A module whose one function has an i32 as its local and this code. */
function moduleOf(instructions: readonly number[]): Uint8Array<ArrayBuffer> {
  const body = [1, 1, 0x7f, ...instructions]
  const code = section(10, vec([[...leb(body.length), ...body]]))
  return Uint8Array.from([...BEFORE_CODE, ...code, ...section(11, vec([[1, 0]]))])
}

function complaint(module: Uint8Array<ArrayBuffer>): string | undefined {
  try {
    new WebAssembly.Module(module)
  } catch (error) {
    return (error as Error).message
  }
}

/** Walks a function of one local. */
function walk(code: readonly number[]): string[] {
  const body = Uint8Array.from([1, 1, 0x7f, ...code])
  const reader = new BodyReader(body)
  const names: string[] = []
  for (reader.open(0, body.length); reader.next();) names.push(instructionOf(reader.opcode)!.name)
  return names
}

function typeFor(name: string): number {
  if (name.startsWith('call') || name.startsWith('return_call')) return FUNC
  if (name.startsWith('struct')) return /_[su]$/.test(name) ? PACKED_STRUCT : STRUCT
  if (name.endsWith('elem')) return REF_ARRAY
  return /_[su]$/.test(name) ? PACKED_ARRAY : ARRAY
}

/** log2 of what an atomic instruction accesses, which its alignment must be. */
function alignment(name: string): number {
  if (!name.includes('atomic')) return 0
  const width = /(?:load|store|rmw|wait)(8|16|32|64)/.exec(name)?.[1] ?? (name.startsWith('i64') ? '64' : '32')
  return Math.log2(Number(width) / 8)
}

function bytesFor(kind: Immediate, name: string): number[] {
  switch (kind) {
    case 'type': return [typeFor(name)]
    case 'memarg': return [alignment(name), 0]
    case 'f32': return [0, 0, 0, 0]
    case 'f64': return [0, 0, 0, 0, 0, 0, 0, 0]
    case 'v128': case 'lanes16': return new Array<number>(16).fill(0)
    case 'castflags': return [3]
    case 'blocktype': return [EMPTY]
    case 'heaptype': return [name.startsWith('br_on_cast') ? EQ : ANY]
    case 'types': return [1, 0x7f]
    case 'labels': return [2, 0, 0, 0]
    case 'catches': return [1, 2, 0]
    default: return [0]
  }
}

function instruction(one: Instruction): number[] {
  const opcode = one.prefix === 0 ? [one.code] : [one.prefix, ...leb(one.code)]
  return [...opcode, ...one.immediates.flatMap((kind) => bytesFor(kind, one.name))]
}

/** Valid code with this instruction in it: in most cases behind `unreachable`, where operands are of any type. */
function codeWith(one: Instruction): number[] {
  const it = instruction(one)
  switch (one.name) {
    case 'block': case 'loop': case 'if': case 'try_table': return [UNREACHABLE, ...it, END, END]
    case 'try': return [...it, 0x19, END, END]
    case 'else': return [0x41, 0, 0x04, EMPTY, ...it, END, END]
    case 'catch': case 'catch_all': case 'delegate': {
      return [0x06, EMPTY, ...it, ...(one.name === 'delegate' ? [] : [END]), END]
    }
    case 'rethrow': return [0x06, EMPTY, 0x19, ...it, END, END]
    case 'br_on_non_null': case 'br_on_cast': case 'br_on_cast_fail': {
      return [0x02, ANY, UNREACHABLE, ...it, UNREACHABLE, END, 0x1a, END]
    }
    case 'end': return it
    default: return [UNREACHABLE, ...it, UNREACHABLE, END]
  }
}

test('V8 validates every instruction of the table with its immediates, and we walk over it', () => {
  for (const one of INSTRUCTIONS) {
    const code = codeWith(one)
    assert.equal(complaint(moduleOf(code)), undefined, one.name)
    assert.ok(walk(code).includes(one.name), one.name)
  }
})

// No instruction, and no index of the module: V8 says by its complaint whether it took the byte for one or the other.
const NEITHER = 0x27

test('V8 reads as many immediates as the table has, no more and no fewer', () => {
  for (const one of INSTRUCTIONS) {
    const code = codeWith(one)
    const end = startOf(one) + instruction(one).length
    const behind = complaint(moduleOf([...code.slice(0, end), NEITHER, END])) ?? ''
    if (one.name === 'end') assert.match(behind, /trailing code/)
    else assert.match(behind, new RegExp(`Invalid opcode 0x27 @\\+${BEFORE_CODE.length + HEAD + end}$`), one.name)
    let place = end - one.immediates.flatMap((kind) => bytesFor(kind, one.name)).length
    for (const kind of one.immediates) {
      const within = complaint(moduleOf(code.map((byte, i) => i === place ? NEITHER : byte))) ?? ''
      assert.doesNotMatch(within, /Invalid opcode/, `${one.name}: ${kind}`)
      place += bytesFor(kind, one.name).length
    }
  }
})

/** Bytes of moduleOf before the instructions: section's id and length, count of bodies, body's length, locals. */
const HEAD = 7

/** Where codeWith puts the instruction. */
function startOf({ name }: Instruction): number {
  if (name === 'try' || name === 'end') return 0
  if (name === 'else') return 4
  if (/^(catch|catch_all|delegate)$/.test(name)) return 2
  return /^(rethrow|br_on_non_null|br_on_cast|br_on_cast_fail)$/.test(name) ? 3 : 1
}

// V8 knows the two of custom descriptors without a flag, but no type without a flag for which they are valid.
const NEVER_VALID = new Set(['fb 20', 'fb 21'])

test('What is not in the table is refused by V8 and by us, as an unknown opcode', () => {
  const candidates: number[][] = Array.from({ length: 256 }, (_, byte) => [byte])
  for (const prefix of [0xfb, 0xfc, 0xfd, 0xfe, 0xff]) {
    for (let code = 0; code < 0x300; code++) candidates.push([prefix, ...leb(code)])
    for (const code of [0x1000, 0x1_0000, 0x8000_0000, 0xffff_ffff]) candidates.push([prefix, ...leb(code)])
  }
  const known = new Set(INSTRUCTIONS.map(({ prefix, code }) =>
    (prefix === 0 ? [code] : [prefix, ...leb(code)]).join(' ')))
  let unknown = 0
  for (const candidate of candidates) {
    if (known.has(candidate.join(' ')) || (candidate.length === 1 && PREFIX_BASE[candidate[0]!] !== undefined)) continue
    unknown++
    const code = [UNREACHABLE, ...candidate, ...new Array<number>(20).fill(0), END]
    const hex = candidate.map((byte) => byte.toString(16)).join(' ')
    const isUnknown = (error: unknown): boolean =>
      error instanceof MalformedModule && error.what.startsWith('no instruction')
    assert.throws(() => walk(code), isUnknown, hex)
    const message = complaint(moduleOf(code))
    assert.match(message ?? '', NEVER_VALID.has(hex) ? /descriptor|Invalid|invalid/ : /opcode/, hex)
  }
  assert.ok(unknown > 2500, String(unknown))
})

test('A sub-opcode may have a longer encoding than it needs, in V8 and for us', () => {
  for (const padded of [[0xfc, 0x80, 0x00], [0xfd, 0xcd, 0x80, 0x00], [0xfb, 0x8f, 0x80, 0x80, 0x80, 0x00]]) {
    const code = [UNREACHABLE, ...padded, UNREACHABLE, END]
    assert.equal(complaint(moduleOf(code)), undefined)
    assert.equal(walk(code).length, 4)
  }
})

test('opcodeOf finds every instruction by its name, and no other', () => {
  assert.equal(new Set(INSTRUCTIONS.map(({ name }) => name)).size, INSTRUCTIONS.length)
  for (const { name, opcode } of INSTRUCTIONS) assert.equal(opcodeOf(name), opcode)
  assert.throws(() => opcodeOf('i32.nand'), /No instruction has the name "i32.nand"/)
})

const { parseWat } = await wabt()
const FEATURES = {
  exceptions: true, multi_memory: true, memory64: true, threads: true, reference_types: true, simd: true,
  bulk_memory: true, mutable_globals: true, sign_extension: true, sat_float_to_int: true, multi_value: true,
  tail_call: true, relaxed_simd: true, function_references: true,
}

const OTHER_TEXT =
  /^(end|else|catch|catch_all|delegate|rethrow|throw_ref|try_table|br_on_.*|.*call_ref|ref\.eq|ref\.as_non_null)$/

/** What wabt's text format writes behind the name; undefined where wabt lacks the instruction or has its own syntax. */
function textFor(one: Instruction): string | undefined {
  if (one.prefix === 0xfb || OTHER_TEXT.test(one.name)) return
  if (/^(block|loop|if|try)$/.test(one.name)) return `${one.name} end`
  if (one.name === 'select_t') return 'select (result i32)'
  if (one.name === 'ref.null') return 'ref.null func'
  const words = one.immediates.map((kind) => ({
    memarg: '', memory: '', zero: '', type: '(type 0)', lane: '0', lanes16: '0 '.repeat(16), v128: 'i32x4 0 0 0 0',
    labels: '0 0 0', table: one.name.startsWith('table.') && one.immediates.length === 1 ? '0' : '',
  })[kind as string] ?? '0')
  return [one.name, ...words].join(' ')
}

test('wabt gives the same opcodes to the same names', () => {
  let compared = 0
  for (const one of INSTRUCTIONS) {
    const text = textFor(one)
    if (text === undefined) continue
    const module = parseWat('one.wat', `(module (type (func)) (func (local i32) ${text}))`, FEATURES)
    const { buffer } = module.toBinary({})
    module.destroy()
    const writer = new BodyWriter(16)
    writer.opcode(one.opcode)
    // The body is the file's end: a group of locals (01 01 7f), then the instruction.
    const at = Buffer.from(buffer).lastIndexOf(Buffer.from([1, 1, 0x7f])) + 3
    assert.deepEqual(buffer.slice(at, at + writer.length), writer.written(), one.name)
    compared++
  }
  assert.ok(compared > 480, String(compared))
})
