// tests/machine/flat_program.ts: a guest of a hundred bytes, which does to ports, memory and registers what it is told.
//
// It is an ELF file that is entered as PVH kernels are: 32-bit protected mode, no paging, interrupts off. It reads a
// list of steps that lies behind it, each of four words: which of its instructions, how often, where, and a value.
// After the last it halts for good, unless a step has ended it. So a test writes in TypeScript what a driver without
// scruples does, and no kernel is between. Numbers are of 32 bits; places are guest-physical.

import { assert } from '../../src/base/assert.ts'

/** What a step does. Sizes are in bits. `times` counts for `storm` and the string instructions. */
export type StepKind = keyof typeof INSTRUCTIONS

/** A step: `kind`, where, a value, and how often. */
export type Step = readonly [kind: StepKind, at: number, value?: number, times?: number]

/** The ELF file of a guest that takes `steps`, and then halts. */
export function flatProgram(steps: readonly Step[]): Buffer {
  const { code, places } = assemble()
  assert(code.length <= SCRIPT - START, 'the program ends before its steps', code.length)
  const script = Buffer.alloc((steps.length + 1) * STEP_BYTES)
  steps.forEach(([kind, at, value = 0, times = 1], i) => {
    [places.get(kind)!, times, at, value].forEach((word, j) => {
      script.writeUInt32LE(word >>> 0, i * STEP_BYTES + j * 4)
    })
  })
  script.writeUInt32LE(places.get('halt')!, steps.length * STEP_BYTES)
  const load = Buffer.alloc(SCRIPT - START + script.length)
  code.copy(load)
  script.copy(load, SCRIPT - START)
  return elfFile(load)
}

// After each step the next one is read: esi → steps, ebx: the instruction's place, ecx: times, edi and edx: where,
// eax: value.
function assemble(): { code: Buffer; places: ReadonlyMap<string, number> } {
  const places = new Map<string, number>()
  let code = Buffer.from(['be', hex32(SCRIPT), 'bc', hex32(STACK)].join(''), 'hex')
  const next = code.length
  code = Buffer.concat([code, Buffer.from('ad89c3ad89c1ad89c789c2adffe3', 'hex')])
  for (const [kind, instruction] of Object.entries(INSTRUCTIONS)) {
    places.set(kind, START + code.length)
    const back = Buffer.from([0xe9, 0, 0, 0, 0])
    back.writeInt32LE(next - (code.length + instruction.length / 2 + back.length), 1)
    code = Buffer.concat([code, Buffer.from(instruction, 'hex'), back])
  }
  return { code, places }
}

function hex32(value: number): string {
  const word = Buffer.alloc(4)
  word.writeUInt32LE(value)
  return word.toString('hex')
}

function elfFile(load: Buffer): Buffer {
  const file = Buffer.alloc(LOAD_OFFSET)
  file.write('7f454c46010101', 'hex')
  const fields: readonly [at: number, value: number][] = [[16, 2 | 3 << 16], [20, 1], [24, START], [28, HEADER_BYTES],
    [40, HEADER_BYTES | PROGRAM_HEADER_BYTES << 16], [44, 2]]
  for (const [at, value] of fields) file.writeUInt32LE(value, at)
  const noteAt = HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES
  const headers = [
    [PT_LOAD, LOAD_OFFSET, START, START, load.length, load.length, 7, LOAD_OFFSET],
    [PT_NOTE, noteAt, 0, 0, 20, 20, 4, 4],
    [4, 4, XEN_ELFNOTE_PHYS32_ENTRY, 0x006e_6558, START], // the note; its third word's text is "Xen"
  ].flat()
  headers.forEach((word, i) => file.writeUInt32LE(word, HEADER_BYTES + i * 4))
  return Buffer.concat([file, load])
}

const joined = (...pieces: readonly string[]): string => pieces.join('')

const INSTRUCTIONS = {
  out8: 'ee', out16: '66ef', out32: 'ef', in8: 'ec', in16: '66ed', in32: 'ed',
  write8: '8807', write16: '668907', write32: '8907', read8: '8a07', read16: '668b07', read32: '8b07',
  write64: joined('0f6ec0', '0f62c0', '0f7f07'), // movd mm0, eax; punpckldq mm0, mm0; movq [edi], mm0: twice the value
  add32: 'f00fc107',                             // lock xadd [edi], eax
  fill8: 'f3aa', fill32: 'f3ab',                 // rep stosb, rep stosd
  storm: joined('8907', 'e2fc'),                 // 1: mov [edi], eax; loop 1b
  outs8: joined('89f5', 'be00001000', 'f36e', '89ee'), // rep outsb of its own code
  ins32: joined('bf00005000', 'f36d'),           // rep insd to 5 MiB
  say: joined('8b07', '66baf803', 'ee'),         // what stands there, to the serial line: the low byte
  jump: 'ffe7',
  halt: 'f4',
} as const

const START = 0x10_0000
const SCRIPT = START + 0x1000
const STACK = 0x8_0000
const STEP_BYTES = 16
const HEADER_BYTES = 52
const PROGRAM_HEADER_BYTES = 32
const LOAD_OFFSET = 0x1000
const PT_LOAD = 1
const PT_NOTE = 4
const XEN_ELFNOTE_PHYS32_ENTRY = 18
