// tests/conformance/wasi_case.ts: one program of WebAssembly/wasi-testsuite, run as its specification says.
//
// Beside `x.wasm` may lie `x.json` (doc/specification.md of the suite): either a list of operations on the running
// program (run, read, write, connect, send, recv, kill, wait), done in order, or the older form of what is given to it
// and what it must answer. The older form is turned into operations. Each program gets a fresh copy of its root folder,
// so that programs don't see each other's files and the suite stays as it was.
//
// Elsewhere: finding programs and counting (wasi_testsuite.ts).

import { spawn } from 'node:child_process'
import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'

/** One operation on a program; `output` is ours: the whole of a stream, at the end. */
export type Operation =
  | { type: 'run'; args: string[]; env: Record<string, string>; root: string | null }
  | { type: 'wait'; exit_code: number }
  | { type: 'read' | 'write' | 'output'; id: string; payload: string }
  | { type: 'connect'; id: string; protocol_type: string }
  | { type: 'send' | 'recv'; id: string; payload: string }
  | { type: 'kill' }

/** How to run a program: the command that stands for `cellar`, and how long one operation may take. */
export type Runner = { command: readonly string[]; timeoutMs: number }

const DEFAULTS: Record<string, object> = {
  run: { args: [], env: {}, root: null }, wait: { exit_code: 0 }, read: { id: 'stdout', payload: '' },
  write: { id: 'stdin', payload: '' }, connect: { id: 'server', protocol_type: 'tcp' }, send: { payload: '' },
  recv: { payload: '' }, kill: {},
}

/** The operations that `specification` (what lies in x.json, or undefined) asks for. Throws on what it can't know. */
export function operationsOf(specification: unknown): Operation[] {
  const given = (specification ?? {}) as Record<string, unknown>
  if (Array.isArray(given.operations)) {
    return given.operations.map((operation: { type: string }) => {
      if (!Object.hasOwn(DEFAULTS, operation.type)) throw new Error(`Cannot do operation "${operation.type}"`)
      return { ...DEFAULTS[operation.type], ...operation } as Operation
    })
  }
  const { args = [], env = {}, root = null, exit_code = 0 } = given as Partial<Extract<Operation, { type: 'run' }>> &
    { exit_code?: number }
  // As the suite's own runner has it: a stream that isn't mentioned may hold anything.
  const outputs = ['stdout', 'stderr'].filter((id) => typeof given[id] === 'string')
    .map((id): Operation => ({ type: 'output', id, payload: given[id] as string }))
  return [{ type: 'run', args, env, root }, { type: 'wait', exit_code }, ...outputs]
}

/** Runs `program` (a path) and gives what was not as specified, a line each; an empty list is a pass. */
export async function runCase(program: string, runner: Runner): Promise<string[]> {
  using running = new Running(program, runner)
  try {
    for (const operation of operationsOf(specificationOf(program))) await running.do(operation)
  } catch (error) {
    if (!(error instanceof Mismatch)) throw error
    return [error.message, ...running.evidence()]
  }
  return []
}

/** The program did something else than its specification says. */
class Mismatch extends Error {}

/** One program while it runs, with the connections to it. Disposing of it leaves nothing behind. */
class Running {
  readonly #program: string
  readonly #runner: Runner
  readonly #folder = mkdtempSync(join(tmpdir(), 'wasi-case-'))
  readonly #connections = new Map<string, { socket: Socket; received: Stream }>()
  readonly #streams = new Map<string, Stream>()
  #process: ChildProcessWithoutNullStreams | undefined
  #ended: Promise<string> | undefined

  constructor(program: string, runner: Runner) {
    this.#program = program
    this.#runner = runner
  }

