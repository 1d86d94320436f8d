// tests/fuzz/recoded.ts: a module whose bodies were read by BodyReader and written by BodyWriter, one by one.

import { BodyReader, eachBody } from '../../src/wasm/body.ts'
import { BodyWriter } from '../../src/wasm/body_writer.ts'
import { SECTION_CODE } from '../../src/wasm/encode.ts'
import { sectionOf, type Module } from '../../src/wasm/module.ts'
import { OPCODE_END, opcodeOf } from '../../src/wasm/opcodes.ts'

/** Writes an instruction on which the reader stands. */
export type WriteInstruction = (reader: BodyReader, out: BodyWriter) => void

/** The module with each instruction as `write` writes it: by default from what was decoded of it. */
export function recoded(
  module: Module, write: WriteInstruction = (reader, out) => out.instruction(reader),
): Uint8Array<ArrayBuffer> {
  const section = sectionOf(module, SECTION_CODE)
  const { bytes } = module
  if (section === undefined) return Uint8Array.from(bytes)
  const out = new BodyWriter(bytes.length)
  out.copy(bytes, 0, section.start)
  out.byte(SECTION_CODE)
  const content = out.beginSized()
  out.u32(module.functionCount)
  const reader = new BodyReader(bytes)
  eachBody(module, (start, end) => {
    const body = out.beginSized()
    reader.open(start, end)
    out.copy(bytes, start, reader.codeStart)
    while (reader.next()) write(reader, out)
    out.endSized(body)
  })
  out.endSized(content)
  out.copy(bytes, section.end, bytes.length)
  return out.written().slice()
}

/** Bits that are set by whatever throws and by calls: what is pending at a call that throws is never paid. */
export const THROWN = 1 << 30
export const CALLED = 1 << 29

/** The module, counting each instruction that costs fuel in the global `counted` before it does it. */
export function counting(module: Module, counted: number): Uint8Array<ArrayBuffer> {
  return recoded(module, (reader, out) => {
    const cost = COSTS[reader.opcode]!
    const bits = cost & (THROWN | CALLED)
    if (cost > 0) change(out, counted, I32_ADD, cost - bits)
    if (bits > 0) change(out, counted, I32_OR, bits)
    out.instruction(reader)
  })
}

function change(out: BodyWriter, global: number, operation: number, value: number): void {
  out.opcode(GLOBAL_GET)
  out.u32(global)
  out.opcode(I32_CONST)
  out.s32(value)
  out.opcode(operation)
  out.opcode(GLOBAL_SET)
  out.u32(global)
}

const GLOBAL_GET = opcodeOf('global.get')
const GLOBAL_SET = opcodeOf('global.set')
const I32_CONST = opcodeOf('i32.const')
const I32_ADD = opcodeOf('i32.add')
const I32_OR = opcodeOf('i32.or')
const COSTS = new Uint32Array(OPCODE_END).fill(1)
for (const name of ['block', 'loop', 'else', 'end', 'nop', 'try', 'try_table', 'catch', 'catch_all', 'delegate']) {
  COSTS[opcodeOf(name)] = 0
}
for (const name of ['throw', 'throw_ref', 'rethrow']) COSTS[opcodeOf(name)] = THROWN + 1
for (const name of ['call', 'call_indirect', 'call_ref']) COSTS[opcodeOf(name)] = CALLED + 1
