// tests/functional/host_test.ts: a host as its operators use it: guests, what they use, and what stays when it goes.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text as textOf } from 'node:stream/consumers'
import { after, before, test } from 'node:test'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { guest, ROOT } from '../support.ts'

type Guest = {
  readonly id: string; readonly name: string; readonly phase: string; readonly restarts: number
  readonly process?: number; readonly startedAt?: number; readonly generation: number
  readonly exit?: { readonly status: number; readonly reason: string }
  readonly ports: readonly { readonly port: number }[]
}

let host: TestHost
let folder: string
before(async () => {
  host = await startHost()
  folder = mkdtempSync(join(tmpdir(), 'cellar-'))
})
after(async () => {
  await host[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true })
})

async function look(project: string, name: string): Promise<Guest> {
  const { status, body } = await host.api('GET', `/v1/projects/${project}/guests/${name}`)
  assert.equal(status, 200, JSON.stringify(body))
  return body as Guest
}

async function reaches(project: string, name: string, phase: string): Promise<Guest> {
  return await eventually(`${name} is ${phase}`, async () => {
    const found = await look(project, name)
    return found.phase === phase && found
  })
}

function manifest(text: string): string {
  const path = join(folder, `${Math.random().toString(36).slice(2)}.yaml`)
  writeFileSync(path, text.replaceAll('@/', `${ROOT}/guests/`))
  return path
}

async function portOf(project: string, name: string): Promise<number> {
  return (await reaches(project, name, 'running')).ports[0]!.port
}

test('run -d prints the guest\'s name, and logs, ps and inspect tell of it', async () => {
  assert.equal(await host.ok(['run', '-d', '--name', 'hello', guest('hello')]), 'hello\n')
  const { exit } = await reaches('default', 'hello', 'exited')
  assert.deepEqual({ status: exit!.status, reason: exit!.reason }, { status: 0, reason: 'exited with 0' })
  assert.match(await host.ok(['logs', 'hello']), /Hello/i)
  assert.match(await host.ok(['ps', '-a']), /hello.*exited/i)
  assert.equal((JSON.parse(await host.ok(['inspect', 'hello'])) as Guest | Guest[] as Guest & Guest[]).length ?? 1, 1)
  await host.ok(['rm', 'hello'])
  assert.equal((await host.cellar(['inspect', 'hello'])).status, 1)
})

test('apply makes what a manifest says, a second time nothing, and terms are changed while a guest runs', async () => {
  const text = `project: site
pools: { batch: { cpu-limit: 20% } }
cells:
  web:
    program: "@/web.wasm"
    args: [web, /site, "counter:80"]
    ports: ["0:80"]
    health: { http: 80/healthz, interval: 1s, start-period: 1ms }
    files: { /site: { index.html: "<h1>here</h1>" } }
  counter: { program: "@/counter.wasm", args: [counter], expose: [80] }
  hog: { program: "@/spin.wasm", pool: batch }
`
  await host.ok(['apply', '-f', manifest(text)])
  const port = await portOf('site', 'web')
  await reaches('site', 'counter', 'running')
  assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), '<h1>here</h1>')
  assert.match(await (await fetch(`http://127.0.0.1:${port}/api/count`)).text(), /"count"/)
  assert.equal((await host.cellar(['diff', '-f', manifest(text)])).status, 0)
  const hog = await reaches('site', 'hog', 'running')
  const changed = manifest(text.replace('pool: batch', 'pool: batch, shares: 300'))
  assert.equal((await host.cellar(['diff', '-f', changed])).status, 1)
  await host.ok(['apply', '-f', changed])
  const now = await look('site', 'hog')
  assert.deepEqual([now.startedAt, now.generation], [hog.startedAt, hog.generation + 1])
  await host.ok(['project', 'rm', '--force', 'site'])
})

