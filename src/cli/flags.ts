// cli/flags.ts: the flags of each command as data, and what reads them.
//
// Help, parsing, did-you-mean and docs/reference/cli.md come from these tables. Flags of Cellar end at the first word
// that isn't one: the program. What follows belongs to the program.

import * as util from 'node:util'
import { CellarError } from '../base/errors.ts'

/** One flag. `value` is the placeholder in help; without it the flag is a switch. */
export type Flag = { readonly short?: string; readonly value?: string; readonly many?: boolean; readonly help: string }

/** Flags of `cellar run`. */
export const RUN_FLAGS = {
  dir: { value: 'HOST[:GUEST][:ro]', many: true,
    help: 'Grant a folder of the host; GUEST is the name that the program sees (default: HOST); ' +
      'ro: nothing in it can be changed' },
  env: { short: 'e', value: 'K=V', many: true, help: "Set an environment variable; K alone passes on the host's" },
  listen: { value: 'tcp:HOST:PORT', many: true,
    help: 'Give the program a listening socket: descriptors from 3, after the folders; port 0 takes a free one' },
  memory: { short: 'm', value: 'SIZE',
    help: 'Most memory that the program may have, such as 64MiB (default: 4GiB, all that a 32-bit memory can have)' },
  timeout: { value: 'DURATION', help: 'Stop the program after this time, such as 5s; exit status 124' },
  shares: { value: 'N', help: 'Weight against other cells that want the CPU, 1 to 10000 (default: 100)' },
  'cpu-limit': { value: 'CPU', help: 'CPU that the program never has more of, such as 10% or 0.5' },
  'cpu-reservation': { value: 'CPU', help: 'CPU that it has whenever it wants it, such as 25%' },
  quantum: { value: 'DURATION', help: 'The longest that a cell runs while others want to (default: 1ms)' },
  deterministic: { help: 'Count what the program executes; others then run at the same places in every run' },
  unbounded: { help: 'Let even a program share the CPU that could hold others up, such as by garbage collection' },
  stub: { value: 'MODULE[.NAME]', many: true,
    help: 'Bind unknown imports of MODULE to stubs; a stub ends the program when called' },
  'clock-resolution': { value: 'DURATION', help: "Round the program's clocks down, such as 1ms (default: 1ns)" },
  name: { value: 'NAME', help: 'Call the program NAME in messages (default: its path)' },
  file: { short: 'f', value: 'MANIFEST',
    help: 'Run what a manifest (YAML) describes: a stack, or a cell, whose arguments follow' },
  stats: { help: 'Print to stderr at the end what the program used' },
  trace: { help: 'Print each hypercall to stderr with its answer' },
  help: { short: 'h', help: 'Show this help' },
} as const satisfies Record<string, Flag>

/** Flags of `cellar inspect`. */
export const INSPECT_FLAGS = {
  output: { short: 'o', value: 'FORMAT', help: 'text (default) or json' },
  help: { short: 'h', help: 'Show this help' },
} as const satisfies Record<string, Flag>

/** What was given: a list of values for each flag (a switch has ['']), and the words from the first that is no flag. */
export type Parsed<T> = {
  readonly flags: { readonly [K in keyof T]?: readonly string[] }
  readonly rest: readonly string[]
}

/**
 * Reads `argv` by `table`. Throws CellarError on an unknown flag, a missing value, or a second value where one fits.
 */
export function parseFlags<T extends Record<string, Flag>>(argv: readonly string[], table: T): Parsed<T> {
  // No flags: the parser needn't be loaded, which is half a millisecond of a guest's start.
  if (argv[0]?.startsWith('-') !== true) return { flags: {}, rest: argv }
  const options = Object.fromEntries(Object.entries(table).map(([name, { short, value, many }]) =>
    [name, { type: value === undefined ? 'boolean' : 'string', multiple: many ?? false,
      ...(short === undefined ? {} : { short }) }] as const))
  const { tokens } = util.parseArgs({ args: [...argv], options, strict: false, allowPositionals: true, tokens: true })
  const flags: Record<string, string[]> = {}
  for (const token of tokens) {
    if (token.kind === 'positional') return { flags: flags as Parsed<T>['flags'], rest: argv.slice(token.index) }
    if (token.kind === 'option-terminator') return { flags: flags as Parsed<T>['flags'],
      rest: argv.slice(token.index + 1) }
    const flag = Object.hasOwn(table, token.name) ? table[token.name] : undefined
    if (flag === undefined) throw new CellarError('FLAG_UNKNOWN',
      [token.rawName, didYouMean(token.name, Object.keys(table))])
    if (flag.value === undefined && token.value !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
      [token.rawName, token.value, 'given alone: it is a switch'])
    // The next word is no value if it looks like a flag: --env=-X says so if it is one.
    const swallowed = token.inlineValue === false && /^-./.test(token.value)
    if (flag.value !== undefined && (token.value === undefined || swallowed)) {
      throw new CellarError('FLAG_VALUE_MISSING', [token.rawName])
    }
    if (flag.many !== true && flags[token.name] !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
      [token.rawName, token.value ?? '', 'given once'])
    ;(flags[token.name] ??= []).push(token.value ?? '')
  }
  return { flags: flags as Parsed<T>['flags'], rest: [] }
}

/** The flags part of a command's help. */
export function helpOf(table: Record<string, Flag>): string {
  const rows = Object.entries(table).map(([name, { short, value, help }]) =>
    [`  ${short === undefined ? '    ' : `-${short}, `}--${name}${value === undefined ? '' : ` ${value}`}`,
      help] as const)
  const width = Math.max(...rows.map(([left]) => left.length)) + 3
  return rows.map(([left, help]) => left.padEnd(width) + help).join('\n')
}

/** `; did you mean --dir?` for a name that is close to one of `names`, else nothing. */
function didYouMean(name: string, names: readonly string[]): string {
  const best = names.map((candidate) => [distance(name, candidate), candidate] as const).sort(([a], [b]) => a - b)[0]
  return best !== undefined && best[0] <= 2 ? `; did you mean --${best[1]}?` : ''
}

/** Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}
