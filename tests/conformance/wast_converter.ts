// tests/conformance/wast_converter.ts: what turns the text of a module into bytes. It isn't ours, and there are two.
//
// The best is wasm-tools, which the package @bytecodealliance/jco-transpile contains as a component translated to
// JavaScript (vendor/wasm-tools.js): it knows all that the specification has. It isn't among our dependencies, as it
// brings a hundred megabytes of others; it is looked for in .cache/wat, where `npm install --prefix .cache/wat
// @bytecodealliance/jco-transpile@0.15.0` puts it, or in the module that CELLAR_WAT_PARSER names. What it can't read
// (the older exception handling), or all if it isn't here, is left to wabt, which knows neither garbage collection nor
// typed references.

import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import wabt from 'wabt'

/** Both throw if the text is no module; `strict` knows better, unless there are things that it doesn't know at all. */
export type Converter = { readonly name: string; readonly parse: Parse; readonly strict: Parse }
type Parse = (text: string) => Uint8Array<ArrayBuffer>

const WASM_TOOLS = resolve(import.meta.dirname,
  '../../.cache/wat/node_modules/@bytecodealliance/jco-transpile/vendor/wasm-tools.js')

/** The converters that are here. `path` is a module that has a function `parse`, or `tools.parse`. */
export async function findConverter(path = process.env['CELLAR_WAT_PARSER']): Promise<Converter> {
  const found = path ?? (existsSync(WASM_TOOLS) ? WASM_TOOLS : undefined)
  const second = await wabtConverter()
  if (found === undefined) return second
  const first = await parserOf(found)
  return {
    name: `${found}, ${second.name}`,
    strict: first,
    parse: (text) => {
      try {
        return first(text)
      } catch {
        return second.parse(text)
      }
    },
  }
}

/** The converter that is always here. */
export async function wabtConverter(): Promise<Converter> {
  const { parseWat } = await wabt()
  const parse = (text: string): Uint8Array<ArrayBuffer> => {
    const module = parseWat('module.wat', text, FEATURES)
    try {
      return module.toBinary({}).buffer as Uint8Array<ArrayBuffer>
    } finally {
      module.destroy()
    }
  }
  return { name: 'wabt', parse, strict: parse }
}

async function parserOf(path: string): Promise<Parse> {
  const module = await import(pathToFileURL(resolve(path)).href) as {
    $init?: Promise<void>; parse?: Parse; tools?: { parse: Parse }
  }
  await module.$init
  const parse = module.parse ?? module.tools?.parse
  if (parse === undefined) throw new TypeError(`${path} has no function 'parse'`)
  return parse
}

const FEATURES = {
  exceptions: true, mutable_globals: true, sat_float_to_int: true, sign_extension: true, simd: true, threads: true,
  function_references: true, multi_value: true, tail_call: true, bulk_memory: true, reference_types: true,
  annotations: true, code_metadata: true, gc: true, memory64: true, multi_memory: true, extended_const: true,
  relaxed_simd: true,
}
