// cli/address.ts: which host is meant: a flag, else the environment, else a context, else this machine's.
//
//   --host > CELLAR_HOST > --context, CELLAR_CONTEXT > the current context > the socket of a host on this machine
//
// A context is used as a whole or not at all: its token is never sent to a host that was named otherwise.

import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CellarError } from '../base/errors.ts'
import { readContexts, stateHome, type Context } from './contexts.ts'

/** Where a host is, and as whom we speak to it. */
export type Address = {
  /** For messages. */
  readonly text: string
  readonly socket?: string
  readonly url?: URL
  readonly token?: string | undefined
  /** Files: PEM. */
  readonly ca?: string | undefined; readonly cert?: string | undefined; readonly key?: string | undefined
  readonly project: string
}

type Flags = Readonly<Partial<Record<string, readonly string[]>>>
type Environment = Readonly<Record<string, string | undefined>>

/** The socket of a host of the whole machine. */
const MACHINE_SOCKET = '/run/cellar/host.sock'
/** That of the host that `npm start` runs, in the checkout. */
const CHECKOUT_SOCKET = fileURLToPath(new URL('../../.cache/host/host.sock', import.meta.url))
/** The state of a host that root runs: its guests' users can't enter root's home. */
const ROOT_STATE = '/var/lib/cellar'
const PROJECT_DEFAULT = 'default'

/** The host that flags and environment name. Throws CONTEXT_INVALID, FLAG_VALUE_INVALID. */
export async function addressOf(flags: Flags, env: Environment = process.env): Promise<Address> {
  const said = (name: string, variable: string): string | undefined => flags[name]?.[0] ?? (env[variable] || undefined)
  const own = said('host', 'CELLAR_HOST')
  const context = own === undefined ? await contextOf(said('context', 'CELLAR_CONTEXT'), env) : undefined
  const from = flags.host !== undefined ? '--host' : 'CELLAR_HOST'
  const place = own !== undefined ? placeOf(own, from) : context !== undefined ? placeOf(context.host, 'host')
    : placeOf(machineSocket(env), from)
  return {
    ...place,
    token: env.CELLAR_TOKEN || context?.token, ca: context?.ca, cert: context?.cert, key: context?.key,
    project: said('project', 'CELLAR_PROJECT') ?? context?.project ?? PROJECT_DEFAULT,
  }
}

/** A socket's path, unix:PATH, or a URL. Throws FLAG_VALUE_INVALID, which names the flag `from`. */
export function placeOf(text: string, from: string): Pick<Address, 'text' | 'socket' | 'url'> {
  const refuse = (): never => {
    throw new CellarError('FLAG_VALUE_INVALID', [from, text, 'a socket\'s path, unix:PATH, http://… or https://…'])
  }
  if (/^https?:/.test(text)) {
    const url = URL.parse(text)
    return url === null || url.hostname === '' ? refuse() : { text: url.href.replace(/\/$/, ''), url }
  }
  const path = text.replace(/^unix:(?:\/\/)?/, '')
  if (path === '' || path.includes('://') || (path === text && !path.includes('/'))) return refuse()
  return { text: resolve(path), socket: resolve(path) }
}

/** A context by its name, else the current one; undefined if there is none. Throws CONTEXT_INVALID. */
export async function contextOf(name: string | undefined, env: Environment): Promise<Context | undefined> {
  const { path, current, contexts } = await readContexts(env)
  const wanted = name ?? current
  if (wanted === undefined) return undefined
  const found = Object.hasOwn(contexts, wanted) ? contexts[wanted] : undefined
  if (found === undefined) throw new CellarError('CONTEXT_INVALID', [path, `no context is called "${wanted}"`])
  return found
}

/** Where a host of this user keeps its state unless it is told otherwise. */
export function defaultState(env: Environment = process.env): string {
  return process.getuid?.() === 0 ? ROOT_STATE : join(stateHome(env), 'cellar')
}

/** The first that is there; that of the user's own host if none is. */
function machineSocket(env: Environment): string {
  const own = join(defaultState(env), 'host.sock')
  return [MACHINE_SOCKET, own, join(stateHome(env), 'cellar', 'host.sock'), CHECKOUT_SOCKET].find((path) =>
    existsSync(path)) ?? own
}