  async do(operation: Operation): Promise<void> {
    switch (operation.type) {
      case 'run': return this.#run(operation)
      case 'wait': return await this.#wait(String(operation.exit_code))
      case 'kill': return void this.#process?.kill('SIGTERM')
      case 'write': return void this.#process?.stdin.write(operation.payload)
      case 'connect': return await this.#connect(operation.id)
      case 'send': return void this.#connection(operation.id).socket.write(operation.payload)
      case 'read': return expect(operation, await this.#take(this.#stream(operation.id), operation.payload))
      case 'recv': {
        const { received } = this.#connection(operation.id)
        return expect(operation, await this.#take(received, operation.payload))
      }
      case 'output': return expect(operation, this.#stream(operation.id).text)
    }
  }

  /** What it printed, for the report of a failure. */
  evidence(): string[] {
    return [...this.#streams].filter(([, stream]) => stream.text !== '').map(([id, stream]) => {
      const lines = stream.text.trimEnd().split('\n')
      if (lines.length > 12) lines.splice(8, lines.length - 12, '…')
      return `${id}: ${lines.join('\n        ')}`
    })
  }

  [Symbol.dispose](): void {
    this.#process?.kill('SIGKILL')
    for (const { socket } of this.#connections.values()) socket.destroy()
    rmSync(this.#folder, { recursive: true, force: true })
  }

  #run({ args, env, root }: Extract<Operation, { type: 'run' }>): void {
    const flags = Object.entries(env).flatMap(([key, value]) => ['--env', `${key}=${value}`])
    if (root !== null) {
      const copy = join(this.#folder, 'root')
      // What an earlier run by another runner left behind in the suite isn't part of it.
      const filter = (path: string): boolean => !path.endsWith('.cleanup')
      cpSync(join(dirname(this.#program), root), copy, { recursive: true, verbatimSymlinks: true, filter })
      flags.push('--dir', `${copy}:/`)
    }
    const [file, ...before] = this.#runner.command
    const child = spawn(file!, [...before, 'run', ...flags, this.#program, ...args], { stdio: 'pipe' })
    child.stdin.on('error', () => {}) // The program may end without reading it.
    this.#streams.set('stdout', new Stream(child.stdout)).set('stderr', new Stream(child.stderr))
    this.#ended = new Promise((resolve) => {
      child.on('error', (error) => resolve(String(error)))
      child.on('close', (code, signal) => resolve(signal ?? String(code)))
    })
    this.#process = child
  }

  async #wait(expected: string): Promise<void> {
    this.#process?.stdin.end()
    const code = await this.#inTime(this.#ended ?? Promise.resolve('not started'), 'end')
    if (code !== expected) throw new Mismatch(`exit code: expected ${expected}, got ${code}`)
  }

  async #connect(id: string): Promise<void> {
    const line = (await this.#inTime(this.#stream('stdout').line(), 'print its address')).trim()
    const address = /^\[?([^\]]+?)\]?:(\d+)$/.exec(line)
    if (address === null) throw new Mismatch(`connect: expected HOST:PORT on stdout, got "${line}"`)
    const socket = connect(Number(address[2]), address[1])
    this.#connections.set(id, { socket, received: new Stream(socket) })
    await this.#inTime(once(socket, 'connect'), 'take a connection')
      .catch((error: unknown) => { throw new Mismatch(`connect: ${String(error)}`) })
  }

  #take(stream: Stream, payload: string): Promise<string> {
    return this.#inTime(stream.take(Buffer.byteLength(payload)), `write "${payload}"`)
  }

  #stream(id: string): Stream {
    const stream = this.#streams.get(id)
    if (stream === undefined) throw new Mismatch(`${id} isn't a stream of a running program`)
    return stream
  }

  #connection(id: string): { socket: Socket; received: Stream } {
    const connection = this.#connections.get(id)
    if (connection === undefined) throw new Mismatch(`connection ${id} wasn't made`)
    return connection
  }

  async #inTime<T>(work: Promise<T>, what: string): Promise<T> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      const { timeoutMs } = this.#runner
      timer = setTimeout(() => reject(new Mismatch(`didn't ${what} within ${timeoutMs} ms`)), timeoutMs)
    })
    return await Promise.race([work, late]).finally(() => clearTimeout(timer))
  }
}

/** All that came from a stream, and how much of it has been taken. */
class Stream {
  #bytes = Buffer.alloc(0)
  #taken = 0
  #ended = false
  #changed: (() => void) | undefined

  constructor(from: Readable) {
    const changed = (): void => this.#changed?.()
    from.on('data', (chunk: Buffer) => { this.#bytes = Buffer.concat([this.#bytes, chunk]); changed() })
    for (const event of ['end', 'error', 'close']) from.on(event, () => { this.#ended = true; changed() })
  }

  get text(): string { return this.#bytes.toString() }

  /** The next `length` bytes, or what there is when the stream ends. */
  async take(length: number): Promise<string> {
    while (!this.#ended && this.#bytes.length - this.#taken < length) await this.#change()
    const from = this.#taken
    this.#taken = Math.min(from + length, this.#bytes.length)
    return this.#bytes.toString('utf8', from, this.#taken)
  }

  /** The next line, or what there is when the stream ends. */
  async line(): Promise<string> {
    while (!this.#ended && this.#bytes.indexOf('\n', this.#taken) < 0) await this.#change()
    const end = this.#bytes.indexOf('\n', this.#taken)
    return await this.take((end < 0 ? this.#bytes.length : end + 1) - this.#taken)
  }

  #change(): Promise<void> { return new Promise((resolve) => { this.#changed = resolve }) }
}

function expect({ type, id, payload }: { type: string; id: string; payload: string }, got: string): void {
  if (got === payload) return
  throw new Mismatch(`${type} ${id}: expected ${JSON.stringify(payload)}, got ${JSON.stringify(got)}`)
}

function specificationOf(program: string): unknown {
  let text: string
  try {
    text = readFileSync(program.replace(/\.wasm$/, '.json'), 'utf8')
  } catch {
    return undefined // The suite's default: no arguments, exit code 0.
  }
  return JSON.parse(text)
}
