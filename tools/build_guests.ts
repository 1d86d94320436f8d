// tools/build_guests.ts: `npm run guests`: builds guests/*.c to the .wasm beside each, and the agent of machines.
//
//   node tools/build_guests.ts [--node] [--check] [name …]
//
// By default clang and wasm-ld run in cells of this very checkout (see clang.ts); --node runs them in the package's own
// runtime instead, for a machine or a day on which ours can't. Both give the same bytes. --check writes nothing: it
// builds and compares with what is committed, and its status is 1 if a guest differs.

import { chmodSync, copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { AGENT, agentCompiler, buildAgent } from './build_agent.ts'
import { CompileError, compileInCells, compileInNode } from './clang.ts'

/** Where the guests are. */
export const GUESTS = fileURLToPath(new URL('../guests', import.meta.url))
/** Headers for programs of others, and for ours. */
const SDK = fileURLToPath(new URL('../sdk/c', import.meta.url))

/**
 * How every guest is built. The name section is kept, as a trap's stack is made of names; debug information isn't. No
 * guest prints a float, and printf without them is a third of the size.
 */
export const GUEST_FLAGS = [
  '-O2', '-std=gnu23', '-Wall', '-Wextra', '-Werror', '-Wno-unused-result', '-Wl,--strip-debug',
  '-lc-printscan-no-floating-point',
]

/** Flags of one guest alone. One of 100,000 cells has a page of memory for all: 8 KiB of it are the stack. */
const OWN_FLAGS: Record<string, readonly string[]> = {
  idle: ['-Wl,-z,stack-size=8192,--initial-memory=65536,--max-memory=65536'],
}

/** The names of all guests, sorted. */
export function guestNames(): string[] {
  return readdirSync(GUESTS).filter((file) => file.endsWith('.c')).map((file) => file.slice(0, -2)).sort()
}

/** Builds one guest, in cells or in the package's own runtime, and gives its bytes. */
export async function buildGuest(name: string, where: 'cells' | 'node'): Promise<Uint8Array> {
  const flags = [...GUEST_FLAGS, ...OWN_FLAGS[name] ?? []]
  const sources = [GUESTS, SDK].flatMap((folder) => readdirSync(folder).filter((file) => /\.[ch]$/.test(file))
    .map((file) => join(folder, file)))
  if (where === 'node') {
    const files = Object.fromEntries(sources.map((path) => [basename(path), readFileSync(path, 'utf8')]))
    return await compileInNode(`${name}.c`, files, flags)
  }
  const folder = mkdtempSync(join(tmpdir(), 'cellar-guest-'))
  try {
    // Headers are found beside the source.
    for (const path of sources) copyFileSync(path, join(folder, basename(path)))
    const output = join(folder, `${name}.wasm`)
    compileInCells(join(folder, `${name}.c`), output, flags)
    return readFileSync(output)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

async function main(argv: readonly string[]): Promise<number> {
  const where = argv.includes('--node') ? 'node' : 'cells'
  const check = argv.includes('--check')
  const chosen = argv.filter((argument) => !argument.startsWith('--'))
  const all = chosen.length > 0 ? chosen : ['agent', ...guestNames()]
  let different = all.includes('agent') ? makeAgent(check) : 0
  for (const name of all.filter((one) => one !== 'agent')) {
    const began = performance.now()
    const bytes = await buildGuest(name, where)
    const path = join(GUESTS, `${name}.wasm`)
    const same = committed(path)?.equals(bytes) ?? false
    if (!check && !same) writeFileSync(path, bytes)
    if (!same) different++
    const state = same ? 'unchanged' : check ? 'DIFFERS' : 'written'
    const seconds = ((performance.now() - began) / 1000).toFixed(1)
    process.stdout.write(`${name}.wasm: ${bytes.length} bytes, ${state} (${seconds} s)\n`)
  }
  return check && different > 0 ? 1 : 0
}

// How many differ: 0 or 1. Without its compiler the one that is there stays; with another compiler it is another one.
function makeAgent(check: boolean): number {
  const compiler = agentCompiler()
  if ('why' in compiler || (check && !compiler.isSame)) {
    process.stdout.write(`agent: skipped: ${'why' in compiler ? compiler.why : 'built with another compiler'}\n`)
    return 0
  }
  const bytes = buildAgent()
  const same = committed(AGENT)?.equals(bytes) ?? false
  if (!check && !same) {
    writeFileSync(AGENT, bytes)
    chmodSync(AGENT, 0o755)
  }
  process.stdout.write(`agent: ${bytes.length} bytes, ${same ? 'unchanged' : check ? 'DIFFERS' : 'written'}\n`)
  return same ? 0 : 1
}

function committed(path: string): Buffer | undefined {
  try {
    return readFileSync(path)
  } catch {
    return undefined
  }
}

if (import.meta.main) {
  try {
    process.exitCode = await main(process.argv.slice(2))
  } catch (error) {
    if (!(error instanceof CompileError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exitCode = 1
  }
}
