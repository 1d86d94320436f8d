// cli/contexts.ts: hosts by name, in ~/.config/cellar/config.yaml.
//
//   current: lab
//   contexts:
//     lab: { host: "https://lab.example.com:7070", token: …, ca: lab.pem, project: shop }
//
// We write it as JSON, which is YAML, and needs no parser of YAML at each command; what a person has written is read as
// YAML. It holds tokens: nobody but its owner may read it. It is replaced as a whole.

import { chmodSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { CellarError } from '../base/errors.ts'

/** A host, and who we are to it. Paths are relative to the file. */
export type Context = {
  readonly host: string
  readonly project?: string; readonly token?: string
  readonly ca?: string; readonly cert?: string; readonly key?: string
}
export type Contexts = { readonly path: string; readonly current: string | undefined
  readonly contexts: Readonly<Record<string, Context>> }

type Environment = Readonly<Record<string, string | undefined>>

const KEYS: readonly string[] = ['host', 'project', 'token', 'ca', 'cert', 'key']
const FILES = ['ca', 'cert', 'key'] as const

/** Where programs keep their state, by the XDG specification. */
export function stateHome(env: Environment): string {
  return env.XDG_STATE_HOME || join(env.HOME || homedir(), '.local', 'state')
}

function contextsPath(env: Environment): string {
  return join(env.XDG_CONFIG_HOME || join(env.HOME || homedir(), '.config'), 'cellar', 'config.yaml')
}

/** All contexts; none if there is no file. Paths in them are whole. Throws CONTEXT_INVALID. */
export async function readContexts(env: Environment): Promise<Contexts> {
  const path = contextsPath(env)
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return { path, current: undefined, contexts: {} }
    throw new CellarError('CONTEXT_INVALID', [path, (cause as Error).message], { cause })
  }
  return check(path, await parse(path, text))
}

/** Replaces the file. Throws CONTEXT_INVALID if that fails. */
export function writeContexts({ path, current, contexts }: Contexts): void {
  const partial = `${path}.${process.pid}`
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    writeFileSync(partial, `${JSON.stringify({ ...(current === undefined ? {} : { current }), contexts }, null, 2)}\n`,
      { mode: 0o600 })
    chmodSync(partial, 0o600)
    renameSync(partial, path)
  } catch (cause) {
    throw new CellarError('CONTEXT_INVALID', [path, (cause as Error).message], { cause })
  }
}

async function parse(path: string, text: string): Promise<unknown> {
  try {
    return JSON.parse(text)
  } catch {
    const { parse: parseYaml } = await import('yaml')
    try {
      return parseYaml(text)
    } catch (cause) {
      throw new CellarError('CONTEXT_INVALID', [path, (cause as Error).message.split('\n')[0]!], { cause })
    }
  }
}

function check(path: string, value: unknown): Contexts {
  const refuse = (what: string): never => { throw new CellarError('CONTEXT_INVALID', [path, what]) }
  const map = (one: unknown, what: string): Record<string, unknown> =>
    typeof one === 'object' && one !== null && !Array.isArray(one) ? one as Record<string, unknown>
      : refuse(`${what} is no mapping`)
  const { current, contexts = {}, ...other } = map(value ?? {}, 'the whole')
  const [unknown] = Object.keys(other)
  if (unknown !== undefined) refuse(`nobody knows the key "${unknown}"`)
  if (current !== undefined && typeof current !== 'string') refuse('current is no name')
  const checked = Object.entries(map(contexts, 'contexts')).map(([name, one]) => {
    const context = map(one, `context "${name}"`)
    for (const [key, text] of Object.entries(context)) {
      if (!KEYS.includes(key)) refuse(`nobody knows the key "${key}" of context "${name}"`)
      if (typeof text !== 'string') refuse(`${key} of context "${name}" is no text`)
    }
    if (context.host === undefined) refuse(`context "${name}" names no host`)
    for (const key of FILES) if (context[key] !== undefined) context[key] =
      resolve(dirname(path), context[key] as string)
    return [name, context as Context] as const
  })
  return { path, current: current as string | undefined, contexts: Object.fromEntries(checked) }
}
