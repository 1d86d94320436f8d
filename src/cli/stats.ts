// cli/stats.ts: `cellar stats` and `cellar top`: what running guests use of CPU and memory.
//
// Figures count from a guest's start. Once, a table shows their means since then; each second, what came since the
// last. A paused guest has its memory and no time; a hibernated one has neither, and is in no process: no figures.

import { formatSize } from '../base/units.ts'
import type { GuestView, HostView, Phase } from '../host/operator.ts'
import type { GuestFigures } from '../host/protocol.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { onInterrupt, printData, printList, span, tableOf, type Column } from './output.ts'
import { print } from './print.ts'

/** A guest with its figures, if it is in a process, and those of the sample before. */
export type Sample = { readonly guest: GuestView; readonly figures?: GuestFigures | undefined
  readonly before?: GuestFigures | undefined }

const PERIOD_MS = 1000

type Time = 'runningNs' | 'runnableNs' | 'throttledNs'

/** Phases of guests that get no time. */
const RESTING: readonly Phase[] = ['paused', 'hibernated']
/** What isn't known, or isn't there. */
const NONE = '-'

const part = (head: string, time: Time): Column<Sample> => ({ head, number: true, of: (sample) =>
  RESTING.includes(sample.guest.phase) ? time === 'runningNs' ? sample.guest.phase : NONE
    : `${(partOf(sample, time) * 100).toFixed(1)} %` })
const figure = (head: string, of: (now: GuestFigures, before: GuestFigures | undefined) => string): Column<Sample> =>
  ({ head, number: true, of: ({ figures, before }) => figures === undefined ? NONE : of(figures, before) })
const PROJECT: Column<Sample> = { head: 'PROJECT', of: ({ guest }) => guest.project }
const COLUMNS: readonly Column<Sample>[] = [
  { head: 'NAME', of: ({ guest }) => guest.name },
  part('CPU', 'runningNs'), part('RUNNABLE', 'runnableNs'), part('THROTTLED', 'throttledNs'),
  figure('MEMORY', ({ memoryBytes }) => formatSize(memoryBytes)),
  figure('CALLS', ({ hypercalls }, before) => String(Math.max(0, hypercalls - (before?.hypercalls ?? 0)))),
  figure('UPTIME', ({ ageNs }) => span(ageNs / 1e6)),
  figure('PCPU', ({ pcpu }) => String(pcpu)),
  { head: 'EXITS', wide: true, number: true, of: ({ figures }) => figures?.machine === undefined ? ''
    : String(Object.values(figures.machine.exits).reduce((sum, count) => sum + count, 0)) },
  { head: 'MOST OF THEM', wide: true, of: ({ figures }) => mostOf(figures?.machine?.exits ?? {}) },
  { head: 'BALLOON', wide: true, number: true, of: ({ figures }) => figures?.machine === undefined ? ''
    : formatSize(figures.machine.balloonBytes) },
  { head: 'WAITED FOR', wide: true, of: ({ figures }) =>
    figures?.waitedFor.slice(0, 3).map(([id]) => id).join(', ') ?? '' },
]

/** The three exits that a machine has most of: `IO 1200, MMIO 300, HLT 90`. */
function mostOf(exits: Readonly<Record<string, number>>): string {
  return Object.entries(exits).filter(([, count]) => count > 0).sort(([, a], [, b]) => b - a).slice(0, 3)
    .map(([reason, count]) => `${reason.replace(/^KVM_EXIT_/, '')} ${count}`).join(', ')
}

/** `cellar stats [GUEST…]`. */
export async function stats(call: Call): Promise<number> {
  const host = await call.client()
  const show = async (samples: readonly Sample[]): Promise<void> => {
    const format = call.flags.output?.[0]
    if (format === 'json' || format === 'yaml') {
      return await printData(format, samples.map(({ guest: { id, project, name, phase }, figures }) =>
        ({ id, project, name, phase, ...figures })))
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
  if (figures === undefined) return 0
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
    before = new Map(samples.flatMap(({ guest, figures }) => figures === undefined ? [] : [[guest.id, figures]]))
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
  return wanted.filter(({ id, phase }) => figures.has(id) || phase === 'hibernated')
    .map((guest) => ({ guest, figures: figures.get(guest.id), before: before.get(guest.id) }))
    .sort((a, b) => a.guest.project.localeCompare(b.guest.project) || a.guest.name.localeCompare(b.guest.name))
}
