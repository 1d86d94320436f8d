// cli/top.ts: who got what of the CPU, and who waited for whom: a table for people.

import type { Outcome } from '../cell/cell.ts'
import type { Figures } from '../cell/pcpu_worker.ts'
import type { Terms } from '../sched/node.ts'

/** A cell of the table. Parts of the CPU are in pCPUs. */
export type Row = {
  readonly name: string
  readonly pcpu: number
  readonly terms: Terms
  readonly pool: string | undefined
  readonly figures: Figures | undefined
  /** What it wanted, and what it should have had of that. */
  readonly demand: number
  readonly due: number
  readonly elapsedNs: number
  /** Who had the pCPU while it could have run, most first. */
  readonly waitedFor: readonly (readonly [name: string, ns: number])[]
  readonly end: Outcome | undefined
}

const COLUMNS = ['CELL', 'PCPU', 'SHARES', 'RESERVED', 'LIMIT', 'DUE', 'GOT', 'RUNNABLE', 'THROTTLED', 'WAITING', 'END',
  'WAITED FOR'] as const
/** Columns with numbers, which are aligned at their ends. */
const NUMBERS_FROM = 1
const NUMBERS_TO = 9
const NAMES_MAX = 3

/** The table with its heads, each line ended. Times are parts of the time since the start, of one pCPU. */
export function table(rows: readonly Row[], pcpus: number): string {
  const cells = [COLUMNS.map(String), ...rows.map(cellsOf)]
  const widths = COLUMNS.map((_, i) => Math.max(...cells.map((row) => row[i]!.length)))
  const lines = cells.map((row) => row.map((text, i) =>
    i >= NUMBERS_FROM && i <= NUMBERS_TO ? text.padStart(widths[i]!) : text.padEnd(widths[i]!)).join('  ').trimEnd())
  return `${lines.join('\n')}\n${summary(rows, pcpus)}\n`
}

function cellsOf(row: Row): string[] {
  const { terms, figures, elapsedNs } = row
  const part = (ns: number | undefined): string => ns === undefined ? '-' : percent(ns / elapsedNs)
  return [
    row.pool === undefined ? row.name : `${row.pool}/${row.name}`, String(row.pcpu), String(terms.shares),
    terms.reservation === 0 ? '-' : percent(terms.reservation),
    terms.limit === Infinity ? '-' : percent(terms.limit),
    percent(row.due), part(figures?.runningNs), part(figures?.runnableNs), part(figures?.throttledNs),
    part(figures === undefined ? undefined : figures.waitingNs + Math.max(0, elapsedNs - figures.ageNs)),
    endOf(row.end), waitedFor(row),
  ]
}

function summary(rows: readonly Row[], pcpus: number): string {
  const elapsed = rows[0]?.elapsedNs ?? 0
  const got = rows.reduce((sum, { figures }) => sum + (figures?.runningNs ?? 0), 0)
  const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`
  return `${count(rows.length, 'cell')} on ${count(pcpus, 'pCPU')} for ${(elapsed / 1e9).toFixed(1)} s: ${
    percent(elapsed === 0 ? 0 : got / elapsed / pcpus)} of their time was used`
}

function waitedFor({ waitedFor, elapsedNs }: Row): string {
  return waitedFor.filter(([, ns]) => ns / elapsedNs >= 0.001).slice(0, NAMES_MAX)
    .map(([name, ns]) => `${name} ${percent(ns / elapsedNs)}`).join(', ')
}

function endOf(end: Outcome | undefined): string {
  if (end === undefined) return 'runs'
  if (end.kind === 'exit') return `exit ${end.code}`
  return end.kind === 'signal' ? `signal ${end.signal}` : 'trap'
}

function percent(part: number): string {
  return `${(part * 100).toFixed(1)} %`
}
