// cli/dispatch.ts: finds a command in the table, reads its flags and words by it, and runs it.
//
// Everything but a foreground run goes through here.

import { CellarError, type ErrorCode } from '../base/errors.ts'
import { findCommand, usageOf, type Command } from './commands.ts'
import { parseFlags } from './flags.ts'
import { help, helpFor, unknownCommand } from './help.ts'
import { print } from './print.ts'
import { isTold, ToldError } from './told.ts'

/** Mistakes of the command line itself: their hint names the command's help. */
const MISTAKES: readonly ErrorCode[] = ['USAGE', 'FLAG_UNKNOWN', 'FLAG_VALUE_INVALID', 'FLAG_VALUE_MISSING']

/** Runs `cellar ARGV`: the exit status. Throws CellarError, ToldError. */
export async function dispatch(argv: readonly string[]): Promise<number> {
  const [first = ''] = argv
  if (first === '--help' || first === '-h') return help([])
  const found = findCommand(first === '--version' ? ['version', ...argv.slice(1)] : argv)
  if (found === undefined) {
    if (argv.length === 2 && ['--help', '-h'].includes(argv[1]!)) return help([first])
    throw unknownCommand(argv)
  }
  const { command, rest } = found
  try {
    if ('own' in command && ['--help', '-h'].includes(rest[0] ?? '') && command.hidden !== true) {
      return help(command.name === 'help' ? [] : command.name.split(' '))
    }
    return 'own' in command ? await (await command.own())(rest) : await call(command, rest)
  } catch (error) {
    throw told(command, error)
  }
}

async function call(command: Extract<Command, { load: unknown }>, argv: readonly string[]): Promise<number> {
  const { flags, rest: words } = parseFlags(argv, command.flags, command.wordsEndFlags !== true)
  if (flags.help !== undefined) {
    print(helpFor(command.name.split(' ')))
    return 0
  }
  for (const [name, { choices }] of Object.entries(command.flags)) {
    const wrong = flags[name]?.find((value) => choices !== undefined && !choices.includes(value))
    if (wrong !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
      [`--${name}`, wrong, `one of ${choices!.join(', ')}`])
  }
  checkWords(command, words)
  const client = async () => (await import('./client.ts')).clientFor(flags)
  return await (await command.load())({ command, flags, words, client })
}

function checkWords(command: Command, words: readonly string[]): void {
  const usage = `: cellar ${usageOf(command)[0]}`
  const needed = command.words.filter(({ optional }) => optional !== true)
  const missing = needed[words.length]
  if (missing !== undefined) throw new CellarError('USAGE',
    [`Cannot run '${command.name}' without ${missing.label}${usage}`])
  const most = command.words.at(-1)?.many === true ? Infinity : command.words.length
  if (words.length > most) throw new CellarError('USAGE',
    [`Cannot run '${command.name}' with "${words[most]}", one word too many${usage}`])
  command.words.forEach(({ choices }, i) => {
    if (words[i] !== undefined && choices?.includes(words[i]) === false) throw new CellarError('USAGE',
      [`Cannot run '${command.name}' with "${words[i]}": say one of ${choices.join(', ')}`])
  })
}

/** The error with the hint and the exit status that this command has for it. */
function told(command: Command, error: unknown): unknown {
  if (!isTold(error)) return error
  const hint = MISTAKES.includes(error.code as ErrorCode) ? `See 'cellar ${command.name} --help'` : error.hint
  const exit = command.errors ?? error.exit
  return hint === error.hint && exit === error.exit ? error
    : new ToldError({ message: error.message, code: error.code, hint, exit }, { cause: error })
}
