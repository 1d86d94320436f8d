// bench/host.ts: what a host does in how long: `run -d`, many guests, its API, a published port.
//
// A host in a process of its own, asked over its socket, as its users ask. Baselines are measured in the same run: the
// round trip of the API's cheapest answer, and for connections the same server in plain Node. 100,000 cells are a
// figure of their own (crowd.ts): they take minutes.

import { spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { connect, createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Figure } from './main.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const CELLAR = join(ROOT, 'bin/cellar')
const RUNS = 200
const CREATED = 1000
const GUESTS = 10_000
const RATE = 200
const RATE_SECONDS = 10

type Host = { readonly state: string; readonly socket: string; readonly child: ChildProcess }
type Guest = { readonly phase: string; readonly ports: { port: number }[] }

const agent = new Agent({ keepAlive: true, maxSockets: 64 })

/** Starts a host on a folder of its own. */
export async function startHost(): Promise<Host> {
  const state = mkdtempSync(join(tmpdir(), 'cb-'))
  const child = spawn(CELLAR, ['host', '--state', state, '--log', join(state, 'host.log'), '--end-guests'],
    { stdio: 'inherit' })
  const host = { state, socket: join(state, 'host.sock'), child }
  for (;;) {
    try {
      await api(host, 'GET', '/readyz')
      return host
    } catch {
      await sleep(20)
    }
  }
}

/** Ends it and its guests, and removes its folder. */
export async function endHost({ child, state }: Host): Promise<void> {
  child.kill('SIGTERM')
  await new Promise((resolve) => child.once('exit', resolve))
  await sleep(200)
  rmSync(state, { recursive: true, force: true, maxRetries: 10 })
}

/** One request: its body. */
export function api<T>({ socket }: Host, method: string, path: string, body?: unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    const isRaw = body instanceof Uint8Array
    const sent = request({ socketPath: socket, agent, method, path, headers: body === undefined ? {}
      : { 'content-type': isRaw ? 'application/wasm' : 'application/json' } }, (answer) => {
      const chunks: Buffer[] = []
      answer.on('data', (chunk: Buffer) => chunks.push(chunk)).on('error', reject).on('end', () => {
        const text = Buffer.concat(chunks).toString()
        if (answer.statusCode! >= 400) reject(new Error(`${method} ${path}: ${answer.statusCode} ${text}`))
        else resolve((text.startsWith('{') ? JSON.parse(text) : text) as T)
      })
    })
    sent.on('error', reject)
    sent.end(isRaw ? body : body === undefined ? undefined : JSON.stringify(body))
  })
}

/** Gives the host a program of guests/. */
export async function importGuest(host: Host, name: string): Promise<void> {
  await api(host, 'POST', `/v1/images?name=${name}`, readFileSync(join(ROOT, `guests/${name}.wasm`)))
}

export async function measure(): Promise<Figure[]> {
  const host = await startHost()
  try {
    for (const name of ['hello', 'nap', 'echo']) await importGuest(host, name)
    return [...await detached(host), await many(host), ...await published(host), ...await crowded(host)]
  } finally {
    await endHost(host)
  }
}

// From the request to the answer that the guest runs: its first instruction came before that.
async function detached(host: Host): Promise<Figure[]> {
  const create = async (i: number): Promise<number> => {
    const begun = performance.now()
    const { phase } = await api<Guest>(host, 'POST', '/v1/projects/warm/guests?wait=5s',
      { name: `warm-${i}`, spec: { image: 'nap', args: ['nap', '3600000'], memory: '1MiB' } })
    return phase === 'running' ? performance.now() - begun : Number.NaN
  }
  for (let i = 0; i < 20; i++) await create(-i - 1)
  const times: number[] = []
  const pings: number[] = []
  for (let i = 0; i < RUNS; i++) {
    times.push(await create(i))
    const begun = performance.now()
    await api(host, 'GET', '/livez')
    pings.push(performance.now() - begun)
  }
  await api(host, 'DELETE', '/v1/projects/warm?force=true')
  const baseline = { baseline: percentile(pings, 50), baselineOf: 'an answer of /livez' }
  return [
    { name: 'run_d_p50', value: percentile(times, 50), unit: 'ms', ...baseline },
    { name: 'run_d_p99', value: percentile(times, 99), unit: 'ms', ...baseline },
  ]
}

async function many(host: Host): Promise<Figure> {
  const begun = performance.now()
  await Promise.all(Array.from({ length: CREATED }, (_, i) =>
    api(host, 'POST', '/v1/projects/many/guests?wait=30s',
      { name: `many-${i}`, spec: { image: 'nap', args: ['nap', '3600000'], memory: '1MiB' } })))
  const value = (performance.now() - begun) / 1000
  const pings = performance.now()
  await Promise.all(Array.from({ length: CREATED }, () => api(host, 'GET', '/livez')))
  await api(host, 'DELETE', '/v1/projects/many?force=true')
  return { name: 'create_1000', value, unit: 's', baseline: (performance.now() - pings) / 1000,
    baselineOf: 'as many answers of /livez' }
}

