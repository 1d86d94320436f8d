// image/machine_tools.ts: other programs that making an image takes: apt, sqfstar, mke2fs.

import { spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { CellarError } from '../base/errors.ts'

/** What is kept of what a tool prints: all that apt has to say of a hundred packages. */
const OUTPUT_CHARS_MAX = 4 * 1024 * 1024
const TOLD_CHARS_MAX = 10_000

/** How a tool is called. `from`: the package of Debian that has it. `input`: its stdin. `output`: a file for stdout. */
type ToolCall = {
  readonly tool: string
  readonly from: string
  readonly words: readonly string[]
  readonly cwd?: string | undefined
  readonly input?: AsyncIterable<Uint8Array> | undefined
  readonly output?: string | undefined
}

/**
 * Runs a tool to its end: what it printed, the last that it told on stderr, and its exit status. It speaks English.
 * Throws MACHINE_TOOL_MISSING, and what `input` throws: then the tool is ended.
 */
export async function runTool(what: string, { tool, from, words, cwd, input, output }: ToolCall):
Promise<{ readonly out: string; readonly told: string; readonly status: number | null }> {
  const fd = output === undefined ? undefined : openSync(output, 'w', 0o600)
  const child = spawn(tool, words, { stdio: [input === undefined ? 'ignore' : 'pipe', fd ?? 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive', PATH: pathOf() },
    ...(cwd === undefined ? {} : { cwd }) })
  if (fd !== undefined) closeSync(fd)
  let [out, told] = ['', '']
  child.stdout?.setEncoding('utf8').on('data', (text: string) => { if (out.length < OUTPUT_CHARS_MAX) out += text })
  child.stderr!.setEncoding('utf8').on('data', (text: string) => { told = (told + text).slice(-TOLD_CHARS_MAX) })
  const { promise, resolve, reject } = Promise.withResolvers<number | null>()
  child.on('error', reject)
  child.on('close', resolve)
  const fed = input === undefined ? undefined : pipeline(input, child.stdin!).catch((error: unknown) => error)
  try {
    const status = await promise
    const failure = await fed
    // Who has failed reads no further: then its status tells more than our broken pipe.
    if (failure !== undefined && (status === 0 || !isBrokenPipe(failure))) throw failure
    return { out, told, status }
  } catch (cause) {
    child.kill('SIGKILL')
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT' || child.pid !== undefined) throw cause
    throw new CellarError('MACHINE_TOOL_MISSING', [what, tool, from], { cause })
  }
}

/** The last line of a text that has anything in it. */
export function lastLine(text: string): string { return text.trim().split('\n').at(-1) ?? '' }

function isBrokenPipe(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code ?? ''
  return ['EPIPE', 'ERR_STREAM_PREMATURE_CLOSE', 'ECONNRESET'].includes(code)
}

// Tools for file systems lie where only root looks.
function pathOf(): string { return `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin` }
