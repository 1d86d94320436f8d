// machine/state.ts: what is left of a machine that was stopped: all that is needed to go on. Plain data.
//
// RAM and the disks that are the machine's own are one sequence of pages (64 KiB): RAM first, then the file of each
// disk, from a new page on. So one store keeps both, and what is the same is kept once. Elsewhere: how it comes about
// (engine.ts), how it is written (snapshot/format.ts).

import type { MemoryImage } from '../cell/state.ts'

/** What of a stopped machine isn't pages. */
export type MachineParts = {
  readonly engine: 'kvm' | 'qemu'
  readonly vcpus: number
  readonly ramBytes: number
  /** What the engine has saved, by name, ascending. */
  readonly sections: readonly { readonly name: string; readonly bytes: Uint8Array<ArrayBuffer> }[]
  /** Files of its own disks, in their order. */
  readonly disks: readonly { readonly name: string; readonly sizeBytes: number }[]
  /** VMGenID of the machine that was stopped. */
  readonly generation: string
}

/** A stopped machine. */
export type MachineState = { readonly machine: MachineParts; readonly memory: MemoryImage }
