// bench/translate.ts: the time and the memory that binary translation takes, for 75 MB of clang.
//
// Speed is the module's bytes by the time of translate() alone, the best of some rounds, the first of which warms V8's
// compilers up. V8 validates on all processors; we translate on one.
//
// Memory is what a process that does nothing else grows by, from its modules being loaded to the translation's end:
// the file, the prepared module and the translation are all held. The kernel's mark of a process's own pages is taken
// (VmHWM), as that of getrusage() begins with what the parent had. 6 × is what is allowed.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { translate, type Mode } from '../src/translate/translate.ts'
import { decodeModule } from '../src/wasm/decode.ts'
import { prepare } from '../src/wasm/prepare.ts'
import { LLVM_WASM } from '../tools/clang.ts'
import type { Figure } from './main.ts'

const ROUNDS = 4
const MEMORY_RATIO_MAX = 6
const MODES: readonly Mode[] = ['preempt', 'fuel']

export function measure(): Figure[] {
  const bytes = readFileSync(LLVM_WASM)
  const prepared = prepare(bytes, decodeModule(bytes))
  const module = decodeModule(prepared.bytes)
  const speedOf = (run: () => unknown): number => {
    const start = performance.now()
    run()
    return bytes.length / 1e3 / (performance.now() - start)
  }
  const best = { preempt: 0, fuel: 0, validate: 0 }
  for (let i = 0; i < ROUNDS; i++) {
    for (const mode of MODES) best[mode] = Math.max(best[mode], speedOf(() => translate(module, { mode })))
    best.validate = Math.max(best.validate, speedOf(() => WebAssembly.validate(prepared.bytes)))
  }
  return MODES.flatMap((mode) => [
    { name: nameOf('translate.speed', mode), value: best[mode], unit: 'MB/s', baseline: best.validate,
      baselineOf: 'WebAssembly.validate of the same module, on all processors' },
    { name: nameOf('translate.memory', mode), value: memoryRatio(mode), unit: '×', baseline: MEMORY_RATIO_MAX,
      baselineOf: 'the limit, in sizes of the module' },
  ])
}

function nameOf(figure: string, mode: Mode): string {
  return mode === 'preempt' ? figure : `${figure}.${mode}`
}

/** The growth of a process that translates, in sizes of the module. */
function memoryRatio(mode: Mode): number {
  const script = `
    import { readFileSync } from 'node:fs'
    const { translate } = await import(${urlOf('../src/translate/translate.ts')})
    const { decodeModule } = await import(${urlOf('../src/wasm/decode.ts')})
    const { prepare } = await import(${urlOf('../src/wasm/prepare.ts')})
    const peak = () => Number(/^VmHWM:\\s+(\\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024
    const before = peak()
    const bytes = readFileSync(${JSON.stringify(LLVM_WASM)})
    const prepared = prepare(bytes, decodeModule(bytes))
    const translated = translate(decodeModule(prepared.bytes), { mode: '${mode}' })
    console.log((peak() - before) / bytes.length, bytes.length, prepared.bytes.length, translated.bytes.length)`
  const child = spawnSync(process.execPath,
    ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', script], { encoding: 'utf8' })
  if (child.status !== 0) throw new Error(`The process that translates failed: ${child.stderr}`)
  return parseFloat(child.stdout)
}

function urlOf(path: string): string {
  return JSON.stringify(new URL(path, import.meta.url).href)
}
