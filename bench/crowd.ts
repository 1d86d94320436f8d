// bench/crowd.ts: 100,000 idle cells on one host, in several processes: how long it takes to make them, what each
// costs, and whether all answer.
//
// Each cell (guests/idle.wasm) listens on a port of its own in the project's network, and answers with its name. Asking
// all of them is the health check of each: the host's own means, through the process that has the cell.

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { api, endHost, importGuest, startHost } from './host.ts'
import type { Figure } from './main.ts'

const CELLS = Number(process.env['CELLAR_BENCH_CELLS'] ?? 100_000)
const AT_ONCE = 500
/** Projects: each has processes of its own. */
const PROJECTS = 2

type HostView = { readonly running: number; readonly processes: { readonly pid: number; readonly guests: number }[] }

export async function measure(): Promise<Figure[]> {
  const host = await startHost()
  try {
    await importGuest(host, 'idle')
    const before = await residentBytes(host.child.pid!)
    const begun = performance.now()
    for (let made = 0; made < CELLS; made += AT_ONCE) {
      await Promise.all(Array.from({ length: AT_ONCE }, (_, i) =>
        api(host, 'POST', `/v1/projects/crowd-${(made + i) % PROJECTS}/guests`, { name: `c${made + i}`, spec: {
          image: 'idle', args: ['idle', `c${made + i}`], expose: [80], memory: '64KiB',
          health: { tcp: 80, interval: '1h', 'start-period': '1ms' },
        } })))
      if (made % 10_000 === 0) {
        process.stderr.write(`crowd: ${made} made in ${Math.round((performance.now() - begun) / 1000)} s\n`)
      }
    }
    let view = await api<HostView>(host, 'GET', '/v1/host')
    while (view.running < CELLS) {
      await sleep(200)
      view = await api<HostView>(host, 'GET', '/v1/host')
    }
    const seconds = (performance.now() - begun) / 1000
    const processes = await Promise.all(view.processes.map(({ pid }) => residentBytes(pid)))
    const own = await residentBytes(host.child.pid!)
    const healthy = await answering(host)
    if (healthy < CELLS) throw new Error(`Only ${healthy} of ${CELLS} cells answer`)
    return [
      { name: 'crowd_make', value: seconds, unit: 's', baseline: CELLS / 1000, baselineOf: '1,000 cells in a second' },
      { name: 'crowd_memory', value: processes.reduce((sum, x) => sum + x, 0) / CELLS / 1024, unit: 'KiB a cell',
        baseline: 64, baselineOf: 'the page of memory that each has' },
      { name: 'crowd_host_memory', value: (own - before) / CELLS / 1024, unit: 'KiB a cell', baseline: 1,
        baselineOf: '1 KiB' },
      { name: 'crowd_answer', value: healthy, unit: 'cells', baseline: CELLS, baselineOf: 'cells' },
    ]
  } finally {
    await endHost(host)
  }
}

// Health checks tell of changes only: each cell's first answer is one.
async function answering(host: Awaited<ReturnType<typeof startHost>>): Promise<number> {
  for (let tries = 0; ; tries++) {
    let healthy = 0
    let token: string | undefined
    do {
      const page = await api<{ items: { healthy?: boolean }[]; nextPageToken?: string }>(host, 'GET',
        `/v1/guests?limit=10000${token === undefined ? '' : `&pageToken=${token}`}`)
      healthy += page.items.filter((one) => one.healthy === true).length
      token = page.nextPageToken
    } while (token !== undefined)
    if (healthy >= CELLS || tries > 300) return healthy
    await sleep(1000)
  }
}

async function residentBytes(pid: number): Promise<number> {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024
}
