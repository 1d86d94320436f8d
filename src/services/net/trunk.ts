// services/net/trunk.ts: connections between two threads of this process, all over one MessagePort.
//
// A message is a frame: a number that names the connection, then what one end tells the other (pipe_end.ts). Large
// pieces are handed over, small ones copied, which is quicker. Numbers are given by who opens, even ones on one side,
// odd ones on the other; a connection is known from its opening until its end here is closed or broken, and data for
// one that isn't known is answered by breaking it. So nothing has to be agreed upon at the end, and the port itself
// lasts as long as both threads do.
//
// A thread may be kept busy by a guest, and must be told that it has mail; every message that was announced must then
// be counted as read. What that takes is the other side's memory, hence the first message of each side, which isn't
// announced: how to tell it. Nothing is sent before that has come.

import type { MessagePort, Transferable } from 'node:worker_threads'
import { ECONNREFUSED, ECONNRESET } from '../../base/errno.ts'
import { PipeEnd, type Far } from './pipe_end.ts'

/** Pieces from this size on are handed over: below, copying takes less time. */
const HANDED_OVER_BYTES_MIN = 16 * 1024

type Frame =
  | readonly [id: number, piece: Uint8Array<ArrayBuffer>]
  | readonly [id: number, taken: number]
  | readonly [id: number, 'ended' | 'broken']
  | readonly [id: number, 'open', guest: string, port: number]
  | readonly [id: number, 'opened', errno: number]
type Hello = { readonly control: SharedArrayBuffer | undefined }

/** How a thread is told of its mail. */
export type Mail = {
  /** What others tell it by; undefined: it need not be told. */
  readonly control: SharedArrayBuffer | undefined
  /** A message that was announced has been read. */
  read(): void
  /** Tells another thread, by its control. */
  announce(control: Int32Array): void
}

/** One side of a trunk. */
export type TrunkSide = {
  /** Its numbers: the other side has the other one. */
  readonly parity: 0 | 1
  readonly mail: Mail
  /** The other side wants a connection to a port of a guest: calls `take` for this side's end, or doesn't. */
  accept(guest: string, port: number, take: () => PipeEnd): Promise<void>
}

/** One side of the connections between two threads. */
export class Trunk {
  readonly #port: MessagePort
  readonly #side: TrunkSide
  readonly #ends = new Map<number, Far>()
  readonly #opening = new Map<number, (errno: number) => void>()
  #nextId: number
  #control: Int32Array | undefined
  #isLost = false
  /** Frames that wait for the other side's first message. */
  #early: (readonly [Frame, Transferable[]])[] | undefined = []

  constructor(port: MessagePort, side: TrunkSide) {
    this.#port = port
    this.#side = side
    this.#nextId = side.parity
    port.on('message', (message: Frame | Hello) => {
      if ('control' in message) this.#greeted(message)
      else this.#received(message)
    })
    port.on('close', () => this.#lost())
    // The thread doesn't live for it.
    port.unref()
    port.postMessage({ control: side.mail.control } satisfies Hello)
  }

  /** Asks the other side for a connection: the end that `make` makes for it, or an errno. */
  open<T extends Far>(guest: string, port: number, make: (far: Far) => T): Promise<T | number> {
    if (this.#isLost) return Promise.resolve(ECONNRESET)
    const id = this.#nextId
    this.#nextId += 2
    return new Promise((resolve) => {
      this.#opening.set(id, (errno) => {
        if (errno !== 0) return resolve(errno)
        const end = make(this.#farOf(id))
        this.#ends.set(id, end)
        resolve(end)
      })
      this.#send([id, 'open', guest, port])
    })
  }

  close(): void { this.#port.close() }

  #greeted({ control }: Hello): void {
    this.#control = control === undefined ? undefined : new Int32Array(control)
    const early = this.#early ?? []
    this.#early = undefined
    for (const [frame, transfer] of early) this.#send(frame, transfer)
  }

  #received(frame: Frame): void {
    if (this.#side.mail.control !== undefined) this.#side.mail.read()
    const [id, what] = frame
    if (what === 'open') return void this.#accept(id, frame[2] as string, frame[3] as number)
    if (what === 'opened') {
      this.#opening.get(id)?.(frame[2] as number)
      this.#opening.delete(id)
      return
    }
    const end = this.#ends.get(id)
    if (typeof what === 'object') {
      if (end === undefined) this.#send([id, 'broken'])
      else end.arrived(Buffer.from(what.buffer, what.byteOffset, what.byteLength))
    } else if (typeof what === 'number') end?.taken(what)
    else if (what === 'ended') end?.ended()
    else end?.broken()
  }

  async #accept(id: number, guest: string, port: number): Promise<void> {
    let isTaken = false
    await this.#side.accept(guest, port, () => {
      isTaken = true
      const end = new PipeEnd('accepts')
      end.link(this.#farOf(id))
      this.#ends.set(id, end)
      // Before the end says anything.
      this.#send([id, 'opened', 0])
      return end
    })
    if (!isTaken) this.#send([id, 'opened', ECONNREFUSED])
  }

  #farOf(id: number): Far {
    return {
      arrived: (piece) => this.#send([id, piece as Uint8Array<ArrayBuffer>],
        piece.length < HANDED_OVER_BYTES_MIN ? [] : [piece.buffer as ArrayBuffer]),
      taken: (bytes) => this.#send([id, bytes]),
      ended: () => this.#send([id, 'ended']),
      broken: () => this.#send([id, 'broken']),
      forgotten: () => { this.#ends.delete(id) },
    }
  }

  #send(frame: Frame, transfer: Transferable[] = []): void {
    if (this.#early !== undefined) {
      this.#early.push([frame, transfer])
      return
    }
    this.#port.postMessage(frame, transfer)
    if (this.#control !== undefined) this.#side.mail.announce(this.#control)
  }

  // The other thread is gone.
  #lost(): void {
    this.#isLost = true
    for (const opened of this.#opening.values()) opened(ECONNRESET)
    this.#opening.clear()
    for (const end of this.#ends.values()) end.broken()
    this.#ends.clear()
  }
}
