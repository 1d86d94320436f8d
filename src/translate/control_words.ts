// translate/control_words.ts: where a vCPU's frames are while it leaves its stack or returns to it.
//
// The save area lies in the pCPU's control memory, which no guest can name. Unwinding and going on are one step each
// for the pCPU, so that all its cells share one area:
//
//   word 0     not 0: who runs is to look up (cell/alarm.ts has the words behind it)
//   STATE      0; UNWINDING while frames are written
//   POINTER    the first free byte of the area: frames grow upwards, the innermost first
//   BASE       where the frame that is being written begins
//   ORIGIN     1: the site's own check began it; 0: the callee unwound, and is gone on with before the site
//   FUNCS, EXTERNS    how many entries of the tables of references are in use
//   FRAMES     the frames: what is kept, by kind, then a trailer: function, site | ORIGIN << 31, size without trailer
//
// Elsewhere: the code that reads and writes it (save_area.ts), JavaScript's end (cell/save_area.ts).

/** Byte addresses in the control memory. */
export const CONTROL_STATE = 64
export const CONTROL_POINTER = 68
export const CONTROL_ORIGIN = 72
export const CONTROL_FUNCS = 76
export const CONTROL_EXTERNS = 80
export const CONTROL_BASE = 84
/** Where frames begin, and the memory's pages: what the deepest stack can come to, and more. None is touched unused. */
export const CONTROL_FRAMES = 65_536
export const CONTROL_PAGES = 1025
/** CONTROL_STATE while a vCPU leaves its stack. */
export const UNWINDING = 1
/** Bytes of a trailer. */
export const TRAILER_BYTES = 12
/** Bit of a trailer's site. */
export const ORIGIN_HERE = 0x8000_0000
/** A trailer's function is this plus a hypercall's number: the gate has written it. */
export const GATE_FRAME = 0x8000_0000
