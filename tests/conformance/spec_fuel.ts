// tests/conformance/spec_fuel.ts: counts instructions one by one, the plain way: what fuel must come to.
//
// src/translate/fuel.ts pays for a block as a whole, keeps what is left in a local, and knows where ways meet. Here a
// subtraction from the global precedes each instruction. That is slow, never yields, and leaves little to be wrong.
// What the pieces of long bulk instructions cost is not known here.

import { BodyReader, eachBody } from '../../src/wasm/body.ts'
import { BodyWriter } from '../../src/wasm/body_writer.ts'
import { ORDER } from '../../src/wasm/decode.ts'
import {
  KIND_GLOBAL, leb, name, SECTION_CODE, SECTION_CUSTOM, SECTION_EXPORT, SECTION_GLOBAL,
} from '../../src/wasm/encode.ts'
import { importsOf, sectionOf, type Module } from '../../src/wasm/module.ts'
import { OPCODE_END, opcodeOf } from '../../src/wasm/opcodes.ts'
import { Reader } from '../../src/wasm/reader.ts'
import { FUEL_GLOBAL } from '../../src/translate/added_names.ts'

/** The module with a mutable global that is exported as FUEL_GLOBAL, and decreases with each instruction. */
export function countEach(module: Module): Uint8Array<ArrayBuffer> {
  const fuel = importsOf(module, 'global').length + module.globalCount
  const out = new BodyWriter(4 * module.bytes.length)
  out.copy(module.bytes, 0, module.sections[0]?.start ?? module.bytes.length)
  const added = new Map([
    [SECTION_GLOBAL, [I32, MUTABLE, opcodeOf('i32.const'), 0, opcodeOf('end')]],
    [SECTION_EXPORT, [...name(FUEL_GLOBAL), KIND_GLOBAL, ...leb(fuel)]],
  ])
  const missing = [...added.keys()].filter((id) => sectionOf(module, id) === undefined)
  for (const { id, start, end } of module.sections) {
    const due = id === SECTION_CUSTOM ? 0 : missing.filter((one) => ORDER.indexOf(one) < ORDER.indexOf(id)).length
    for (const one of missing.splice(0, due)) extend(out, module, one, added.get(one)!)
    const entry = added.get(id)
    if (entry !== undefined) extend(out, module, id, entry)
    else if (id === SECTION_CODE) countBodies(out, module, fuel)
    else out.copy(module.bytes, start, end)
  }
  for (const id of missing) extend(out, module, id, added.get(id)!)
  return out.written().slice()
}

// Writes a section with one entry more.
function extend(out: BodyWriter, module: Module, id: number, entry: readonly number[]): void {
  out.byte(id)
  const start = out.beginSized()
  const section = sectionOf(module, id)
  if (section === undefined) out.u32(1)
  else {
    const reader = new Reader(module.bytes, section.offset, section.end, 'section')
    out.u32(reader.u32() + 1)
    out.copy(module.bytes, reader.at, section.end)
  }
  for (const byte of entry) out.byte(byte)
  out.endSized(start)
}

function countBodies(out: BodyWriter, module: Module, fuel: number): void {
  const { bytes } = module
  const payment = [opcodeOf('global.get'), ...leb(fuel), opcodeOf('i32.const'), 1, opcodeOf('i32.sub'),
    opcodeOf('global.set'), ...leb(fuel)]
  out.byte(SECTION_CODE)
  const section = out.beginSized()
  out.u32(module.functionCount)
  const reader = new BodyReader(bytes)
  eachBody(module, (start, end) => {
    const body = out.beginSized()
    reader.open(start, end)
    out.copy(bytes, start, reader.codeStart)
    while (reader.next()) {
      if (FREE[reader.opcode] === 0) for (const byte of payment) out.byte(byte)
      out.copy(bytes, reader.at, reader.end)
    }
    out.endSized(body)
  })
  out.endSized(section)
}

/** What only shapes the code costs nothing. */
const FREE = new Uint8Array(OPCODE_END)
for (const one of ['block', 'loop', 'else', 'end', 'nop', 'try', 'try_table', 'catch', 'catch_all', 'delegate']) {
  FREE[opcodeOf(one)] = 1
}
const I32 = 0x7f
const MUTABLE = 1
