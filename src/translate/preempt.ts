// translate/preempt.ts: makes a guest's code look up, again and again, whether its time is over.
//
// A check is put at the head of each loop and at the entry of each function that calls another (a leaf's time is
// bounded by its size; its caller has checked):
//
//   i32.const 0  i32.load $control  if  call $yield  end
//
// The control word lies in a memory of the pCPU's that the guest can't name: imported after the guest's own memories,
// all of which are imports by now (wasm/prepare.ts), so that no index shifts. Its address is a constant, hence no
// bounds check and no register; another thread sets the word when a quantum ends. Nothing else is renumbered either:
// all that is added stands at the end of its index space. $yield is a new last function; it calls through a new last
// table, whose one element the hypervisor sets before the guest runs. The branch is hinted as unlikely.
//
// Pure, and linear in the size of the module: bodies are read once, and copied as they are between their checks.
// Source: Wasmtime's epochs. What the alternatives cost: docs/decisions/0009-preemption-by-checks.md.

import { ORDER } from '../wasm/decode.ts'
import {
  KIND_MEMORY, KIND_TABLE, SECTION_CODE, SECTION_CUSTOM, SECTION_EXPORT, SECTION_FUNCTION, SECTION_IMPORT,
  SECTION_TABLE, SECTION_TYPE, leb, limits, name,
} from '../wasm/encode.ts'
import { BodyReader, eachBody } from '../wasm/body.ts'
import { BodyWriter } from '../wasm/body_writer.ts'
import { importsOf, memoriesOf, sectionOf, type Module, type Section } from '../wasm/module.ts'
import { HYPERVISOR_MODULE, ReservedName } from '../wasm/prepare.ts'
import { Reader } from '../wasm/reader.ts'

/** The name under which the pCPU's control memory (shared, one page) is imported. */
export const CONTROL_MEMORY = 'control'
/** The export that is the table of one function, () → (): where a guest goes when the control word isn't 0. */
export const YIELD_TABLE = 'cellar:yield'

/** What was put into a module. */
export type Preemptible = { readonly bytes: Uint8Array<ArrayBuffer>; readonly checks: number }

/** The prepared module with its checks. Throws ReservedName if it uses the hypervisor's names. */
export function preempt(module: Module): Preemptible {
  if (module.memories.length > 0) throw new RangeError('Cannot translate a module that defines a memory: prepare it')
  checkNames(module)
  const places = placesOf(module)
  const code = new BodyWriter(module.bytes.length + (module.bytes.length >> 2))
  const hints = new BodyWriter(1024)
  const { checks, hinted } = translateBodies(module, places, code, hints)
  const out = new BodyWriter(code.length + module.bytes.length)
  out.copy(module.bytes, 0, module.sections[0]?.start ?? module.bytes.length)
  const added = additions(places)
  const missing = ORDER.filter((id) => added.has(id) && sectionOf(module, id) === undefined)
  const add = (id: number, section: Section | undefined): void => {
    if (id === SECTION_CODE) writeCode(out, module, code, hints, hinted)
    else extend(out, module, id, section, added.get(id)!)
  }
  for (const section of module.sections) {
    const { id, start, end } = section
    // Hints of the guest's own are about offsets that are no more.
    if (id === SECTION_CUSTOM && section.name === BRANCH_HINTS) continue
    // Custom sections may stand anywhere: those that are missing wait for one that they must precede.
    const due = id === SECTION_CUSTOM ? 0 : missing.filter((one) => ORDER.indexOf(one) < ORDER.indexOf(id)).length
    for (const one of missing.splice(0, due)) add(one, undefined)
    if (added.has(id)) add(id, section)
    else out.copy(module.bytes, start, end)
  }
  for (const id of missing) add(id, undefined)
  return { bytes: out.written().slice(), checks }
}

/** Where what is added stands. */
type Places = { readonly type: number; readonly memory: number; readonly yield: number; readonly table: number }

function placesOf(module: Module): Places {
  return {
    type: module.types.length,
    memory: memoriesOf(module).length,
    yield: importsOf(module, 'func').length + module.functionCount,
    table: importsOf(module, 'table').length + module.tables.length,
  }
}

/** The entry that each section gets. */
function additions({ type, table }: Places): Map<number, number[]> {
  const control = { min: 1, max: 1, shared: true }
  return new Map([
    [SECTION_TYPE, [0x60, 0, 0]],
    [SECTION_IMPORT, [...name(HYPERVISOR_MODULE), ...name(CONTROL_MEMORY), KIND_MEMORY, ...limits(control)]],
    [SECTION_FUNCTION, leb(type)],
    [SECTION_TABLE, [FUNCREF, ...limits({ min: 1, max: 1 })]],
    [SECTION_EXPORT, [...name(YIELD_TABLE), KIND_TABLE, ...leb(table)]],
    [SECTION_CODE, []],
  ])
}

