// bench/downtime.ts: for how long a busy guest of 64 MiB stands still when it moves between two hosts on this machine.
//
// The guest (guests/standstill.c) works without a pause, and says itself what was the longest time in which it didn't
// run. The move is in the first line that it says at its new host, or in the second, if it was stopped while it said
// one: the longer counts. So this is what the guest notices, whatever it was that kept it; the baseline is what it
// notices in a time without a move, from its neighbours on this machine. The host's own figure (from the last capture
// until the destination has said that it runs) stands beside it. One guest writes to 1 MiB of its memory all the time,
// the other to all 56 MiB that it uses, faster than any network is: all of it is sent while it stands still, then.

import { setTimeout as sleep } from 'node:timers/promises'
import { percentile } from './guest.ts'
import { api, endHost, importGuest, startHost } from './host.ts'
import type { Figure } from './main.ts'

const MOVES = 24
const MOVES_ALL = 8
const FILLED_MIB = 56
const LINES = 2
const GUEST = '/v1/projects/default/guests/busy'

type Host = Awaited<ReturnType<typeof startHost>>
type Operation = { readonly id: string; readonly status: string; readonly error?: unknown
  readonly result?: { readonly stoppedMs: number; readonly rounds: number } }
/** Of one move, in milliseconds: what the guest says, what the host says, what the guest says without a move. */
type Times = Record<'noticed' | 'stopped' | 'quiet' | 'whole', number>

export async function measure(): Promise<Figure[]> {
  const hosts = [await startHost(), await startHost()] as const
  try {
    await importGuest(hosts[0], 'standstill')
    return [...await moves(hosts, 'downtime', 1024, MOVES),
      ...await moves(hosts, 'downtime.all_written', FILLED_MIB * 1024, MOVES_ALL)]
  } finally {
    for (const host of hosts) await endHost(host)
  }
}

/** There and back again, so often that it ends where it began. */
async function moves(hosts: readonly [Host, Host], name: string, writtenKib: number, count: number):
Promise<Figure[]> {
  await api(hosts[0], 'POST', '/v1/projects/default/guests?wait=10s', { name: 'busy', spec: { image: 'standstill',
    memory: '64MiB', args: ['standstill', '64', String(FILLED_MIB), String(writtenKib)] } })
  const all: Times[] = []
  for (let i = -2; i < count; i++) {
    const times = await move(hosts[Math.abs(i % 2)]!, hosts[Math.abs((i + 1) % 2)]!)
    if (i >= 0) all.push(times)
  }
  await api(hosts[0], 'DELETE', `${GUEST}?force=true`)
  const of = (time: keyof Times, p: number): number => percentile(all.map((one) => one[time]), p)
  const quiet = 'the longest that it stood still in as long a time without a move'
  return [
    ...[0.5, 0.9].map((p) => ({ name: `${name}_p${p * 100}`, value: of('noticed', p), unit: 'ms, as the guest says',
      baseline: of('quiet', p), baselineOf: quiet })),
    { name: `${name}.stopped_p50`, value: of('stopped', 0.5), unit: 'ms, as the host says',
      baseline: of('noticed', 0.5), baselineOf: 'as the guest says' },
    { name: `${name}.least`, value: of('stopped', 0), unit: 'ms, as the host says', baseline: of('noticed', 0),
      baselineOf: 'as the guest says' },
    { name: `${name}.whole_p50`, value: of('whole', 0.5), unit: 'ms', baseline: of('stopped', 0.5),
      baselineOf: 'the time of it in which the guest stands still' },
  ]
}

async function move(from: Host, to: Host): Promise<Times> {
  const quiet = Math.max(...(await gaps(from, 2 * LINES)).slice(-LINES))
  const begun = performance.now()
  const { id } = await api<Operation>(from, 'POST', `${GUEST}/migrate`, { to: `unix:${to.socket}` })
  const { status, error, result } = await api<Operation>(from, 'GET', `/v1/operations/${id}?wait=60s`)
  const whole = performance.now() - begun
  if (status !== 'done' || result === undefined) throw new Error(`The guest did not move: ${JSON.stringify(error)}`)
  // Its log stays behind: what is here is said here.
  const noticed = Math.max(...(await gaps(to, LINES)).slice(0, LINES))
  return { noticed, stopped: result.stoppedMs, quiet, whole }
}

/** What the guest has said at a host, in milliseconds, once it has said so much. */
async function gaps(host: Host, count: number): Promise<number[]> {
  for (;;) {
    const said = [...(await api<string>(host, 'GET', `${GUEST}/logs`)).matchAll(/^.*\bgap (\d+) /gm)]
    if (said.length >= count) return said.map(([, us]) => Number(us) / 1000)
    await sleep(20)
  }
}
