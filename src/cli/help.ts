// cli/help.ts: help, made of the table of commands.

import { CellarError } from '../base/errors.ts'
import { COMMANDS, commandsOf, findCommand, usageOf, type Command } from './commands.ts'
import { didYouMean, helpOf } from './flags.ts'
import { print } from './print.ts'

const WIDTH = 20

const row = (left: string, right: string): string => `  ${left.padEnd(WIDTH)}${right}`

/** `cellar help [COMMAND…]`. Throws USAGE for what is no command. */
export function help(argv: readonly string[]): number {
  const words = argv.filter((word) => word !== '--help' && word !== '-h')
  print(words.length === 0 ? overview() : helpFor(words))
  return 0
}

/** The help of the command, or of the noun, that `argv` begins with. Throws USAGE. */
export function helpFor(argv: readonly string[]): string {
  const found = findCommand(argv)
  if (found !== undefined) return commandHelp(found.command)
  const commands = commandsOf(argv[0] ?? '')
  if (commands.length === 0) throw unknownCommand(argv)
  return `Usage: cellar ${argv[0]} COMMAND\n\nCommands:\n${commands.map(({ name, summary }) =>
    row(name.slice(argv[0]!.length + 1), summary)).join('\n')}\n`
}

/** An error that says what there is instead. */
export function unknownCommand(argv: readonly string[]): CellarError {
  const [first = '', second] = argv
  if (first === '') return new CellarError('USAGE', ['Cannot tell what to do: no command given'])
  if (first.startsWith('-')) {
    return new CellarError('USAGE', [`Cannot take "${first}" before the command: flags stand after it`])
  }
  const verbs = commandsOf(first).map(({ name }) => name.slice(first.length + 1))
  if (verbs.length > 0 && second === undefined) {
    return new CellarError('USAGE', [`Cannot tell what to do with ${first}: say one of ${verbs.join(', ')}`])
  }
  const name = verbs.length > 0 ? `${first} ${second}` : first
  const near = verbs.length > 0 ? didYouMean(second!, verbs, `${first} `)
    : didYouMean(first, [...new Set(COMMANDS.flatMap((one) => one.name.split(' ', 1)))], '')
  return new CellarError('USAGE', [`Cannot run command "${name}" as no such command exists${near}`])
}

function commandHelp(command: Command): string {
  const { name, summary, about, examples, flags } = command
  const usage = usageOf(command).map((line, i) => `${i === 0 ? 'Usage: ' : '       '}cellar ${line}`)
  const related = commandsOf(name)
  return `${[
    summary, usage.join('\n'), ...(about === undefined ? [] : [about]),
    ...(examples.length === 0 ? [] : [`Examples:\n${examples.map((line) => `  ${shellLine(line)}`).join('\n')}`]),
    ...(related.length === 0 ? [] : [`Commands:\n${related.map((one) =>
      row(one.name.slice(name.length + 1), one.summary)).join('\n')}`]),
    `Flags:\n${helpOf(flags)}`,
  ].join('\n\n')}\n`
}

/** An example as it is typed: `cellar` stands before it, unless it is the end of a pipe. */
export function shellLine(example: string): string {
  return example.includes('| cellar ') ? example : `cellar ${example}`
}

function overview(): string {
  const groups = Map.groupBy(COMMANDS.filter(({ hidden }) => hidden !== true), ({ group }) => group)
  const sections = [...groups].map(([group, commands]) => {
    const nouns = new Map<string, Command[]>()
    for (const command of commands) {
      const noun = command.name.split(' ')[0]!
      nouns.set(noun, [...nouns.get(noun) ?? [], command])
    }
    const rows = [...nouns].map(([noun, [first, ...rest]]) => rest.length === 0 ? row(first!.name, first!.summary)
      : row(noun, [...(first!.name === noun ? [first!.summary] : []), `${[first!, ...rest]
        .filter(({ name }) => name !== noun).map(({ name }) => name.slice(noun.length + 1)).join(', ')}`].join('; ')))
    return `${group}:\n${rows.join('\n')}`
  })
  return `Cellar: a hypervisor that runs WebAssembly programs directly

Usage: cellar COMMAND [ARGUMENTS]

Examples:
  cellar run hello.wasm
  cellar run --dir . --env LANG=C prog.wasm input.txt
  cellar run -d --name web -p 8080:80 server.wasm
  cellar ps -a
  cellar apply -f stack.yaml

${sections.join('\n\n')}

Exit status: the program's own; 1 the host refused; 124 timeout; 125 Cellar's error; 126 not runnable; 127 not found;
128+N signal N.
`
}
