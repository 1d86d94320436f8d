// cli/events.ts: `cellar events`: what happened on a host, and what happens.

import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import type { EventView } from '../host/operator.ts'
import type { Client, Query } from './client.ts'
import type { Call } from './commands.ts'
import { onInterrupt } from './output.ts'
import { print } from './print.ts'

/** `cellar events`. */
export async function events({ client, flags }: Call): Promise<number> {
  const since = flags.since?.[0]
  if (since !== undefined && !/^\d{1,15}$/.test(since)) {
    throw new CellarError('FLAG_VALUE_INVALID', ['--since', since, 'the number of an event'])
  }
  const host = await client()
  const follows = flags.follow !== undefined || (process.stdout.isTTY && flags['no-follow'] === undefined)
  // A project that the environment or the context names isn't meant: events of the host would be missing.
  const query: Query = { since, project: flags.project?.[0] }
  const ended = new AbortController()
  using _ = onInterrupt(() => ended.abort())
  const found = follows ? host.lines<EventView>('/v1/events',
    { accept: 'text/event-stream', query, signal: ended.signal })
    : past(host, query)
  for await (const event of found) print(`${flags.output?.[0] === 'json' ? JSON.stringify(event) : lineOf(event)}\n`)
  return ended.signal.aborted ? 130 : 0
}

/** All events that there are: an answer has a part of them. */
async function* past(host: Client, query: Query): AsyncGenerator<EventView> {
  for (let since = query.since; ;) {
    const { items } = await host.ask<{ items: EventView[] }>('GET', '/v1/events',
      { query: { ...query, since, follow: 'false' } })
    yield* items
    if (items.length === 0) return
    since = String(items.at(-1)!.seq)
  }
}

function lineOf({ seq, time, kind, project, guest, data }: EventView): string {
  const where = [project, guest].filter((part) => part !== undefined).join('/')
  const more = Object.entries(data).map(([key, value]) =>
    `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
  return printable([new Date(time).toISOString(), String(seq), kind, where, ...more].filter((part) =>
    part !== '').join(' '), 1000)
}
