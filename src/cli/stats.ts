// cli/stats.ts: `cellar stats` and `cellar top`: what running guests use of CPU and memory.
//
// Figures count from a guest's start. Once, a table shows their means since then; each second, what came since the
// last.

import { formatSize } from '../base/units.ts'
import type { GuestView, HostView } from '../host/operator.ts'
import type { GuestFigures } from '../host/protocol.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { onInterrupt, printData, printList, span, tableOf, type Column } from './output.ts'
import { print } from './print.ts'

/** A guest with its figures, and those of the sample before. */
export type Sample = { readonly guest: GuestView; readonly figures: GuestFigures
  readonly before?: GuestFigures | undefined }

const PERIOD_MS = 1000

type Time = 'runningNs' | 'runnableNs' | 'throttledNs'

const part = (head: string, time: Time): Column<Sample> =>
  ({ head, number: true, of: (sample) => `${(partOf(sample, time) * 100).toFixed(1)} %` })
const PROJECT: Column<Sample> = { head: 'PROJECT', of: ({ guest }) => guest.project }
const COLUMNS: readonly Column<Sample>[] = [
  { head: 'NAME', of: ({ guest }) => guest.name },
  part('CPU', 'runningNs'), part('RUNNABLE', 'runnableNs'), part('THROTTLED', 'throttledNs'),
  { head: 'MEMORY', number: true, of: ({ figures }) => formatSize(figures.memoryBytes) },
  { head: 'CALLS', number: true, of: ({ figures, before }) => String(figures.hypercalls - (before?.hypercalls ?? 0)) },
  { head: 'UPTIME', number: true, of: ({ figures }) => span(figures.ageNs / 1e6) },
  { head: 'PCPU', number: true, of: ({ figures }) => String(figures.pcpu) },
  { head: 'WAITED FOR', wide: true, of: ({ figures }) => figures.waitedFor.slice(0, 3).map(([id]) => id).join(', ') },
]

/** `cellar stats [GUEST…]`. */
export async function stats(call: Call): Promise<number> {
  const host = await call.client()
  const show = async (samples: readonly Sample[]): Promise<void> => {
    const format = call.flags.output?.[0]
    if (format === 'json' || format === 'yaml') {
      return await printData(format, samples.map(({ guest: { id, project, name }, figures }) =>
        ({ id, project, name, ...figures })))
    }
    await printList(call, samples, { columns: columnsOf(call), name: ({ guest }) => guest.name })
  }
  if (call.flags.watch === undefined) {
    await show(await sample(host, call, new Map()))
    return 0
  }
  return await eachSecond(host, call, async (samples) => {
    if (process.stdout.isTTY) print('\x1b[H\x1b[2J')
    await show(samples)
  })
}

/** `cellar top`. */
export async function topOfHost(call: Call): Promise<number> {
  const host = await call.client()
  return await eachSecond(host, call, async (samples) => {
    const { pcpus, running, guests, reserved, memoryBytes } = await host.ask<HostView>('GET', '/v1/host')
    const sorted = samples.toSorted((a, b) => partOf(b, 'runningNs') - partOf(a, 'runningNs'))
    const used = samples.reduce((sum, one) => sum + partOf(one, 'runningNs'), 0)
    const columns = process.stdout.columns || Infinity
    const rows = process.stdout.rows || Infinity
    const text = `${running} of ${guests} guests run on ${pcpus} pCPUs: ${(used * 100).toFixed(1)} % used; reserved: ${
      (reserved.cpu * 100).toFixed(0)} %, ${formatSize(reserved.memoryBytes)} of ${formatSize(memoryBytes)}\n\n${
      tableOf(sorted, columnsOf(call).filter(({ wide }) => wide !== true))}`
    const shown = text.split('\n').slice(0, process.stdout.isTTY ? rows - 1 : undefined)
      .map((line) => line.slice(0, Math.min(columns, line.length))).join('\n')
    print(process.stdout.isTTY ? `\x1b[H\x1b[2J${shown}` : `${shown}\n`)
  })
}

/** The part of a pCPU that a guest had since the sample before, or its start. */
export function partOf({ figures, before }: Sample, time: Time): number {
  const elapsed = figures.ageNs - (before?.ageNs ?? 0)
  return elapsed <= 0 ? 0 : Math.max(0, figures[time] - (before?.[time] ?? 0)) / elapsed
}

function columnsOf({ flags }: Call): readonly Column<Sample>[] {
  return flags['all-projects'] === undefined ? COLUMNS : [PROJECT, ...COLUMNS]
}

async function eachSecond(host: Client, call: Call, show: (samples: readonly Sample[]) =>
  Promise<void>): Promise<number> {
  const over = Promise.withResolvers<void>()
  const interrupt = { hasCome: false }
  using _ = onInterrupt(() => {
    interrupt.hasCome = true
    over.resolve()
  })
  let before = new Map<string, GuestFigures>()
  while (!interrupt.hasCome) {
    const samples = await sample(host, call, before)
    before = new Map(samples.map(({ guest, figures }) => [guest.id, figures]))
    await show(samples)
    await Promise.race([over.promise, new Promise((done) => { setTimeout(done, PERIOD_MS) })])
  }
  return 0
}

async function sample(host: Client, { words, flags }: Call, before: ReadonlyMap<string,
  GuestFigures>): Promise<Sample[]> {
  const isAll = flags['all-projects'] !== undefined
  const [guests, items] = await Promise.all([
    host.list<GuestView>(isAll ? '/v1/guests' : host.path('guests')),
    host.list<GuestFigures & { readonly id: string }>('/v1/stats', isAll ? {} : { project: host.project }),
  ])
  const figures = new Map(items.map((one) => [one.id, one]))
  const wanted = words.length === 0 ? guests : guests.filter(({ name, id }) =>
    words.some((word) => word === name || id.startsWith(word)))
  return wanted.flatMap((guest) => figures.has(guest.id)
    ? [{ guest, figures: figures.get(guest.id)!, before: before.get(guest.id) }] : [])
    .sort((a, b) => a.guest.project.localeCompare(b.guest.project) || a.guest.name.localeCompare(b.guest.name))
}