test('cells of two projects can not reach each other, and share no process', async () => {
  for (const project of ['one', 'two']) {
    await host.ok(['apply', '-f', manifest(`project: ${project}
cells: { ${project}-counter: { program: "@/counter.wasm", args: [counter], expose: [80] } }
`)])
    await reaches(project, `${project}-counter`, 'running')
  }
  const dials = [guest('dial'), 'one-counter', '80', 'GET / HTTP/1.0\r\n\r\n']
  await host.ok(['run', '-d', '-P', 'one', '--name', 'near', '--restart', 'no', ...dials])
  await host.ok(['run', '-d', '-P', 'two', '--name', 'far', '--restart', 'no', ...dials])
  assert.equal((await reaches('one', 'near', 'exited')).exit!.status, 0)
  assert.notEqual((await reaches('two', 'far', 'failed')).exit!.status, 0)
  const events = await host.api('GET', '/v1/events?follow=false')
  assert.match(JSON.stringify(events.body), /egress\.denied.*one-counter:80/)
  assert.notEqual((await look('one', 'one-counter')).process, (await look('two', 'two-counter')).process)
  for (const project of ['one', 'two']) await host.ok(['project', 'rm', '--force', project])
})

test('a guest that fails is started again, one that ends well is not', async () => {
  // It says so if the guest has failed by then.
  await host.cellar(['run', '-d', '--name', 'bad', guest('exit'), '3'])
  const found = await eventually('it was restarted', async () => {
    const now = await look('default', 'bad')
    return now.restarts >= 2 && now
  })
  assert.equal(found.exit!.status, 3)
  await host.ok(['stop', 'bad'])
  assert.equal((await look('default', 'bad')).phase, 'stopped')
  await host.ok(['run', '-d', '--name', 'good', guest('exit'), '0'])
  assert.equal((await reaches('default', 'good', 'exited')).restarts, 0)
  await host.ok(['rm', '--force', 'bad', 'good'])
})

test('guests go on while the host is killed and comes back, and what ended meanwhile is known', async () => {
  await host.ok(['apply', '-f', manifest(`project: stay
cells:
  counter: { program: "@/counter.wasm", args: [counter], ports: ["0:80"] }
  short: { program: "@/sleep.wasm", args: [sleep, "700"] }
`)])
  const port = await portOf('stay', 'counter')
  const ask = async (): Promise<number> =>
    (await (await fetch(`http://127.0.0.1:${port}/`)).json() as { count: number }).count
  const first = await ask()
  const before = await look('stay', 'counter')
  await reaches('stay', 'short', 'running')
  await host.kill()
  assert.equal(await ask(), first + 1)
  await new Promise((resolve) => setTimeout(resolve, 1000))
  await host.restart()
  assert.equal(await ask(), first + 2)
  const now = await reaches('stay', 'counter', 'running')
  assert.deepEqual([now.startedAt, now.restarts, now.process], [before.startedAt, 0, before.process])
  assert.equal((await reaches('stay', 'short', 'exited')).exit!.status, 0)
  await host.ok(['project', 'rm', '--force', 'stay'])
})

test('a cell process that dies takes only its own guests, which are started again', async () => {
  for (const project of ['dies', 'lives']) {
    await host.ok(['run', '-d', '-P', project, '--name', 'nap', guest('nap'), '100000'])
    await reaches(project, 'nap', 'running')
  }
  const lives = await look('lives', 'nap')
  const { body } = await host.api('GET', '/v1/host')
  const { processes } = body as { processes: { project: string; pid: number }[] }
  process.kill(processes.find(({ project }) => project === 'dies')!.pid, 'SIGKILL')
  const again = await eventually('it runs again', async () => {
    const now = await look('dies', 'nap')
    return now.restarts === 1 && now.phase === 'running' && now
  })
  assert.deepEqual([again.exit!.status, again.exit!.reason], [137, 'its process died: it was ended by SIGKILL'])
  assert.deepEqual(await look('lives', 'nap'), lives)
  for (const project of ['dies', 'lives']) await host.ok(['project', 'rm', '--force', project])
})

