// cli/output.ts: lists for people and for programs: aligned tables without lines, or JSON, YAML, names.
//
// What a program reads is on stdout and nothing else is. JSON and YAML are the API's own views, whole. Text that a
// guest or an image may have chosen has no control characters in a table.

import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { parseDuration } from '../base/units.ts'
import type { Call } from './commands.ts'
import { print, tell } from './print.ts'
import { isTold } from './told.ts'

/** A column of a table. `wide`: in `-o wide` only; `number`: aligned at its end. */
export type Column<T> = { readonly head: string; readonly of: (item: T) => string; readonly wide?: true
  readonly number?: true }
/** How a list is shown. `name`: what -q prints, and other commands take. */
export type View<T> = { readonly columns: readonly Column<T>[]; readonly name: (item: T) => string }

const GAP = '   '
const CELL_CHARS_MAX = 200
/** How many items of one command are worked on at once. */
const BULK_MAX = 8

/** Prints a list as the flags say: --output, --quiet, --no-headers. */
export async function printList<T>({ flags }: Call, items: readonly T[], view: View<T>): Promise<void> {
  const format = flags.quiet !== undefined ? 'name' : flags.output?.[0] ?? 'table'
  if (format === 'json' || format === 'yaml') return await printData(format, items)
  if (format === 'name') return print(items.map((item) => `${printable(view.name(item))}\n`).join(''))
  print(tableOf(items, view.columns.filter(({ wide }) => wide !== true || format === 'wide'),
    flags['no-headers'] === undefined))
}

/** Prints data whole. */
export async function printData(format: 'json' | 'yaml', data: unknown): Promise<void> {
  if (format === 'json') return print(`${JSON.stringify(data, null, 2)}\n`)
  print((await import('yaml')).stringify(JSON.parse(JSON.stringify(data))))
}

/** The data of one thing, or a list of that of several; JSON unless --output says yaml. */
export async function printWhole({ flags }: Call, items: readonly unknown[]): Promise<void> {
  await printData(flags.output?.[0] === 'yaml' ? 'yaml' : 'json', items.length === 1 ? items[0] : items)
}

/** A table: each line ended, columns three blanks apart. */
export function tableOf<T>(items: readonly T[], columns: readonly Column<T>[], heads = true): string {
  const rows = [...(heads ? [columns.map(({ head }) => head)] : []),
    ...items.map((item) => columns.map(({ of }) => printable(of(item), CELL_CHARS_MAX)))]
  const widths = columns.map((_, i) => Math.max(0, ...rows.map((row) => row[i]!.length)))
  return rows.map((row) => `${row.map((text, i) =>
    columns[i]!.number === true ? text.padStart(widths[i]!) : text.padEnd(widths[i]!)).join(GAP).trimEnd()}\n`).join('')
}

/** How long ago `time` (ms since 1970) was: '3m ago'; nothing for undefined. */
export function ago(time: number | undefined, now = Date.now()): string {
  return time === undefined ? '' : `${span(now - time)} ago`
}

/** A span of ms in one or two units: '45s', '3m', '2h', '5d'. */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000))
  if (seconds < 120) return `${seconds}s`
  if (seconds < 2 * 3600) return `${Math.floor(seconds / 60)}m`
  return seconds < 48 * 3600 ? `${Math.floor(seconds / 3600)}h` : `${Math.floor(seconds / 86_400)}d`
}

/** A digest as people compare it. */
export function shortDigest(digest: string): string {
  return digest.replace(/^sha256:/, '').slice(0, 12)
}

/**
 * Does `work` for each name, some at once; prints what it answers, in the order of the names, and tells what failed.
 * The exit status: 1 if anything failed.
 */
export async function each(names: readonly string[], work: (name: string) => Promise<string | undefined>):
Promise<number> {
  let failed = 0
  const running: Promise<string | undefined>[] = []
  for (const [i, name] of names.entries()) {
    if (i >= BULK_MAX) await running[i - BULK_MAX]!.catch(() => {})
    const one = work(name)
    one.catch(() => {})
    running.push(one)
  }
  for (const one of running) {
    try {
      const text = await one
      if (text !== undefined) print(`${text}\n`)
    } catch (error) {
      if (!isTold(error) || names.length === 1) throw error
      tell(error)
      failed++
    }
  }
  return failed > 0 ? 1 : 0
}

/** Nanoseconds of a flag. Throws FLAG_VALUE_INVALID. */
export function durationNs(flag: string, text: string): number {
  const ns = parseDuration(text)
  if (ns === undefined || ns < 1) throw new CellarError('FLAG_VALUE_INVALID',
    [flag, text, 'a duration above 0, such as 5s'])
  return ns
}

/** Does `then` on Ctrl-C, until it is disposed of; a command without this ends at once, as any process does. */
export function onInterrupt(then: () => void): Disposable {
  process.on('SIGINT', then)
  return { [Symbol.dispose]: () => { process.off('SIGINT', then) } }
}
