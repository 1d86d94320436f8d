// cli/run_image.ts: `cellar run IMAGE`: a guest of a host in the foreground, with its console here.
//
// It is a guest like one of `run -d`, but one that is gone with us: it is removed at its end, at ours and when its
// console is left (Ctrl-C; of a machine on a terminal Ctrl-]). It isn't started again. The exit status is its own.
// Elsewhere: what a cell writes in the foreground (run_from.ts), a machine's console (session.ts).

import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import type { GuestView } from '../host/operator.ts'
import { clientFor, type Client } from './client.ts'
import type { Parsed, RUN_FLAGS } from './flags.ts'
import { ENDED } from './guest_verbs.ts'
import { created, refusalOf, startOf } from './run_detached.ts'
import { inForeground } from './run_from.ts'
import { attachTo } from './session.ts'
import { isTold } from './told.ts'

/** Signals that end us, and the guest with us. */
const ENDING = ['SIGTERM', 'SIGHUP'] as const
/** The end of a guest is told a moment after that of its console. Who has left the console doesn't wait longer. */
const SETTLE_MS = 1000

/** Runs an image in the foreground: the guest's exit status. Throws CellarError, ToldError. */
export async function runImage(parsed: Parsed<typeof RUN_FLAGS>): Promise<number> {
  const { flags } = parsed
  if (flags.restart !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
    ['--restart', flags.restart[0]!, 'given with -d: in the foreground it runs once'])
  try {
    const host = await clientFor(flags)
    const guest = await created(host, parsed, { restart: 'no', stdin: true })
    const refused = startOf(guest)
    if (refused !== 0) {
      await removed(host, guest)
      return refused
    }
    return guest.kind === 'machine' ? await onConsole(host, guest) : await inForeground(host, guest)
  } catch (error) {
    throw refusalOf(error)
  }
}

async function onConsole(host: Client, guest: GuestView): Promise<number> {
  const onSignal = (signal: NodeJS.Signals): void => {
    void removed(host, guest).finally(() => {
      for (const one of ENDING) process.off(one, onSignal)
      process.kill(process.pid, signal)
    })
  }
  for (const signal of ENDING) process.on(signal, onSignal)
  try {
    const status = await attachTo(host, guest.name).catch((error: unknown) => {
      // It has ended before we came.
      if (isTold(error) && error.code === 'GUEST_NOT_RUNNING') return 0
      throw error
    })
    const { phase, exit } = await host.ask<GuestView>('GET', host.path('guests', guest.name, 'wait'),
      { query: { phase: ENDED, timeout: `${SETTLE_MS}ms` } })
    if (!ENDED.includes(phase) || exit === undefined) return status
    if (exit.status !== 0) process.stderr.write(`cellar: ${guest.name}: ${exit.reason}\n`)
    return exit.status
  } finally {
    for (const signal of ENDING) process.off(signal, onSignal)
    await removed(host, guest)
  }
}

async function removed(host: Client, { name }: GuestView): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      return void await host.ask('DELETE', host.path('guests', name), { query: { force: '' } })
    } catch (error) {
      if (isTold(error) && error.code === 'NOT_FOUND') return
      if (tries > 0) throw error
      await sleep(SETTLE_MS)
    }
  }
}
