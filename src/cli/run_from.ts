// cli/run_from.ts: `cellar run --from SNAPSHOT`: a program that goes on from where it was saved.
//
// With -d it is a guest as `cellar restore` makes it. In the foreground it is one, too, as only a host has snapshots,
// but one that nobody sees afterwards: it is removed at its end, at ours and on Ctrl-C; the exit status is its own.
// What it writes is read from its log, line by line: a console that is attached to when the guest runs already would
// miss its first lines. Our stdin is its input if it keeps that open.

import { constants } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import type { GuestView, LogLine, Phase } from '../host/operator.ts'
import { clientFor, type Client } from './client.ts'
import { FROM_FLAGS, type Parsed, type RUN_FLAGS } from './flags.ts'
import { BEGIN_WAIT, ENDED, WAIT_MS } from './guest_verbs.ts'
import { print } from './print.ts'
import { refusalOf, startOf } from './run_detached.ts'
import { feedGuest } from './session.ts'
import { restored } from './snapshots.ts'
import { isTold } from './told.ts'

/** A run is over at the guest's first end, also if it would be started again. */
const OVER: readonly Phase[] = [...ENDED, 'backing-off']
/** The log is written a moment after the end is told: it is whole when nothing has come for so long. */
const QUIET_MS = 200
/** Signals that end us, and the guest with us. */
const ENDING = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** The exit status: the guest's own. Throws CellarError, ToldError with the exit status of a run's errors. */
export async function runFrom({ flags, rest }: Parsed<typeof RUN_FLAGS>): Promise<number> {
  const other = Object.keys(flags).find((name) => !FROM_FLAGS.includes(name)) as keyof typeof flags | undefined
  if (other !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
    [`--${other}`, flags[other]![0]!, 'left out: the snapshot has what the program is given'])
  if (rest[0] !== undefined) throw new CellarError('USAGE',
    [`Cannot run "${rest[0]}" from a snapshot, which has its program and its arguments`])
  try {
    const host = await clientFor(flags)
    const isDetached = flags.detach !== undefined
    const guest = await restored(host, flags.from![0]!, { name: flags.name?.[0], ports: flags.publish },
      isDetached ? BEGIN_WAIT : undefined)
    if (!isDetached) return await inForeground(host, guest)
    print(`${guest.name}\n`)
    return startOf(guest)
  } catch (error) {
    throw refusalOf(error)
  }
}

/** Shows what a guest writes, gives it our input, and removes it at its end and at ours: its exit status. */
export async function inForeground(host: Client, { name, spec }: GuestView): Promise<number> {
  const over = new AbortController()
  const interrupt: { signal?: typeof ENDING[number] } = {}
  const onSignal = (signal: NodeJS.Signals): void => {
    interrupt.signal = signal as typeof ENDING[number]
    over.abort()
  }
  for (const signal of ENDING) process.on(signal, onSignal)
  try {
    const end = untilEnd(host, name, over.signal)
    if (spec.stdin) feed(host, name).catch(() => {})
    const [{ exit }] = await Promise.all([end, show(host, name, end, over.signal)])
    if (exit?.outcome?.kind !== 'exit' && exit !== undefined) process.stderr.write(`cellar: ${name}: ${exit.reason}\n`)
    return exit?.status ?? 0
  } catch (error) {
    if (interrupt.signal === undefined) throw error
    return 128 + constants.signals[interrupt.signal]
  } finally {
    for (const signal of ENDING) process.off(signal, onSignal)
    await host.ask('DELETE', host.path('guests', name), { query: { force: '' } }).catch((error: unknown) => {
      if (!isTold(error) || error.code !== 'NOT_FOUND') throw error
    })
  }
}

/** The guest when it has ended once. */
async function untilEnd(host: Client, name: string, signal: AbortSignal): Promise<GuestView> {
  for (;;) {
    const guest = await host.ask<GuestView>('GET', host.path('guests', name, 'wait'),
      { query: { phase: OVER, timeout: `${WAIT_MS}ms` }, signal })
    // It may have been started again before we asked.
    if (ENDED.includes(guest.phase) || guest.exit !== undefined) return guest
  }
}

/** Prints what it writes until it has ended. */
async function show(host: Client, name: string, end: Promise<unknown>, interrupted: AbortSignal): Promise<void> {
  const whole = new AbortController()
  let last = 0
  const settle = async (): Promise<void> => {
    last = performance.now()
    for (let left = QUIET_MS; left > 0; left = QUIET_MS - (performance.now() - last)) await sleep(left)
    whole.abort()
  }
  end.then(settle, () => whole.abort())
  for await (const { stream, text, partial } of host.lines<LogLine>(host.path('guests', name, 'logs'),
    { accept: 'application/x-ndjson', query: { follow: '' }, signal: AbortSignal.any([whole.signal, interrupted]) })) {
    last = performance.now()
    const line = partial ? text : `${text}\n`
    if (stream === 'stderr') process.stderr.write(line)
    else print(line)
  }
}

/** Our input for it, from when it runs. */
async function feed(host: Client, name: string): Promise<void> {
  await host.ask('GET', host.path('guests', name, 'wait'),
    { query: { phase: ['running', ...OVER], timeout: `${WAIT_MS}ms` } })
  await feedGuest(host, name)
}
