// tools/build_agent.ts: builds guests/agent/*.c, the agent of machines, to the static program beside them.
//
// It runs in guests of any distribution, so that no library may be missing: musl, from Debian's package musl-tools. The
// bytes depend on nothing but the sources, the compiler and musl: with the versions of Debian 12 they are those that
// are committed. The program knows which sources it was built from (`agent --version`), so that a stale one is found
// on a machine without a compiler, too.

import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const FOLDER = fileURLToPath(new URL('../guests/agent', import.meta.url))
/** The program, as it is committed. */
export const AGENT = join(FOLDER, 'agent')
/** What the committed one was built with. */
const COMPILER = 'x86_64-linux-gnu-gcc (Debian 12.2.0-14+deb12u1) 12.2.0'

const FLAGS = [
  '-static', '-no-pie', '-Os', '-std=gnu11', '-Wall', '-Wextra', '-Werror', '-march=x86-64', '-fno-ident',
  '-fno-asynchronous-unwind-tables', '-ffunction-sections', '-fdata-sections', '-frandom-seed=agent', '-s',
  '-Wl,--gc-sections', '-Wl,--build-id=none', '-Wl,-z,noexecstack',
]

/** The sources' own digest: 16 hexadecimal digits. */
export function agentSource(): string {
  const hash = createHash('sha256')
  for (const name of sources()) hash.update(`${name}\0`).update(readFileSync(join(FOLDER, name))).update('\0')
  return hash.digest('hex').slice(0, 16)
}

/** Why the agent can't be built here; undefined if it can. `isSame`: with the compiler of the committed one. */
export function agentCompiler(): { why: string } | { isSame: boolean } {
  if (process.platform !== 'linux' || process.arch !== 'x64') return { why: 'the agent is built on Linux, x86-64' }
  const { status, stdout } = spawnSync('musl-gcc', ['--version'], { encoding: 'utf8' })
  if (status !== 0) return { why: 'musl-gcc is missing (Debian: musl-tools)' }
  return { isSame: stdout.split('\n', 1)[0] === COMPILER }
}

/** Builds the agent and gives its bytes. Throws what the compiler says. */
export function buildAgent(): Buffer {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-agent-'))
  try {
    const output = join(folder, 'agent')
    const files = sources().filter((name) => name.endsWith('.c'))
    execFileSync('musl-gcc', [...FLAGS, `-DSOURCE="${agentSource()}"`, '-o', output, ...files],
      { cwd: FOLDER, stdio: ['ignore', 'inherit', 'pipe'] })
    return readFileSync(output)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function sources(): string[] {
  return readdirSync(FOLDER).filter((name) => /\.[ch]$/.test(name)).sort()
}