test('a volume is a folder of its guests, keeps its size, and clones share nothing', async () => {
  writeFileSync(join(folder, 'words'), 'first\n')
  await host.ok(['volume', 'create', '--size', '1MiB', 'data'])
  await host.ok(['cp', join(folder, 'words'), 'data:/words'])
  const { usedBytes } = JSON.parse(await host.ok(['volume', 'inspect', 'data'])) as { usedBytes: number }
  assert.equal(usedBytes, 4096 + 'first\n'.length)
  await host.ok(['run', '-d', '--name', 'reader', '--restart', 'no', '-v', 'data:/data', guest('cat'), '/data/words'])
  await reaches('default', 'reader', 'exited')
  assert.match(await host.ok(['logs', 'reader']), /first/)
  await host.ok(['volume', 'clone', 'data', 'copy'])
  writeFileSync(join(folder, 'words'), 'second\n')
  await host.ok(['cp', join(folder, 'words'), 'data:/words'])
  await host.ok(['cp', 'copy:/words', join(folder, 'from-copy')])
  await host.ok(['cp', 'data:/words', join(folder, 'from-data')])
  const { readFileSync } = await import('node:fs')
  assert.equal(readFileSync(join(folder, 'from-copy'), 'utf8'), 'first\n')
  assert.equal(readFileSync(join(folder, 'from-data'), 'utf8'), 'second\n')
  await host.ok(['rm', 'reader'])
  await host.ok(['volume', 'rm', 'data', 'copy'])
})

test('cp to stdout and exec end as by SIGPIPE when their reader goes', async () => {
  writeFileSync(join(folder, 'large'), Buffer.alloc(4 * 1024 ** 2))
  await host.ok(['volume', 'create', '--size', '8MiB', 'piped'])
  await host.ok(['cp', join(folder, 'large'), 'piped:/large'])
  await host.ok(['image', 'import', guest('yes'), 'yes'])
  await host.ok(['run', '-d', '--name', 'busy', guest('spin')])
  await reaches('default', 'busy', 'running')
  for (const args of [['cp', 'piped:/large', '-'], ['exec', '--image', 'yes', 'busy']]) {
    const child = spawn(join(ROOT, 'bin/cellar'), args,
      { env: { ...process.env, CELLAR_HOST: join(host.state, 'host.sock') }, stdio: ['ignore', 'pipe', 'pipe'] })
    const ended = once(child, 'close')
    child.stdout.once('data', () => child.stdout.destroy())
    const told = await textOf(child.stderr)
    assert.deepEqual([(await ended)[0], told], [128 + 13, ''])
  }
  await host.ok(['rm', '--force', 'busy'])
  await host.ok(['volume', 'rm', 'piped'])
})

test('why a guest cannot start names the guest, not a file of the host', async () => {
  const { status, stderr } = await host.cellar(['run', '-d', '--name', 'small', '--restart', 'no', '--memory', '64KiB',
    guest('kernels')])
  assert.equal(status, 125)
  assert.match(stderr, /Cannot start "small" as it needs/)
  await host.ok(['rm', 'small'])
})

test('what is asked for and not there is refused before anything is made', async () => {
  for (const [flags, message] of [
    [['--pool', 'none'], /no pool "none"/], [['-v', 'none:/data'], /no volume "none"/],
    [['--network', 'none'], /no network "none"/], [['--secret', 'KEY=none'], /no secret "none"/],
    [['--cpu-reservation', '100%', '--name', 'greedy'], /CPU on one pCPU is missing/],
  ] as const) {
    const { status, stderr } = await host.cellar(['run', '-d', ...flags, guest('nap'), '1'])
    assert.notEqual(status, 0)
    assert.match(stderr, message)
  }
})

test('secrets reach a guest as variables, and nobody else', async () => {
  await host.ok(['secret', 'set', 'key'], { stdin: 's3cret' })
  await host.ok(['run', '-d', '--name', 'dialer', '--restart', 'no', '--secret', 'KEY=key', guest('hello')])
  await reaches('default', 'dialer', 'exited')
  assert.doesNotMatch(await host.ok(['inspect', 'dialer']), /s3cret/)
  const { body } = await host.api('GET', '/v1/projects/default/secrets')
  assert.doesNotMatch(JSON.stringify(body), /s3cret/)
  await host.ok(['rm', 'dialer'])
  await host.ok(['secret', 'rm', 'key'])
})

