// cli/version.ts: `cellar version`.

import { readFileSync } from 'node:fs'
import type { Call } from './commands.ts'
import { print } from './print.ts'
import { isTold } from './told.ts'

/** How long the host has to answer: who asks for our version shouldn't wait for one that hangs. */
const HOST_MS_MAX = 1000

/** Prints the versions of Cellar, Node and V8; and of the host, if one answers. */
export async function version({ flags, client }: Call): Promise<number> {
  const own = ownVersion()
  const { node, v8 } = process.versions
  const host = await hostVersion(client)
  if (flags.output?.[0] === 'json') {
    print(`${JSON.stringify({ client: { version: own, node, v8, platform: `${process.platform}-${process.arch}` },
      host: host ?? null }, null, 2)}\n`)
    return 0
  }
  print(`cellar ${own} (Node ${node}, V8 ${v8}, ${process.platform}-${process.arch})\n`)
  if (host !== undefined) print(`host ${host.version} (API level ${host.apiLevel}) at ${host.address}\n`)
  return 0
}

/** Our own version, such as 0.1.0. */
export function ownVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}

type About = { readonly version: string; readonly apiLevel: number }

async function hostVersion(client: Call['client']): Promise<About & { address: string } | undefined> {
  try {
    const host = await client()
    const { version: theirs, apiLevel } = await host.ask<About>('GET', '/v1',
      { signal: AbortSignal.timeout(HOST_MS_MAX) })
    return { version: theirs, apiLevel, address: host.address.text }
  } catch (error) {
    if (!isTold(error)) throw error
    return undefined
  }
}
