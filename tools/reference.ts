// tools/reference.ts: writes docs/reference/ from the tables that the program itself runs on.
//
// One page a table: hypercalls.md (wasi/p1/table.ts, wasi/cellar/table.ts), virtio.md (virtio/support.ts), errors.md
// (base/errors.ts), limits.md (base/limits.ts), cli.md (cli/flags.ts), manifest.md (the schemas in host/spec.ts),
// api.md (api/routes.ts) and snapshots.md (snapshot/format.ts).
// Nobody edits these pages. `--check` writes nothing and fails if a page isn't what the tables say.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { errorsOf, statusOf } from '../src/api/openapi.ts'
import { ROUTES } from '../src/api/routes.ts'
import { ERRORS } from '../src/base/errors.ts'
import * as limits from '../src/base/limits.ts'
import { COMMANDS, usageOf } from '../src/cli/commands.ts'
import { shellLine } from '../src/cli/help.ts'
import {
  CELL_MANIFEST, HEALTH, MACHINE, MANIFEST, MANIFEST_CELL, POOL_SPEC, VOLUME_SPEC,
} from '../src/host/spec.ts'
import type { Part } from '../src/snapshot/codec.ts'
import { MACHINE_SNAPSHOT, SNAPSHOT } from '../src/snapshot/format.ts'
import { VIRTIO_SUPPORT } from '../src/virtio/support.ts'
import { cellar } from '../src/wasi/cellar/table.ts'
import { wasi_snapshot_preview1 } from '../src/wasi/p1/table.ts'
import type { Signature } from '../src/wasi/p1/table.ts'

const ROOT = resolve(import.meta.dirname, '..')

const ANSWERS: Record<Signature['answers'], string> = { now: 'at once', wait: 'may wait', end: 'may end the guest' }

/** The pages: file name → text. */
export function pages(): Record<string, string> {
  return {
    'hypercalls.md': hypercalls(), 'errors.md': errors(), 'limits.md': limitsPage(), 'cli.md': cli(),
    'manifest.md': manifest(), 'api.md': api(), 'snapshots.md': snapshots(), 'virtio.md': virtio(),
  }
}

function hypercalls(): string {
  const rows = Object.entries(wasi_snapshot_preview1 as Record<string, Signature>)
  const full = rows.filter(([, { support }]) => support === 'full').length
  return page('Hypercalls', 'src/wasi/cellar/table.ts', [
    'What a guest may ask of the hypervisor. A call that may wait parks its vCPU, and the pCPU runs another.',
    `## WASI preview 1\n\nThe ${rows.length} functions of module \`wasi_snapshot_preview1\`; ` +
      `${full} are supported in full.`,
    hypercallTable(rows),
    '## Cellar\n\nModule `cellar`: what preview 1 has no call for. In C: `sdk/c/cellar.h`.',
    hypercallTable(Object.entries(cellar)),
  ])
}

function hypercallTable(rows: readonly (readonly [name: string, row: Signature])[]): string {
  return table(['name', 'parameters', 'result', 'answers', 'support', 'note'], rows.map(([name, row]) =>
    [code(name), row.params.join(' ') || 'none', row.result ?? 'none', ANSWERS[row.answers], row.support, row.note]))
}

function virtio(): string {
  const count = (level: string): number => VIRTIO_SUPPORT.filter((row) => row.level === level).length
  return page('Virtio', 'src/virtio/support.ts', [
    'What of Virtio 1.3 the devices of machines have under our own monitor ([machines.md](../machines.md)), by ' +
      `section of the specification: ${count('full')} things in full, ${count('partial')} in part, ` +
      `${count('none')} not, with the reason. Under QEMU a machine has what QEMU offers.`,
    table(['section', 'name', 'support', 'note'], VIRTIO_SUPPORT.map(({ section, name, level, note }) =>
      [section, name.startsWith('VIRTIO_') ? code(name) : name, level, note])),
  ])
}

function errors(): string {
  const rows = Object.entries(ERRORS).map(([name, { exit, message, hint }]) =>
    [code(name), String(exit), (message as (...values: string[]) => string)(...parameters(message)), hint])
  return page('Errors', 'src/base/errors.ts', [
    'What Cellar tells its operator, on stderr, as `cellar: message [CODE]` and a hint. Codes are stable. The exit ' +
    "status is the CLI's: 125 when Cellar couldn't, 126 when the program can't be run, 127 when it isn't there.",
    table(['code', 'exit', 'message', 'hint'], rows),
  ])
}

