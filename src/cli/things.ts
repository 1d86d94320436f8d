// cli/things.ts: `cellar network`, `pool`, `secret`, `project`, `token`: what has a name and few properties.

import { readFileSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import type { NetworkView, OperationView, PoolView, ProjectView, SecretView, TokenView } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { finish } from './operations.ts'
import { ago, durationNs, each, printList, span, type Column } from './output.ts'
import { print } from './print.ts'

const NAME: Column<{ readonly name: string }> = { head: 'NAME', of: ({ name }) => name }
const CREATED: Column<{ readonly createdAt: number }> = { head: 'CREATED', of: ({ createdAt }) => ago(createdAt) }
const nameOf = ({ name }: { readonly name: string }): string => name

/** `cellar network ls`. */
export async function listNetworks(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<NetworkView>(host.path('networks')), { name: nameOf,
    columns: [NAME, { head: 'GUESTS', of: ({ guests }) => guests.join(', ') || '-' }, CREATED] })
  return 0
}

/** `cellar network create`. */
export async function createNetworks({ client, words }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (name) => {
    await host.ask('PUT', host.path('networks', name), { body: {} })
    return name
  })
}

/** `cellar network rm`. */
export async function removeNetworks(call: Call): Promise<number> { return await remove(call, 'networks') }

/** `cellar pool ls`. */
export async function listPools(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<PoolView>(host.path('pools')), { name: nameOf, columns: [
    NAME, { head: 'SHARES', of: ({ spec }) => String(spec.shares ?? '-'), number: true },
    { head: 'RESERVED', of: ({ spec }) => String(spec['cpu-reservation'] ?? '-'), number: true },
    { head: 'LIMIT', of: ({ spec }) => String(spec['cpu-limit'] ?? '-'), number: true },
    { head: 'MEMORY', of: ({ spec }) => spec.memory ?? '-', number: true },
    { head: 'GUESTS', of: ({ guests }) => String(guests), number: true }, CREATED,
  ] })
  return 0
}

/** `cellar pool set`. */
export async function setPool({ client, words, flags }: Call): Promise<number> {
  const shares = flags.shares?.[0]
  if (shares !== undefined && !/^\d+$/.test(shares)) {
    throw new CellarError('FLAG_VALUE_INVALID', ['--shares', shares, 'a whole number'])
  }
  const spec = { shares: shares === undefined ? undefined : Number(shares), 'cpu-limit': flags['cpu-limit']?.[0],
    'cpu-reservation': flags['cpu-reservation']?.[0], memory: flags.memory?.[0] }
  const host = await client()
  await host.ask('PUT', host.path('pools', words[0]!), { body: { spec } })
  print(`${words[0]}\n`)
  return 0
}

/** `cellar pool rm`. */
export async function removePools(call: Call): Promise<number> { return await remove(call, 'pools') }

/** `cellar secret ls`. */
export async function listSecrets(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<SecretView>(host.path('secrets')), { name: nameOf, columns: [NAME, CREATED] })
  return 0
}

/** `cellar secret set`. The value never stands on the command line, where every user of the machine sees it. */
export async function setSecret({ client, words }: Call): Promise<number> {
  const [name, path = '-'] = words
  const value = path !== '-' ? read(path) : process.stdin.isTTY ? await typed(`${name}: `) : read(0)
  const host = await client()
  await host.ask('PUT', host.path('secrets', name!), { body: value, type: 'application/octet-stream' })
  print(`${name}\n`)
  return 0
}

/** `cellar secret rm`. */
export async function removeSecrets(call: Call): Promise<number> { return await remove(call, 'secrets') }

/** `cellar project ls`. */
export async function listProjects(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<ProjectView>('/v1/projects'), { name: nameOf, columns: [
    NAME, { head: 'GUESTS', of: ({ guests }) => String(guests), number: true },
    { head: 'RUNNING', of: ({ running }) => String(running), number: true },
    { head: 'PROCESSES', of: ({ processes }) => String(processes), number: true }, CREATED,
    { head: 'UID', of: ({ uid }) => String(uid ?? '-'), wide: true },
  ] })
  return 0
}

/** `cellar project create`. */
export async function createProjects({ client, words }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (name) => {
    await host.ask('POST', '/v1/projects', { body: { name } })
    return name
  })
}

/** `cellar project rm`: waits until they are gone. */
export async function removeProjects({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const begun: OperationView[] = []
  const names = new Map<string, string>()
  const status = await each(words, async (name) => {
    const operation = await host.ask<OperationView>('DELETE', `/v1/projects/${encodeURIComponent(name)}`,
      { query: { force: flags.force?.[0] } })
    begun.push(operation)
    names.set(operation.id, name)
    return undefined
  })
  const removed = await finish(host, begun, { cancels: false, answer: ({ id }) => names.get(id)! })
  return removed === 0 ? status : removed
}

/** `cellar token ls`. */
export async function listTokens(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<TokenView>('/v1/tokens'), { name: ({ id }) => id, columns: [
    { head: 'ID', of: ({ id }) => id }, NAME, { head: 'SCOPE', of: ({ scope }) => scope },
    { head: 'PROJECT', of: ({ project }) => project ?? '-' }, CREATED,
    { head: 'EXPIRES', of: ({ expiresAt }) => expiresAt === undefined ? 'never'
      : expiresAt < Date.now() ? 'expired' : `in ${span(expiresAt - Date.now())}` },
    { head: 'LAST USED', of: ({ lastUsedAt }) => ago(lastUsedAt) || 'never' },
  ] })
  return 0
}

/** `cellar token create`: the token and nothing else on stdout. */
export async function createToken({ client, words, flags }: Call): Promise<number> {
  const expiresAt = flags.expires === undefined ? undefined
    : Math.round(Date.now() + durationNs('--expires', flags.expires[0]!) / 1e6)
  const host = await client()
  const body = { name: words[0], scope: flags.scope?.[0] ?? 'read', project: flags.only?.[0], expiresAt }
  const { token, id } = await host.ask<TokenView & { token: string }>('POST', '/v1/tokens', { body })
  print(`${token}\n`)
  process.stderr.write(`cellar: this is token ${id}; it is not shown again\n`)
  return 0
}

/** `cellar token rm`. */
export async function removeTokens({ client, words }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (id) => {
    await host.ask('DELETE', `/v1/tokens/${encodeURIComponent(id)}`)
    return id
  })
}

async function remove({ client, words }: Call, kind: 'networks' | 'pools' | 'secrets'): Promise<number> {
  const host = await client()
  return await each(words, async (name) => {
    await host.ask('DELETE', host.path(kind, name))
    return name
  })
}

function read(path: string | 0): Buffer {
  try {
    return readFileSync(path)
  } catch (cause) {
    throw new CellarError('NOT_FOUND', ['file', path === 0 ? 'stdin' : path], { cause })
  }
}

/** A line from the terminal that isn't shown. */
async function typed(prompt: string): Promise<Buffer> {
  process.stderr.write(prompt)
  process.stdin.setRawMode(true)
  const bytes: number[] = []
  try {
    for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
      for (const byte of chunk) {
        if (byte === 3) throw new CellarError('USAGE', ['Cannot set a secret that was not typed to its end'])
        if (byte === 13 || byte === 10 || byte === 4) return Buffer.from(bytes)
        if (byte === 127 || byte === 8) bytes.pop()
        else bytes.push(byte)
      }
    }
  } finally {
    process.stdin.setRawMode(false)
    process.stderr.write('\n')
  }
  return Buffer.from(bytes)
}
