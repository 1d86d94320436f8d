// cli/guest_verbs.ts: what is done to guests by name: start, stop, kill, restart, pause, resume, hibernate, rm, wait,
// inspect.
//
// Each takes several names and does all that it can: what failed is told, name by name, and the exit status is 1 then.

import { CellarError } from '../base/errors.ts'
import type { GuestView, Phase } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { durationNs, each, printWhole } from './output.ts'
import { print } from './print.ts'

/** A wait at the host ends before proxies and our own patience do; then we ask again. */
export const WAIT_MS = 30_000
/** How long a start is waited for: who asked then sees whether it runs. */
export const BEGIN_WAIT = '5s'
/** Phases of a guest that doesn't run any more. */
export const ENDED: readonly Phase[] = ['exited', 'failed', 'stopped']
const EXIT_TIMED_OUT = 124

/** `cellar start`. */
export async function startGuests(call: Call): Promise<number> { return await post(call, 'start', BEGIN_WAIT) }
/** `cellar stop`. */
export async function stopGuests(call: Call): Promise<number> { return await post(call, 'stop') }
/** `cellar kill`. */
export async function killGuests(call: Call): Promise<number> { return await post(call, 'kill') }
/** `cellar restart`. */
export async function restartGuests(call: Call): Promise<number> { return await post(call, 'restart', BEGIN_WAIT) }
/** `cellar resize`. */
export async function resizeGuest({ client, words: [name, memory] }: Call): Promise<number> {
  const host = await client()
  await host.ask('POST', host.path('guests', name!, 'resize'), { body: { memory } })
  print(`${name}\n`)
  return 0
}

/** `cellar pause`. */
export async function pauseGuests(call: Call): Promise<number> { return await post(call, 'pause') }
/** `cellar resume`. */
export async function resumeGuests(call: Call): Promise<number> { return await post(call, 'resume', BEGIN_WAIT) }
/** `cellar hibernate`. */
export async function hibernateGuests(call: Call): Promise<number> { return await post(call, 'hibernate') }

/** `cellar rm`. */
export async function removeGuests({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (name) => {
    await host.ask('DELETE', host.path('guests', name), { query: { force: flags.force?.[0] } })
    return name
  })
}

/** `cellar wait`: prints the exit status of each. The exit status is 124 if the time is up before. */
export async function waitForGuests({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const phases = flags.for ?? ENDED
  const deadline = flags.timeout === undefined ? Infinity
    : performance.now() + durationNs('--timeout', flags.timeout[0]!) / 1e6
  let isLate = false
  const status = await each(words, async (name) => {
    for (;;) {
      const leftMs = Math.max(1, Math.min(WAIT_MS, Math.ceil(deadline - performance.now())))
      const guest = await host.ask<GuestView>('GET', host.path('guests', name, 'wait'),
        { query: { phase: phases, timeout: `${leftMs}ms` } })
      if (phases.includes(guest.phase)) return flags.for === undefined ? String(guest.exit?.status ?? 0) : guest.phase
      if (performance.now() < deadline) continue
      isLate = true
      throw new CellarError('WAIT_TIMED_OUT', [`"${name}"`, phases.join(' or '), guest.phase])
    }
  })
  return isLate ? EXIT_TIMED_OUT : status
}

/** `cellar inspect GUEST…`. */
export async function inspectGuests(call: Call): Promise<number> {
  const host = await call.client()
  const guests = await Promise.all(call.words.map((name) => host.ask('GET', host.path('guests', name))))
  await printWhole(call, guests)
  return 0
}

async function post({ client, words }: Call, verb: 'start' | 'stop' | 'kill' | 'restart' | 'pause' | 'resume' |
  'hibernate', wait?: string): Promise<number> {
  const host = await client()
  return await each(words, async (name) => {
    await host.ask('POST', host.path('guests', name, verb), { query: { wait } })
    return name
  })
}
