// cli/test_support.ts: a host that isn't one: answers by a table, over a Unix socket, and `cellar` run against it.

import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { GuestView } from '../host/operator.ts'

/** What was asked: method, path with query, headers, body. */
export type Asked = { readonly method: string; readonly url: string; readonly headers: IncomingMessage['headers']
  readonly body: Buffer }
/** What is answered: a status and JSON; or whatever a function does. */
type Answer = readonly [status: number, json?: unknown] | ((asked: Asked, response: ServerResponse) => unknown)
/** Answers by `METHOD /path`, without the query. */
export type Answers = Record<string, Answer>

/** A fake host in a temporary folder, which it shares with the commands that are run. */
export class FakeHost {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-cli-'))
  readonly socket = join(this.folder, 'host.sock')
  readonly asked: Asked[] = []
  readonly server: Server
  readonly #answers: Answers

  private constructor(answers: Answers) {
    this.#answers = answers
    this.server = createServer((request, response) => void this.#answer(request, response))
  }

  /** Starts to listen. */
  static async start(answers: Answers): Promise<FakeHost> {
    const host = new FakeHost(answers)
    await new Promise<void>((done) => { host.server.listen(host.socket, done) })
    return host
  }

  /** Runs `cellar ARGV` from the sources, in the folder, with the host as its default. */
  async run(argv: readonly string[], { env = {}, stdin = '' }: { env?: Record<string, string>; stdin?: string } = {}):
  Promise<Ended> {
    return await runCellar(argv, { cwd: this.folder, stdin,
      env: { HOME: this.folder, CELLAR_HOST: this.socket, ...env } })
  }

  /** `METHOD /path?query` of all that was asked. */
  lines(): string[] { return this.asked.map(({ method, url }) => `${method} ${url}`) }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = []
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk)
    const { method = '', url = '', headers } = request
    const asked = { method, url, headers, body: Buffer.concat(chunks) }
    this.asked.push(asked)
    const answer = this.#answers[`${method} ${url.split('?')[0]}`] ?? problem(404, 'NOT_FOUND', 'Cannot find it')
    if (typeof answer === 'function') return void answer(asked, response)
    const [status, json] = answer
    response.writeHead(status, { 'content-type': status < 400 ? 'application/json' : 'application/problem+json' })
    response.end(json === undefined ? '' : JSON.stringify(json))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.closeAllConnections()
    await new Promise((done) => { this.server.close(done) })
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** How a command ended, and what it said. */
export type Ended = { readonly status: number | null; readonly stdout: string; readonly stderr: string }

const MAIN = join(import.meta.dirname, 'main.ts')
const TIMEOUT_MS = 60_000

/** Runs `cellar ARGV` from the sources to its end. Its environment has nothing of ours but PATH. */
export async function runCellar(argv: readonly string[],
  { cwd, env = {}, stdin = '' }: { cwd: string; env?: Record<string, string>; stdin?: string }): Promise<Ended> {
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', MAIN, ...argv], {
    cwd, env: { PATH: process.env.PATH ?? '', ...env }, timeout: TIMEOUT_MS, killSignal: 'SIGKILL',
  })
  child.stdin.on('error', () => {})
  child.stdin.end(stdin)
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => { stdout += text })
  child.stderr.setEncoding('utf8').on('data', (text: string) => { stderr += text })
  const status = await new Promise<number | null>((done, fail) => {
    child.on('error', fail)
    child.on('close', done)
  })
  return { status, stdout, stderr }
}

/** A problem as the API answers it. */
export function problem(status: number, code: string, detail: string, hint = 'Try something else'):
readonly [number, unknown] {
  return [status, { type: `/errors/${code}`, title: code, status, detail, code, hint }]
}

/** A guest as the API shows it. */
export function guestView(name: string, more: Partial<GuestView> = {}): GuestView {
  return {
    id: `id-of-${name}`, project: 'default', name, kind: 'cell', spec: { image: 'app:1' } as GuestView['spec'],
    digest: `sha256:${'a'.repeat(64)}`, generation: 1, desired: 'running', phase: 'running',
    createdAt: Date.now() - 5 * 60_000 - 500, startedAt: Date.now() - 3 * 60_000 - 500, restarts: 0, ...more,
  } as GuestView
}
