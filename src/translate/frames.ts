// translate/frames.ts: the frames of a vCPU that has left its stack, as they lie in the save area (save_area.ts).

import { GATE_FRAME, ORIGIN_HERE, TRAILER_BYTES } from './control_words.ts'

/** A frame. `here`: the site's own check began the unwinding. `at`: of its first byte; `size`: without the trailer. */
export type Frame = {
  readonly func: number; readonly site: number; readonly here: boolean; readonly at: number; readonly size: number
}

/** The frames don't fit the module. */
export class BadFrames extends Error {
  override readonly name = 'BadFrames'
}

/** Most frames of a vCPU: its stack has less room. */
const FRAMES_MAX = 1_000_000

/** All frames, outermost first. Throws BadFrames. */
export function framesOf(bytes: Uint8Array): Frame[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const frames: Frame[] = []
  for (let end = bytes.length; end > 0;) {
    if (end < TRAILER_BYTES || frames.length === FRAMES_MAX) throw new BadFrames(`they break off at byte ${end}`)
    const size = view.getUint32(end - 4, true)
    const at = end - TRAILER_BYTES - size
    if (at < 0) throw new BadFrames(`a frame of ${size} bytes ends at byte ${end}`)
    const site = view.getUint32(end - 8, true)
    const func = view.getUint32(end - 12, true)
    const frame = { func, site: site % ORIGIN_HERE, here: site >= ORIGIN_HERE, at, size }
    // The innermost is where the stack began to be left, and no other is.
    if ((frame.here || frame.func >= GATE_FRAME) !== (at === 0)) throw new BadFrames('a frame calls none, or nobody')
    frames.push(frame)
    end = at
  }
  return frames
}

/** What tells continuations apart. */
export function keyOf({ func, site, here }: Frame): string {
  return `${func} ${site}${here ? ' here' : ''}`
}

/** One frame for each key, ordered by it: so are the functions of a continuation module. */
export function distinct(frames: readonly Frame[]): Frame[] {
  const byKey = new Map(frames.map((frame) => [keyOf(frame), frame]))
  return [...byKey].sort(([a], [b]) => a < b ? -1 : 1).map(([, frame]) => frame)
}

/** Names the function that goes on with each frame, in place of the one that it is of. */
export function link(bytes: Uint8Array, frames: readonly Frame[]): void {
  const numbers = new Map(distinct(frames).map((frame, i) => [keyOf(frame), i]))
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  for (const frame of frames) view.setUint32(frame.at + frame.size, numbers.get(keyOf(frame))!, true)
}
