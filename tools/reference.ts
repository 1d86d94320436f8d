// tools/reference.ts: writes docs/reference/ from the tables that the program itself runs on.
//
// One page a table: hypercalls.md (wasi/p1/table.ts), errors.md (base/errors.ts), limits.md (base/limits.ts), cli.md
// (cli/flags.ts) and manifest.md (the schemas in cli/manifest.ts). Nobody edits these pages. `--check` writes nothing
// and fails if a page isn't what the tables say.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { ERRORS } from '../src/base/errors.ts'
import * as limits from '../src/base/limits.ts'
import * as tables from '../src/cli/flags.ts'
import type { Flag } from '../src/cli/flags.ts'
import { CELL_MANIFEST, POOL_MANIFEST, STACK_CELL_MANIFEST, STACK_MANIFEST } from '../src/cli/manifest.ts'
import { wasi_snapshot_preview1 } from '../src/wasi/p1/table.ts'
import type { Signature } from '../src/wasi/p1/table.ts'

const ROOT = resolve(import.meta.dirname, '..')

const ANSWERS: Record<Signature['answers'], string> = { now: 'at once', wait: 'may wait', end: 'may end the guest' }

/** The pages: file name → text. */
export function pages(): Record<string, string> {
  return {
    'hypercalls.md': hypercalls(), 'errors.md': errors(), 'limits.md': limitsPage(), 'cli.md': cli(),
    'manifest.md': manifest(),
  }
}

function hypercalls(): string {
  const rows = Object.entries(wasi_snapshot_preview1 as Record<string, Signature>)
  const full = rows.filter(([, { support }]) => support === 'full').length
  return page('Hypercalls', 'src/wasi/p1/table.ts', [
    `The ${rows.length} functions of WASI preview 1, module \`wasi_snapshot_preview1\`; ` +
      `${full} are supported in full. A call that may wait parks its vCPU, and the pCPU runs another.`,
    table(['name', 'parameters', 'result', 'answers', 'support', 'note'], rows.map(([name, row]) =>
      [code(name), row.params.join(' ') || 'none', row.result ?? 'none', ANSWERS[row.answers], row.support, row.note])),
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
  const sections = Object.entries(tables).filter(([name]) => name.endsWith('_FLAGS')).map(([name, flags]) => {
    const command = name.replace('_FLAGS', '').toLowerCase().replaceAll('_', ' ')
    const rows = Object.entries(flags as Record<string, Flag>).map(([flag, { short, value, many, help }]) =>
      [code(`--${flag}${value === undefined ? '' : ` ${value}`}`), short === undefined ? '' : code(`-${short}`),
        many ? 'many times' : 'once', help])
    return `## cellar ${command}\n\n${table(['flag', 'short', 'given', 'meaning'], rows)}`
  })
  return page('Command line', 'src/cli/flags.ts', [
    "Flags of Cellar stand before the program; what follows the program is the program's own.", ...sections,
  ])
}

function manifest(): string {
  const [cell, ofStack] = [keys(CELL_MANIFEST), keys(STACK_CELL_MANIFEST)]
  const known = new Set(cell.map(([name]) => name))
  const head = readFileSync(join(ROOT, 'src/cli/manifest.ts'), 'utf8').split('\n\n', 1)[0]!
  const [cellExample, stackExample] = [...head.matchAll(/(?:^\/\/ {3}.*\n)+/gm)].map(([lines]) =>
    `\`\`\`yaml\n${lines.replace(/^\/\/ {3}/gm, '')}\`\`\``)
  return page('Manifest', 'src/cli/manifest.ts', [
    'A cell, or a stack of cells that share the CPU, described by a file (YAML), for `cellar run -f MANIFEST`. A ' +
      'manifest with `cells` is a stack. Unknown keys are refused.',
    '## A cell', table(KEYS_HEAD, cell), cellExample!,
    '## A stack', table(KEYS_HEAD, keys(STACK_MANIFEST)), stackExample!,
    '## A cell of a stack', 'All that a cell has, and:', table(KEYS_HEAD, ofStack.filter(([name]) => !known.has(name))),
    '## A pool', table(KEYS_HEAD, keys(POOL_MANIFEST)),
  ])
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
