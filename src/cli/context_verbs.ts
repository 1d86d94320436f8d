// cli/context_verbs.ts: `cellar context …`: hosts by name (contexts.ts keeps them).

import { readFileSync } from 'node:fs'
import { dirname, relative, resolve } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { placeOf } from './address.ts'
import type { Call } from './commands.ts'
import { readContexts, writeContexts, type Context, type Contexts } from './contexts.ts'
import { tableOf } from './output.ts'
import { print } from './print.ts'

/** `cellar context ls`. */
export async function listContexts(_: Call): Promise<number> {
  const { current, contexts } = await readContexts(process.env)
  print(tableOf(Object.entries(contexts), [
    { head: 'CURRENT', of: ([name]) => name === current ? '*' : '' }, { head: 'NAME', of: ([name]) => name },
    { head: 'HOST', of: ([, { host }]) => host }, { head: 'PROJECT', of: ([, { project }]) => project ?? '' },
  ]))
  return 0
}

/** `cellar context use`. */
export async function useContext({ words }: Call): Promise<number> {
  const all = await readContexts(process.env)
  known(all, words[0]!)
  store({ ...all, current: words[0] })
  print(`${words[0]}\n`)
  return 0
}

/** `cellar context create`. */
export async function createContext({ words, flags }: Call): Promise<number> {
  const [name] = words
  const host = flags.host?.[0]
  if (host === undefined) throw new CellarError('USAGE', ['Cannot create a context without a host: --host ADDRESS'])
  if (!/^[A-Za-z0-9][\w.-]{0,39}$/.test(name!)) throw new CellarError('NAME_INVALID', ['context', name!])
  const { socket } = placeOf(host, '--host')
  const all = await readContexts(process.env)
  if (Object.hasOwn(all.contexts, name!)) throw new CellarError('EXISTS', ['context', name!])
  const path = (flag: 'ca' | 'cert' | 'key'): object => flags[flag] === undefined ? {}
    : { [flag]: resolve(flags[flag][0]!) }
  const context: Context = {
    host: socket === undefined ? host : `unix:${socket}`,
    ...(flags.project === undefined ? {} : { project: flags.project[0]! }),
    ...(flags['token-file'] === undefined ? {} : { token: tokenOf(flags['token-file'][0]!) }),
    ...path('ca'), ...path('cert'), ...path('key'),
  }
  store({ ...all, current: all.current ?? name, contexts: { ...all.contexts, [name!]: context } })
  print(`${name}\n`)
  return 0
}

/** `cellar context rm`. */
export async function removeContexts({ words }: Call): Promise<number> {
  const all = await readContexts(process.env)
  for (const name of words) known(all, name)
  const contexts = Object.fromEntries(Object.entries(all.contexts).filter(([name]) => !words.includes(name)))
  store({ ...all, contexts, current: all.current !== undefined && words.includes(all.current) ? undefined
    : all.current })
  print(words.map((name) => `${name}\n`).join(''))
  return 0
}

function known({ contexts }: Contexts, name: string): void {
  if (!Object.hasOwn(contexts, name)) throw new CellarError('NOT_FOUND', ['context', name])
}

/** Files beside the file of contexts stay so when the folder moves. */
function store(all: Contexts): void {
  const near = (path: string | undefined): string | undefined => {
    if (path === undefined) return undefined
    const short = relative(dirname(all.path), path)
    return short.startsWith('..') ? path : short
  }
  const contexts = Object.fromEntries(Object.entries(all.contexts).map(([name, one]) =>
    [name, JSON.parse(JSON.stringify({ ...one, ca: near(one.ca), cert: near(one.cert),
      key: near(one.key) })) as Context]))
  writeContexts({ ...all, contexts })
}

function tokenOf(path: string): string {
  try {
    return readFileSync(path === '-' ? 0 : path, 'utf8').trim()
  } catch (cause) {
    throw new CellarError('NOT_FOUND', ['file', path], { cause })
  }
}
