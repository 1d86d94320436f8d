// tests/support.ts: what whole-system tests share: the command line as a process, folders, programs made of text.
//
// Every process has a time limit, far above what it needs on a slow machine: a test that hangs fails by itself. A
// folder goes with `using`. Nothing here looks inside the hypervisor: what a test knows, an operator can see.

import { spawn, type ChildProcess } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync,
  writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import wabt from 'wabt'

/** The checkout. */
export const ROOT = resolve(import.meta.dirname, '..')

/** The command line. */
export const CELLAR = join(ROOT, 'bin/cellar')

/** `nobody`, on every Linux. */
export const NOBODY = 65_534

/** True for the administrator, to whom no file is unreadable. */
export const isRoot = process.getuid?.() === 0

const TIMEOUT_MS = 60_000

/** How a process is started. `stdin`: bytes to give it, then the end; or a stream or descriptor to inherit. */
export type Options = {
  stdin?: string | Uint8Array | number | 'open'
  env?: Record<string, string | undefined>
  cwd?: string
  timeoutMs?: number
  uid?: number
  /** True to leave stdout unread: the test reads it, or doesn't. */
  unread?: boolean
}

/** How a process ended, and what it said. */
export type Result = { status: number | null; signal: NodeJS.Signals | null; stdout: Buffer; stderr: string }

/** A process that runs. `said` and `told` grow with its stdout and stderr; `ended` resolves when both are closed. */
export type Running = {
  readonly child: ChildProcess
  readonly ended: Promise<Result>
  said(): Buffer
  told(): string
  [Symbol.dispose](): void
}

/** Runs `cellar ARGS` to its end. */
export async function cellar(args: readonly string[], options: Options = {}): Promise<Result> {
  using running = start(args, options)
  return await running.ended
}

/** Starts `cellar ARGS`. Kept with `using`, it is killed if the test ends first. */
export function start(args: readonly string[], options: Options = {}): Running {
  return startCommand([CELLAR, ...args], options)
}

/** Starts any command, in the same way. */
export function startCommand([file, ...args]: readonly string[], options: Options = {}): Running {
  const { stdin = '', env = {}, cwd, timeoutMs = TIMEOUT_MS, uid, unread = false } = options
  const child = spawn(file!, args, {
    stdio: [typeof stdin === 'number' ? stdin : 'pipe', 'pipe', 'pipe'],
    env: { ...process.env, NODE_TEST_CONTEXT: undefined, ...env },
    timeout: timeoutMs, killSignal: 'SIGKILL',
    ...(cwd === undefined ? {} : { cwd }),
    ...(uid === undefined ? {} : { uid, gid: uid }),
  })
  // A guest may end without having read its stdin.
  child.stdin?.on('error', () => {})
  if (typeof stdin !== 'number' && stdin !== 'open') child.stdin!.end(stdin)
  const chunks: Buffer[] = []
  const errors: Buffer[] = []
  if (!unread) child.stdout!.on('data', (chunk: Buffer) => chunks.push(chunk))
  child.stderr!.on('data', (chunk: Buffer) => errors.push(chunk))
  const ended = new Promise<Result>((done, fail) => {
    child.on('error', fail)
    child.on('close', (status, signal) => {
      done({ status, signal, stdout: Buffer.concat(chunks), stderr: Buffer.concat(errors).toString() })
    })
  })
  return {
    child, ended, said: () => Buffer.concat(chunks), told: () => Buffer.concat(errors).toString(),
    [Symbol.dispose]: () => { if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL') },
  }
}

/** What the kernel knows of a process: CPU time and resident memory. Linux. */
export function usageOf({ child }: Running): { cpuMs: number; residentBytes: number } {
  const stat = readFileSync(`/proc/${child.pid}/stat`, 'utf8')
  // After the name, which may hold anything: fields from the third on. utime and stime are in hundredths of a second.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return { cpuMs: (Number(fields[11]) + Number(fields[12])) * 10, residentBytes: Number(fields[21]) * 4096 }
}

/** A program of guests/. */
export function guest(name: string): string {
  return join(ROOT, 'guests', `${name}.wasm`)
}

/** A program of node_modules/, and why a test of it can't run here: false if it can. */
export function packaged(path: string): { path: string; skip: string | false } {
  const full = join(ROOT, 'node_modules', path)
  return { path: full, skip: existsSync(full) ? false : `${path} isn't installed: run npm ci` }
}

/** The module that a text describes. It is not validated: that is for who runs it. */
export async function wat(text: string): Promise<Uint8Array> {
  using parsed = disposable((await wabt()).parseWat('test.wat', text, FEATURES))
  return parsed.value.toBinary({ write_debug_names: true }).buffer
}

const FEATURES = { threads: true, memory64: true, multi_value: true, bulk_memory: true, mutable_globals: true }

function disposable<T extends { destroy(): void }>(value: T): { value: T } & Disposable {
  return { value, [Symbol.dispose]: () => value.destroy() }
}

/** A temporary folder. */
export class Folder {
  readonly path = realpathSync(mkdtempSync(join(tmpdir(), 'cellar-test-')))

  /** The path of a file in it. */
  at(...names: string[]): string { return join(this.path, ...names) }

  /** Writes a file in it, and the folders above: its path. */
  write(name: string, content: string | Uint8Array = ''): string {
    const path = this.at(name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, content)
    return path
  }

  /** Writes the program that a text describes: its path. */
  async writeProgram(name: string, text: string): Promise<string> { return this.write(name, await wat(text)) }

  /** Makes a folder in it: its path. */
  folder(name: string): string {
    mkdirSync(this.at(name), { recursive: true })
    return this.at(name)
  }

  /** The names of all that is in it, at any depth. */
  list(): string[] { return readdirSync(this.path, { recursive: true, encoding: 'utf8' }).toSorted() }

  /** Gives it and all that is in it to another user. */
  giveTo(uid: number): void {
    for (const name of ['.', ...this.list()]) chownSync(this.at(name), uid, uid)
  }

  [Symbol.dispose](): void { rmSync(this.path, { recursive: true, force: true }) }
}

/** Waits until `condition` holds; throws with `what` if it doesn't within `timeoutMs`. */
export async function until(what: string, condition: () => boolean, timeoutMs = 20_000): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`Waited ${timeoutMs} ms for this: ${what}`)
    await sleep(10)
  }
}

/** A port of 127.0.0.1 that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done) => { server.listen(0, '127.0.0.1', done) })
  const { port } = server.address() as AddressInfo
  await new Promise((done) => { server.close(done) })
  return port
}

/** A connection to `port`, which may not be listened on yet. */
export async function connected(port: number): Promise<Socket> {
  const deadline = performance.now() + 20_000
  for (;;) {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    const error = await new Promise<Error | undefined>((done) => {
      socket.once('connect', () => done(undefined))
      socket.once('error', done)
    })
    if (error === undefined) return socket
    if (performance.now() > deadline) throw error
    await sleep(20)
  }
}