async function crowded(host: Host): Promise<Figure[]> {
  for (let made = 0; made < GUESTS; made += CREATED) {
    await Promise.all(Array.from({ length: CREATED }, (_, i) => api(host, 'POST', '/v1/projects/crowd/guests?wait=60s',
      { name: `c-${made + i}`, spec: { image: 'nap', args: ['nap', '3600000'], memory: '1MiB' } })))
  }
  await sleep(3000)
  const before = cpuMs(host)
  await sleep(10_000)
  const idle = (cpuMs(host) - before) / 10_000
  const [ps, empty] = [await timed(host, ['ps', '-A', '-o', 'name']), await timed(host, ['ps', '-P', 'none-here'])]
  const rate = await steadily(host)
  await api(host, 'DELETE', '/v1/projects/crowd?force=true')
  return [
    { name: 'ps_10000', value: ps, unit: 'ms', baseline: empty, baselineOf: 'the same command with nothing to list' },
    { name: 'host_idle_10000', value: idle * 100, unit: '% of a core', baseline: 100, baselineOf: 'a core' },
    { name: 'api_p99_200rps', value: percentile(rate, 99), unit: 'ms', baseline: percentile(rate, 50),
      baselineOf: 'its median' },
  ]
}

// A mix, at a fixed rate: a slow answer doesn't make the next request wait.
async function steadily(host: Host): Promise<number[]> {
  const times: number[] = []
  const all: Promise<void>[] = []
  const begun = performance.now()
  for (let i = 0; i < RATE * RATE_SECONDS; i++) {
    const at = begun + i * 1000 / RATE
    const pause = at - performance.now()
    if (pause > 0) await sleep(pause)
    const path = ['/v1/host', `/v1/projects/crowd/guests/c-${i % GUESTS}`, '/v1/projects', '/v1/images',
      '/v1/guests?limit=100'][i % 5]!
    all.push(api(host, 'GET', path).then(() => { times.push(performance.now() - at) }))
  }
  await Promise.all(all)
  return times
}

async function published(host: Host): Promise<Figure[]> {
  const guest = await api<Guest>(host, 'POST', '/v1/projects/tcp/guests?wait=10s',
    { name: 'echo', spec: { image: 'echo', args: ['echo', '1000000'], ports: ['0:80'] } })
  const plain = spawn(process.execPath, [fileURLToPath(import.meta.url), 'echo'],
    { stdio: ['pipe', 'pipe', 'inherit'] })
  const plainPort = Number(await new Promise<string>((resolve) => plain.stdout.once('data', (data: Buffer) =>
    resolve(data.toString()))))
  try {
    const [cell, node]: { trips: number[]; rates: number[] }[] = [{ trips: [], rates: [] }, { trips: [], rates: [] }]
    for (let round = 0; round < 5; round++) {
      for (const [side, port] of [[cell!, guest.ports[0]!.port], [node!, plainPort]] as const) {
        side.trips.push(await roundTrip(port))
        side.rates.push(await throughput(port))
      }
    }
    return [
      { name: 'tcp_round_trip', value: percentile(cell!.trips, 50), unit: 'µs', baseline: percentile(node!.trips, 50),
        baselineOf: 'the same server in plain Node' },
      { name: 'tcp_throughput', value: percentile(cell!.rates, 50), unit: 'MB/s', baseline: percentile(node!.rates, 50),
        baselineOf: 'the same server in plain Node' },
    ]
  } finally {
    plain.kill()
    await api(host, 'DELETE', '/v1/projects/tcp?force=true')
  }
}

function roundTrip(port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    const times: number[] = []
    let begun = 0
    const send = (): void => {
      begun = performance.now()
      socket.write('x')
    }
    socket.on('error', reject).on('connect', send).on('data', () => {
      times.push((performance.now() - begun) * 1000)
      if (times.length < 2000) return send()
      socket.destroy()
      resolve(percentile(times, 50))
    })
  })
}

function throughput(port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const [total, piece] = [256 * 1024 * 1024, Buffer.alloc(65_536)]
    const begun = performance.now()
    let [sent, got] = [0, 0]
    const socket = connect({ port, host: '127.0.0.1' })
    const fill = (): void => {
      while (sent < total) {
        sent += piece.length
        if (!socket.write(piece)) return
      }
    }
    socket.on('error', reject).on('connect', fill).on('drain', fill).on('data', (data) => {
      got += data.length
      if (got < total) return
      socket.destroy()
      resolve(total / 1e6 / ((performance.now() - begun) / 1000))
    })
  })
}

async function timed(host: Host, args: readonly string[]): Promise<number> {
  const times: number[] = []
  for (let i = 0; i < 7; i++) {
    const begun = performance.now()
    const env = { ...process.env, CELLAR_HOST: host.socket }
    await new Promise((resolve) => spawn(CELLAR, args, { stdio: 'ignore', env }).once('exit', resolve))
    times.push(performance.now() - begun)
  }
  return percentile(times, 50)
}

/** CPU time of the host's process so far. */
function cpuMs({ child }: Host): number {
  const stat = readFileSync(`/proc/${child.pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) * 10
}

function percentile(values: readonly number[], percent: number): number {
  return values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * percent / 100))]!
}

// The plain server: echo, as guests/echo.c is.
if (process.argv[2] === 'echo' && process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = createServer({ noDelay: true }, (socket) => { socket.on('error', () => {}).pipe(socket) })
  server.listen(0, '127.0.0.1', () => process.stdout.write(String((server.address() as AddressInfo).port)))
}
