// api/metrics.ts: what /metrics tells: requests, this process, and what the host adds, as Prometheus reads it.
//
// Series are bounded by the table of routes and the statuses that they have: a request that matches no route counts
// under route "none". The event loop's lag is that since the last scrape.

import { readdirSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import type { Operator } from '../host/operator.ts'

/** Upper bounds of the histogram's buckets, in seconds. */
const BUCKETS = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60] as const
const LAG_MS = 10

type Series = { readonly labels: string; count: number; sum: number; readonly buckets: number[] }

/** Counts for /metrics. `close` it. */
export class ApiMetrics {
  /** Connections beyond the limit, closed at once. */
  refused = 0
  readonly #series = new Map<string, Series>()
  readonly #lag: ReturnType<typeof monitorEventLoopDelay>

  constructor() {
    this.#lag = monitorEventLoopDelay({ resolution: LAG_MS })
    this.#lag.enable()
  }

  /** A request was answered, or its answer begun, after `seconds`. */
  observe(method: string, route: string, status: number, seconds: number): void {
    const labels = labelsOf({ method, route, status: String(status) })
    let series = this.#series.get(labels)
    if (series === undefined) {
      series = { labels, count: 0, sum: 0, buckets: BUCKETS.map(() => 0) }
      this.#series.set(labels, series)
    }
    series.count++
    series.sum += seconds
    for (let i = BUCKETS.length - 1; i >= 0 && seconds <= BUCKETS[i]!; i--) series.buckets[i]!++
  }

  /** All of it, the host's own families last. */
  async text(operator: Operator): Promise<string> {
    const host = operator.host()
    const families = [
      family('cellar_build_info', 'gauge', 'Versions, as labels.',
        [[labelsOf({ version: host.version, node: host.node }), 1]]),
      this.#requests(), this.#durations(),
      family('cellar_api_connections_refused_total', 'counter', 'Connections beyond the limit.', [['', this.refused]]),
      this.#lagFamily(), ...processFamilies(),
    ]
    const more = await operator.metrics()
    return `${families.join('')}${more}${more === '' || more.endsWith('\n') ? '' : '\n'}`
  }

  close(): void { this.#lag.disable() }

  #requests(): string {
    return family('cellar_api_requests_total', 'counter', 'Requests answered.',
      [...this.#series.values()].map(({ labels, count }) => [labels, count]))
  }

  #durations(): string {
    const name = 'cellar_api_request_duration_seconds'
    const lines = [...this.#series.values()].flatMap(({ labels, count, sum, buckets }) => {
      const bucket = (most: string, value: number): string =>
        `${name}_bucket${labels.slice(0, -1)},le="${most}"} ${value}`
      return [...BUCKETS.map((most, i) => bucket(String(most), buckets[i]!)), bucket('+Inf', count),
        `${name}_sum${labels} ${sum}`, `${name}_count${labels} ${count}`]
    })
    return `${head(name, 'histogram', 'Time to an answer, or to its beginning if it is a stream.')}${
      lines.map((line) => `${line}\n`).join('')}`
  }

  #lagFamily(): string {
    const seconds = (ns: number): number => Number.isFinite(ns) ? Math.max(0, ns / 1e9 - LAG_MS / 1e3) : 0
    const rows = [['p50', this.#lag.percentile(50)], ['p99', this.#lag.percentile(99)], ['max', this.#lag.max]] as const
    const text = family('cellar_event_loop_lag_seconds', 'gauge',
      "How late the host's event loop was since the last scrape.",
      rows.map(([stat, ns]) => [labelsOf({ stat }), seconds(ns)]))
    this.#lag.reset()
    return text
  }
}

/** What every process tells, by the names that Prometheus's own clients use. */
function processFamilies(): string[] {
  const { user, system } = process.cpuUsage()
  return [
    family('process_cpu_seconds_total', 'counter', 'CPU time of the host process.', [['', (user + system) / 1e6]]),
    family('process_resident_memory_bytes', 'gauge', 'Resident memory of the host process.',
      [['', process.memoryUsage.rss()]]),
    family('process_start_time_seconds', 'gauge', 'When the host process began, since 1970.',
      [['', Math.round(performance.timeOrigin) / 1000]]),
    ...openDescriptors().map((count) =>
      family('process_open_fds', 'gauge', 'Open descriptors of the host process.', [['', count]])),
  ]
}

function openDescriptors(): number[] {
  try {
    return [readdirSync('/proc/self/fd').length]
  } catch {
    return [] // No /proc here: there is no such family then.
  }
}

function family(name: string, type: string, help: string, rows: readonly (readonly [labels: string, value: number])[]):
string {
  return head(name, type, help) + rows.map(([labels, value]) => `${name}${labels} ${value}\n`).join('')
}

function head(name: string, type: string, help: string): string {
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`
}

function labelsOf(labels: Readonly<Record<string, string>>): string {
  const escape = (text: string): string => text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
  return `{${Object.entries(labels).map(([name, value]) => `${name}="${escape(value)}"`).join(',')}}`
}
