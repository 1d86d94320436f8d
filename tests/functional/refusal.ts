// tests/functional/refusal.ts: what holds for every run that Cellar refuses.

import assert from 'node:assert/strict'
import { cellar, Folder, guest, NOBODY, type Options, type Result } from '../support.ts'

/** A refusal: its exit status, its stable code, and what its message must name. */
export type Refusal = { status: 125 | 126 | 127; code: string; names: RegExp }

/**
 * Runs `cellar run` with what `prepare` gives, in a folder of its own that is current and temporary at once, and
 * checks the refusal: status, code, hint, nothing on stdout, nothing left behind.
 */
export async function refuses(
  { status, code, names }: Refusal, prepare: (folder: Folder) => readonly string[], options: Options = {},
): Promise<Result> {
  using folder = new Folder()
  const args = prepare(folder)
  if (options.uid !== undefined) folder.giveTo(options.uid)
  const before = folder.list()
  const result = await cellar(['run', ...args], { cwd: folder.path, ...options, env: { TMPDIR: folder.path } })
  const { stdout, stderr } = result
  assert.equal(result.status, status, stderr)
  assert.match(stderr, RegExp(String.raw`^cellar: Cannot .+ \[${code}\]\n  hint: .+\n$`))
  assert.match(stderr.split('\n', 1)[0]!, names)
  assert.equal(stdout.length, 0, stdout.toString())
  assert.deepEqual(folder.list(), before, 'something was left behind')
  return result
}

/** Why Cellar can't be run with these options on this machine, or false. */
export async function runnable(options: Options): Promise<string | false> {
  const { status, stderr } = await cellar(['run', guest('hello')], options).catch((error: Error) =>
    ({ status: null, stderr: error.message }))
  return status === 0 ? false : `user ${options.uid ?? NOBODY} can't run this checkout: ${stderr.slice(0, 200)}`
}
