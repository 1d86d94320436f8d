// image/machine_modules.ts: which of a kernel's modules a guest needs, and in what order they are loaded.
//
// A module says in its section .modinfo what it depends on and which devices it is for: "depends=a,b",
// "alias=virtio:…". From that come the files that modprobe and the kernel's own requests read (modules.dep,
// modules.alias), so that nothing of Debian's has to run here. Names have '-' and '_' alike, as modprobe has it.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join, relative } from 'node:path'
import { spawnSync } from 'node:child_process'
import { zstdDecompressSync } from 'node:zlib'
import { CellarError } from '../base/errors.ts'

const MODULE = /\.ko(\.xz|\.zst)?$/
const MODULE_BYTES_MAX = 64 * 1024 * 1024

/** A module of the guest: its path below lib/modules/VERSION, uncompressed, and what it says of itself. */
export type KernelModule = {
  readonly name: string
  readonly path: string
  readonly content: Uint8Array
  readonly depends: readonly string[]
  readonly aliases: readonly string[]
}

/**
 * The modules called `names` in `folder` (lib/modules/VERSION) and all that they need, each behind what it depends on.
 * Those that the kernel doesn't have as modules, as they are built in or too new, are left out.
 */
export function modulesOf(folder: string, names: readonly string[]): KernelModule[] {
  const paths = new Map<string, string>()
  for (const path of walk(folder)) if (MODULE.test(path)) paths.set(nameOf(path), path)
  const found = new Map<string, KernelModule>()
  const visited = new Set<string>()
  const visit = (name: string): void => {
    const path = paths.get(name)
    if (path === undefined || visited.has(name)) return
    visited.add(name)
    const content = contentOf(path)
    const info = readModinfo(content)
    const depends = info.filter(([key]) => key === 'depends').flatMap(([, value]) => value.split(','))
      .filter((one) => one !== '').map(plain)
    for (const one of depends) visit(one)
    found.set(name, { name, path: relative(folder, path).replace(/\.(xz|zst)$/, ''), content, depends,
      aliases: info.filter(([key]) => key === 'alias').map(([, value]) => value) })
  }
  for (const name of names) visit(plain(name))
  return [...found.values()]
}

/**
 * What modprobe reads: a line for each module, with all that it needs. The last is loaded first, so that each stands
 * before what it depends on. `modules`: as modulesOf has them.
 */
export function dependenciesOf(modules: readonly KernelModule[]): string {
  const needs = new Map<string, ReadonlySet<string>>()
  for (const { name, depends } of modules) {
    needs.set(name, new Set(depends.flatMap((one) => [one, ...needs.get(one) ?? []])))
  }
  return modules.map(({ name, path }) => {
    const all = modules.filter((one) => one.name !== name && needs.get(name)!.has(one.name)).map((one) => one.path)
    return `${[`${path}:`, ...all.reverse()].join(' ')}\n`
  }).join('')
}

/** What the kernel's requests for modules are found by. */
export function aliasesOf(modules: readonly KernelModule[]): string {
  return modules.flatMap(({ name, aliases }) => aliases.map((alias) => `alias ${alias} ${name}\n`)).join('')
}

/** KEY=VALUE pairs of an ELF file's section .modinfo; none if it isn't one. */
export function readModinfo(bytes: Uint8Array): [key: string, value: string][] {
  const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  // 64 bits, little-endian: what x86-64 has.
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) return []
  const [table, size, count, names] =
    [Number(file.readBigUInt64LE(0x28)), file.readUInt16LE(0x3a), file.readUInt16LE(0x3c), file.readUInt16LE(0x3e)]
  if (size < 64 || table + count * size > file.length || names >= count) return []
  const section = (index: number): { name: number; bytes: Buffer } => {
    const at = table + index * size
    const from = Number(file.readBigUInt64LE(at + 0x18))
    return { name: file.readUInt32LE(at), bytes: file.subarray(from, from + Number(file.readBigUInt64LE(at + 0x20))) }
  }
  const strings = section(names).bytes
  for (let i = 0; i < count; i++) {
    const { name, bytes: content } = section(i)
    if (strings.toString('latin1', name, name + 9) !== '.modinfo\0') continue
    return content.toString('utf8').split('\0').flatMap((text) => {
      const equals = text.indexOf('=')
      return equals < 1 ? [] : [[text.slice(0, equals), text.slice(equals + 1)] as [string, string]]
    })
  }
  return []
}

function contentOf(path: string): Uint8Array {
  const bytes = readFileSync(path)
  if (path.endsWith('.ko')) return bytes
  if (path.endsWith('.zst')) return zstdDecompressSync(bytes, { maxOutputLength: MODULE_BYTES_MAX })
  const { stdout, status, error } = spawnSync('xz', ['-dc'], { input: bytes, maxBuffer: MODULE_BYTES_MAX })
  if (error !== undefined) throw new CellarError('MACHINE_TOOL_MISSING', ['read modules', 'xz', 'xz-utils'])
  if (status !== 0) throw new CellarError('MACHINE_PACKAGES_FAILED', ['read modules', `"${path}" is damaged`])
  return stdout
}

function walk(folder: string): string[] {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { withFileTypes: true, recursive: true }).filter((one) => one.isFile())
    .map(({ parentPath, name }) => join(parentPath, name)).sort()
}

function nameOf(path: string): string { return plain(basename(path).replace(MODULE, '')) }

function plain(name: string): string { return name.replaceAll('-', '_') }
