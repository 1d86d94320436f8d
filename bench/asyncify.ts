// bench/asyncify.ts: Binaryen's Asyncify, to compare our capture with. Binaryen is no dependency of ours: who wants the
// comparison gets it (`npm pack binaryen`, unpacked) and names its folder in CELLAR_BINARYEN.
//
// It is used as its documentation says: told which imports may unwind (our hypercalls that wait), and optimising.
// Without that the code is twice as large, and its frames are too large for V8's stacks. It can be unwound in these
// imports alone, ours at each check, too: the comparison is in its favour.

import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { HYPERCALLS } from '../src/wasi/cellar/table.ts'

// In a process of its own: what it leaves behind would be measured, too.
const SCRIPT = `
  import { readFileSync, writeFileSync } from 'node:fs'
  const [, binaryen, from, to, imports] = process.argv
  const { default: b } = await import(binaryen)
  const module = b.readBinary(readFileSync(from))
  // What V8 and our decoder have: not what is proposed.
  const { MutableGlobals, SignExt, NontrappingFPToInt, BulkMemory, BulkMemoryOpt, ReferenceTypes,
    CallIndirectOverlong, Multivalue, SIMD128 } = b.Features
  module.setFeatures(MutableGlobals | SignExt | NontrappingFPToInt | BulkMemory | BulkMemoryOpt | ReferenceTypes |
    CallIndirectOverlong | Multivalue | SIMD128)
  b.setOptimizeLevel(2)
  b.setShrinkLevel(0)
  b.setPassArgument('asyncify-imports', imports)
  const begun = process.cpuUsage()
  module.runPasses(['asyncify'])
  const { user, system } = process.cpuUsage(begun)
  writeFileSync(to, module.emitBinary())
  console.log((user + system) / 1e3)`

/** What it takes in processor time, in milliseconds; or why there is none of it. */
export function asyncify(from: string, to: string): { readonly cpuMs: number } | { readonly why: string } {
  const folder = process.env['CELLAR_BINARYEN']
  if (folder === undefined) return { why: 'CELLAR_BINARYEN names no folder' }
  const entry = join(folder, 'index.js')
  if (!existsSync(entry)) return { why: `there is no ${entry}` }
  const imports = Object.entries(HYPERCALLS).filter(([, { answers }]) => answers === 'wait')
    .map(([name, { module }]) => `${module}.${name}`).join()
  const child = spawnSync(process.execPath,
    ['--input-type=module', '-e', SCRIPT, '--', pathToFileURL(entry).href, from, to, imports], { encoding: 'utf8' })
  if (child.status !== 0) return { why: `Binaryen failed: ${child.stderr.slice(-500)}` }
  return { cpuMs: parseFloat(child.stdout) }
}
