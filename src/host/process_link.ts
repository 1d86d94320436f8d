// host/process_link.ts: the host's end of a connection to a cell process.
//
// A process may be anything by now, as its guests are hostile: what it says is checked before anybody acts on it
// (MESSAGE), what it sends beyond what it was granted ends the connection, and nothing of it is kept without a bound.
// Streams are the host's to number. Each way a writer has room, STREAM_WINDOW_BYTES_MAX at first and then what the
// reader grants. To connect again when the connection is lost is the caller's. Elsewhere: the process's end
// (host_line.ts), the messages (protocol.ts).

import { createConnection, type Socket } from 'node:net'
import { CellarError } from '../base/errors.ts'
import { STREAM_FRAME_BYTES_MAX, STREAM_WINDOW_BYTES_MAX, UNREAD_BYTES_MAX } from '../base/limits.ts'
import { peerCredentials, sendFd } from '../sys/sockets.ts'
import { bytesHeader, FrameDecoder, messageFrame } from './frames.ts'
import { MESSAGE } from './from_process.ts'
import { PROTOCOL_VERSION, STDIN, type FromProcess, type ToProcess } from './protocol.ts'
import { throughSocket } from './run_socket.ts'

/** How long a process may take to say hello: it may be compiling a large module. */
const HELLO_MS_MAX = 30_000
/** How long it may take to tell figures: its pCPUs have a second. */
const FIGURES_MS_MAX = 10_000

/** What a process says of itself and its guests when somebody connects. */
export type Hello = Extract<FromProcess, { readonly hello: number }>
export type FiguresAnswer = Extract<FromProcess, { readonly figures: number }>

/** What comes from a process. What belongs to streams and to calls of the link doesn't come here. */
export type LinkHandlers = {
  message(message: FromProcess): void
  /** Once: the connection is lost, or `close` was called. */
  closed(): void
}

/** A connection to a cell process. */
export class ProcessLink {
  readonly hello: Hello
  /** Its number, as the kernel knows it: what its hello says is an allegation. */
  readonly pid: number
  readonly #socket: Socket
  readonly #project: string
  readonly #runFolder: string
  readonly #streams = new Map<number, LinkStream>()
  readonly #asked = new Map<number, (answer: FiguresAnswer) => void>()
  #nextStream = 1
  #nextAsked = 1
  #isClosed = false

  private constructor(socket: Socket, runFolder: string, hello: Hello) {
    this.#socket = socket
    this.#runFolder = runFolder
    this.#project = hello.project
    this.hello = hello
    this.pid = peerCredentials((socket as unknown as { _handle: { fd: number } })._handle.fd).pid
  }

