// api/stream.ts: answers that are sent piece by piece: events, logs, archives.
//
// A stream does nothing until somebody reads it, and asks its source for the next piece only when the last one was
// taken: who reads slowly slows the source, and what is on the way is one piece. A source that has nothing to say for a
// while gets a heartbeat said for it, so that both ends notice when the other is gone. When the API ends, the stream
// says goodbye (for events: when to come again) and ends.

import type { LogLine } from '../host/operator.ts'
import type { Streamed } from './route.ts'

/** Bytes of lines that are sent as one piece: a piece costs much more than a line. */
const BATCH_CHARS = 32_768

export type StreamOptions = {
  readonly heartbeatMs: number
  /** Aborted when the API ends. */
  readonly closing: AbortSignal
  /** Called once, when the stream has ended or nobody reads it any more. */
  readonly ended: () => void
  /** Called if the source fails. */
  readonly failed: (error: unknown) => void
  /** Breaks the connection: the answer has begun, and mustn't look whole. */
  readonly cut: () => void
  /** How long a client of events may read nothing: it can come again and go on. One of a log may take its time. */
  readonly stallMs: number
}

type Piece = string | Uint8Array
type Turn = 'settled' | 'beat' | 'closing'

/** `source` as the body of a Response. */
export function streamOf(source: Streamed, options: StreamOptions): ReadableStream<Uint8Array> {
  const sender = new Sender(source, options)
  return new ReadableStream<Uint8Array>({
    pull: (controller) => sender.pull(controller), cancel: () => sender.end(),
  }, { highWaterMark: 0 })
}

class Sender {
  readonly #source: Streamed
  readonly #options: StreamOptions
  readonly #encoder = new TextEncoder()
  #iterator: AsyncIterator<Piece> | undefined
  /** The next piece was asked for; and it is there, or can't be had. */
  #isAsked = false
  #settled: { readonly result: IteratorResult<Piece> } | { readonly error: unknown } | undefined
  #hasEnded = false
  #stall: NodeJS.Timeout | undefined
  #wake: (turn: Turn) => void = () => {}
  readonly #onClosing = (): void => this.#wake('closing')

  constructor(source: Streamed, options: StreamOptions) {
    this.#source = source
    this.#options = options
  }

  /** Sends one piece, when there is one. */
  async pull(controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    const { heartbeat, goodbye } = this.#source
    clearTimeout(this.#stall)
    if (!this.#isAsked) this.#ask()
    const turn = await this.#turn()
    if (this.#hasEnded) return
    if (heartbeat !== undefined) this.#stall = setTimeout(() => this.#cut(), this.#options.stallMs)
    if (turn === 'beat') return controller.enqueue(this.#encode(heartbeat!))
    const settled = this.#settled
    this.#settled = undefined
    this.#isAsked = false
    if (turn === 'settled' && settled !== undefined && 'result' in settled && settled.result.done !== true) {
      return controller.enqueue(this.#encode(settled.result.value))
    }
    if (turn === 'closing' && goodbye !== undefined) controller.enqueue(this.#encode(goodbye))
    this.end()
    if (settled !== undefined && 'error' in settled) {
      this.#options.failed(settled.error)
      this.#options.cut()
    }
    controller.close()
  }

  end(): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    clearTimeout(this.#stall)
    this.#options.closing.removeEventListener('abort', this.#onClosing)
    this.#options.ended()
    // A source that waits answers `return` only when its wait is over, which `ended` has it be.
    Promise.resolve(this.#iterator?.return?.()).catch(() => {})
  }

  #cut(): void {
    this.end()
    this.#options.cut()
  }

  #ask(): void {
    this.#isAsked = true
    if (this.#iterator === undefined) {
      this.#options.closing.addEventListener('abort', this.#onClosing)
      this.#iterator = this.#source.chunks[Symbol.asyncIterator]()
    }
    this.#iterator.next().then((result) => { this.#settled = { result } }, (error: unknown) => {
      this.#settled = { error }
    }).then(() => this.#wake('settled'), () => {})
  }

  async #turn(): Promise<Turn> {
    if (this.#options.closing.aborted) return 'closing'
    if (this.#settled !== undefined) return 'settled'
    let timer: NodeJS.Timeout | undefined
    try {
      return await new Promise<Turn>((resolve) => {
        this.#wake = resolve
        if (this.#source.heartbeat !== undefined) timer = setTimeout(() => resolve('beat'), this.#options.heartbeatMs)
      })
    } finally {
      clearTimeout(timer)
    }
  }

  #encode(piece: Piece): Uint8Array { return typeof piece === 'string' ? this.#encoder.encode(piece) : piece }
}

/** Lines as text, many in one piece as long as they are there at once. */
export async function* batched(lines: AsyncIterable<LogLine>, format: (line: LogLine) => string):
AsyncGenerator<string> {
  const iterator = lines[Symbol.asyncIterator]()
  let next = iterator.next()
  next.catch(() => {})
  try {
    for (let result = await next; result.done !== true; result = await next) {
      let text = format(result.value)
      next = iterator.next()
      next.catch(() => {})
      const tick = new Promise<undefined>((resolve) => { setImmediate(resolve, undefined) })
      while (text.length < BATCH_CHARS) {
        const soon = await Promise.race([next, tick])
        if (soon === undefined || soon.done === true) break
        text += format(soon.value)
        next = iterator.next()
        next.catch(() => {})
      }
      yield text
    }
  } finally {
    Promise.resolve(iterator.return?.()).catch(() => {})
  }
}
