// machine/aml.ts: ACPI Machine Language, as much of it as a board without firmware says of itself (ACPI 6.5 §20).
//
// Each function makes the bytes of one term. Nothing here knows what a machine has: that is acpi.ts.

/** Bytes of terms, one after the other. */
export type Aml = readonly number[]

/** NameSeg: four characters, filled up with underscores. Prefix "\\" for the root. */
const name = (text: string): Aml => {
  const isRoot = text.startsWith('\\')
  const segments = text.slice(isRoot ? 1 : 0).split('.').map((part) => [...part.padEnd(4, '_')].map(code))
  const prefix = segments.length === 2 ? [0x2e] : segments.length > 2 ? [0x2f, segments.length] : []
  return [...(isRoot ? [0x5c] : []), ...prefix, ...segments.flat()]
}

/** Refers to a named object. */
export const reference = name

/** An integer, in as few bytes as it needs. */
export function integer(value: number): Aml {
  if (value === 0 || value === 1) return [value]
  if (value <= 0xff) return [0x0a, value]
  if (value <= 0xffff) return [0x0b, ...little(value, 2)]
  return value <= 0xffff_ffff ? [0x0c, ...little(value, 4)] : [0x0e, ...little(value, 8)]
}

export const string = (text: string): Aml => [0x0d, ...[...text].map(code), 0]

/** A PNP or ACPI id of seven characters, such as PNP0501, as the number that it is short for (§19.3.4). */
export function eisaId(id: string): Aml {
  const letter = (i: number): number => id.charCodeAt(i) - 0x40
  const vendor = letter(0) << 10 | letter(1) << 5 | letter(2)
  const product = parseInt(id.slice(3), 16)
  return [0x0c, vendor >> 8, vendor & 0xff, product >> 8, product & 0xff]
}

/** Name (name, value) */
export const named = (what: string, value: Aml): Aml => [0x08, ...name(what), ...value]

/** Package () { elements } */
export const packageOf = (...elements: readonly Aml[]): Aml => [0x12, ...sized([elements.length, ...elements.flat()])]

export const device = (what: string, ...terms: readonly Aml[]): Aml =>
  [0x5b, 0x82, ...sized([...name(what), ...terms.flat()])]

export const scope = (what: string, ...terms: readonly Aml[]): Aml => [0x10, ...sized([...name(what), ...terms.flat()])]

/** Method (name, argumentCount, Serialized) */
export const method = (what: string, argumentCount: number, ...terms: readonly Aml[]): Aml =>
  [0x14, ...sized([...name(what), argumentCount | 0x08, ...terms.flat()])]

/** If (LEqual (Arg0, value)) { terms } */
export const ifFirstArgumentIs = (value: number, ...terms: readonly Aml[]): Aml =>
  [0xa0, ...sized([0x93, 0x68, ...integer(value), ...terms.flat()])]

/** Notify (object, value) */
export const notify = (what: string, value: number): Aml => [0x86, ...name(what), ...integer(value)]

/** ResourceTemplate () { descriptors } */
export function resources(...descriptors: readonly Aml[]): Aml {
  // The end tag's checksum may be 0: "treat as good" (§6.4.2.9).
  const content = [...descriptors.flat(), 0x79, 0]
  return [0x11, ...sized([...integer(content.length), ...content])]
}

/** Memory32Fixed (ReadWrite, start, length) */
export const memory32Fixed = (start: number, length: number): Aml =>
  [0x86, 9, 0, 1, ...little(start, 4), ...little(length, 4)]

/** IO (Decode16, start, start, 1, length) */
export const ioPorts = (start: number, length: number): Aml =>
  [0x47, 1, ...little(start, 2), ...little(start, 2), 1, length]

/** Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsis } */
export const edgeInterrupts = (...gsis: readonly number[]): Aml =>
  [0x89, ...little(2 + 4 * gsis.length, 2), 0b0011, gsis.length, ...gsis.flatMap((gsi) => little(gsi, 4))]

/** `value` in `size` bytes, the least significant first. */
export function little(value: number, size: number): number[] {
  const bytes: number[] = []
  for (let i = 0, rest = value; i < size; i++, rest = Math.floor(rest / 256)) bytes.push(rest % 256)
  return bytes
}

// PkgLength (§20.2.4) counts itself.
function sized(content: Aml): Aml {
  for (let extra = 0; extra <= 3; extra++) {
    const length = content.length + 1 + extra
    if (extra === 0 && length < 0x40) return [length, ...content]
    if (extra > 0 && length < 2 ** (4 + 8 * extra)) {
      return [extra << 6 | length & 0xf, ...little(length >> 4, extra), ...content]
    }
  }
  throw new RangeError(`A term of ${content.length} bytes is longer than AML can say`)
}

const code = (character: string): number => character.charCodeAt(0)
