// tests/host_support.ts: what tests of a whole host share: a host as a process, and commands against it.
//
// A host's folder is short (sockets have short paths) and goes with `await using`, which ends the host and every cell
// process that it left. Nothing here looks inside: what a test knows, an operator can see, but for the numbers of
// processes, which it kills.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CELLAR, cellar, startCommand, type Options, type Result, type Running } from './support.ts'

/** How long anything may take on a slow machine. */
const PATIENCE_MS = 30_000

/** A host that runs. */
export type TestHost = {
  readonly state: string
  readonly running: Running
  /** Runs `cellar ARGS` against it. */
  cellar(args: readonly string[], options?: Options): Promise<Result>
  /** Runs a command that must succeed: what it said on stdout. */
  ok(args: readonly string[], options?: Options): Promise<string>
  /** A request to its API: status and body. */
  api(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<ApiAnswer>
  /** Ends it at once, and starts another on the same state. */
  killAndRestart(): Promise<void>
  kill(): Promise<void>
  restart(): Promise<void>
  /** Numbers of its cell processes. */
  cellProcesses(): number[]
  [Symbol.asyncDispose](): Promise<void>
}

/** An answer of the API. */
export type ApiAnswer = {
  readonly status: number; readonly body: unknown; readonly headers: NodeJS.Dict<string | string[]>
}

/** Starts a host on a folder of its own, or on `state`. */
export async function startHost(args: readonly string[] = [], given?: string): Promise<TestHost> {
  const state = given ?? mkdtempSync(join(tmpdir(), 'ch-'))
  const start = (): Running => startCommand([CELLAR, 'host', '--state', state, ...args], { timeoutMs: 600_000 })
  let running = start()
  const socket = join(state, 'host.sock')
  const env = { CELLAR_HOST: socket, XDG_CONFIG_HOME: join(state, 'config') }
  const host: TestHost = {
    state,
    get running() { return running },
    cellar: (words, options = {}) => cellar(words, { ...options, env: { ...env, ...options.env } }),
    async ok(words, options) {
      const { status, stdout, stderr } = await host.cellar(words, options)
      if (status !== 0) throw new Error(`cellar ${words.join(' ')} ended with ${status}: ${stderr}`)
      return stdout.toString()
    },
    api: (method, path, body, headers) => ask(socket, { method, path, body, headers }),
    async kill() {
      running.child.kill('SIGKILL')
      await running.ended
    },
    async restart() {
      running = start()
      await ready(socket, running)
    },
    async killAndRestart() {
      await host.kill()
      await host.restart()
    },
    cellProcesses: () => processesOf(state),
    async [Symbol.asyncDispose]() {
      running.child.kill('SIGKILL')
      await running.ended
      // A process that was just being started shows up late.
      for (let i = 0; i < 3; i++) {
        for (const pid of processesOf(state)) endGroup(pid)
        await sleep(20)
      }
      rmSync(state, { recursive: true, force: true, maxRetries: 5 })
    },
  }
  try {
    await ready(socket, running)
  } catch (error) {
    await host[Symbol.asyncDispose]()
    throw error
  }
  return host
}

/** Waits until `look` gives something other than undefined or false. */
export async function eventually<T>(what: string, look: () => Promise<T | undefined | false> | T | undefined | false):
Promise<T> {
  const until = performance.now() + PATIENCE_MS
  for (;;) {
    const found = await look()
    if (found !== undefined && found !== false) return found
    if (performance.now() > until) throw new Error(`It never came to be that ${what}`)
    await sleep(20)
  }
}

/** Ends a process with what it has started: it is the first of its group. */
function endGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    process.kill(pid, 'SIGKILL')
  }
}

/** Process numbers of cell processes of a state folder. */
function processesOf(state: string): number[] {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      return pid !== process.pid && words.includes(join(state, 'run/'))
    } catch {
      return false
    }
  })
}

async function ready(socket: string, running: Running): Promise<void> {
  await eventually('the host is ready', async () => {
    if (running.child.exitCode !== null) throw new Error(`The host has ended: ${running.told()} ${running.said()}`)
    try {
      return (await ask(socket, { method: 'GET', path: '/readyz' })).status === 200
    } catch {
      return false
    }
  })
}

function ask(socketPath: string, { method, path, body, headers = {} }: {
  method: string; path: string; body?: unknown; headers?: Record<string, string> | undefined
}): Promise<ApiAnswer> {
  return new Promise((resolve, reject) => {
    const isRaw = body instanceof Uint8Array
    const sent = request({ socketPath, method, path, headers: {
      ...(body === undefined ? {} : { 'content-type': isRaw ? 'application/wasm' : 'application/json' }), ...headers,
    } }, (answer) => {
      const chunks: Buffer[] = []
      answer.on('data', (chunk: Buffer) => chunks.push(chunk)).on('error', reject).on('end', () => {
        const text = Buffer.concat(chunks).toString()
        const isJson = /json/.test(answer.headers['content-type'] ?? '')
        resolve({ status: answer.statusCode!, body: isJson && text !== '' ? JSON.parse(text) as unknown : text,
          headers: answer.headers })
      })
    })
    sent.on('error', reject)
    sent.end(isRaw ? body : body === undefined ? undefined : JSON.stringify(body))
  })
}
