// translate/tables.ts: limits of tables: their entries lie in V8's heap, which no limit on a guest's memory bounds.

import { TABLE_ENTRIES_MAX, TABLE_GROWTH_MAX } from '../base/limits.ts'
import type { BodyWriter } from '../wasm/body_writer.ts'
import { limits } from '../wasm/encode.ts'
import type { Module } from '../wasm/module.ts'
import { Untreatable } from './untreatable.ts'

/** Copies the entries of the table section, which are in [at, end), with lower maxima. Throws Untreatable. */
export function limitTables({ bytes, tables }: Module, at: number, end: number, out: BodyWriter): void {
  const total = tables.reduce((sum, { min }) => sum + min, 0)
  if (total > TABLE_ENTRIES_MAX) throw new Untreatable(`tables of ${total} entries`)
  const growth = Math.floor(TABLE_GROWTH_MAX / tables.length)
  let from = at
  for (const { min, max = Infinity, shared, index64, limitsAt, limitsEnd } of tables) {
    out.copy(bytes, from, limitsAt)
    for (const byte of limits({ min, max: Math.min(max, min + growth), shared, index64 })) out.byte(byte)
    from = limitsEnd
  }
  out.copy(bytes, from, end)
}
