// cli/ps_test.ts: tables of guests, formats of lists, figures, and what is shown as it changes.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { GuestView } from '../host/operator.ts'
import { sinceOf } from './logs.ts'
import { progressOf } from './operations.ts'
import { ago, span, tableOf } from './output.ts'
import { statusOf } from './ps.ts'
import { partOf, type Sample } from './stats.ts'
import { FakeHost, guestView, type Answers } from './test_support.ts'

const spec = (more: object): GuestView['spec'] => ({ image: 'app:1', labels: {}, ports: [], ...more }) as unknown as
  GuestView['spec']
const HOUR = 3600_000

const GUESTS = [
  guestView('web', { spec: spec({ image: 'registry.example.com/web:1.2', ports: ['127.0.0.1:8080:80', '443:443'],
    labels: { tier: 'web' } }), healthy: true }),
  guestView('db', { spec: spec({ image: `sha256:${'c'.repeat(64)}`, ports: ['0:5432'] }), restarts: 12,
    ports: [{ address: '::1', port: 32768, guest: 5432 }] }),
  guestView('job', { spec: spec({ image: `job.wasm@sha256:${'d'.repeat(64)}` }), phase: 'exited',
    exit: { status: 0, reason: 'exit 0' }, endedAt: Date.now() - 2 * HOUR - 500 }),
  guestView('bad\x1b[2J', { phase: 'backing-off', exit: { status: 134, reason: 'trap' } }),
]
const ANSWERS: Answers = {
  'GET /v1/projects/default/guests': [200, { items: GUESTS }],
  'GET /v1/guests': [200, { items: [...GUESTS, guestView('till', { project: 'shop' })] }],
}

test('cellar ps shows guests that run as an aligned table without lines', async () => {
  await using host = await FakeHost.start(ANSWERS)
  assert.deepEqual(await host.run(['ps']), { status: 0, stderr: '', stdout: `\
NAME           IMAGE                          STATUS                 RESTARTS   AGE   PORTS
bad\\u{1b}[2J   app:1                          backing-off (134)             0    5m
db             cccccccccccc                   running 3m                   12    5m   [::1]:32768->5432
web            registry.example.com/web:1.2   running (healthy) 3m          0    5m   127.0.0.1:8080->80, 443->443
` })
  const all = (await host.run(['ps', '-a', '--no-headers'])).stdout
  assert.match(all, /^job +job\.wasm +exited \(0\) 2h ago +0 +5m$/m)
  assert.doesNotMatch(all, /NAME/)
})

test('cellar ps chooses by label and project, and prints names, JSON or YAML', async () => {
  await using host = await FakeHost.start(ANSWERS)
  const out = async (line: string): Promise<string> => (await host.run(line.split(' '))).stdout
  assert.equal(await out('ps -q'), 'bad\\u{1b}[2J\ndb\nweb\n')
  assert.equal(await out('ps -l tier -q'), 'web\n')
  assert.equal(await out('ps -l tier=db -q'), '')
  assert.equal(await out('ps -l tier=web -o name'), 'web\n')
  assert.deepEqual((JSON.parse(await out('ps -a -l tier=web -o json')) as GuestView[]),
    JSON.parse(JSON.stringify([GUESTS[0]])))
  assert.match(await out('ps -l tier=web -o yaml'), /^- id: id-of-web\n {2}project: default\n/)
  const everywhere = await out('ps -A')
  assert.match(everywhere, /^PROJECT +NAME/)
  assert.match(everywhere, /^shop +till/m)
  assert.match(await out('ps -o wide'),
    /^NAME .* ID +MODULE +POOL +MEMORY +USED +KIND +ENGINE +PROCESS +CAPTURE +FROM +REASON$/m)
})

test('cellar ps shows guests that are paused or hibernated, whether each can be captured, and where it is from',
  async () => {
  const guests = [guestView('a', { phase: 'paused', capture: { can: true }, origin: { fork: 'web' } }),
    guestView('b', { phase: 'hibernated', origin: { snapshot: `sha256:${'e'.repeat(64)}` } }),
    guestView('c', { capture: { can: false, why: 'function 7 keeps an object on its stack' } })]
  await using host = await FakeHost.start({ 'GET /v1/projects/default/guests': [200, { items: guests }] })
  const { stdout } = await host.run(['ps', '-o', 'wide'])
  assert.match(stdout, /^a .* paused .* yes +web$/m)
  assert.match(stdout, /^b .* hibernated .* e{12}$/m)
  assert.match(stdout, /^c .* running 3m .* no, because function 7 keeps an object on its stack$/m)
})

