// cell/net_stack_test.ts: guests that reach each other by name, on the pCPUs of a stack: threads, ports, switchboard.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { ECONNRESET, EHOSTUNREACH } from '../base/errno.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { isSupported } from '../sys/libc.ts'
import type { Executable } from './executable.ts'
import { HYPERCALL_NAMES } from './hypercalls.ts'
import { loadPreemptible } from './preemptible.ts'
import { Stack, type Ended } from './stack.ts'
import { Switchboard, type Peer } from './switchboard.ts'

const KILL = { kind: 'signal', signal: 9 } as const
const loaded = new Map<string, Executable>()

function executable(program: string): Executable {
  const known = loaded.get(program)
  if (known !== undefined) return known
  const made = loadPreemptible(fileURLToPath(new URL(`../../guests/${program}.wasm`, import.meta.url)), { stubs: [] },
    { mode: 'preempt', capture: true })
  loaded.set(program, made)
  return made
}

type Guest = {
  readonly pcpu: number; readonly ports?: readonly number[]
  readonly volumes?: readonly { host: string; guest: string; readOnly: boolean }[]
}
type Running = { readonly id: number; readonly ended: Promise<Ended>; text(): string }

/** A stack of two pCPUs with networks. */
class Networked {
  readonly stack: Stack
  readonly switchboard: Switchboard
  readonly #output = new Map<number, string>()
  readonly #names = new Map<number, string>()

