// cli/man.ts: `cellar man [DIR]`: manual pages, made of the table of commands: cellar.1, and one for each first word.
//
// A page is man(7) roff. Text is escaped: a line that begins with a dot or an apostrophe would be an order, and a
// hyphen would be set as one that can't be pasted into a shell.

import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { COMMANDS, usageOf, type Call, type Command } from './commands.ts'
import { shellLine } from './help.ts'
import { print } from './print.ts'

const COLUMNS_MAX = 76
const STATUS = `0 if all went well, else 1 if the host refused. Of run, exec and wait the program's own status; 124 if a
time was up; 125 if Cellar could not do it; 126 if the program can't be run; 127 if it isn't there; 128 and the signal's
number if a signal ended it. Of diff 1 if something differs.`
const ENVIRONMENT: readonly (readonly [name: string, what: string])[] = [
  ['CELLAR_HOST', 'The host: a socket, unix:PATH, http://… or https://…'], ['CELLAR_CONTEXT', 'The context to use'],
  ['CELLAR_TOKEN', 'The token that is sent'], ['CELLAR_PROJECT', 'The project that is meant if none is named'],
  ['XDG_CONFIG_HOME', 'Contexts are kept in cellar/config.yaml there (default: ~/.config)'],
]

/** Writes the pages into a folder, and prints their names. Throws OUTPUT_FAILED. */
export async function man({ words }: Call): Promise<number> {
  const folder = words[0] ?? '.'
  try {
    mkdirSync(folder, { recursive: true })
    for (const [name, text] of Object.entries(manPages())) {
      writeFileSync(join(folder, name), text)
      print(`${name}\n`)
    }
  } catch (cause) {
    if (cause instanceof CellarError) throw cause
    throw new CellarError('OUTPUT_FAILED', [(cause as Error).message], { cause })
  }
  return 0
}

/** The pages: file name → roff. */
export function manPages(): Record<string, string> {
  const shown = COMMANDS.filter(({ hidden }) => hidden !== true)
  const byWord = Map.groupBy(shown, ({ name }) => name.split(' ', 1)[0]!)
  return { 'cellar.1': overview(shown),
    ...Object.fromEntries([...byWord].map(([word, commands]) => [`cellar-${word}.1`, pageOf(word, commands)])) }
}

function overview(commands: readonly Command[]): string {
  const groups = [...Map.groupBy(commands, ({ group }) => group)].map(([group, list]) => [
    `.SS ${escape(group)}`, ...list.flatMap(({ name, summary }) => ['.TP', `.B cellar ${escape(name)}`, line(summary)]),
  ].join('\n'))
  return [
    head('cellar'), '.SH NAME', 'cellar \\- a hypervisor that runs WebAssembly programs directly',
    '.SH SYNOPSIS', '.B cellar', '.I COMMAND', '.RI [ ARGUMENTS ]',
    '.SH DESCRIPTION', line('Runs WebAssembly programs in the foreground, and operates a host that keeps them ' +
      'running. Each command has a page of its own, such as cellar-run(1).'),
    '.SH COMMANDS', ...groups, '.SH ENVIRONMENT',
    ...ENVIRONMENT.flatMap(([name, what]) => ['.TP', `.B ${name}`, line(what)]),
    '.SH EXIT STATUS', line(STATUS.replaceAll('\n', ' ')), '',
  ].join('\n')
}

function pageOf(word: string, commands: readonly Command[]): string {
  const summary = commands.length === 1 || commands[0]!.name === word ? commands[0]!.summary
    : commands.map(({ name }) => name.slice(word.length + 1)).join(', ')
  return [
    head(`cellar-${word}`), '.SH NAME', line(`cellar-${word} - ${summary}`),
    '.SH SYNOPSIS', '.nf', ...commands.flatMap(usageOf).map((usage) => `.B cellar ${escape(usage)}`), '.fi',
    '.SH DESCRIPTION', ...commands.flatMap((command) => describe(command, commands.length > 1)),
    '.SH SEE ALSO', '.BR cellar (1)', '',
  ].join('\n')
}

function describe({ name, summary, about, flags, examples, aliases }: Command, isOneOfSeveral: boolean): string[] {
  return [
    ...(isOneOfSeveral ? [`.SS cellar ${escape(name)}`] : []), line(`${summary}.`),
    ...(about === undefined ? [] : ['.PP', line(about)]),
    ...(aliases === undefined ? [] : ['.PP', line(`Also called ${aliases.map((one) => `cellar ${one}`).join(', ')}.`)]),
    ...Object.entries(flags).flatMap(([flag, { short, value, help }]) => ['.TP',
      `${short === undefined ? '' : `\\fB\\-${short}\\fR, `}\\fB\\-\\-${escape(flag)}\\fR${
        value === undefined ? '' : ` \\fI${escape(value)}\\fR`}`, line(help)]),
    ...(examples.length === 0 ? [] : ['.PP', 'Examples:', '.PP', '.nf',
      ...examples.map((one) => asText(escape(`    ${shellLine(one)}`))), '.fi']),
  ]
}

/** Dated by the day on which it is written. */
function head(title: string): string {
  return `.TH ${escape(title.toUpperCase())} 1 "${new Date().toISOString().slice(0, 10)}" "Cellar" "Cellar"`
}

/** Text as lines that are not too long; none of them begins with an order. */
function line(text: string): string {
  const lines: string[] = []
  for (const word of escape(text).split(' ')) {
    const last = lines.at(-1)
    if (last === undefined || last.length + word.length >= COLUMNS_MAX) lines.push(word)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return lines.map(asText).join('\n')
}

function asText(text: string): string { return /^[.']/.test(text) ? `\\&${text}` : text }

function escape(text: string): string {
  return text.replaceAll('\\', '\\e').replaceAll('-', '\\-').replaceAll('…', '...')
}
