// tools/clang.ts: C to WebAssembly by clang and wasm-ld that are WebAssembly themselves (@yowasp/clang).
//
// The package's llvm.core.wasm is one preview-1 command with every LLVM tool in it. It looks for "llvm" in argv[0] and
// then takes the tool's name from argv[1]: `llvm.core.wasm clang -cc1 …` compiles, `llvm.core.wasm wasm-ld …` links.
// Headers, wasi-libc and compiler-rt are in llvm-resources.tar, which it expects at /usr.
//
// The driver (`clang x.c -o x.wasm`) starts other processes, and a cell has none. What it would start is known:
// `clang -### …` prints it. `compileSteps` says the same without asking it each time; clang_test.ts compares the two.
//
//   compileInCells: source folder ─ /src (read-only) ┐          ┌ /usr (read-only) ─ .cache/clang/<version>
//                   temporary folder ─ /work ────────┴ a cell ──┘   cc1: /src/x.c → /work/x.o; wasm-ld → /work/x.wasm
//   compileInNode:  the same two steps through the package's own JavaScript runtime, to check ours against it.
//
// No step sees a time, a host path or a random name that would reach its output: the same source gives the same bytes.

import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const PACKAGE = join(ROOT, 'node_modules/@yowasp/clang')

// The program with clang and wasm-ld in it, and the hypervisor's entry.
export const LLVM_WASM = join(PACKAGE, 'gen/llvm.core.wasm')
const CELLAR = join(ROOT, 'bin/cellar')

// Memory of a compiling cell. A limit, not a reservation: the module itself would grow to 4 GiB.
const COMPILE_MEMORY = '2GiB'

// Where the guest finds headers and libraries.
const SYSROOT = '/usr'

/** A step failed: the message has the command and all that it printed. */
export class CompileError extends Error {
  override readonly name = 'CompileError'
}

/**
 * Unpacks headers and libraries into `cacheDir` once for each version of the package, and gives the folder: what a
 * cell is granted as /usr.
 */
export function unpackResources(cacheDir: string = join(ROOT, '.cache/clang')): string {
  const { version } = JSON.parse(readFileSync(join(PACKAGE, 'package.json'), 'utf8')) as { version: string }
  const folder = join(cacheDir, version)
  if (existsSync(folder)) return folder
  mkdirSync(cacheDir, { recursive: true })
  // Under another name first: neither an interrupted unpacking nor one at the same time may leave half a folder.
  const partial = mkdtempSync(join(cacheDir, 'partial-'))
  try {
    run('tar', ['-xf', join(PACKAGE, 'gen/llvm-resources.tar'), '--no-same-owner', '-C', partial])
    renameSync(partial, folder)
  } catch (error) {
    rmSync(partial, { recursive: true })
    // Another process was quicker.
    if (!existsSync(folder)) throw error
  }
  return folder
}

/**
 * The command lines behind `clang SOURCE.c -o OUTPUT [flags]`: the compiler's and the linker's, each beginning with
 * the tool's name. Flags: -O, -D, -I, -W, -f and -std= go to the compiler, -Wl, and -l and -L to the linker. Paths are
 * the guest's. The object lies beside the output.
 */
export function compileSteps(argv: readonly string[]): string[][] {
  let source: string | undefined
  let output = 'a.out'
  const optimize: string[] = []
  const compile: string[] = []
  const link: string[] = []
  for (let i = argv[0] === 'clang' ? 1 : 0; i < argv.length; i++) {
    const argument = argv[i]!
    if (argument === '-o') output = argv[++i] ?? output
    else if (argument.startsWith('-Wl,')) link.push(...argument.slice(4).split(','))
    else if (/^-[lL]/.test(argument)) link.push(argument)
    else if (/^-O[0123sz]$/.test(argument)) optimize[0] = argument
    else if (/^-[DI]./.test(argument)) compile.push(argument.slice(0, 2), argument.slice(2))
    else if (/^-(W|f|std=)/.test(argument)) compile.push(argument)
    else if (argument.startsWith('-') || source !== undefined) {
      throw new CompileError(`Cannot compile with "${argument}" as it is neither a known flag nor the only source`)
    } else source = argument
  }
  if (source === undefined) throw new CompileError('Cannot compile without a source')
  const object = output.replace(/(\.wasm)?$/, '.o')
  return [cc1(source, object, optimize, compile), wasmLd(object, output, link)]
}

