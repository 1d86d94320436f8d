// translate/assemble.ts: a translated module from its parts: bodies that were changed, entries that sections get.
//
// Code is written where it stays: room is left before it for what is known when it is done, so that a large module
// isn't held twice.

import { eachBody, BodyReader } from '../wasm/body.ts'
import { BodyWriter, lebLength } from '../wasm/body_writer.ts'
import { ORDER } from '../wasm/decode.ts'
import { name, SECTION_CODE, SECTION_CUSTOM, SECTION_TABLE } from '../wasm/encode.ts'
import { importsOf, sectionOf, type Module, type Section } from '../wasm/module.ts'
import { Reader } from '../wasm/reader.ts'
import { Splice, type BodyTranslator } from './splice.ts'
import { limitTables } from './tables.ts'

/** Entries to be added, by section: the bytes of each. */
export type Additions = ReadonlyMap<number, readonly ArrayLike<number>[]>

/** The bodies of a module, translated. `code` begins at `room`. */
export type Code = {
  readonly code: BodyWriter; readonly room: number; readonly hints: BodyWriter; readonly hinted: number
}

/** For all that comes before the code; hints are an eighth of the code at most, or all is moved. */
function roomBeforeCode(module: Module): number {
  const section = sectionOf(module, SECTION_CODE)
  if (section === undefined) return 1024
  return section.start + (section.end - section.start >> 3) + 1024
}

/** Writes all bodies, and hints for those that have unlikely branches. */
export function translateBodies(module: Module, bodies: BodyTranslator): Code {
  const room = roomBeforeCode(module)
  // What isn't written isn't there: the kernel gives pages when they are first used.
  const code = new BodyWriter(room + module.bytes.length * 2)
  code.length = room
  const hints = new BodyWriter(1024)
  const { bytes } = module
  const imported = importsOf(module, 'func').length
  const reader = new BodyReader(bytes)
  const splice = new Splice(bytes, code)
  let hinted = 0
  // What is copied as it is, from one change to the next. A body begins with its length, where the one before it ends.
  let from = firstBody(module)
  let last = from
  eachBody(module, (start, end, f) => {
    const begin = last
    last = end
    if (!bodies.touches(f)) return
    code.copy(bytes, from, begin)
    splice.begin(start, end)
    bodies.translate(f, reader, splice)
    splice.finish()
    from = end
    if (splice.hintCount === 0) return
    hinted++
    hints.u32(imported + f)
    hints.u32(splice.hintCount)
    for (let i = 0; i < splice.hintCount; i++) {
      hints.u32(splice.hints[i]!)
      hints.byte(1)
      hints.byte(UNLIKELY)
    }
  })
  code.copy(bytes, from, last)
  return { code, room, hints, hinted }
}

function firstBody(module: Module): number {
  const section = sectionOf(module, SECTION_CODE)
  if (section === undefined) return 0
  const reader = new Reader(module.bytes, section.offset, section.end, 'code section')
  reader.u32()
  return reader.at
}

/** A body as the code section has it: behind its length. */
export function sizedBody(body: ArrayLike<number>): Uint8Array {
  const out = new BodyWriter(body.length + 5)
  out.u32(body.length)
  out.append(body)
  return out.written()
}

/** The module with its additions, each section in its place, and a custom section at its end. */
export function assemble(
  module: Module, added: Additions, code: Code, custom?: { readonly name: string; readonly content: Uint8Array },
): Uint8Array<ArrayBuffer> {
  const head = new BodyWriter(code.room)
  // What follows the code is written behind it.
  let out = head
  out.copy(module.bytes, 0, module.sections[0]?.start ?? module.bytes.length)
  const wanted = ORDER.filter((id) => (added.get(id)?.length ?? 0) > 0)
  const missing = wanted.filter((id) => sectionOf(module, id) === undefined)
  const add = (id: number, section: Section | undefined): void => {
    if (id !== SECTION_CODE) extend(out, module, id, section, added.get(id)!)
    else {
      writeCode(head, module, added.get(id)!, code)
      out = code.code
    }
  }
  for (const section of module.sections) {
    const { id, start, end } = section
    // Hints of the guest's own are about offsets that are no more.
    if (id === SECTION_CUSTOM && section.name === BRANCH_HINTS) continue
    // Custom sections may stand anywhere: those that are missing wait for one that they must precede.
    const due = id === SECTION_CUSTOM ? 0 : missing.filter((one) => ORDER.indexOf(one) < ORDER.indexOf(id)).length
    for (const one of missing.splice(0, due)) add(one, undefined)
    if (wanted.includes(id)) add(id, section)
    else out.copy(module.bytes, start, end)
  }
  for (const id of missing) add(id, undefined)
  if (custom !== undefined) {
    out.byte(SECTION_CUSTOM)
    const start = out.beginSized()
    out.append(name(custom.name))
    out.append(custom.content)
    out.endSized(start)
  }
  return code.code.prepend(code.room, head.written())
}

/** Writes a section with more entries. */
function extend(
  out: BodyWriter, module: Module, id: number, section: Section | undefined, entries: readonly ArrayLike<number>[],
): void {
  out.byte(id)
  const start = out.beginSized()
  if (section === undefined) out.u32(entries.length)
  else {
    const reader = new Reader(module.bytes, section.offset, section.end, 'section')
    out.u32(reader.u32() + entries.length)
    if (id === SECTION_TABLE) limitTables(module, reader.at, section.end, out)
    else out.copy(module.bytes, reader.at, section.end)
  }
  for (const entry of entries) out.append(entry)
  out.endSized(start)
}

/** Writes what precedes the code, with the bodies that are added behind it. */
function writeCode(
  head: BodyWriter, module: Module, bodies: readonly ArrayLike<number>[], { code, room, hints, hinted }: Code,
): void {
  if (hinted > 0) {
    head.byte(SECTION_CUSTOM)
    const start = head.beginSized()
    head.append(name(BRANCH_HINTS))
    head.u32(hinted)
    head.copy(hints.bytes, 0, hints.length)
    head.endSized(start)
  }
  for (const body of bodies) code.append(body)
  const count = module.functionCount + bodies.length
  head.byte(SECTION_CODE)
  head.u32(lebLength(count) + code.length - room)
  head.u32(count)
}

const BRANCH_HINTS = 'metadata.code.branch_hint'
const UNLIKELY = 0