  /** Connects to the process of a run folder. Rejects with a system error, or with one that says what it did wrong. */
  static async connect(runFolder: string, handlers: LinkHandlers, version = ''): Promise<ProcessLink> {
    const socket = throughSocket(runFolder, 'c', (path) => createConnection(path))
    const { promise, resolve, reject } = Promise.withResolvers<ProcessLink>()
    const late = setTimeout(() => socket.destroy(new Error('it said no hello in time')), HELLO_MS_MAX)
    const decoder = new FrameDecoder()
    let link: ProcessLink | undefined
    let failure: Error = new Error('it closed the connection')
    socket.on('error', (error) => { failure = error })
    socket.on('close', () => {
      clearTimeout(late)
      reject(failure)
      if (link !== undefined && link.#lose()) handlers.closed()
    })
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const frame of decoder.push(chunk)) {
          if (link === undefined) {
            const hello = frame.kind === 'message' ? MESSAGE.parse(frame.message) : undefined
            if (hello === undefined || !('pid' in hello)) throw new Error('it said no hello')
            clearTimeout(late)
            resolve(link = new ProcessLink(socket, runFolder, hello))
          } else if (frame.kind === 'bytes') link.#take(frame.stream, frame.channel, frame.bytes)
          else link.#hear(MESSAGE.parse(frame.message), handlers)
        }
        // Who asks and doesn't read the answers isn't heard until it does: they would pile up here.
        if (socket.writableLength > UNREAD_BYTES_MAX) socket.pause().once('drain', () => socket.resume())
      } catch (error) {
        socket.destroy(error as Error)
      }
    })
    socket.write(messageFrame({ hello: PROTOCOL_VERSION, version } satisfies ToProcess))
    return await promise
  }

  /** Sends a message. What is sent to one that is lost is lost, too: the next hello tells what is so. */
  send(message: ToProcess): void {
    if (!this.#isClosed) this.#socket.write(messageFrame(message))
  }

  /** Sends a descriptor, ahead of the message that names its ticket. The caller's own stays open. Throws as sendFd. */
  sendDescriptor(fd: number, ticket: number): void {
    throughSocket(this.#runFolder, 'f', (path) => sendFd(path, fd, ticket))
  }

  /** What became of its guests' time and memory, by id. Rejects with CellarError PROCESS_LOST. */
  async figures(): Promise<FiguresAnswer> {
    const number = this.#nextAsked++
    const { promise, resolve, reject } = Promise.withResolvers<FiguresAnswer>()
    const late = setTimeout(() => reject(new CellarError('PROCESS_LOST', [this.#project, 'it tells no figures'])),
      FIGURES_MS_MAX)
    this.#asked.set(number, resolve)
    this.send({ figures: number })
    try {
      return await promise
    } finally {
      clearTimeout(late)
      this.#asked.delete(number)
    }
  }

  /** A stream: to be named by `attach`, or by the launch of one of `exec`, which the caller sends next. */
  openStream(): LinkStream {
    const id = this.#nextStream++
    const stream = new LinkStream(id, (message) => this.send(message), (bytes) => {
      if (this.#isClosed) return
      this.#socket.write(bytesHeader(id, STDIN, bytes.length))
      this.#socket.write(bytes)
    }, () => this.#streams.delete(id))
    this.#streams.set(id, stream)
    if (this.#isClosed) stream.ended(undefined)
    return stream
  }

  /** Ends the connection. The process goes on. */
  close(): void {
    this.#socket.destroy()
  }

  #hear(message: FromProcess, handlers: LinkHandlers): void {
    if ('eof' in message) this.#streams.get(message.eof)?.ended(message.status)
    else if ('credit' in message) this.#streams.get(message.credit)?.granted(message.bytes)
    else if ('figures' in message && this.#asked.has(message.figures)) this.#asked.get(message.figures)!(message)
    else handlers.message(message)
  }

  #take(stream: number, channel: number, bytes: Buffer): void {
    // One that was closed here may still be sent to.
    if (this.#streams.get(stream)?.came(channel, bytes) === false) throw new Error('it sent more than it was granted')
  }

  #lose(): boolean {
    if (this.#isClosed) return false
    this.#isClosed = true
    for (const stream of this.#streams.values()) stream.ended(undefined)
    return true
  }
}

type Piece = { readonly channel: number; readonly bytes: Uint8Array }

/** A guest's console as the host has it: what it writes, and what it is given to read. */
export class LinkStream {
  readonly id: number
  /** The exit status of one of `exec` when it has ended; undefined for an attachment, and if the process is lost. */
  readonly status: Promise<number | undefined>
  readonly #settle: (status: number | undefined) => void
  readonly #send: (message: ToProcess) => void
  readonly #sendBytes: (bytes: Uint8Array) => void
  readonly #forget: () => void
  #pieces: Piece[] = []
  /** What the process may still send, and what was read and isn't granted anew yet. */
  #granted = STREAM_WINDOW_BYTES_MAX
  #read = 0
  #room = STREAM_WINDOW_BYTES_MAX
  #isOver = false
  #wakeReader: (() => void) | undefined
  #wakeWriters: (() => void)[] = []

  constructor(id: number, send: (message: ToProcess) => void, sendBytes: (bytes: Uint8Array) => void,
    forget: () => void) {
    const { promise, resolve } = Promise.withResolvers<number | undefined>()
    this.id = id
    this.status = promise
    this.#settle = resolve
    this.#send = send
    this.#sendBytes = sendBytes
    this.#forget = forget
  }

  /** Output until its end. The guest of `exec` is slowed to what is read here. For one reader. */
  get output(): AsyncIterable<Piece> {
    return { [Symbol.asyncIterator]: () => ({ next: () => this.#next(), return: async () => this.#stopReading() }) }
  }

  /** Gives the guest input: resolves when there is room for more, or nobody reads it any more. Calls go in order. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let rest = bytes; rest.length > 0 && !this.#isOver;) {
      while (this.#room <= 0 && !this.#isOver) await new Promise<void>((wake) => { this.#wakeWriters.push(wake) })
      if (this.#isOver) return
      const part = rest.subarray(0, Math.min(rest.length, this.#room, STREAM_FRAME_BYTES_MAX))
      this.#room -= part.length
      // A copy: it may wait in the socket, and the caller's is the caller's again.
      this.#sendBytes(Buffer.from(part))
      rest = rest.subarray(part.length)
    }
  }

  /** No more input comes. */
  end(): void {
    if (!this.#isOver) this.#send({ eof: this.id })
  }

  /** Nobody looks any more. Ends what `exec` started. */
  close(): void {
    if (!this.#isOver) this.#send({ detach: this.id })
    this.#pieces = []
    this.ended(undefined)
  }

  // ---- for the link

  /** Output has come: false if it is more than was granted. */
  came(channel: number, bytes: Uint8Array): boolean {
    this.#granted -= bytes.length
    if (this.#granted < 0) return false
    // Pieces of nothing would be granted without end.
    if (bytes.length === 0) return true
    this.#pieces.push({ channel, bytes })
    this.#wake()
    return true
  }

  granted(bytes: number): void {
    this.#room = Math.min(STREAM_WINDOW_BYTES_MAX, this.#room + bytes)
    for (const wake of this.#wakeWriters.splice(0)) wake()
  }

  ended(status: number | undefined): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#forget()
    this.#settle(status)
    for (const wake of this.#wakeWriters.splice(0)) wake()
    this.#wake()
  }

  async #next(): Promise<IteratorResult<Piece>> {
    while (this.#pieces.length === 0 && !this.#isOver) {
      await new Promise<void>((wake) => { this.#wakeReader = wake })
    }
    const piece = this.#pieces.shift()
    if (piece === undefined) return { done: true, value: undefined }
    this.#read += piece.bytes.length
    if (this.#read >= STREAM_WINDOW_BYTES_MAX / 4 && !this.#isOver) {
      this.#send({ credit: this.id, bytes: this.#read })
      this.#granted += this.#read
      this.#read = 0
    }
    return { done: false, value: piece }
  }

  #stopReading(): IteratorResult<Piece> {
    this.close()
    return { done: true, value: undefined }
  }

  #wake(): void {
    this.#wakeReader?.()
    this.#wakeReader = undefined
  }
}
