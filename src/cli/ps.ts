// cli/ps.ts: `cellar ps`: guests as a table, once or as they change.

import { formatSize } from '../base/units.ts'
import type { EventView, GuestView, Phase } from '../host/operator.ts'
import { ago, onInterrupt, printList, shortDigest, span, type Column, type View } from './output.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { print } from './print.ts'

/** Phases of guests that run, are about to, or go on when they are let. */
const ALIVE: readonly Phase[] = ['starting', 'running', 'paused', 'hibernated', 'backing-off', 'stopping']
/** What changes at once is shown at once. */
const SETTLE_MS = 100

const PROJECT: Column<GuestView> = { head: 'PROJECT', of: ({ project }) => project }
const COLUMNS: readonly Column<GuestView>[] = [
  { head: 'NAME', of: ({ name }) => name },
  { head: 'IMAGE', of: ({ spec }) => imageOf(spec.image) },
  { head: 'STATUS', of: statusOf },
  { head: 'RESTARTS', of: ({ restarts }) => String(restarts), number: true },
  { head: 'AGE', of: ({ createdAt }) => span(Date.now() - createdAt), number: true },
  { head: 'PORTS', of: portsOf },
  { head: 'ID', of: ({ id }) => id, wide: true },
  { head: 'MODULE', of: ({ digest }) => shortDigest(digest), wide: true },
  { head: 'POOL', of: ({ spec }) => spec.pool ?? '', wide: true },
  { head: 'MEMORY', of: ({ spec }) => spec.memory ?? '', wide: true },
  { head: 'USED', of: ({ exit }) => exit?.usage === undefined || Number.isNaN(exit.usage.memoryBytes) ||
    typeof exit.usage.memoryBytes !== 'number' ? '' : formatSize(exit.usage.memoryBytes), wide: true, number: true },
  { head: 'KIND', of: ({ kind }) => kind, wide: true },
  { head: 'ENGINE', of: ({ engine }) => engine === undefined ? '' : `${engine.name}: ${engine.why}`, wide: true },
  { head: 'PROCESS', of: ({ process: number }) => number === undefined ? '' : String(number), wide: true,
    number: true },
  { head: 'CAPTURE', of: ({ capture }) => capture === undefined ? '' : captureText(capture), wide: true },
  { head: 'FROM', of: ({ origin }) => origin?.fork ?? shortDigest(origin?.snapshot ?? ''), wide: true },
  { head: 'REASON', of: ({ exit }) => exit?.reason ?? '', wide: true },
]

/** `cellar ps`. */
export async function ps(call: Call): Promise<number> {
  const { flags } = call
  const client = await call.client()
  const view: View<GuestView> = { name: ({ name }) => name,
    columns: flags['all-projects'] === undefined ? COLUMNS : [PROJECT, ...COLUMNS] }
  const read = async (): Promise<GuestView[]> => await guestsOf(client, call)
  if (flags.watch === undefined) {
    await printList(call, await read(), view)
    return 0
  }
  return await watch(client, call, read, view)
}

/** What a guest runs, for people: `app:1.2`, `web.wasm`, or the begin of a digest if nothing has a name. */
function imageOf(image: string): string {
  return image.startsWith('sha256:') ? shortDigest(image) : image.replace(/@sha256:[0-9a-f]{64}$/, '')
}

/** Whether it can be saved, forked and moved: `yes`, or `no, because …`. */
export function captureText({ can, why }: { readonly can: boolean; readonly why?: string | undefined }): string {
  return can ? 'yes' : `no, because ${why ?? 'it is not known'}`
}

/** Where it is published; a port that the host chooses is known while it runs. */
function portsOf({ spec, ports = [] }: GuestView): string {
  const asked = spec.ports ?? []
  if (!asked.some((text) => /^(?:.*:)?0:\d+$/.test(text)) || ports.length !== asked.length) {
    return asked.map((text) => text.replace(/:(\d+)$/, '->$1')).join(', ')
  }
  return ports.map(({ address, port, guest }) =>
    `${address.includes(':') ? `[${address}]` : address}:${port}->${guest}`).join(', ')
}

/** What a guest does, for people: `running (healthy)`, `exited (0) 3m ago`. */
export function statusOf({ phase, healthy, exit, startedAt, endedAt, retryAt }: GuestView): string {
  if (phase === 'running') {
    const health = healthy === undefined ? '' : healthy ? ' (healthy)' : ' (unhealthy)'
    return `running${health}${startedAt === undefined ? '' : ` ${span(Date.now() - startedAt)}`}`
  }
  const status = exit === undefined ? '' : ` (${exit.status})`
  if (phase === 'backing-off') {
    return `backing-off${status}${retryAt === undefined ? '' : `, again in ${span(retryAt - Date.now())}`}`
  }
  return ALIVE.includes(phase) || phase === 'created' ? phase : `${phase}${status} ${ago(endedAt)}`.trimEnd()
}

/** The guests that the flags choose: of the project or of all; those that run or all; those with all of the labels. */
async function guestsOf(client: Client, { flags }: Call): Promise<GuestView[]> {
  const items = await client.list<GuestView>(flags['all-projects'] === undefined ? client.path('guests') : '/v1/guests')
  const labels = (flags.selector ?? []).map((text) => /^([^=]*)(?:=(.*))?$/s.exec(text)!)
  return items.filter((guest) => (flags.all !== undefined || ALIVE.includes(guest.phase)) &&
    labels.every(([, key, value]) => {
      const found = guest.spec.labels?.[key!]
      return value === undefined ? found !== undefined : found === value
    })).sort((a, b) => a.project.localeCompare(b.project) || a.name.localeCompare(b.name))
}

/** On a terminal the table stays in its place; elsewhere the rows that have changed are added. */
async function watch(client: Client, call: Call, read: () => Promise<GuestView[]>,
  view: View<GuestView>): Promise<number> {
  const ended = new AbortController()
  using _ = onInterrupt(() => ended.abort())
  const isLive = process.stdout.isTTY && (call.flags.output?.[0] ?? 'table') !== 'json'
  let before = new Map<string, string>()
  let isFirst = true
  const show = async (): Promise<void> => {
    const guests = await read()
    const now = new Map(guests.map((guest) => [guest.id, JSON.stringify(guest)]))
    const changed = guests.filter((guest) => before.get(guest.id) !== now.get(guest.id))
    before = now
    if (isLive) print('\x1b[H\x1b[2J')
    if (isLive || isFirst) await printList(call, guests, view)
    else if (changed.length > 0) {
      await printList({ ...call, flags: { ...call.flags, 'no-headers': [''] } }, changed, view)
    }
    isFirst = false
  }
  await show()
  let pending: NodeJS.Timeout | undefined
  const failed = Promise.withResolvers<never>()
  failed.promise.catch(() => {})
  const follow = async (): Promise<void> => {
    const query = call.flags['all-projects'] === undefined ? { project: client.project } : {}
    for await (const { kind } of client.lines<EventView>('/v1/events', { accept: 'text/event-stream', query,
      signal: ended.signal })) {
      if (!kind.startsWith('guest.')) continue
      pending ??= setTimeout(() => {
        pending = undefined
        show().catch(failed.reject)
      }, SETTLE_MS)
    }
  }
  try {
    await Promise.race([follow(), failed.promise])
  } finally {
    clearTimeout(pending)
    ended.abort()
  }
  return 0
}
