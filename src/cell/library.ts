// cell/library.ts: runs a program that is a library: its exports are called one after another, as a manifest says.
//
// Strings and lists of strings are lowered as the component model's canonical ABI does for core modules: memory from
// the guest's own `cabi_realloc`, a string as (pointer, byte length), a list as (pointer, count) of such pairs.
// Source: WebAssembly/component-model, design/mvp/CanonicalABI.md, "Storing" and "Flattening".

import { CellarError } from '../base/errors.ts'
import type { Cell, Outcome } from './cell.ts'

/** One call of an export. */
export type Call = { readonly call: string; readonly with: readonly (number | string | readonly string[])[] }

/**
 * Makes the calls in order; the cell then ends with exit status 0, unless a call ended it before. Throws CellarError
 * for an export that isn't there: nothing of the guest has run, and the cell has released what it held.
 */
export async function runLibrary(cell: Cell, program: string, calls: readonly Call[]): Promise<Outcome> {
  for (const name of [...calls.map(({ call }) => call), ...(calls.some(needsMemory) ? ['cabi_realloc'] : [])]) {
    if (typeof cell.instance.exports[name] === 'function') continue
    cell.release()
    throw new CellarError('EXPORT_UNKNOWN', [program, name])
  }
  return await cell.run(async () => {
    for (const { call, with: args } of calls) {
      const lowered: number[] = []
      for (const arg of args) lowered.push(...await lower(cell, arg))
      await cell.call(call, ...lowered)
    }
  })
}

function needsMemory({ with: args }: Call): boolean {
  return args.some((arg) => typeof arg !== 'number')
}

async function lower(cell: Cell, arg: number | string | readonly string[]): Promise<number[]> {
  if (typeof arg === 'number') return [arg]
  if (typeof arg === 'string') {
    const bytes = new TextEncoder().encode(arg)
    const pointer = await allocate(cell, bytes.length, 1)
    cell.context.memory.at(pointer, bytes.length).set(bytes)
    return [pointer, bytes.length]
  }
  const pairs: number[] = []
  for (const item of arg) pairs.push(...await lower(cell, item))
  const pointer = await allocate(cell, pairs.length * 4, 4)
  pairs.forEach((value, i) => cell.context.memory.setU32(pointer + i * 4, value))
  return [pointer, arg.length]
}

async function allocate(cell: Cell, size: number, alignment: number): Promise<number> {
  const pointer = await cell.call('cabi_realloc', 0, 0, alignment, size) as number
  cell.context.memory.refresh()
  return pointer
}