function limitsPage(): string {
  const values = limits as Record<string, number>
  const source = readFileSync(join(ROOT, 'src/base/limits.ts'), 'utf8')
  // A reason is that of all the limits right below it.
  const entries = [...source.matchAll(/\/\*\*((?:(?!\*\/)[^])*)\*\/\s*((?:export const \w+ = .*\n)+)/g)]
    .flatMap(([, doc, limits]) => [...limits!.matchAll(/export const (\w+)/g)].map((one) => [doc!, one[1]!] as const))
  const undocumented = Object.keys(values).filter((name) => !entries.some((entry) => entry[1] === name))
  if (undocumented.length > 0) throw new Error(`Cannot document ${undocumented.join(', ')}: write the reason above it`)
  return page('Limits', 'src/base/limits.ts', [
    'Every limit that the hypervisor sets, and why.',
    table(['name', 'value', 'reason'], entries.map(([doc, name]) => [
      code(name), values[name]!.toLocaleString('en'),
      doc.replace(/^\s*\*/gm, '').trim().replace(/\s+/g, ' '),
    ])),
  ])
}

function cli(): string {
  const sections = COMMANDS.filter(({ hidden }) => hidden !== true).map((command) => {
    const { name, summary, about, aliases, examples, flags } = command
    const rows = Object.entries(flags).map(([flag, { short, value, many, help, choices }]) =>
      [code(`--${flag}${value === undefined ? '' : ` ${value}`}`), short === undefined ? '' : code(`-${short}`),
        many === true ? 'many times' : 'once', choices === undefined || choices.every((one) => help.includes(one))
          ? help
          : `${help}: ${choices.join(', ')}`])
    return [
      `## cellar ${name}`, `${summary}.${about === undefined ? '' : ` ${about}`}`,
      `\`\`\`\n${usageOf(command).map((usage) => `cellar ${usage}`).join('\n')}\n\`\`\``,
      ...(aliases === undefined ? [] : [`Also called ${aliases.map((one) => code(`cellar ${one}`)).join(', ')}.`]),
      ...(examples.length === 0 ? [] : [`Examples:\n\n\`\`\`sh\n${examples.map(shellLine).join('\n')}\n\`\`\``]),
      table(['flag', 'short', 'given', 'meaning'], rows),
    ].join('\n\n')
  })
  return page('Command line', 'src/cli/commands.ts', [
    "Flags of `cellar run` and `cellar exec` stand before the program; what follows is the program's own. Other " +
      'commands take flags anywhere, up to `--`. Which host is meant: `--host`, else `CELLAR_HOST`, else the context ' +
      '(`--context`, `CELLAR_CONTEXT`, `cellar context use`), else the host of this machine.', ...sections,
  ])
}

function manifest(): string {
  const [cell, ofStack] = [keys(CELL_MANIFEST), keys(MANIFEST_CELL)]
  const known = new Set(cell.map(([name]) => name).filter((name) => !DIFFERENT.includes(name)))
  const head = readFileSync(join(ROOT, 'src/cli/manifest.ts'), 'utf8').split('\n\n', 1)[0]!
  const [cellExample, stackExample] = [...head.matchAll(/(?:^\/\/ {3}.*\n)+/gm)].map(([lines]) =>
    `\`\`\`yaml\n${lines.replace(/^\/\/ {3}/gm, '')}\`\`\``)
  return page('Manifest', 'src/host/spec.ts', [
    'Guests described by a file (YAML): one cell for `cellar run -f MANIFEST`; several, under `cells`, for ' +
      '`cellar run -f`, where they share the CPU in the foreground, or as the desired state of a project for ' +
      '`cellar apply -f`, where some may be machines: those whose `image` is one. Unknown keys are refused.',
    '## A cell', table(KEYS_HEAD, cell), cellExample!,
    '## Several cells', table(KEYS_HEAD, keys(MANIFEST)), stackExample!,
    '## A cell of several', 'All that a cell has, and what follows. What only a host has, `cellar run -f` refuses.',
    table(KEYS_HEAD, ofStack.filter(([name]) => !known.has(name))),
    '## A pool', table(KEYS_HEAD, keys(POOL_SPEC)),
    '## Health', table(KEYS_HEAD, keys(HEALTH)),
    '## A volume', table(KEYS_HEAD, keys(VOLUME_SPEC)),
    '## A machine', "Under `machine`, of a guest whose image is a machine's ([machines.md](../machines.md)).",
    table(KEYS_HEAD, keys(MACHINE)),
  ])
}

/** Keys that mean something else in a cell of several. */
const DIFFERENT: readonly string[] = ['`program`', '`volumes`', '`listen`']

function api(): string {
  const routes = ROUTES.map((route) => [
    code(`${route.method} ${route.path}`), route.summary, route.scope,
    [route.answer.status, ...[...new Set(errorsOf(route).map(statusOf))].sort()].join(' '),
  ])
  const queries = ROUTES.flatMap((route) => Object.entries(route.query.shape).map(([key, schema]) =>
    [code(`${route.method} ${route.path}`), code(`?${key}`), (schema as z.ZodType).description ?? '']))
  return page('API', 'src/api/routes.ts', [
    'The HTTP API of a host. `/openapi.json` has it with all schemas. Refusals are `application/problem+json` with ' +
      'the codes of [errors.md](errors.md). Every answer has `X-Request-Id`; POST and PUT with JSON take ' +
      '`Idempotency-Key`. Times are milliseconds since 1970, sizes bytes, CPU in pCPUs.',
    table(['request', 'what it does', 'scope', 'statuses'], routes),
    '## Queries', table(['request', 'key', 'meaning'], queries),
  ])
}

