// cell/program.ts: a program's file, from its path to what V8 has compiled.
//
// Three steps, each of which may refuse with an operator's error (base/errors.ts) that says what is wrong:
//   readProgram     the file is there and is a core WebAssembly module;
//   checkProgram    the hypervisor can give it all that it asks for: known imports of the right types, one memory of 32
//                   bits, no threads, and a _start to be called. Nothing of the guest has run by then;
//   compileProgram  memories and start function are taken out of the guest's hands (wasm/prepare.ts), V8 validates.
// loadProgram does all three. Names in a module are the guest's choice, hence go through printable() into messages.

import { readFileSync, statSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { MODULE_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { decodeModule } from '../wasm/decode.ts'
import { formatFuncType, functionTypes, memoriesOf } from '../wasm/module.ts'
import type { FuncType, Import, Module } from '../wasm/module.ts'
import { ReservedName, originalOffset, prepare } from '../wasm/prepare.ts'
import type { Prepared } from '../wasm/prepare.ts'
import { MalformedModule } from '../wasm/reader.ts'
import { HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import type { Signature } from '../wasi/p1/table.ts'

/** A module that was read and decoded. */
export type ProgramFile = { readonly path: string; readonly bytes: Uint8Array<ArrayBuffer>; readonly module: Module }

/** A program that V8 may compile. */
export type PreparedProgram = ProgramFile & { readonly prepared: Prepared }

/** A program that may be instantiated. `compiled` is of `prepared.bytes`, and may be posted to other threads. */
export type Program = PreparedProgram & { readonly compiled: WebAssembly.Module }

/** What checkProgram allows. */
export type ProgramRules = {
  /** `MODULE` or `MODULE.NAME`: unknown functions that are bound to stubs. */
  readonly stubs: readonly string[]
  /** True if the program needs no _start, since others of its exports are called. */
  readonly library?: boolean
}

/** Reads, checks and compiles the program at `path`. Throws CellarError. */
export function loadProgram(path: string, rules: ProgramRules): Program {
  const file = readProgram(path)
  checkProgram(file, rules)
  return compileProgram(file)
}

/** Reads and decodes the module at `path`. Throws CellarError. */
export function readProgram(path: string): ProgramFile {
  const bytes = readBytes(path)
  checkFormat(path, bytes)
  try {
    return { path, bytes, module: decodeModule(bytes) }
  } catch (cause) {
    if (!(cause instanceof MalformedModule)) throw cause
    if (cause.truncated) throw new CellarError('MODULE_TRUNCATED', [path, cause.where], { cause })
    throw new CellarError('MODULE_MALFORMED', [path, cause.offset, `${cause.what} (${cause.where})`], { cause })
  }
}

/** Refuses a program that the hypervisor can't run, before anything of it runs. Throws CellarError. */
export function checkProgram({ path, module }: ProgramFile, rules: ProgramRules): void {
  // A stub takes the place of what we don't have, never of a hypercall. Another type is another function.
  const hypercalls = new Set(module.imports.filter((one) => isHypercall(module, one)).map(({ name }) => name))
  const stubbed = (one: Import): boolean => one.kind === 'func' && isStubbed(one, rules.stubs) &&
    !(knownHypercall(one) !== undefined && hypercalls.has(one.name))
  checkMemories(path, module)
  // It becomes an export (wasm/prepare.ts), and V8 would not look at its type any more.
  if (module.start !== undefined) checkAction(path, module, module.start, 'start function')
  const open = module.imports.filter((one) => one.kind !== 'memory' && !stubbed(one))
  const thread = open.find((one) => one.module === 'wasi_thread_spawn' || THREAD_SPAWN.has(one.name))
  if (thread !== undefined) throw new CellarError('THREADS_UNSUPPORTED', [path, `it imports ${importName(thread)}`])
  if (open.some((one) => one.module === 'wasi_unstable')) throw new CellarError('IMPORT_PREVIEW0', [path])
  const unknown = open.filter((one) => knownHypercall(one) === undefined)
  if (unknown.length > 0) throw new CellarError('IMPORT_UNKNOWN', [path, listImports(unknown)])
  for (const one of open) checkType(path, module, one)
  if (rules.library !== true) checkStart(path, module)
}

/** Makes the program ready for instantiation. V8 has validated it then. Throws CellarError. */
export function compileProgram(file: ProgramFile): Program {
  const program = prepareProgram(file)
  return { ...program, compiled: compilePrepared(program) }
}

/** Takes memories and start function out of the guest's hands. V8 has seen nothing of it yet. Throws CellarError. */
export function prepareProgram(file: ProgramFile): PreparedProgram {
  const { path, bytes, module } = file
  try {
    return { ...file, prepared: prepare(bytes, module) }
  } catch (cause) {
    if (!(cause instanceof ReservedName)) throw cause
    throw new CellarError('MODULE_INVALID', [path, cause.message], { cause })
  }
}

/** Lets V8 validate and compile it. Throws CellarError. */
export function compilePrepared({ path, prepared }: PreparedProgram): WebAssembly.Module {
  try {
    return new WebAssembly.Module(prepared.bytes)
  } catch (cause) {
    if (!(cause instanceof WebAssembly.CompileError)) throw cause
    throw new CellarError('MODULE_INVALID', [path, compileErrorText(cause.message, prepared)], { cause })
  }
}

/** The hypercall that an import names, or undefined if there is none. */
export function knownHypercall(one: Import): Signature | undefined {
  if (one.kind !== 'func' || !Object.hasOwn(HYPERCALLS, one.name)) return undefined
  const signature = HYPERCALLS[one.name as HypercallName]
  return signature.module === one.module ? signature : undefined
}

/** True if the import of `module` names a hypercall and has its type. */
export function isHypercall(module: Module, one: Import): boolean {
  const signature = knownHypercall(one)
  const type = one.kind === 'func' ? module.types[one.type] : undefined
  return signature !== undefined && type?.kind === 'func' && formatFuncType(type) === typeText(signature)
}

// True if `stubs` (`MODULE` or `MODULE.NAME`) name the function that is imported.
function isStubbed(one: Pick<Import, 'module' | 'name'>, stubs: readonly string[]): boolean {
  return stubs.includes(one.module) || stubs.includes(`${one.module}.${one.name}`)
}

// ---- the file

function readBytes(path: string): Uint8Array<ArrayBuffer> {
  let bytes: Uint8Array<ArrayBuffer>
  try {
    const stat = statSync(path)
    if (stat.isDirectory()) throw new CellarError('PROGRAM_UNREADABLE', [path, 'it is a folder'])
    // A device such as /dev/zero has no end. A pipe has: `cellar run <(make-it)`.
    if (stat.isCharacterDevice() || stat.isBlockDevice()) {
      throw new CellarError('PROGRAM_UNREADABLE', [path, 'it is a device'])
    }
    if (stat.size > MODULE_BYTES_MAX) throw new CellarError('MODULE_TOO_LARGE', [path, stat.size])
    bytes = readFileSync(path)
  } catch (cause) {
    if (cause instanceof CellarError) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') throw new CellarError('PROGRAM_NOT_FOUND', [path], { cause })
    throw new CellarError('PROGRAM_UNREADABLE', [path, REASONS[code ?? ''] ?? message], { cause })
  }
  if (bytes.length === 0) throw new CellarError('MODULE_EMPTY', [path])
  if (bytes.length > MODULE_BYTES_MAX) throw new CellarError('MODULE_TOO_LARGE', [path, bytes.length])
  return bytes
}

// What else may have been given by mistake. A file that is cut off within the magic number is left to the decoder.
function checkFormat(path: string, bytes: Uint8Array): void {
  if (MAGIC.every((byte, i) => i >= bytes.length || bytes[i] === byte)) {
    if (bytes.length < 8) return
    const view = new DataView(bytes.buffer, bytes.byteOffset, 8)
    // Components share the magic number; the second half of the version says which of the two a file is.
    if (view.getUint16(6, true) === 1) throw new CellarError('MODULE_IS_COMPONENT', [path])
    const version = view.getUint32(4, true)
    if (version !== 1) throw new CellarError('MODULE_VERSION_UNSUPPORTED', [path, version])
    return
  }
  if (isText(bytes)) throw new CellarError('MODULE_IS_TEXT', [path])
  const hex = Array.from(bytes.subarray(0, 4), (byte) => byte.toString(16).padStart(2, '0')).join('')
  const known = Object.entries(FORMATS).find(([magic]) => hex.startsWith(magic))?.[1]
  const begin = (hex.match(/../g) ?? []).join(' ')
  throw new CellarError('MODULE_NOT_WASM', [path, known === undefined ? begin : `${begin}, as ${known} does`])
}

function isText(bytes: Uint8Array): boolean {
  const head = bytes.subarray(0, 1024)
  if ((head[0] === 0xff && head[1] === 0xfe) || (head[0] === 0xfe && head[1] === 0xff)) return true // UTF-16
  if (head.some((byte) => byte < 0x20 && byte !== 0x09 && byte !== 0x0a && byte !== 0x0c && byte !== 0x0d)) return false
  try {
    // As a stream, since the last character may be cut.
    new TextDecoder('utf-8', { fatal: true }).decode(head, { stream: true })
    return true
  } catch {
    return false
  }
}

// ---- the module

function checkMemories(path: string, module: Module): void {
  const memories = memoriesOf(module)
  if (memories.some((one) => one.shared)) {
    throw new CellarError('THREADS_UNSUPPORTED', [path, 'its memory is shared between threads'])
  }
  if (memories.some((one) => one.index64)) throw new CellarError('MEMORY64_UNSUPPORTED', [path])
  if (memories.length > 1) throw new CellarError('MEMORIES_UNSUPPORTED', [path, memories.length])
}

function checkType(path: string, module: Module, one: Import): void {
  const want = knownHypercall(one)
  if (want === undefined || one.kind !== 'func') return
  const got = module.types[one.type]
  const wanted = typeText(want)
  // A type that doesn't exist or isn't a function's is V8's to refuse.
  if (got?.kind !== 'func' || formatFuncType(got) === wanted) return
  throw new CellarError('IMPORT_TYPE_WRONG', [path, importName(one), printable(formatFuncType(got)), wanted])
}

function checkStart(path: string, module: Module): void {
  const start = module.exports.find((one) => one.name === '_start' && one.kind === 'func')
  if (start === undefined) {
    const names = module.exports.slice(0, EXPORTS_SHOWN_MAX).map((one) => printable(one.name, NAME_LENGTH_MAX))
    const more = module.exports.length - names.length
    throw new CellarError('MODULE_NO_START',
      [path, names.length === 0 ? 'none' : names.join(', ') + (more > 0 ? ` and ${more} more` : '')])
  }
  checkAction(path, module, start.index, '_start')
}

function checkAction(path: string, module: Module, index: number, what: string): void {
  const type: FuncType | undefined = functionTypes(module)(index)
  if (type === undefined || (type.params.length === 0 && type.results.length === 0)) return
  throw new CellarError('MODULE_INVALID',
    [path, `its ${what} has the type ${printable(formatFuncType(type))}: that of a command is () -> ()`])
}

function typeText({ params, result }: Signature): string {
  return formatFuncType({ params, results: result === null ? [] : [result] })
}

// 'env: one, two; other: three (global) and 5 more'
function listImports(imports: readonly Import[]): string {
  const groups = new Map<string, string[]>()
  for (const one of imports.slice(0, IMPORTS_SHOWN_MAX)) {
    const names = groups.get(one.module) ?? []
    names.push(printable(one.name, NAME_LENGTH_MAX) + (one.kind === 'func' ? '' : ` (${one.kind})`))
    groups.set(one.module, names)
  }
  const list = [...groups].map(([module, names]) => `${printable(module)}: ${names.join(', ')}`).join('; ')
  return list + (imports.length > IMPORTS_SHOWN_MAX ? ` and ${imports.length - IMPORTS_SHOWN_MAX} more` : '')
}

function importName(one: Import): string {
  return `${printable(one.module)}.${printable(one.name)}`
}

// 'WebAssembly.Module(): Compiling function #1:"f" failed: … @+37', in which 37 counts bytes of what we made.
function compileErrorText(message: string, prepared: Prepared): string {
  const text = message.replace(/^WebAssembly\.\w+\(\): /, '').replace(/ ?@\+(\d+)$/,
    (_, offset: string) => ` at byte ${originalOffset(prepared, Number(offset))}`)
  return printable(text, COMPILE_ERROR_LENGTH_MAX)
}

const MAGIC = [0x00, 0x61, 0x73, 0x6d]
const IMPORTS_SHOWN_MAX = 10
const EXPORTS_SHOWN_MAX = 8
/** Of names in a list: some tools make names of whole signatures. */
const NAME_LENGTH_MAX = 40
const COMPILE_ERROR_LENGTH_MAX = 500
const THREAD_SPAWN = new Set(['thread-spawn', 'thread_spawn'])

const REASONS: Record<string, string> = {
  EACCES: 'permission denied', EPERM: 'permission denied', EISDIR: 'it is a folder', ELOOP: 'too many symbolic links',
  ENAMETOOLONG: 'the path is too long', EIO: 'the disk failed', EMFILE: 'too many files are open',
}

const FORMATS: Record<string, string> = {
  '7f454c46': 'an ELF executable (Linux)', 'feedface': 'a Mach-O executable (macOS)',
  'feedfacf': 'a Mach-O executable (macOS)',
  'cefaedfe': 'a Mach-O executable (macOS)', 'cffaedfe': 'a Mach-O executable (macOS)',
  'cafebabe': 'a universal Mach-O executable or a Java class', '4d5a': 'a Windows executable', '1f8b': 'a gzip archive',
  '504b0304': 'a zip archive', '28b52ffd': 'a zstd archive', 'fd377a58': 'an xz archive', '425a68': 'a bzip2 archive',
  '4243c0de': 'LLVM bitcode', '213c6172': 'a library archive (.a)', '25504446': 'a PDF', '89504e47': 'a PNG image',
}
