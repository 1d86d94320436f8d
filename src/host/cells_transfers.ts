// host/cells_transfers.ts: snapshots on their way between a cell process and its host: bytes of streams.
//
// The folder of snapshots is the project's own, and so is what reads and writes it: the host only carries the bytes, to
// and from other hosts and registries. What comes is checked by the store; what goes is checked by who gets it.
// Streams are the host's to number, and end with its connection. Elsewhere: the host's end (transfers.ts), what the
// bytes are (snapshot/store.ts).

import { CellarError } from '../base/errors.ts'
import type { Executable } from '../cell/executable.ts'
import type { CellState } from '../cell/state.ts'
import type { Known, SnapshotStore } from '../snapshot/store.ts'
import type { Snapshots } from './cells_snapshots.ts'
import type { HostLine } from './host_line.ts'
import { Inflow } from './inflow.ts'
import type { Held, Modules } from './modules.ts'
import { OutStream } from './out_stream.ts'
import { STDOUT, type FromProcess, type ToProcess } from './protocol.ts'

type Transmit = Extract<ToProcess, { readonly transmit: string }>
type Receive = Extract<ToProcess, { readonly receive: number }>
type Answer = Omit<Extract<FromProcess, { readonly transferred: number }>, 'transferred'>

/** For how long, and of how many programs, memory is kept that the next snapshot may be like. */
const KNOWN_MS = 10_000
const KNOWN_MAX = 4

/** What a process's transfers use. */
export type TransferParts = {
  readonly line: HostLine; readonly store: SnapshotStore; readonly modules: Modules
  readonly snapshots: Pick<Snapshots, 'read'>
  /** Compiles what goes on from these frames, for when it is wanted. Throws CellarError. */
  readonly compile: (executable: Executable, frames: CellState['frames']) => void
  /** Something of ours is broken. */
  die(error: unknown): void
}

/** All transfers of a process. */
export class CellTransfers {
  readonly #parts: TransferParts
  readonly #going = new Map<number, OutStream>()
  readonly #coming = new Map<number, Inflow>()
  /** The memory of the last snapshot of each program that came: the next is like it. */
  readonly #before = new Map<string, { readonly known: Known; readonly spare: SharedArrayBuffer | undefined
    readonly timer: NodeJS.Timeout }>()

  constructor(parts: TransferParts) {
    this.#parts = parts
  }

  /** Gives a snapshot to the host. */
  transmit({ transmit, request, stream, chunks, without }: Transmit): void {
    const out = new OutStream(this.#parts.line, stream, () => this.#going.delete(stream))
    this.#going.set(stream, out)
    void this.#answer(request, async () => {
      for await (const bytes of this.#parts.store.send(transmit, this.#wanted(transmit, chunks, without))) {
        if (!this.#going.has(stream)) break
        await new Promise<void>((done) => out.write(STDOUT, bytes, done))
      }
      return {}
    }, () => out.end())
  }

  /** Takes one from the host. */
  receive({ receive: request, stream, durable, warm }: Receive): void {
    const { line, store } = this.#parts
    const flow = new Inflow((bytes) => line.send({ credit: stream, bytes }))
    this.#coming.set(stream, flow)
    const held = warm === undefined ? undefined : this.#hold(warm)
    void this.#answer(request, async () => {
      const { digest, missing } = await store.receive(flow, { durable })
      if (warm !== undefined && missing.length === 0) {
        // Of the last, the source waits for nothing but that it is there; what it sends after another would wait here.
        const prepared = this.#prepare(warm, digest)
        if (!warm.isLast) await prepared
      }
      return { snapshot: digest, missing }
    }, () => {
      this.#coming.delete(stream)
      line.send({ eof: stream })
      void held?.then((one) => { if (one !== undefined) this.#parts.modules.release(one) })
    })
  }

  /** Bytes of a stream, or its end (null): true if it is one of ours. */
  input(stream: number, bytes: Buffer | null): boolean {
    const flow = this.#coming.get(stream)
    flow?.push(bytes)
    return flow !== undefined || this.#going.has(stream)
  }

  /** The host takes so much more of a stream, or nobody is there for it any more: true if it is one of ours. */
  credit(stream: number, bytes: number): boolean {
    this.#going.get(stream)?.credit(bytes)
    return this.#going.has(stream)
  }

  detach(stream: number): boolean {
    const out = this.#going.get(stream)
    this.#going.delete(stream)
    out?.cut(false)
    const flow = this.#coming.get(stream)
    flow?.cut()
    return out !== undefined || flow !== undefined
  }

  /** The host is gone. */
  detachAll(): void {
    for (const stream of [...this.#going.keys(), ...this.#coming.keys()]) this.detach(stream)
  }

  // Chunks of the snapshot: those that somebody asks for (a stranger may ask for others'), or another doesn't have.
  #wanted(snapshot: string, chunks: readonly string[] | undefined, without: string | undefined): string[] {
    const { store } = this.#parts
    const all = (digest: string): Set<string> => new Set(store.inspect(digest).chunks.map(({ hash }) => hash))
    if (chunks !== undefined) return [...all(snapshot).intersection(new Set(chunks))]
    return [...without === undefined ? all(snapshot) : all(snapshot).difference(all(without))]
  }

  // What its start finds done: the program compiled, what goes on from such frames too, the memory read as far as it
  // isn't as it was in the last one. Whether that succeeds is the start's to tell.
  async #prepare(warm: NonNullable<Receive['warm']>, digest: string): Promise<void> {
    const { modules, snapshots, compile } = this.#parts
    const { move } = warm
    const before = this.#before.get(move)
    clearTimeout(before?.timer)
    try {
      const [read, held] = await Promise.all([snapshots.read(warm, digest, before), this.#hold(warm)])
      this.#before.delete(move)
      if (read.known !== undefined) {
        // Rounds of a move are read into two buffers in turn: nobody starts from any but the last.
        this.#before.set(move, { known: read.known, spare: before?.known.image.bytes,
          timer: setTimeout(() => this.#before.delete(move), KNOWN_MS).unref() })
      }
      if (this.#before.size > KNOWN_MAX) this.#before.delete(this.#before.keys().next().value!)
      if (held === undefined) return
      try {
        compile(held.executable, read.state.frames)
      } finally {
        modules.release(held)
      }
    } catch (error) {
      if (!(error instanceof CellarError)) this.#parts.die(error)
    }
  }

  async #hold(warm: NonNullable<Receive['warm']>): Promise<Held | undefined> {
    try {
      return await this.#parts.modules.hold(warm)
    } catch (error) {
      if (!(error instanceof CellarError)) this.#parts.die(error)
      return undefined
    }
  }

  async #answer(request: number, work: () => Promise<Answer>, end: () => void): Promise<void> {
    let answer: Answer
    try {
      answer = await work()
    } catch (error) {
      if (!(error instanceof CellarError)) return this.#parts.die(error)
      answer = { error: { code: error.code, values: error.values } }
    }
    this.#parts.line.send({ transferred: request, ...answer })
    end()
  }
}
