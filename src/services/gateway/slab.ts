// services/gateway/slab.ts: memory in which frames lie, and where frames are built.
//
// Frames are read and built in place, by offsets: no view is made for a frame. A slab has its bytes as words, too:
// checksums of bulk data are taken four bytes at a time (checksum.ts).

/** Bytes with the views that reading and building frames takes. */
export class Slab {
  readonly bytes: Buffer<ArrayBuffer>
  readonly view: DataView
  readonly words: Uint32Array

  /** `size`: rounded up to whole words. */
  constructor(size: number) {
    const memory = new ArrayBuffer((size + 3) & ~3)
    this.bytes = Buffer.from(memory)
    this.view = new DataView(memory)
    this.words = new Uint32Array(memory)
  }
}

/** Where frames go: built one at a time. */
export interface FrameSink {
  /** Where the frame that was begun lies. Another one after each `begin`. */
  readonly slab: Slab
  /** The offset at which a frame of exactly `size` bytes is to be built; -1 if there is no room for it now. */
  begin(size: number): number
  /** The frame that was begun is built. */
  end(): void
  /** No more frames for now: what was built is sent. */
  flush(): void
}

/** What takes frames that came: `from` and `to` are offsets in `slab`, whose content is theirs during the call only. */
export interface FrameTaker {
  frame(slab: Slab, from: number, to: number): void
  /** All that had come was handed over. */
  batch(): void
  /** There is room for frames again after `begin` has answered -1. */
  room(): void
  /** No frame will come any more. `why`: '' if the other side has closed. */
  ended(why: string): void
}

/** Both ways of a line of frames. */
export interface FramePort extends FrameSink {
  /** Frames that come go to `taker` from now on. */
  start(taker: FrameTaker): void
  close(): void
}

/** A line to nowhere: a gateway's until it is attached. */
export const NOWHERE: FrameSink = { slab: new Slab(0), begin: () => -1, end: () => {}, flush: () => {} }
