// tests/machine/host_kvm_program.ts: commands against a host, one after the other, in one process, and what each said.
//
//   CELLAR_HOST=… node tests/machine/host_kvm_program.ts '[{"words":["ps"]},{"line":"cat /sys/…"}]'
// In emulation a process takes seconds to begin: so it is one for all commands. `words` is a command of Cellar, `line`
// one for sh. A step with `again` is tried until its status is 0. A mark follows what each try has said: \\036, the
// step's number, its status, milliseconds, a newline.

import { spawnSync } from 'node:child_process'
import { writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { dispatch } from '../../src/cli/dispatch.ts'
import { run } from '../../src/cli/run.ts'
import { isTold } from '../../src/cli/told.ts'

/** A step. */
export type HostStep = ({ readonly words: readonly string[] } | { readonly line: string }) & { readonly again?: true }

const AGAIN_MS_MAX = 60_000
const EACH_MS = 1500

async function cellar(words: readonly string[]): Promise<number> {
  try {
    return words[0] === 'run' ? await run(words.slice(1)) : await dispatch(words)
  } catch (error) {
    if (!isTold(error)) throw error
    writeSync(1, `${error.message} [${error.code}]\n`)
    return error.exit
  }
}

for (const [i, step] of (JSON.parse(process.argv[2]!) as HostStep[]).entries()) {
  const begun = performance.now()
  for (;;) {
    const status = 'words' in step ? await cellar(step.words)
      : spawnSync('sh', ['-c', step.line], { stdio: ['ignore', 'inherit', 'inherit'] }).status ?? 137
    const ms = performance.now() - begun
    writeSync(1, `\x1e${i} ${status} ${Math.round(ms)}\n`)
    if (status === 0 || step.again !== true || ms > AGAIN_MS_MAX) break
    await sleep(EACH_MS)
  }
}
// Connections that are kept open would keep it here.
process.exit(0)
