// machine/agent_session.ts: one session with a machine's agent: a program that runs in the guest, an archive on its
// way, or a connection that a program of the guest has asked for.
//
// Both ways the writer waits when the reader has not taken what came before. The agent may be hostile: what it sends
// beyond what it was granted ends the line to it (agent.ts), what it grants beyond the window is not believed.

import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES } from './agent_protocol.ts'

/** How a session ended. 'failed': it couldn't begin, `errno` as in base/errno.ts; 'lost': the agent, or we, left it. */
export type AgentEnd =
  | { readonly kind: 'exited'; readonly status: number } | { readonly kind: 'signalled'; readonly signal: number }
  | { readonly kind: 'failed'; readonly errno: number } | { readonly kind: 'lost' }

/** A piece of output. `channel`: STDOUT or STDERR of host/protocol.ts. */
export type AgentPiece = { readonly channel: number; readonly bytes: Uint8Array }

/** What a session can say to the agent. */
export type SessionLine = {
  input(bytes: Uint8Array): void
  eof(): void
  credit(bytes: number): void
  signal(signal: number): void
  resize(cols: number, rows: number): void
  close(): void
}

/** What waits in smaller pieces than that is put together, up to so many bytes: a piece costs far more than a byte. */
const SMALL_BYTES = 1024
const TOGETHER_BYTES_MAX = 16 * 1024
const TAKEN_MAX = 1024
/** Bytes of input in one frame: others' frames come between. */
const PIECE_BYTES_MAX = 32 * 1024

/** One session. */
export class AgentSession {
  readonly ended: Promise<AgentEnd>
  readonly #settle: (end: AgentEnd) => void
  readonly #line: SessionLine
  #pieces: AgentPiece[] = []
  /** How many of these, from the front, were read: they go together, as taking one off a long list moves all. */
  #taken = 0
  /** The last piece, if it is one of those put together. */
  #together: Buffer | undefined
  /** What the agent may still send, and what was read and isn't granted anew yet. */
  #granted = OUTPUT_WINDOW_BYTES
  #read = 0
  #room = INPUT_WINDOW_BYTES
  #end: AgentEnd | undefined
  #hasAll = false
  #wakeReader: (() => void) | undefined
  #wakeWriters: (() => void)[] = []

  constructor(line: SessionLine) {
    const { promise, resolve } = Promise.withResolvers<AgentEnd>()
    this.ended = promise
    this.#settle = resolve
    this.#line = line
  }

