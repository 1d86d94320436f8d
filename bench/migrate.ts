// bench/migrate.ts: how long a guest stands still when it moves between two hosts on this machine.
//
// A cell with 64 MiB that says a number each millisecond and changes a page of its memory with each: from its last line
// on one host to its first on the other, by the times in their logs. It goes there and back again. Baseline: copying as
// much memory once, into memory that was touched before.

import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { api, endHost, startHost } from './host.ts'
import type { Figure } from './main.ts'

const TICKER = fileURLToPath(new URL('../guests/ticker.wasm', import.meta.url))
const MOVES = 20
const MIB = 60
/** A few dozen lines. */
const TAIL_BYTES = 4096
const BYTES = 64 * 1024 * 1024
const WEB = '/v1/projects/default/guests/web'

type Host = Awaited<ReturnType<typeof startHost>>
type Line = { readonly number: number; readonly timeMs: number }

/** Downtime of a live migration: p50 and p90. */
export async function measure(): Promise<Figure[]> {
  const hosts = [await startHost(), await startHost()] as const
  try {
    await api(hosts[0], 'POST', '/v1/images?name=ticker', readFileSync(TICKER))
    await api(hosts[0], 'POST', '/v1/projects/default/guests', { name: 'web', spec: { image: 'ticker', memory: '64MiB',
      args: ['ticker', '1', '0', String(MIB)] } })
    const gaps: number[] = []
    for (let i = 0; i < MOVES; i++) gaps.push(await move(hosts[i % 2]!, hosts[(i + 1) % 2]!))
    gaps.sort((a, b) => a - b)
    const baseline = copyMs()
    const figure = (name: string, value: number): Figure =>
      ({ name, value, unit: 'ms', baseline, baselineOf: 'copying 64 MiB of memory once' })
    return [figure('migrate downtime, 64 MiB, p50', gaps[Math.floor(MOVES / 2)]!),
      figure('migrate downtime, 64 MiB, p90', gaps[Math.floor(MOVES * 0.9)]!)]
  } finally {
    for (const host of hosts) await endHost(host)
  }
}

async function move(from: Host, to: Host): Promise<number> {
  await sleep(1000)
  // Its log goes with the guest: the last line is noted by who follows it.
  const { id } = await api<{ id: string }>(from, 'GET', WEB)
  const log = join(from.state, 'projects/default/logs', id, 'current')
  const { id: operation } = await api<{ id: string }>(from, 'POST', `${WEB}/migrate`, { to: `unix:${to.socket}` })
  const over: { view?: { status: string; error?: unknown } } = {}
  void api<NonNullable<typeof over.view>>(from, 'GET', `/v1/operations/${operation}?wait=30s`)
    .then((view) => { over.view = view })
  let before: Line | undefined
  while (over.view === undefined) {
    before = linesOf(log).at(-1) ?? before
    await sleep(5)
  }
  const { status, error } = over.view
  if (status !== 'done') throw new Error(`The guest did not move: ${JSON.stringify(error)}`)
  const there = join(to.state, 'projects/default/logs', id, 'current')
  for (;;) {
    const first = linesOf(there, 0).find(({ number }) => number > before!.number)
    if (first !== undefined) return first.timeMs - before!.timeMs
    await sleep(20)
  }
}

// The last lines of a log, or all of it from a place on; none if it isn't there yet, or any more.
function linesOf(log: string, from?: number): Line[] {
  try {
    const fd = openSync(log, 'r')
    try {
      const { size } = fstatSync(fd)
      const start = from ?? Math.max(0, size - TAIL_BYTES)
      const bytes = Buffer.alloc(size - start)
      readSync(fd, bytes, 0, bytes.length, start)
      return parse(bytes.toString())
    } finally {
      closeSync(fd)
    }
  } catch {
    return []
  }
}

// `TIME stdout F tick N …`, as the CRI has it.
function parse(text: string): Line[] {
  return text.split('\n').flatMap((line) => {
    const [, time, number] = /^(\S+) stdout F tick (\d+) /.exec(line) ?? []
    return time === undefined ? [] : [{ timeMs: Date.parse(time), number: Number(number) }]
  })
}

function copyMs(): number {
  const [from, to] = [new Uint8Array(BYTES).fill(1), new Uint8Array(BYTES).fill(2)]
  const began = performance.now()
  to.set(from)
  return performance.now() - began
}
