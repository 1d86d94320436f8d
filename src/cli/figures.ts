// cli/figures.ts: what a program used, for people: --stats.

import { formatDuration, formatSize } from '../base/units.ts'
import type { Usage } from '../cell/cell.ts'

/** The figures of a program that has ended with `status`, a line each. What is NaN isn't known. */
export function figures(program: string, status: number, usage: Usage): string {
  const calls = Object.entries(usage.hypercalls).sort(([, a], [, b]) => b - a)
  const total = calls.reduce((sum, [, count]) => sum + count, 0)
  const known = (value: number, text: string): string => Number.isNaN(value) ? 'unknown (stopped)' : text
  return [
    `cellar: ${program} ended with status ${status}`,
    `  start       ${known(usage.startNs, formatDuration(usage.startNs))}`,
    `  wall        ${formatDuration(usage.wallNs)}`,
    `  cpu         ${formatDuration(usage.cpuNs)}`,
    ...(usage.fuel === undefined ? [] : [`  fuel        ${usage.fuel}`]),
    `  memory      ${known(usage.memoryBytes, formatSize(usage.memoryBytes))}`,
    `  waits       ${known(usage.waits, String(usage.waits))}`,
    `  hypercalls  ${total}${total === 0 ? '' : `: ${calls.map(([name, count]) => `${name} ${count}`).join(', ')}`}`,
    '',
  ].join('\n')
}