test('exec runs a program beside a guest: streams and exit status are its own', async () => {
  await host.ok(['run', '-d', '--name', 'base', '--restart', 'no', guest('nap'), '100000'])
  await reaches('default', 'base', 'running')
  await host.ok(['image', 'import', guest('cat'), 'cat'])
  const { status, stdout } = await host.cellar(['exec', '-i', '--image', 'cat', 'base', 'cat'], { stdin: 'in and out' })
  assert.deepEqual([status, stdout.toString()], [0, 'in and out'])
  await host.ok(['image', 'import', guest('exit'), 'exit'])
  assert.equal((await host.cellar(['exec', '--image', 'exit', 'base', 'exit', '7'])).status, 7)
  await host.ok(['rm', '--force', 'base'])
})

test('a guest reaches outside what its rules allow, and nothing else', async () => {
  const server = createServer((socket) => socket.on('error', () => {}).end('from outside')).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const port = String((server.address() as AddressInfo).port)
  try {
    await host.ok(['run', '-d', '--name', 'free', '--restart', 'no', '--egress', `127.0.0.1:${port}`, guest('dial'),
      '127.0.0.1', port, 'x'])
    await host.ok(['run', '-d', '--name', 'shut', '--restart', 'no', guest('dial'), '127.0.0.1', port, 'x'])
    assert.equal((await reaches('default', 'free', 'exited')).exit!.status, 0)
    assert.match(await host.ok(['logs', 'free']), /from outside/)
    await reaches('default', 'shut', 'failed')
    await host.ok(['rm', 'free', 'shut'])
  } finally {
    server.close()
  }
})

test('a second host on the same state is refused with the number of the first', async () => {
  const { status, stderr } = await host.cellar(['host', '--state', host.state])
  assert.notEqual(status, 0)
  assert.match(stderr, /HOST_RUNNING/)
  assert.match(stderr, new RegExp(`process ${host.running.child.pid}\\b|process \\d+`))
})

test('guests that never rest have what their terms and pools say, and no more', async () => {
  await host.ok(['apply', '-f', manifest(`project: terms
pools: { batch: { cpu-limit: 20% } }
cells:
  held: { program: "@/spin.wasm", pool: batch }
  also: { program: "@/spin.wasm", cpu-limit: 10% }
`)])
  for (const name of ['held', 'also']) await reaches('terms', name, 'running')
  await new Promise((resolve) => setTimeout(resolve, 4000))
  const parts = new Map<string, number>()
  for (const name of ['held', 'also']) {
    const { body } = await host.api('GET', `/v1/projects/terms/guests/${name}/stats`)
    const { runningNs, ageNs } = body as { runningNs: number; ageNs: number }
    parts.set(name, runningNs / ageNs)
  }
  // Less on a machine that is busy otherwise; a limit is never exceeded by more than what a pool's parts begin with.
  assert.ok(parts.get('held')! < 0.26 && parts.get('held')! > 0.05, `held has ${parts.get('held')}`)
  assert.ok(parts.get('also')! < 0.12 && parts.get('also')! > 0.02, `also has ${parts.get('also')}`)
  await host.ok(['project', 'rm', '--force', 'terms'])
})

test('restart ends a guest and starts it anew, and is no failure', async () => {
  await host.ok(['run', '-d', '--name', 'again', guest('nap'), '10000000'])
  const first = await reaches('default', 'again', 'running')
  await host.ok(['restart', 'again'])
  const second = await reaches('default', 'again', 'running')
  assert.ok(second.startedAt! > first.startedAt!)
  assert.deepEqual([second.restarts, second.exit!.reason], [0, 'stopped'])
  await host.ok(['rm', '--force', 'again'])
})

test('what a cell process writes to stderr does not fill the disk', async () => {
  await host.ok(['run', '-d', '-P', 'loud', '--name', 'a', guest('nap'), '10000000'])
  const { process: number } = await reaches('loud', 'a', 'running')
  const path = join(host.state, `log/process-${number}.log`)
  appendFileSync(path, Buffer.alloc(11 * 1024 * 1024))
  await eventually('its file begins anew', () => statSync(path).size === 0)
  await host.ok(['project', 'rm', '--force', 'loud'])
})