  constructor() {
    this.stack = new Stack({ pcpus: 2, quantumNs: 1e6, on: {
      net: (pcpu, report) => this.switchboard.report(pcpu, report),
      moved: (id, pcpu) => this.switchboard.move(this.#names.get(id)!, pcpu),
      output: (id, _, bytes) => this.#output.set(id, (this.#output.get(id) ?? '') + Buffer.from(bytes).toString()),
    } })
    this.switchboard = new Switchboard({
      post: (pcpu, command, transfer) => this.stack.postNet(pcpu, command, transfer),
      outside: async () => EHOSTUNREACH,
    })
  }

  start(name: string, [program, ...args]: [string, ...string[]], { pcpu, ports = [], volumes = [] }: Guest): Running {
    this.switchboard.add(name, { name, networks: ['default'], pcpu })
    const { id, ended } = this.stack.start({
      name, executable: executable(program), grants: { args: [program, ...args], env: [], volumes }, calls: undefined,
      trace: false, counts: new Uint32Array(new SharedArrayBuffer(HYPERCALL_NAMES.length * 4)), terms: DEFAULT_TERMS,
      remote: { stdin: false }, net: { guest: name, ports: ports.map((port) => ({ port, fds: [] })), connect: [] },
    }, pcpu)
    ended.catch(() => {})
    this.#names.set(id, name)
    return { id, ended, text: () => this.#output.get(id) ?? '' }
  }

  async dial(pcpu: number, name: string, port: number, message: string): Promise<[Ended['outcome'], string]> {
    const client = this.start(`dial ${Math.random()}`, ['dial', name, String(port), message], { pcpu })
    const { outcome } = await client.ended
    return [outcome, client.text()]
  }

  /** What a guest's port answers to a request of the main thread. */
  async ask(id: string, port: number, request: string): Promise<string> {
    const peer = await this.switchboard.open(id, port) as Peer
    const pieces: Uint8Array[] = []
    const end = new Promise<number>((resolve) => { peer.onEnd = resolve })
    peer.onData = (bytes) => pieces.push(bytes)
    assert.ok(peer.write(Buffer.from(request)))
    assert.equal(await end, 0)
    peer.close()
    return Buffer.concat(pieces).toString()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.switchboard.close()
    await this.stack.close()
  }
}

const DONE = { kind: 'exit', code: 0 }
const GET = 'GET / HTTP/1.1\r\n\r\n'

for (const [where, pcpu] of [['the same pCPU', 0], ['another pCPU', 1]] as const) {
  test(`a guest dials one by name on ${where}, and gets its answers`, async () => {
    await using process = new Networked()
    process.start('back', ['counter', 'one'], { pcpu, ports: [80] })
    for (const count of [1, 2]) {
      const [outcome, text] = await process.dial(0, 'back', 80, GET)
      assert.deepEqual(outcome, DONE)
      assert.ok(text.endsWith(`\r\n\r\n{"count":${count},"name":"one"}\n`), text)
    }
    process.start('idle', ['idle'], { pcpu, ports: [9] })
    assert.deepEqual(await process.dial(0, 'idle', 9, ''), [DONE, 'idle\n'])
  })

  test(`a guest that is stopped breaks the connections of guests on ${where}`, async () => {
    await using process = new Networked()
    // Alone on its pCPU, and never in a hypercall: its thread must be told that there is mail.
    const hog = process.start('hog', ['spin'], { pcpu, ports: [80] })
    const client = process.start('client', ['dial', 'hog', '80', 'hello'], { pcpu: 0 })
    const peer = await process.switchboard.open('hog', 80)
    assert.ok(typeof peer !== 'number')
    const heard = new Promise<number>((resolve) => { peer.onEnd = resolve })
    process.stack.stop(hog.id, KILL)
    assert.deepEqual((await hog.ended).outcome, KILL)
    assert.equal(await heard, ECONNRESET)
    assert.deepEqual((await client.ended).outcome, { kind: 'exit', code: 1 })
    // It may have come at any moment.
    assert.match(client.text(), /dial: \w+: (Connection (reset by peer|refused)|Broken pipe|Socket not connected)/)
  })
}

test('a guest that listens is reached on any pCPU that it is moved to, by the host and by others', async () => {
  await using process = new Networked()
  const back = process.start('back', ['counter', 'one'], { pcpu: 0, ports: [80] })
  for (let count = 1; count <= 9; count += 3) {
    const answered = (text: string, n: number): void => assert.ok(text.endsWith(`{"count":${n},"name":"one"}\n`), text)
    answered((await process.dial(0, 'back', 80, GET))[1], count)
    answered((await process.dial(1, 'back', 80, GET))[1], count + 1)
    await process.stack.move(back.id, count % 2)
    answered(await process.ask('back', 80, GET), count + 2)
  }
  process.stack.stop(back.id, KILL)
  assert.deepEqual((await back.ended).outcome, KILL)
})

test('a guest that is moved loses its connections, which both sides learn', async () => {
  await using process = new Networked()
  const back = process.start('back', ['counter', 'one'], { pcpu: 0, ports: [80] })
  const peer = await process.switchboard.open('back', 80)
  assert.ok(typeof peer !== 'number')
  const heard = new Promise<number>((resolve) => { peer.onEnd = resolve })
  peer.write(Buffer.from('GET / HT'))
  await sleep(50)
  await process.stack.move(back.id, 1)
  assert.equal(await heard, ECONNRESET)
  const [outcome, text] = await process.dial(0, 'back', 80, GET)
  assert.deepEqual(outcome, DONE)
  assert.match(text, /"name":"one"/)
})

test('dial fails for a name that nobody has, and where nobody listens', async () => {
  await using process = new Networked()
  process.start('back', ['counter'], { pcpu: 1, ports: [80] })
  const [, unknown] = await process.dial(0, 'nobody', 80, '')
  assert.equal(unknown, 'dial: nobody: Host is unreachable\n')
  const [, refused] = await process.dial(0, 'back', 81, '')
  assert.equal(refused, 'dial: back: Connection refused\n')
})

test('the example serves files, passes requests on to another cell, and says that it is well', {
  skip: isSupported() ? false : 'needs Linux and a Node with FFI',
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-web-'))
  try {
    writeFileSync(join(folder, 'index.html'), '<h1>Welcome</h1>')
    await using process = new Networked()
    process.start('back', ['counter', 'back'], { pcpu: 1, ports: [8080] })
    process.start('front', ['web', '/site', 'back:8080'],
      { pcpu: 0, ports: [80], volumes: [{ host: folder, guest: '/site', readOnly: true }] })
    const status = async (request: string): Promise<string> => {
      const answer = await process.ask('front', 80, `${request} HTTP/1.1\r\nHost: front\r\n\r\n`)
      return `${answer.split('\r\n')[0]!.slice(9)} | ${answer.split('\r\n\r\n')[1]!}`
    }
    assert.equal(await status('GET /healthz'), '200 OK | ok\n')
    assert.equal(await status('GET /'), '200 OK | <h1>Welcome</h1>')
    assert.equal(await status('HEAD /index.html?x=1'), '200 OK | ')
    assert.equal(await status('GET /api/count'), '200 OK | {"count":1,"name":"back"}\n')
    assert.equal(await status('POST /api/count'), '200 OK | {"count":2,"name":"back"}\n')
    for (const path of ['/../secret', '/%2e%2e/secret', '/.git', '/a%00b', '/%', '/nothing', 'index.html', '/a\\b']) {
      assert.equal(await status(`GET ${path}`), '404 Not Found | not found\n', path)
    }
    assert.equal(await status('POST /'), '405 Method Not Allowed | GET or HEAD\n')
  } finally {
    rmSync(folder, { recursive: true })
  }
})