test('cellar ps --watch adds the guests that an event tells of', async () => {
  const guests = [guestView('web')]
  await using host = await FakeHost.start({
    'GET /v1/projects/default/guests': (_, response) => response.end(JSON.stringify({ items: guests })),
    'GET /v1/events': (_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write('retry: 2000\n\n:\n\n')
      guests.push(guestView('db'))
      response.write('id: 1\ndata: {"seq":1,"time":0,"kind":"guest.started","data":{}}\n\n')
      setTimeout(() => response.end(), 1500)
    },
  })
  const { status, stdout } = await host.run(['ps', '--watch', '-q'])
  assert.deepEqual([status, stdout], [0, 'web\ndb\n'])
})

test('statusOf, span and ago tell times as people do', () => {
  const now = Date.now()
  assert.equal(statusOf(guestView('a', { healthy: false, startedAt: now - 90_500 })), 'running (unhealthy) 90s')
  assert.equal(statusOf(guestView('a', { phase: 'created' })), 'created')
  assert.equal(statusOf(guestView('a', { phase: 'backing-off', retryAt: now + 30_500,
    exit: { status: 1, reason: '' } })),
    'backing-off (1), again in 30s')
  assert.deepEqual([0, 119_000, 120_000, 2 * HOUR, 48 * HOUR, -5].map(span), ['0s', '119s', '2m', '2h', '2d', '0s'])
  assert.deepEqual([ago(undefined), ago(now - 5000, now)], ['', '5s ago'])
})

test('tableOf has heads even for nothing, and no blanks at the ends of lines', () => {
  const columns = [{ head: 'NAME', of: (text: string) => text }, { head: 'N', of: () => '', number: true as const }]
  assert.equal(tableOf([], columns), 'NAME   N\n')
  assert.equal(tableOf(['a'], columns), 'NAME   N\na\n')
  assert.equal(tableOf([], columns, false), '')
})

test('partOf counts from the sample before, sinceOf takes durations and times, progressOf sizes', () => {
  const figures = (ageNs: number, runningNs: number) => ({ ageNs, runningNs }) as unknown as Sample['figures']
  const guest = guestView('a')
  assert.equal(partOf({ guest, figures: figures(4e9, 1e9) }, 'runningNs'), 0.25)
  assert.equal(partOf({ guest, figures: figures(4e9, 2e9), before: figures(3e9, 1e9) }, 'runningNs'), 1)
  assert.equal(partOf({ guest, figures: figures(1e9, 0), before: figures(3e9, 1e9) }, 'runningNs'), 0)
  assert.equal(sinceOf('10s', 60_000), '1970-01-01T00:00:50.000Z')
  assert.equal(sinceOf('2026-01-31'), '2026-01-31T00:00:00.000Z')
  const progress = (done: number, total: number, unit: string) =>
    progressOf({ progress: { done, total, unit } } as never)
  assert.deepEqual([progress(1024, 2048, 'bytes'), progress(3, 0, 'files')], ['1 KiB of 2 KiB', '3'])
})

test('cellar stats and top show what guests use', async () => {
  const figures = { id: 'id-of-web', ageNs: 10e9, runningNs: 2.5e9, runnableNs: 1e9, throttledNs: 0, waitingNs: 0,
    memoryBytes: 65_536, hypercalls: 42, pcpu: 1, waitedFor: [] }
  await using host = await FakeHost.start({ ...ANSWERS, 'GET /v1/stats': [200, { items: [figures] }] })
  assert.equal((await host.run(['stats'])).stdout, `\
NAME      CPU   RUNNABLE   THROTTLED   MEMORY   CALLS   UPTIME   PCPU
web    25.0 %     10.0 %       0.0 %   64 KiB      42      10s      1
`)
  assert.equal((JSON.parse((await host.run(['stats', '-o', 'json', 'web'])).stdout) as object[]).length, 1)
  assert.equal((await host.run(['stats', '-q', 'db'])).stdout, '')
})

test('cellar stats shows that a paused guest has its memory and no time, and a hibernated one neither', async () => {
  const figures = { id: 'id-of-a', ageNs: 10e9, runningNs: 2.5e9, runnableNs: 1e9, throttledNs: 0, waitingNs: 0,
    memoryBytes: 65_536, hypercalls: 42, pcpu: 1, waitedFor: [] }
  const guests = [guestView('a', { phase: 'paused' }), guestView('b', { phase: 'hibernated' }),
    guestView('c', { phase: 'exited' })]
  await using host = await FakeHost.start({ 'GET /v1/projects/default/guests': [200, { items: guests }],
    'GET /v1/stats': [200, { items: [figures] }] })
  assert.equal((await host.run(['stats'])).stdout, `\
NAME          CPU   RUNNABLE   THROTTLED   MEMORY   CALLS   UPTIME   PCPU
a          paused          -           -   64 KiB      42      10s      1
b      hibernated          -           -        -       -        -      -
`)
  type Item = { phase: string; memoryBytes?: number }
  const items = JSON.parse((await host.run(['stats', '-o', 'json'])).stdout) as Item[]
  assert.deepEqual(items.map(({ phase, memoryBytes }) => [phase, memoryBytes]),
    [['paused', 65_536], ['hibernated', undefined]])
})