function snapshots(): string {
  // The layouts that are drawn at the head of a file.
  const drawn = (file: string): string => {
    const head = readFileSync(join(ROOT, 'src/snapshot', file), 'utf8').split('\n\n', 1)[0]! + '\n'
    return `\`\`\`\n${/(?:^\/\/ {3}.*\n)+/m.exec(head)![0].replace(/^\/\/ {3}/gm, '')}\`\`\``
  }
  return page('Snapshots', 'src/snapshot/format.ts', [
    'A snapshot as bytes: what `cellar snapshot` keeps, what moves between hosts, and what a registry is given. ' +
      'Numbers are little-endian, texts UTF-8 after their length, u32; lists come after their length, u32. A value ' +
      'has one encoding: whatever else is read is refused with SNAPSHOT_DAMAGED, a later version with ' +
      'SNAPSHOT_NEWER, another layout of frames with SNAPSHOT_FOREIGN ([errors.md](errors.md)).',
    '## The file', drawn('format.ts'),
    "Its digest is the SHA-256 of all of it. The memory's bytes aren't in it, but the SHA-256 of each page.",
    "## Fields of a cell's snapshot", 'In this order.',
    table(['field', 'type', 'meaning'], fieldsOf(SNAPSHOT.parts!, '')),
    "## Fields of a machine's snapshot", 'Both kinds begin with `meta`, whose `kind` says which it is. Sections are ' +
      "what the machine's engine has saved, each with a version of its own; pages are its RAM, then the files of its " +
      'own disks, each from a new page on.',
    table(['field', 'type', 'meaning'], fieldsOf(MACHINE_SNAPSHOT.parts!, '')),
    '## Folder', "Each project has one; its processes and the host use it at once.", drawn('disk.ts'),
    '## Packs', drawn('packs.ts'), 'A stored chunk of 65,536 bytes is the chunk; a shorter one is a zstd frame of it.',
    '## Between hosts', drawn('transfer.ts'), 'Chunks come in any order, only those that the receiver lacks.',
    '## In registries', drawn('artifact.ts'), 'What is in layers of chunks is what comes between hosts.',
  ])
}

/** A row for each field, those of a field after it. */
function fieldsOf(parts: readonly Part[], prefix: string): [name: string, type: string, meaning: string][] {
  return parts.flatMap(({ name, type, meaning, parts: inner = [] }) =>
    [[code(prefix + name), type, meaning], ...fieldsOf(inner, `${prefix}${name}.`)])
}

const KEYS_HEAD = ['key', 'type', 'needed', 'meaning'] as const

type Property = { readonly type?: string | readonly string[]; readonly description?: string }

/** A row for each key that a schema knows. */
function keys(schema: z.ZodType): [name: string, type: string, needed: string, meaning: string][] {
  const { properties = {}, required = [] } = z.toJSONSchema(schema, { io: 'input' })
  return Object.entries(properties as Record<string, Property>).map(([name, { type = 'any', description = '' }]) =>
    [code(name), [type].flat().join(' or '), required.includes(name) ? 'yes' : 'no', description])
}

/** The names of a function's parameters, in angle brackets: what a message says before it has values. */
function parameters(message: (...values: never[]) => string): string[] {
  const list = /^\(([^)]*)\)/.exec(String(message))?.[1] ?? ''
  return list.split(',').map((name) => `<${name.trim().split(/[\s:]/)[0]}>`)
}

function page(title: string, source: string, parts: readonly string[]): string {
  const link = `[${source}](../../${source})`
  const notice = `Generated from ${link} by \`tools/reference.ts\`: change the table, not this page.`
  return [`# ${title}`, notice, ...parts].join('\n\n') + '\n'
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ')
    .replace(/<(\w+)>/g, '&lt;$1&gt;')
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.map(cell).join(' | ')} |`).join('\n')
}

function code(text: string): string { return `\`${text}\`` }

function main(): void {
  const check = process.argv.includes('--check')
  const folder = join(ROOT, 'docs', 'reference')
  mkdirSync(folder, { recursive: true })
  for (const [name, text] of Object.entries(pages())) {
    const path = join(folder, name)
    if (!check) writeFileSync(path, text)
    else if (text !== current(path)) {
      console.log(`docs/reference/${name} isn't what the tables say: run 'node tools/reference.ts', look at the diff`)
      process.exitCode = 1
    }
  }
}

function current(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

if (import.meta.main) main()
