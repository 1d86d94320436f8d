// cli/inspect_any.ts: `cellar inspect`: of a program's file (inspect.ts) or of guests on a host (guest_verbs.ts).

import { statSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { findCommand, type Command } from './commands.ts'
import { parseFlags } from './flags.ts'
import { inspect } from './inspect.ts'

/** Decides by the first word. The exit status. Throws CellarError, ToldError. */
export async function inspectAny(argv: readonly string[]): Promise<number> {
  const command = findCommand(['inspect'])!.command
  const { flags, rest: words } = parseFlags(argv, command.flags, true)
  const [first] = words
  if (flags.help !== undefined) {
    const [{ helpFor }, { print }] = await Promise.all([import('./help.ts'), import('./print.ts')])
    print(helpFor(['inspect']))
    return 0
  }
  const output = flags.output === undefined ? [] : ['--output', flags.output[0]!]
  if (first === undefined || isProgram(first)) return inspect([...output, '--', ...words])
  if (output[1] !== undefined && !['json', 'yaml'].includes(output[1])) {
    throw new CellarError('FLAG_VALUE_INVALID', ['--output', output[1], 'json or yaml for a guest'])
  }
  const { inspectGuests } = await import('./guest_verbs.ts')
  const client = async () => (await import('./client.ts')).clientFor(flags)
  return await inspectGuests({ command: command as Command, flags, words, client })
}

function isProgram(word: string): boolean {
  return word.endsWith('.wasm') || statSync(word, { throwIfNoEntry: false })?.isFile() === true
}