function cc1(source: string, object: string, optimize: readonly string[], flags: readonly string[]): string[] {
  const vectorize = /^-O[23s]$/.test(optimize[0] ?? '') ? ['-vectorize-loops', '-vectorize-slp'] : []
  return [
    'clang', '-cc1', '-triple', 'wasm32-unknown-wasip1', ...optimize, '-emit-obj', '-disable-free',
    '-clear-ast-before-backend', '-main-file-name', basename(source), '-mrelocation-model', 'static',
    '-mframe-pointer=none', '-ffp-contract=on', '-fno-rounding-math', '-mconstructor-aliases', '-target-cpu', 'generic',
    '-fvisibility=hidden', '-debugger-tuning=gdb', '-fdebug-compilation-dir=/', '-fcoverage-compilation-dir=/',
    '-resource-dir', SYSROOT, '-isysroot', SYSROOT, '-internal-isystem', `${SYSROOT}/include`,
    '-internal-isystem', `${SYSROOT}/include/wasm32-wasip1`, '-internal-isystem', `${SYSROOT}/include`,
    '-ferror-limit', '19', '-fgnuc-version=4.2.1', '-fskip-odr-check-in-gmf', ...vectorize, ...flags,
    '-o', object, '-x', 'c', source,
  ]
}

function wasmLd(object: string, output: string, flags: readonly string[]): string[] {
  return [
    'wasm-ld', '-m', 'wasm32', `-L${SYSROOT}/lib/wasm32-unknown-wasip1`, `-L${SYSROOT}/lib/wasm32-wasip1`,
    `${SYSROOT}/lib/wasm32-wasip1/crt1-command.o`, object, ...flags, '-lc',
    `${SYSROOT}/lib/wasm32-unknown-wasip1/libclang_rt.builtins.a`, '-o', output,
  ]
}

/** Compiles one C file, with the headers beside it, to `output` in two cells, one after the other. */
export function compileInCells(source: string, output: string, flags: readonly string[] = []): void {
  const usr = unpackResources()
  const work = mkdtempSync(join(tmpdir(), 'cellar-clang-'))
  try {
    const name = moduleName(source)
    for (const step of compileSteps([`/src/${basename(source)}`, '-o', `/work/${name}`, ...flags])) {
      run(CELLAR, [
        'run', '--memory', COMPILE_MEMORY, '--dir', `${usr}:${SYSROOT}:ro`,
        '--dir', `${dirname(resolve(source))}:/src:ro`, '--dir', `${work}:/work`, LLVM_WASM, ...step,
      ])
    }
    copyFileSync(join(work, name), output)
  } finally {
    rmSync(work, { recursive: true })
  }
}

/** The same two steps in Node, through the package's own runtime: the guest's files are `files`, at /src. */
export async function compileInNode(
  source: string, files: Record<string, string>, flags: readonly string[] = [],
): Promise<Uint8Array> {
  const { runLLVM } = await import('@yowasp/clang')
  const messages: Uint8Array[] = []
  const listen = (bytes: Uint8Array | null) => { if (bytes !== null) messages.push(bytes.slice()) }
  const options = { stdout: listen, stderr: listen, fetchProgress: () => {}, decodeASCII: false }
  let tree: { work: { [name: string]: unknown } } = { work: {}, src: files } as never
  const name = moduleName(source)
  for (const step of compileSteps([`/src/${source}`, '-o', `/work/${name}`, ...flags])) {
    try {
      tree = await runLLVM(step, tree as never, options) as never
    } catch (error) {
      // Not as `cause`: the package's error carries all the files.
      throw new CompileError(`${step[0]}: ${String(error)}: ${source}\n${Buffer.concat(messages).toString()}`)
    }
  }
  return tree.work[name] as Uint8Array
}

/** The linker writes it into the name section, so that it comes from the source, wherever the output goes. */
function moduleName(source: string): string {
  return `${basename(source, '.c')}.wasm`
}

function run(command: string, argv: readonly string[]): void {
  const { status, signal, stdout, stderr, error } = spawnSync(command, argv, { encoding: 'utf8', maxBuffer: 64 << 20 })
  if (error !== undefined) throw new CompileError(`Cannot start ${command}`, { cause: error })
  if (status !== 0) {
    const end = signal ?? `status ${status}`
    throw new CompileError(`${basename(command)} ended with ${end}: ${argv.join(' ')}\n${stdout}${stderr}`)
  }
  if (stderr !== '') process.stderr.write(stderr)
}