/** Writes a section with one entry more. */
function extend(out: BodyWriter, { bytes }: Module, id: number, section: Section | undefined, entry: number[]): void {
  out.byte(id)
  const start = out.beginSized()
  if (section === undefined) out.byte(1)
  else {
    const reader = new Reader(bytes, section.offset, section.end, 'section')
    out.u32(reader.u32() + 1)
    out.copy(bytes, reader.at, section.end)
  }
  for (const byte of entry) out.byte(byte)
  out.endSized(start)
}

function writeCode(out: BodyWriter, module: Module, code: BodyWriter, hints: BodyWriter, hinted: number): void {
  if (hinted > 0) {
    out.byte(SECTION_CUSTOM)
    const start = out.beginSized()
    for (const byte of name(BRANCH_HINTS)) out.byte(byte)
    out.u32(hinted)
    out.copy(hints.bytes, 0, hints.length)
    out.endSized(start)
  }
  out.byte(SECTION_CODE)
  const count = leb(module.functionCount + 1)
  out.u32(count.length + code.length)
  for (const byte of count) out.byte(byte)
  out.copy(code.bytes, 0, code.length)
}

/** Writes all bodies with their checks, and $yield; hints for each function that has checks. */
function translateBodies(
  module: Module, places: Places, code: BodyWriter, hints: BodyWriter,
): { checks: number; hinted: number } {
  const { bytes } = module
  const check = [I32_CONST, 0, I32_LOAD, ALIGN_4 | OTHER_MEMORY, ...leb(places.memory), 0, IF, VOID, CALL,
    ...leb(places.yield), END]
  const branch = check.indexOf(IF, 5 + leb(places.memory).length)
  const imported = importsOf(module, 'func').length
  const reader = new BodyReader(bytes)
  const sites = new Sites()
  let checks = 0
  let hinted = 0
  // What is copied as it is, from one change to the next.
  let from = -1
  let last = -1
  eachBody(module, (start, end, defined) => {
    if (from < 0) from = last = start - leb(end - start).length
    findSites(reader, sites, start, end)
    if (sites.count > 0) {
      checks += sites.count
      hinted++
      code.copy(bytes, from, last)
      code.u32(end - start + sites.count * check.length)
      hints.u32(imported + defined)
      hints.u32(sites.count)
      let at = start
      for (let i = 0; i < sites.count; i++) {
        code.copy(bytes, at, sites.at[i]!)
        at = sites.at[i]!
        hints.u32(at - start + i * check.length + branch)
        hints.byte(1)
        hints.byte(UNLIKELY)
        for (const byte of check) code.byte(byte)
      }
      code.copy(bytes, at, end)
      from = end
    }
    last = end
  })
  if (from >= 0) code.copy(bytes, from, last)
  const body = [0, I32_CONST, 0, CALL_INDIRECT, ...leb(places.type), ...leb(places.table), END]
  for (const byte of [...leb(body.length), ...body]) code.byte(byte)
  return { checks, hinted }
}

/** The places of a body's checks, in order: grown as needed, used for all bodies. */
class Sites {
  at = new Uint32Array(256)
  count = 0

  add(at: number): void {
    if (this.count === this.at.length) {
      const more = new Uint32Array(this.count * 2)
      more.set(this.at)
      this.at = more
    }
    this.at[this.count++] = at
  }
}

function findSites(reader: BodyReader, sites: Sites, start: number, end: number): void {
  reader.open(start, end)
  sites.count = 0
  // The entry has the first place; it is given up if nothing is called.
  sites.add(reader.codeStart)
  let calls = false
  while (reader.next()) {
    const { opcode } = reader
    if (opcode === LOOP) sites.add(reader.end)
    else if (opcode >= CALL && opcode <= RETURN_CALL_REF) calls = true
  }
  if (calls) return
  sites.at.copyWithin(0, 1, sites.count)
  sites.count--
}

function checkNames(module: Module): void {
  const taken = module.imports.some((one) => one.module === HYPERVISOR_MODULE && one.name === CONTROL_MEMORY)
  if (taken || module.exports.some((one) => one.name === YIELD_TABLE)) {
    throw new ReservedName('it uses a name that is reserved for the hypervisor')
  }
}

const BRANCH_HINTS = 'metadata.code.branch_hint'
const UNLIKELY = 0
const FUNCREF = 0x70
const VOID = 0x40
/** memarg: alignment 2^2, and a memory index follows. */
const ALIGN_4 = 2
const OTHER_MEMORY = 0x40
const LOOP = 0x03
const IF = 0x04
const END = 0x0b
// call, call_indirect, return_call, return_call_indirect, call_ref, return_call_ref: 0x10 to 0x15.
const CALL = 0x10
const CALL_INDIRECT = 0x11
const RETURN_CALL_REF = 0x15
const I32_LOAD = 0x28
const I32_CONST = 0x41
