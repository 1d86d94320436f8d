// host/host_line.ts: a cell process's end of the connection to its host.
//
// The process listens, the host connects; a new connection replaces the old one, as a host that was killed may have
// left one that looks alive. Nothing is kept for a host that isn't there: after a new hello it asks for what it wants
// to know. What is sent to a host that doesn't read is bounded. Elsewhere: the host's end (process_link.ts).

import { chmodSync, renameSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { UNSENT_BYTES_MAX } from '../base/limits.ts'
import { bytesHeader, FrameDecoder, messageFrame } from './frames.ts'
import type { FromProcess, ToProcess } from './protocol.ts'

/** What comes from the host. */
export type LineEvents = {
  message(message: ToProcess): void
  bytes(stream: number, bytes: Buffer): void
  /** The host is gone: its streams are, too. */
  gone(): void
}

/** The connection to the host, if there is one. */
export class HostLine {
  readonly #events: LineEvents
  readonly #server: Server
  #socket: Socket | undefined
  #isGreeted = false
  #connections = 0

  constructor(events: LineEvents) {
    this.#events = events
    this.#server = createServer({ noDelay: true }, (socket) => this.#accept(socket))
  }

  get isConnected(): boolean {
    return this.#socket !== undefined && this.#isGreeted
  }

  /** How many hosts there were: who was asked by one and answers another has a different number. */
  get connections(): number {
    return this.#connections
  }

  /**
   * Listens at `path`, for its owner alone; `ready` is called before the first connection. Rejects with a system error.
   */
  async listen(path: string, ready: () => void): Promise<void> {
    rmSync(path, { force: true })
    // Under another name first: between its bind and its listen a host would think that nobody ever will.
    const early = `${path}.new`
    rmSync(early, { force: true })
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#server.once('error', reject)
    // Its folder is its owner's alone as well: nobody else gets in between.
    this.#server.listen(early, () => {
      try {
        chmodSync(early, 0o600)
        ready()
        renameSync(early, path)
        resolve()
      } catch (error) {
        reject(error as Error)
      }
    })
    await promise
  }

  /** The first message to a new host: what is so. Nothing is sent before, as it is in here. */
  greet(hello: FromProcess): void {
    this.#isGreeted = true
    this.send(hello)
  }

  /** Sends a message, if there is a host. */
  send(message: FromProcess): void {
    const socket = this.#socket
    if (socket === undefined || !this.#isGreeted) return
    socket.write(messageFrame(message))
    if (socket.writableLength > UNSENT_BYTES_MAX) socket.destroy()
  }

  /** Sends bytes of a stream. They are bounded by the stream's credit. */
  sendBytes(stream: number, channel: number, bytes: Uint8Array): void {
    this.#socket?.write(bytesHeader(stream, channel, bytes.length))
    this.#socket?.write(bytes)
  }

  /** Ends the connection and listens no more. The socket is the caller's to remove. */
  close(): void {
    this.#server.close()
    this.#socket?.end()
  }

  #accept(socket: Socket): void {
    const old = this.#socket
    this.#socket = undefined
    if (old !== undefined) {
      old.destroy()
      this.#events.gone()
    }
    this.#socket = socket
    this.#isGreeted = false
    this.#connections++
    const decoder = new FrameDecoder()
    socket.on('data', (chunk: Buffer) => {
      if (this.#socket !== socket) return
      try {
        for (const frame of decoder.push(chunk)) {
          if (frame.kind === 'bytes') this.#events.bytes(frame.stream, frame.bytes)
          else this.#events.message(frame.message as ToProcess)
        }
      } catch (error) {
        if ((error as Error).name !== 'BadFrame') throw error
        socket.destroy()
      }
    })
    // What it was is told by 'close', which follows.
    socket.on('error', () => {})
    socket.on('close', () => {
      if (this.#socket !== socket) return
      this.#socket = undefined
      this.#events.gone()
    })
  }
}
