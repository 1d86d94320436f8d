// api/session_socket.ts: a guest's console over a WebSocket: sub-protocol v1.session.cellar.
//
// Frames are binary, and their first byte says what they are: 0 input (client), 1 output and 2 errors (host), 3
// control, which is JSON: {"exit": n} when the program has ended, {"eof": true} when the client has no more input,
// {"error": problem}. Both ways are slowed to who reads: output isn't taken from the session while too much of it is on
// the way to the client, the socket isn't read while the guest hasn't taken its input. A client that doesn't read for
// long is cut off: what it holds up is a guest. Pings find clients that have vanished.

import { WebSocket } from 'ws'
import { CellarError } from '../base/errors.ts'
import { API_SESSION_BYTES_MAX, API_STALL_MS_MAX } from '../base/limits.ts'
import type { Session } from '../host/operator.ts'
import { STDIN } from '../host/protocol.ts'
import { answerOf } from './problem.ts'

const CONTROL = 3
const PING_MS = 15_000
/** Close codes of RFC 6455: all is well; comes again later; breaks the protocol; a fault of ours. */
const NORMAL = 1000, RESTART = 1012, POLICY = 1008, FAULT = 1011

export type SessionOptions = {
  readonly requestId: string
  /** Aborted when the API ends. */
  readonly closing: AbortSignal
  readonly stallMs?: number | undefined
  readonly pingMs?: number | undefined
  readonly failed: (error: unknown) => void
}

/** Carries a session over `socket` until one of both ends. Resolves then, with the socket closed. Doesn't throw. */
export async function carry(socket: WebSocket, session: Session, options: SessionOptions): Promise<void> {
  const carrier = new Carrier(socket, session, options)
  await carrier.run()
}

class Carrier {
  readonly #socket: WebSocket
  readonly #session: Session
  readonly #options: SessionOptions
  readonly #stallMs: number
  readonly #closed: Promise<void>
  /** Input that the guest hasn't taken yet, in order. */
  #input: Promise<void> = Promise.resolve()
  #inputs = 0
  /** When the client was last heard, by the monotonic clock. */
  #heard = performance.now()

  constructor(socket: WebSocket, session: Session, options: SessionOptions) {
    this.#socket = socket
    this.#session = session
    this.#options = options
    this.#stallMs = options.stallMs ?? API_STALL_MS_MAX
    this.#closed = new Promise((resolve) => { socket.once('close', () => resolve()) })
  }

  async run(): Promise<void> {
    const { closing, pingMs = PING_MS } = this.#options
    const socket = this.#socket
    const pings = setInterval(() => this.#ping(), pingMs)
    const onClosing = (): void => this.#end(RESTART, 'the host is shutting down: come again')
    closing.addEventListener('abort', onClosing)
    socket.on('pong', () => { this.#heard = performance.now() })
    socket.on('message', (data, isBinary) => { this.#take(data as Buffer, isBinary) })
    socket.on('error', () => {}) // Its close follows.
    this.#session.status.catch(() => {}) // Told where it is awaited, if it still is.
    void this.#closed.then(() => this.#session.close())
    if (closing.aborted) onClosing()
    try {
      await this.#send()
    } catch (error) {
      this.#fail(error, FAULT)
    } finally {
      await this.#closed
      clearInterval(pings)
      closing.removeEventListener('abort', onClosing)
    }
  }

  /** Output, and then how it ended. */
  async #send(): Promise<void> {
    for await (const { channel, bytes } of this.#session.output) {
      if (!this.#isOpen()) return
      await this.#frame(channel, bytes)
    }
    const status = await this.#session.status
    if (!this.#isOpen()) return
    if (status !== undefined) await this.#frame(CONTROL, Buffer.from(JSON.stringify({ exit: status })))
    this.#end(NORMAL, '')
  }

  /** Resolves when there is room for more, or nobody to send it to. */
  async #frame(channel: number, bytes: Uint8Array): Promise<void> {
    const frame = Buffer.allocUnsafe(bytes.length + 1)
    frame[0] = channel
    frame.set(bytes, 1)
    const written = new Promise<void>((resolve) => { this.#socket.send(frame, { binary: true }, () => resolve()) })
    if (this.#socket.bufferedAmount <= API_SESSION_BYTES_MAX) return
    let timer: NodeJS.Timeout | undefined
    const stalled = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        this.#socket.terminate()
        resolve()
      }, this.#stallMs)
    })
    await Promise.race([written, stalled])
    clearTimeout(timer)
  }

  #take(data: Buffer, isBinary: boolean): void {
    if (!this.#isOpen()) return
    const [channel] = data
    if (!isBinary || (channel !== STDIN && channel !== CONTROL)) {
      return this.#fail(new CellarError('REQUEST_INVALID', ['frames are binary and begin with 0 or 3']), POLICY)
    }
    const rest = data.subarray(1)
    if (channel === STDIN) return this.#queue(() => this.#session.write(rest))
    if (!isEof(rest)) {
      return this.#fail(new CellarError('REQUEST_INVALID', ['the control frame must be {"eof": true}']), POLICY)
    }
    this.#queue(async () => this.#session.endInput())
  }

  /** Input in order; nothing more is read from the client while some of it waits. */
  #queue(work: () => Promise<void>): void {
    if (this.#inputs++ === 0) this.#socket.pause()
    this.#input = this.#input.then(work).catch((error: unknown) => this.#fail(error, FAULT)).then(() => {
      if (--this.#inputs > 0) return
      this.#heard = performance.now()
      this.#socket.resume()
    })
  }

  /** Who hasn't answered for long is gone, or doesn't read; unless it is us who don't read. */
  #ping(): void {
    if (!this.#isOpen()) return
    if (!this.#socket.isPaused && performance.now() - this.#heard > this.#stallMs) return this.#socket.terminate()
    this.#socket.ping()
  }

  #fail(error: unknown, code: number): void {
    if (!(error instanceof CellarError)) this.#options.failed(error)
    if (!this.#isOpen()) return
    const frame = Buffer.from(`\x03${JSON.stringify({ error: answerOf(error, this.#options.requestId) })}`)
    this.#socket.send(frame, { binary: true })
    this.#end(code, '')
  }

  #end(code: number, reason: string): void {
    if (this.#isOpen()) this.#socket.close(code, reason)
    // A close waits for the client's: which we have to read, and can't wait for forever (ws does for 30 s).
    this.#socket.resume()
  }

  #isOpen(): boolean { return this.#socket.readyState === WebSocket.OPEN }
}

function isEof(bytes: Uint8Array): boolean {
  try {
    return (JSON.parse(new TextDecoder().decode(bytes)) as { eof?: unknown } | null)?.eof === true
  } catch {
    return false // Not JSON at all.
  }
}
