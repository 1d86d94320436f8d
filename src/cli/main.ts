// cli/main.ts: `cellar COMMAND`: finds the command and loads its code only.

import { CellarError } from '../base/errors.ts'
import { end } from './end.ts'
import { print, tell } from './print.ts'

/** Commands in the order of the help. */
const COMMANDS = {
  run: { help: 'Run a program in the foreground', load: async () => (await import('./run.ts')).run },
  inspect: { help: 'Show what a program imports, exports and will ask of the hypervisor',
    load: async () => (await import('./inspect.ts')).inspect },
  version: { help: 'Show the version of Cellar and of its engine',
    load: async () => (await import('./version.ts')).version },
} as const

const HELP = `Cellar: a hypervisor that runs WebAssembly programs directly

Usage: cellar COMMAND [ARGUMENTS]

Examples:
  cellar run hello.wasm
  cellar run --dir . --env LANG=C prog.wasm input.txt
  cellar run --listen tcp:127.0.0.1:8080 --stats server.wasm
  cellar inspect prog.wasm

Commands:
${Object.entries(COMMANDS).map(([name, { help }]) => `  ${name.padEnd(10)}${help}`).join('\n')}
  help      Show this help; 'cellar COMMAND --help' for one command

Exit status: the program's own; 124 timeout; 125 Cellar's error; 126 not runnable; 127 not found; 128+N signal N.
`

const EXIT_BUG = 125

/** Runs `cellar ARGV`: the exit status. Errors have been told on stderr. */
async function main(argv: readonly string[]): Promise<number> {
  const [name = '', ...rest] = argv
  if (name === 'help' && rest.length > 0) return await main([rest[0]!, '--help'])
  if (name === 'help' || name === '--help' || name === '-h') {
    print(HELP)
    return 0
  }
  const wanted = name === '--version' ? 'version' : name
  if (!Object.hasOwn(COMMANDS, wanted)) {
    throw new CellarError('USAGE', [name === '' ? 'Cannot tell what to do: no command given'
      : `Cannot run command "${name}" as no such command exists`])
  }
  const command = await COMMANDS[wanted as keyof typeof COMMANDS].load()
  return await command(rest)
}

/** Tells of an error, the operator's or ours, and ends the process. */
async function fail(error: unknown): Promise<void> {
  if (error instanceof CellarError) {
    tell(error)
    return await end(error.exit)
  }
  const report = error instanceof Error ? error.stack : String(error)
  process.stderr.write(`cellar: Bug in Cellar, please report it\n${report}\n`)
  await end(EXIT_BUG)
}

// Nothing is left to happen, and the guest still waits.
process.once('beforeExit', () => void fail(new CellarError('GUEST_DEADLOCKED', [])))

try {
  await end(await main(process.argv.slice(2)))
} catch (error) {
  await fail(error)
}
