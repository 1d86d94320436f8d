// host/inflow.ts: bytes of a stream from the host, as somebody reads them.

/** Bytes from the host, to be read in order; what was read is granted anew. The stream's window bounds what waits. */
export class Inflow implements AsyncIterable<Uint8Array> {
  readonly #grant: (bytes: number) => void
  #pieces: (Buffer | null)[] = []
  #wake: () => void = () => {}

  constructor(grant: (bytes: number) => void) {
    this.#grant = grant
  }

  push(bytes: Buffer | null): void {
    // A copy: it may share memory with others' bytes, which would be kept by it.
    this.#pieces.push(bytes === null ? null : Buffer.from(bytes))
    this.#wake()
  }

  cut(): void { this.push(null) }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    for (;;) {
      while (this.#pieces.length === 0) await new Promise<void>((wake) => { this.#wake = wake })
      const piece = this.#pieces.shift()!
      if (piece === null) return
      yield piece
      this.#grant(piece.length)
    }
  }
}
