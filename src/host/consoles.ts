// host/consoles.ts: the consoles of a process's guests: where their output goes, and where their input comes from.
//
//   a guest      output to its log, and to whoever is attached; input from whoever is attached, if it has any
//   one of exec  output to its stream and nowhere else, input from there; when the stream goes, nobody is there for it
//
// The log and the stream of `exec` tell when they are done with a piece, and the guest's pCPU is told then, a quarter
// of its window at once: who writes little costs nothing back. Attached streams hold nobody up: who doesn't read is cut
// off. Elsewhere: the guest's own end (services/console/remote.ts).

import {
  ATTACHED_BYTES_MAX, ATTACHMENTS_MAX, OUTPUT_PIECE_BYTES, OUTPUT_WINDOW_BYTES_MAX,
} from '../base/limits.ts'
import type { HostLine } from './host_line.ts'
import type { LogWriter } from './log_writer.ts'
import { OutStream } from './out_stream.ts'

/** Who has the guests: calls by their numbers on the stack. */
export interface Keeper {
  credit(id: number, channel: number, bytes: number): void
  input(id: number, bytes: Uint8Array<ArrayBuffer> | null): void
}

/** One guest's console. */
export type GuestConsole = {
  readonly guest: string
  /** On the stack, when it is there; input that came before. */
  number: number | undefined
  early: (Uint8Array<ArrayBuffer> | null)[] | undefined
  readonly hasInput: boolean
  readonly exec: OutStream | undefined
  attached: Set<OutStream> | undefined
  /** Whose bytes it was given to read, in order. */
  given: { readonly stream: number; left: number }[] | undefined
  /** Output that is done with and not told yet, by channel. */
  owed: [number, number, number] | undefined
}

/** All consoles of a process. */
export class Consoles {
  readonly #line: HostLine
  readonly #log: LogWriter
  readonly #keeper: Keeper
  /** By the numbers on the stack, and by those of streams. */
  readonly #guests = new Map<number, GuestConsole>()
  readonly #streams = new Map<number, { readonly owner: GuestConsole; readonly out: OutStream }>()

  constructor(line: HostLine, log: LogWriter, keeper: Keeper) {
    this.#line = line
    this.#log = log
    this.#keeper = keeper
  }

  /** A console for a guest that is about to start. `stream`: it is one of `exec`. */
  add(guest: string, hasInput: boolean, stream: number | undefined): GuestConsole {
    const exec = stream === undefined ? undefined : this.#newStream(stream)
    const owner: GuestConsole = { guest, number: undefined, early: undefined, hasInput, exec, attached: undefined,
      given: undefined, owed: undefined }
    if (exec !== undefined) this.#streams.set(exec.number, { owner, out: exec })
    return owner
  }

  /** The guest is on the stack. */
  connect(owner: GuestConsole, number: number): void {
    owner.number = number
    this.#guests.set(number, owner)
    for (const bytes of owner.early?.splice(0) ?? []) this.#keeper.input(number, bytes)
    owner.early = undefined
  }

  /** The guest has ended, with a status as a shell has it. */
  end(owner: GuestConsole, status: number): void {
    if (owner.number !== undefined) this.#guests.delete(owner.number)
    owner.exec?.end(status)
    if (owner.exec === undefined) this.#log.end(owner.guest)
    for (const out of owner.attached ?? []) out.end()
  }

  /** A stream that gets a guest's output, and gives it input. */
  attach(owner: GuestConsole | undefined, stream: number): void {
    const out = this.#newStream(stream)
    if (owner === undefined || owner.exec !== undefined || (owner.attached?.size ?? 0) >= ATTACHMENTS_MAX) {
      return out.end()
    }
    (owner.attached ??= new Set()).add(out)
    this.#streams.set(stream, { owner, out })
  }

  /** Gives a stream that was attached what was written before. */
  replay(stream: number, bytes: Uint8Array): void {
    this.#streams.get(stream)?.out.write(1, bytes)
  }

  /** Nobody is at the stream any more: the guest of `exec` that it was, if it was one. */
  detach(stream: number, tell = false): GuestConsole | undefined {
    const found = this.#streams.get(stream)
    if (found === undefined) return undefined
    const { owner, out } = found
    this.#streams.delete(stream)
    out.cut(tell)
    owner.attached?.delete(out)
    if (owner.attached?.size === 0) owner.attached = undefined
    return owner.exec === out ? owner : undefined
  }

  /** The host is gone, and all streams: the guests of `exec` that they were. */
  detachAll(): GuestConsole[] {
    return [...this.#streams.keys()].flatMap((stream) => this.detach(stream) ?? [])
  }

  credit(stream: number, bytes: number): void {
    this.#streams.get(stream)?.out.credit(bytes)
  }

  /** A guest, by its number on the stack, has written. */
  output(number: number, channel: number, bytes: Uint8Array): void {
    const owner = this.#guests.get(number)
    if (owner === undefined || (channel !== 1 && channel !== 2)) return
    const cost = bytes.length + OUTPUT_PIECE_BYTES
    const done = (): void => this.#done(owner, channel, cost)
    if (owner.exec !== undefined) return owner.exec.write(channel, bytes, done)
    for (const out of owner.attached ?? []) {
      out.write(channel, bytes)
      if (out.waiting > ATTACHED_BYTES_MAX) this.detach(out.number, true)
    }
    this.#log.write(owner.guest, channel, bytes, done)
  }

  /** Input for the guest of a stream; the end of it (null). */
  input(stream: number, bytes: Buffer | null): void {
    const owner = this.#streams.get(stream)?.owner
    if (owner === undefined) return
    if (!owner.hasInput) {
      if (bytes !== null) this.#line.send({ credit: stream, bytes: bytes.length })
      return
    }
    if (bytes !== null && bytes.length > 0) (owner.given ??= []).push({ stream, left: bytes.length })
    // A copy, as posting a view posts all of its buffer.
    const copy = bytes === null ? null : new Uint8Array(bytes)
    if (owner.number === undefined) (owner.early ??= []).push(copy)
    else this.#keeper.input(owner.number, copy)
  }

  /** A guest, by its number, has read so much of its input. */
  taken(number: number, count: number): void {
    const given = this.#guests.get(number)?.given
    for (let left = count, first = given?.[0]; left > 0 && first !== undefined; first = given![0]) {
      const part = Math.min(left, first.left)
      left -= part
      first.left -= part
      if (first.left === 0) given!.shift()
      if (this.#streams.has(first.stream)) this.#line.send({ credit: first.stream, bytes: part })
    }
  }

  // It is known until all of it was sent, though its guest be gone.
  #newStream(stream: number): OutStream {
    return new OutStream(this.#line, stream, () => this.detach(stream))
  }

  #done(owner: GuestConsole, channel: 1 | 2, cost: number): void {
    const owed = owner.owed ??= [0, 0, 0]
    owed[channel] += cost
    if (owed[channel] < OUTPUT_WINDOW_BYTES_MAX / 4 || owner.number === undefined) return
    this.#keeper.credit(owner.number, channel, owed[channel])
    owed[channel] = 0
  }
}