  /** Output until its end. The program is slowed to what is read here. For one reader; to leave it closes. */
  get output(): AsyncIterable<AgentPiece> {
    return { [Symbol.asyncIterator]: () => ({ next: () => this.#next(), return: async () => this.#stopReading() }) }
  }

  /** Its end, when it is known. */
  get end(): AgentEnd | undefined {
    return this.#end
  }

  /** Gives it input: resolves when there is room for more, or nobody reads it any more. Calls go in order. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let rest = bytes; rest.length > 0 && !this.#isOver;) {
      while (this.#room <= 0 && !this.#isOver) await new Promise<void>((wake) => { this.#wakeWriters.push(wake) })
      if (this.#isOver) return
      const part = rest.subarray(0, Math.min(rest.length, this.#room, PIECE_BYTES_MAX))
      this.#room -= part.length
      this.#line.input(part)
      rest = rest.subarray(part.length)
    }
  }

  /** No more input comes. */
  endInput(): void {
    if (!this.#isOver) this.#line.eof()
  }

  /** To the program and what it has started. */
  signal(signal: number): void {
    if (!this.#isOver) this.#line.signal(signal)
  }

  /** The size of its terminal. */
  resize(cols: number, rows: number): void {
    if (!this.#isOver) this.#line.resize(cols, rows)
  }

  /** Nobody looks any more: a program gets SIGHUP. */
  close(): void {
    if (!this.#isOver) this.#line.close()
    this.#pieces = []
    this.#taken = 0
    this.over({ kind: 'lost' })
  }

  // ---- for the line

  /** Output has come: false if it is more than was granted. */
  came(channel: number, bytes: Uint8Array): boolean {
    this.#granted -= bytes.length
    if (this.#granted < 0) return false
    // Pieces of nothing would be granted without end.
    if (bytes.length === 0 || this.#hasAll) return true
    this.#keep(channel, bytes)
    this.#wake()
    return true
  }

  #keep(channel: number, bytes: Uint8Array): void {
    const last = this.#pieces.at(-1)
    const isSmall = last?.channel === channel && bytes.length < SMALL_BYTES
    if (!isSmall) {
      this.#together = undefined
      this.#pieces.push({ channel, bytes })
      return
    }
    const used = this.#together === undefined ? 0 : last.bytes.length
    const needed = used + bytes.length
    const isNew = this.#together === undefined || needed > TOGETHER_BYTES_MAX
    if (isNew || needed > this.#together!.length) {
      const larger = Buffer.alloc(Math.min(2 * (isNew ? bytes.length : needed), TOGETHER_BYTES_MAX))
      if (!isNew) larger.set(last.bytes)
      this.#together = larger
    }
    const from = isNew ? 0 : used
    this.#together!.set(bytes, from)
    if (!isNew) this.#pieces.pop()
    this.#pieces.push({ channel, bytes: this.#together!.subarray(0, from + bytes.length) })
  }

  granted(bytes: number): void {
    this.#room = Math.min(INPUT_WINDOW_BYTES, this.#room + bytes)
    for (const wake of this.#wakeWriters.splice(0)) wake()
  }

  /** No more output comes. */
  cameAll(): void {
    this.#hasAll = true
    this.#wake()
  }

  over(end: AgentEnd): void {
    if (this.#isOver) return
    this.#end = end
    this.#settle(end)
    for (const wake of this.#wakeWriters.splice(0)) wake()
    this.cameAll()
  }

  get #isOver(): boolean {
    return this.#end !== undefined
  }

  async #next(): Promise<IteratorResult<AgentPiece>> {
    while (this.#pieces.length === 0 && !this.#hasAll) {
      await new Promise<void>((wake) => { this.#wakeReader = wake })
    }
    const piece = this.#take()
    if (piece === undefined) return { done: true, value: undefined }
    this.#read += piece.bytes.length
    if (this.#read >= OUTPUT_WINDOW_BYTES / 4 && !this.#isOver) {
      this.#line.credit(this.#read)
      this.#granted += this.#read
      this.#read = 0
    }
    return { done: false, value: piece }
  }

  #take(): AgentPiece | undefined {
    const piece = this.#pieces[this.#taken]
    if (piece === undefined) return undefined
    this.#taken++
    if (this.#taken === this.#pieces.length) this.#together = undefined
    if (this.#taken === this.#pieces.length || this.#taken === TAKEN_MAX) {
      this.#pieces.splice(0, this.#taken)
      this.#taken = 0
    }
    return piece
  }

  #stopReading(): IteratorResult<AgentPiece> {
    this.close()
    return { done: true, value: undefined }
  }

  #wake(): void {
    this.#wakeReader?.()
    this.#wakeReader = undefined
  }
}

/** Joins a session with a stream, until both have said all they have, or one is gone. Never rejects. */
export async function joinStream(session: AgentSession, stream: Duplex): Promise<void> {
  const toGuest = async (): Promise<void> => {
    for await (const bytes of stream.iterator({ destroyOnReturn: false })) await session.write(bytes as Uint8Array)
    session.endInput()
  }
  const fromGuest = async function* (): AsyncGenerator<Uint8Array> {
    for await (const { bytes } of session.output) yield bytes
    // Whoever is there is to know that it isn't a proper end.
    if (session.end?.kind === 'lost') throw new Error('the guest is gone')
  }
  toGuest().catch(() => session.close())
  try {
    await pipeline(fromGuest, stream)
    await session.ended
  } catch {
    session.close()
  }
  stream.destroy()
}
