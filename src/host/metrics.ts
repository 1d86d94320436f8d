// host/metrics.ts: what a host tells Prometheus of its guests and of itself, in the text exposition format.
//
// Figures of guests are read when they are asked for, not kept. Series of single guests are told for GUEST_SERIES_MAX
// of them at most, so that a host with many doesn't drown who collects them; sums are always told. Elsewhere: what the
// API counts of itself (api/metrics.ts).

import { GUEST_SERIES_MAX } from '../base/limits.ts'
import type { GuestView, HostView } from './operator.ts'
import type { GuestFigures } from './protocol.ts'

/** What is told. */
export type Told = {
  readonly host: HostView
  readonly guests: readonly GuestView[]
  readonly stats: ReadonlyMap<string, GuestFigures>
  readonly egress: Readonly<Record<string, number>>
  readonly restarts: number; readonly events: number
  /** Snapshots that there are; what was done since the host's start. */
  readonly snapshots: number
  readonly captures: { readonly captures: number; readonly failed: number; readonly stoppedNs: number }
  readonly hibernation: { readonly hibernated: number; readonly woken: number }
}

type Labels = Readonly<Record<string, string | number>>
type Sample = readonly [labels: Labels, value: number]

/** Families in the exposition format, each with its HELP and TYPE. */
export function exposition(told: Told): string {
  const { host, guests, stats, egress, restarts, events, captures, hibernation } = told
  const counts = new Map<string, number>()
  for (const { phase } of guests) counts.set(phase, (counts.get(phase) ?? 0) + 1)
  const named = guests.filter(({ id }) => stats.has(id)).slice(0, GUEST_SERIES_MAX)
    .map(({ id, project, name, kind }) => ({ labels: { project, guest: name, kind }, figures: stats.get(id)! }))
  const each = (value: (figures: GuestFigures) => number): Sample[] =>
    named.map(({ labels, figures }) => [labels, value(figures)])
  // A machine's counters, each with what it is of: a reason, a device.
  const machines = (values: (machine: NonNullable<GuestFigures['machine']>) => Sample[]): Sample[] =>
    named.flatMap(({ labels, figures: { machine } }) => machine === undefined ? []
      : values(machine).map(([more, value]): Sample => [{ ...labels, ...more }, value]))
  return [
    family('cellar_guests', 'gauge', 'Guests by what they are doing.', PHASES.map((phase) =>
      [{ phase }, counts.get(phase) ?? 0])),
    family('cellar_guest_restarts_total', 'counter', 'Restarts of guests that exist.', [[{}, restarts]]),
    family('cellar_host_pcpus', 'gauge', 'Processors of the host.', [[{}, host.pcpus]]),
    family('cellar_host_memory_bytes', 'gauge', 'Memory of the host.', [[{}, host.memoryBytes]]),
    family('cellar_host_reserved_pcpus', 'gauge', 'Processors promised to guests and pools.',
      [[{}, host.reserved.cpu]]),
    family('cellar_host_reserved_memory_bytes', 'gauge', 'Memory promised to guests.',
      [[{}, host.reserved.memoryBytes]]),
    family('cellar_processes', 'gauge', 'Processes that guests run in.', [[{}, host.processes.length]]),
    family('cellar_events_total', 'counter', 'Events so far.', [[{}, events]]),
    family('cellar_egress_attempts_total', 'counter', 'Connections outside that guests asked for.',
      Object.entries(egress).map(([outcome, count]) => [{ outcome }, count])),
    family('cellar_snapshots', 'gauge', 'Snapshots.', [[{}, told.snapshots]]),
    family('cellar_captures_total', 'counter', 'Times that the state of a running guest was saved.',
      [[{ outcome: 'done' }, captures.captures], [{ outcome: 'failed' }, captures.failed]]),
    family('cellar_capture_stopped_seconds_total', 'counter', 'Time that guests did not run since they were saved.',
      [[{}, captures.stoppedNs / 1e9]]),
    family('cellar_hibernations_total', 'counter', 'Guests that were hibernated.', [[{}, hibernation.hibernated]]),
    family('cellar_wakes_total', 'counter', 'Hibernated guests that were woken.', [[{}, hibernation.woken]]),
    family('cellar_guest_cpu_seconds_total', 'counter', 'CPU time that a guest had since its start.',
      each(({ runningNs }) => runningNs / 1e9)),
    family('cellar_guest_cpu_wait_seconds_total', 'counter', 'Time that a guest wanted to run while others did.',
      each(({ runnableNs }) => runnableNs / 1e9)),
    family('cellar_guest_cpu_throttled_seconds_total', 'counter', 'Time that a limit kept a guest from running.',
      each(({ throttledNs }) => throttledNs / 1e9)),
    family('cellar_guest_memory_bytes', 'gauge', 'Memory of a guest.', each(({ memoryBytes }) => memoryBytes)),
    family('cellar_guest_hypercalls_total', 'counter', 'Hypercalls that were answered.',
      each(({ hypercalls }) => hypercalls)),
    family('cellar_guest_exits_total', 'counter', 'Exits of a machine to its monitor, by reason.',
      machines(({ exits }) => Object.entries(exits).map(([reason, count]) => [{ reason }, count]))),
    family('cellar_guest_device_total', 'counter', 'Requests and bytes of a machine\'s devices, by what they are.',
      machines(({ devices }) => Object.entries(devices).flatMap(([device, counts]) =>
        Object.entries(counts).map(([what, count]): Sample => [{ device, what }, count])))),
    family('cellar_guest_balloon_bytes', 'gauge', 'Memory that a machine has left to the host.',
      machines(({ balloonBytes }) => [[{}, balloonBytes]])),
  ].join('')
}

function family(name: string, type: 'gauge' | 'counter', help: string, samples: readonly Sample[]): string {
  if (samples.length === 0) return ''
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${samples.map(([labels, value]) =>
    `${name}${formatLabels(labels)} ${value}\n`).join('')}`
}

function formatLabels(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) =>
    `${name}="${String(value).replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}

const PHASES = ['created', 'starting', 'running', 'paused', 'hibernated', 'backing-off', 'stopping', 'exited', 'failed',
  'stopped']
