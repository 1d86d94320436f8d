// wasm/names.ts: what tools tell about a module in custom sections: names of functions (spec §7.4.1, the `name`
// section), the toolchain (`producers`) and the features used (`target_features`; both WebAssembly/tool-conventions).
//
// Decoded only when asked for: a `name` section has megabytes. A custom section can't make a module invalid, so what is
// malformed in it is left out, and never an error.

import { customSection } from './module.ts'
import type { Module } from './module.ts'
import { MalformedModule, Reader } from './reader.ts'

/** Names of the module and of its functions, by function index. */
export type Names = { readonly module: string | undefined; readonly functions: ReadonlyMap<number, string> }

/** The `name` section, as far as it can be read. */
export function decodeNames(module: Module): Names {
  let name: string | undefined
  const functions = new Map<number, string>()
  readLeniently(module, 'name', (reader) => {
    while (!reader.done) {
      const id = reader.u8()
      const length = reader.u32()
      const start = reader.skip(length)
      const content = new Reader(reader.bytes, start, start + length, reader.where)
      if (id === 0) name = content.name()
      if (id === 1) for (let count = content.u32(); count > 0; count--) functions.set(content.u32(), content.name())
    }
  })
  return { module: name, functions }
}

/** One tool of the `producers` section. */
export type Producer = { readonly field: string; readonly name: string; readonly version: string }

/** The `producers` section: field is 'language', 'processed-by' or 'sdk'. */
export function decodeProducers(module: Module): Producer[] {
  const producers: Producer[] = []
  readLeniently(module, 'producers', (reader) => {
    for (let fields = reader.u32(); fields > 0; fields--) {
      const field = reader.name()
      for (let values = reader.u32(); values > 0; values--) {
        producers.push({ field, name: reader.name(), version: reader.name() })
      }
    }
  })
  return producers
}

/** The `target_features` section: names of features that the module uses ('+' or '='). */
export function decodeTargetFeatures(module: Module): string[] {
  const features: string[] = []
  readLeniently(module, 'target_features', (reader) => {
    for (let count = reader.u32(); count > 0; count--) {
      const prefix = String.fromCharCode(reader.u8())
      const feature = reader.name()
      if (prefix === '+' || prefix === '=') features.push(feature)
    }
  })
  return features
}

function readLeniently(module: Module, name: string, read: (reader: Reader) => void): void {
  const section = customSection(module, name)
  if (section === undefined) return
  try {
    read(new Reader(module.bytes, section.offset, section.end, `${name} section`))
  } catch (error) {
    if (!(error instanceof MalformedModule)) throw error
  }
}
