// cli/logs.ts: `cellar logs`: what a guest wrote, as it wrote it.

import { CellarError } from '../base/errors.ts'
import { parseDuration } from '../base/units.ts'
import type { LogLine } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { onInterrupt } from './output.ts'
import { print } from './print.ts'

/** `cellar logs`. */
export async function logs({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const since = flags.since === undefined ? undefined : sinceOf(flags.since[0]!)
  const tail = flags.tail?.[0]
  if (tail !== undefined && !/^\d+$/.test(tail)) throw new CellarError('FLAG_VALUE_INVALID',
    ['--tail', tail, 'a number'])
  const ended = new AbortController()
  using _ = onInterrupt(() => ended.abort())
  const query = { follow: flags.follow?.[0], since, tail }
  for await (const line of host.lines<LogLine>(host.path('guests', words[0]!, 'logs'),
    { accept: 'application/x-ndjson', query, signal: ended.signal })) {
    const text = `${flags.timestamps === undefined ? '' : `${line.time} `}${line.text}${line.partial ? '' : '\n'}`
    if (line.stream === 'stderr') process.stderr.write(text)
    else print(text)
  }
  return ended.signal.aborted ? 130 : 0
}

/** A duration before now, or a time, as a time. Throws FLAG_VALUE_INVALID. */
export function sinceOf(text: string, now = Date.now()): string {
  const ns = parseDuration(text)
  const time = ns === undefined ? Date.parse(text) : now - ns / 1e6
  if (Number.isNaN(time)) throw new CellarError('FLAG_VALUE_INVALID',
    ['--since', text, 'a duration such as 10m, or a time such as 2026-01-31T12:00:00Z'])
  return new Date(time).toISOString()
}
