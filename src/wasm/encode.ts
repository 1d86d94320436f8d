// wasm/encode.ts: writes WebAssembly modules (spec §5, "Binary Format").
//
// For the few modules that the hypervisor makes itself: its gate, and the sections that prepare.ts puts into a guest's
// module. It checks nothing; V8 validates what comes out. Bytes are gathered in plain arrays, since what is made here
// is at most some KiB; the sections of a guest are copied by prepare.ts and never pass through here.
//
// Elsewhere: reading (decode.ts), rewriting a guest's module (prepare.ts).

/** Value types that the encoder writes: the hypervisor's own modules need no others. */
export type EncodableType = keyof typeof VALUE_TYPES

/** What encodeModule makes a module of. Indices count imports first, as in WebAssembly. */
export type ModuleParts = {
  readonly types?: readonly { readonly params: readonly EncodableType[]; readonly results: readonly EncodableType[] }[]
  /** Functions (`type` is an index of `types`) and memories. */
  readonly imports?: readonly ({ readonly module: string; readonly name: string } &
    ({ readonly type: number } | { readonly memory: MemoryLimits }))[]
  /** `locals` are those beyond the parameters; `body` is the instructions, without the function's final `end`. */
  readonly functions?: readonly {
    readonly type: number; readonly locals: readonly EncodableType[]; readonly body: readonly number[]
  }[]
  readonly memories?: readonly MemoryLimits[]
  readonly exports?: readonly { readonly name: string; readonly kind: 'func' | 'memory'; readonly index: number }[]
}

/** Pages of a memory. */
export type MemoryLimits = {
  readonly min: number; readonly max?: number | undefined; readonly shared?: boolean; readonly index64?: boolean
}

/** A whole module, ready for `new WebAssembly.Module`. */
export function encodeModule(parts: ModuleParts): Uint8Array<ArrayBuffer> {
  const { types = [], imports = [], functions = [], memories = [], exports = [] } = parts
  return Uint8Array.from([
    ...PREAMBLE,
    ...vecSection(SECTION_TYPE, types.map(({ params, results }) => [
      0x60, ...vec(params.map((type) => [VALUE_TYPES[type]])), ...vec(results.map((type) => [VALUE_TYPES[type]]))])),
    ...vecSection(SECTION_IMPORT, imports.map((one) => [
      ...name(one.module), ...name(one.name),
      ...('memory' in one ? [KIND_MEMORY, ...limits(one.memory)] : [KIND_FUNC, ...leb(one.type)])])),
    ...vecSection(SECTION_FUNCTION, functions.map(({ type }) => leb(type))),
    ...vecSection(SECTION_MEMORY, memories.map(limits)),
    ...vecSection(SECTION_EXPORT, exports.map((one) => [
      ...name(one.name), one.kind === 'func' ? KIND_FUNC : KIND_MEMORY, ...leb(one.index)])),
    ...vecSection(SECTION_CODE, functions.map(({ locals, body }) => {
      const code = [...vec(locals.map((type) => [1, VALUE_TYPES[type]])), ...body, 0x0b]
      return [...leb(code.length), ...code]
    })),
  ])
}

/** A section: its id, the length of its content, its content. */
export function section(id: number, content: readonly number[]): number[] {
  return [id, ...leb(content.length), ...content]
}

/** A vector (§5.1.3): the number of items, then the items. */
export function vec(items: readonly (readonly number[])[]): number[] {
  return [...leb(items.length), ...items.flat()]
}

/** A name (§5.2.4): a vector of UTF-8 bytes. */
export function name(text: string): number[] {
  const bytes = new TextEncoder().encode(text)
  return [...leb(bytes.length), ...bytes]
}

/** An unsigned integer n ≥ 0 in LEB128 (§5.2.2), as short as it can be. */
export function leb(n: number): number[] {
  const bytes = []
  while (n >= 0x80) {
    bytes.push((n % 0x80) | 0x80)
    n = Math.floor(n / 0x80)
  }
  bytes.push(n)
  return bytes
}

/** A signed integer in LEB128, as `i32.const` and `i64.const` take it. */
export function sleb(n: number | bigint): number[] {
  const bytes = []
  for (let rest = BigInt(n); ; ) {
    const low = Number(rest & 0x7fn)
    rest >>= 7n
    if ((rest === 0n && low < 0x40) || (rest === -1n && low >= 0x40)) return [...bytes, low]
    bytes.push(low | 0x80)
  }
}

/** Limits of a memory (§5.3.8). */
export function limits({ min, max, shared = false, index64 = false }: MemoryLimits): number[] {
  const flags = (max === undefined ? 0 : 1) | (shared ? 2 : 0) | (index64 ? 4 : 0)
  return [flags, ...leb(min), ...(max === undefined ? [] : leb(max))]
}

function vecSection(id: number, items: readonly (readonly number[])[]): number[] {
  return items.length === 0 ? [] : section(id, vec(items))
}

/** '\0asm', version 1. */
export const PREAMBLE = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00] as const

export const SECTION_CUSTOM = 0
export const SECTION_TYPE = 1
export const SECTION_IMPORT = 2
export const SECTION_FUNCTION = 3
export const SECTION_TABLE = 4
export const SECTION_MEMORY = 5
export const SECTION_GLOBAL = 6
export const SECTION_EXPORT = 7
export const SECTION_START = 8
export const SECTION_ELEMENT = 9
export const SECTION_CODE = 10
export const SECTION_DATA = 11
export const SECTION_DATA_COUNT = 12
export const SECTION_TAG = 13

export const KIND_FUNC = 0
export const KIND_TABLE = 1
export const KIND_MEMORY = 2
export const KIND_GLOBAL = 3
export const KIND_TAG = 4

const VALUE_TYPES = {
  i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b, funcref: 0x70, externref: 0x6f,
} as const
