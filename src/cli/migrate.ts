// cli/migrate.ts: `cellar migrate`: guests to another host while they run.
//
// The host that has the guest does it; we tell it where to, and as whom. A token is read from a file or a context: on
// the command line every user of the machine would see it. A context may trust a certificate that the guest's host
// doesn't: then we look at it ourselves, by the context's `ca`, and name it to the host by its fingerprint.

import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { connect } from 'node:tls'
import { CellarError } from '../base/errors.ts'
import type { OperationView } from '../host/operator.ts'
import { contextOf, placeOf } from './address.ts'
import type { Call } from './commands.ts'
import type { Context } from './contexts.ts'
import { finish } from './operations.ts'
import { durationNs, each } from './output.ts'

/** How long the other host has to show its certificate. */
const HELLO_MS_MAX = 10_000

/** As the API takes it. */
type Destination = { readonly to: string; readonly token: string | undefined; readonly fingerprint: string | undefined
  readonly downtime?: string | undefined }

/** `cellar migrate`: prints the names of those that have moved. */
export async function migrate({ client, words, flags }: Call): Promise<number> {
  const [to] = flags.to ?? []
  if (to === undefined) throw new CellarError('USAGE',
    ['Cannot migrate without another host: --to CONTEXT or --to ADDRESS'])
  const host = await client()
  const downtime = flags.downtime?.[0]
  if (downtime !== undefined) durationNs('--downtime', downtime)
  const body: Destination =
    { ...await destinationOf(to, flags['token-file']?.[0], flags.fingerprint?.[0]), downtime }
  const begun: OperationView[] = []
  const names = new Map<string, string>()
  const status = await each(words, async (name) => {
    const operation = await host.ask<OperationView>('POST', host.path('guests', name, 'migrate'), { body })
    begun.push(operation)
    names.set(operation.id, name)
    return flags.detach === undefined ? undefined : operation.id
  })
  if (flags.detach !== undefined) return status
  const moved = await finish(host, begun, { cancels: true, answer: ({ id }) => names.get(id)! })
  return moved === 0 ? status : moved
}

/** The host that `--to` names: an address, or a context. Throws CONTEXT_INVALID, FLAG_VALUE_INVALID, USAGE. */
async function destinationOf(text: string, tokenFile: string | undefined, fingerprint: string | undefined):
Promise<Destination> {
  const context = /[/:]/.test(text) ? undefined : await contextOf(text, process.env)
  const { socket, url, text: address } = placeOf(context?.host ?? text, '--to')
  const token = tokenFile === undefined ? context?.token : readToken(tokenFile)
  if (token === undefined && socket === undefined) throw new CellarError('USAGE',
    [`Cannot migrate to "${text}" without a token of that host: --token-file FILE`])
  return { to: socket === undefined ? address : `unix:${socket}`, token,
    fingerprint: fingerprint ?? await fingerprintOf(url, context, address) }
}

function readToken(path: string): string {
  try {
    return readFileSync(path === '-' ? 0 : path, 'utf8').trim()
  } catch (cause) {
    throw new CellarError('NOT_FOUND', ['file', path], { cause })
  }
}

/** The SHA-256 of the certificate there, if the context says who must have signed it. Throws HOST_UNREACHABLE. */
async function fingerprintOf(url: URL | undefined, context: Context | undefined, address: string):
Promise<string | undefined> {
  if (url?.protocol !== 'https:' || context?.ca === undefined) return undefined
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const fail = (why: string, cause?: unknown): CellarError =>
    new CellarError('HOST_UNREACHABLE', [address, why], { cause })
  let ca: Buffer
  try {
    ca = readFileSync(context.ca)
  } catch (cause) {
    throw fail((cause as Error).message, cause)
  }
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const socket = connect({ host, port: Number(url.port || 443), ca, ...(isIP(host) === 0 ? { servername: host } : {}) },
    () => resolve(socket.getPeerCertificate().fingerprint256))
  socket.on('error', (cause) => reject(fail(cause.message, cause)))
  socket.setTimeout(HELLO_MS_MAX, () => reject(fail('it does not answer')))
  try {
    return await promise
  } finally {
    socket.destroy()
  }
}
