// cli/main.ts: `cellar COMMAND`: a foreground run at once, everything else by the table of commands (dispatch.ts).

import { CellarError } from '../base/errors.ts'
import { end } from './end.ts'
import { tell } from './print.ts'
import { isTold } from './told.ts'

const EXIT_BUG = 125

/** Runs `cellar ARGV`: the exit status. Errors have been told on stderr. */
async function main([name, ...rest]: readonly string[]): Promise<number> {
  if (name === 'run') return await (await import('./run.ts')).run(rest)
  const { dispatch } = await import('./dispatch.ts')
  return await dispatch(name === undefined ? [] : [name, ...rest])
}

/** Tells of an error, the operator's or ours, and ends the process. */
async function fail(error: unknown): Promise<void> {
  if (isTold(error)) {
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
