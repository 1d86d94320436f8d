// tests/machine/nested_line.ts: one request to a nested host over its two virtio-serial ports (see nested_init.sh).
//
// The host has one requester at a time: whoever holds the lock. It first ends what still runs for one who has gone,
// then says HELLO until it is answered, so that it never reads another's output. What the command writes is found
// between two marks that hold a number of this request.

import { randomBytes } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const MARK = '\x1e'
const BLOCK_BYTES = 65_536
const HELLO_MS_MAX = 60_000
const HELLO_EACH_MS = 2_000
const KILLED_MS_MAX = 10_000

/** How a command ended. `status` as a shell has it: 128 + signal for one that was killed. */
export type Output = { status: number; stdout: Buffer; stderr: Buffer; timedOut: boolean }

/** Where output goes while it comes. */
export type Listeners = { stdout?: (bytes: Buffer) => void; stderr?: (bytes: Buffer) => void }

/** What the line says no more: the nested host has ended, or doesn't answer. */
export class LineError extends Error {}

/** Waits until nobody else has the host of `folder`, and takes it. */
export async function lock(folder: string): Promise<Disposable> {
  const path = join(folder, 'lock')
  for (;;) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' })
      return { [Symbol.dispose]: () => rmSync(path, { force: true }) }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    if (!isAlive(holder(path))) rmSync(path, { force: true })
    await sleep(50)
  }
}

/** True if there is such a process. */
export function isAlive(pid: number): boolean {
  try {
    if (pid > 0) process.kill(pid, 0)
    return pid > 0
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** Runs /nested/job.sh of `archive` (a tar file), after unpacking it. Holders of the lock only. */
export async function request(folder: string, { archive, npt, timeoutMs, listeners = {} }: {
  archive: Uint8Array; npt: boolean; timeoutMs: number; listeners?: Listeners
}): Promise<Output> {
  using run = await Port.open(join(folder, 'run.sock'))
  using err = await Port.open(join(folder, 'err.sock'))
  await greet(err, 'KILL job\n')
  await greet(run)
  const nonce = randomBytes(8).toString('hex')
  const blocks = Math.ceil(archive.length / BLOCK_BYTES)
  run.write(Buffer.concat([Buffer.from(`RUN ${nonce} ${blocks} ${npt ? 1 : 0}\n`), archive,
    Buffer.alloc(blocks * BLOCK_BYTES - archive.length)]))
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    err.write('KILL job\n')
  }, timeoutMs)
  // A host that has stopped altogether answers no KILL either.
  const last = setTimeout(() => {
    for (const port of [run, err]) port.fail(new LineError('the nested host hangs'))
  }, timeoutMs + KILLED_MS_MAX)
  try {
    const [out, said] = await Promise.all([run.output(nonce, listeners.stdout), err.output(nonce, listeners.stderr)])
    return { status: out.status, stdout: out.bytes, stderr: said.bytes, timedOut }
  } finally {
    clearTimeout(timer)
    clearTimeout(last)
  }
}

/** Waits until the host that was just booted answers. */
export async function reach(folder: string): Promise<void> {
  using run = await Port.open(join(folder, 'run.sock'))
  await greet(run)
}

async function greet(port: Port, before = ''): Promise<void> {
  const nonce = randomBytes(8).toString('hex')
  port.write(`${before}HELLO ${nonce}\n`)
  const timer = setTimeout(() => port.fail(new LineError('the nested host does not answer')), HELLO_MS_MAX)
  const again = setInterval(() => port.write(`HELLO ${nonce}\n`), HELLO_EACH_MS)
  try {
    await port.find(`HELLO ${nonce}\n`)
  } finally {
    clearTimeout(timer)
    clearInterval(again)
  }
}

/** One virtio-serial port: a Unix socket of QEMU. */
class Port {
  readonly #socket: Socket
  #pending: Buffer = Buffer.alloc(0)
  #wake: () => void = () => {}
  #error: Error | undefined

  static async open(path: string): Promise<Port> {
    const socket = connect(path)
    await new Promise<void>((done, fail) => {
      socket.once('connect', done)
      socket.once('error', (error) => fail(new LineError(`no nested host listens: ${error.message}`)))
    })
    return new Port(socket)
  }

  constructor(socket: Socket) {
    this.#socket = socket
    socket.on('data', (bytes: Buffer) => {
      this.#pending = this.#pending.length === 0 ? bytes : Buffer.concat([this.#pending, bytes])
      this.#wake()
    })
    socket.on('error', (error) => this.fail(new LineError(error.message)))
    socket.on('close', () => this.fail(new LineError('the nested host has ended')))
  }

  write(bytes: string | Uint8Array): void { this.#socket.write(bytes) }

  fail(error: Error): void {
    this.#error ??= error
    this.#wake()
  }

  /** Waits for `text` and drops everything up to its end. */
  async find(text: string): Promise<void> {
    for (;;) {
      const at = this.#pending.indexOf(text)
      if (at >= 0) {
        this.#pending = this.#pending.subarray(at + text.length)
        return
      }
      await this.#more()
    }
  }

  /** What stands between the marks. */
  async output(nonce: string, listener?: (bytes: Buffer) => void): Promise<{ bytes: Buffer; status: number }> {
    await this.find(`${MARK}${nonce} BEGIN\n`)
    const end = `${MARK}${nonce} END `
    const pieces: Buffer[] = []
    const take = (length: number): void => {
      if (length === 0) return
      const piece = this.#pending.subarray(0, length)
      pieces.push(piece)
      listener?.(piece)
      this.#pending = this.#pending.subarray(length)
    }
    for (;;) {
      const at = this.#pending.indexOf(end)
      const newline = at < 0 ? -1 : this.#pending.indexOf('\n', at)
      if (newline >= 0) {
        take(at)
        const status = Number(this.#pending.subarray(end.length, newline - at).toString())
        this.#pending = this.#pending.subarray(newline - at + 1)
        return { bytes: Buffer.concat(pieces), status }
      }
      // The last bytes may be the begin of the mark.
      const mark = this.#pending.lastIndexOf(MARK)
      take(mark >= 0 && this.#pending.length - mark <= end.length + 4 ? mark : this.#pending.length)
      await this.#more()
    }
  }

  async #more(): Promise<void> {
    if (this.#error !== undefined) throw this.#error
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#wake = resolve
    await promise
    this.#wake = () => {}
  }

  [Symbol.dispose](): void { this.#socket.destroy() }
}

function holder(path: string): number {
  try {
    return Number(readFileSync(path, 'utf8'))
  } catch {
    return 0
  }
}
