// cell/trap.ts: what a trap was, in the words of the program's author.
//
// V8 reports a trap as a RuntimeError whose stack has the guest's frames:
//     at divide (wasm://wasm/trap.wasm-0a1b2c3d:wasm-function[7]:0x1f3)
// Names come from the module's name section. Offsets are bytes in the prepared module, and are mapped back to the file.

import { TRAP_FRAMES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { CONTINUATION_NAME } from '../translate/added_names.ts'
import type { Executable } from './executable.ts'
import { GATE_NAME } from './gate.ts'

/** A guest's frame, innermost first. `offset` is a byte offset in the program's file, if it is known. */
export type Frame = { readonly name: string; readonly index: number; readonly offset: number | undefined }

/** The guest did what WebAssembly doesn't allow, or called what it hasn't got. */
export type Trap = { readonly kind: 'trap'; readonly reason: string; readonly frames: readonly Frame[] }

Error.stackTraceLimit = Math.max(Error.stackTraceLimit, TRAP_FRAMES_MAX)

const FRAME = /^\s*at (?:(.+) \()?wasm:\/\/wasm\/(?:(.*)-)?[0-9a-f]+:wasm-function\[(\d+)\]:0x([0-9a-f]+)\)?$/

/** The trap behind an exception that left the guest. `stub` is the name of a stub that it called, if it did. */
export function describeTrap(error: unknown, stub: string | undefined, executable: Executable): Trap {
  return {
    kind: 'trap',
    reason: stub === undefined ? reasonOf(error) : `called ${printable(stub)}, which is a stub`,
    frames: framesOf((error as Error | undefined)?.stack ?? '', executable.codeOffsetDelta),
  }
}

function reasonOf(error: unknown): string {
  if (error instanceof WebAssembly.RuntimeError) return error.message
  if (error instanceof RangeError) return 'call stack exhausted'
  if (error instanceof WebAssembly.Exception) return 'exception not caught'
  return String(error)
}

function framesOf(stack: string, delta: number | undefined): Frame[] {
  const frames: Frame[] = []
  for (const line of stack.split('\n')) {
    const match = FRAME.exec(line)
    if (match === null) continue
    const [, name = '', module = '', index, offset] = match
    // A stub traps in the gate, and a guest that recurses may find the end of the stack there.
    if (module === GATE_NAME) continue
    if (module === CONTINUATION_NAME) {
      frames.push(...continued(name))
      continue
    }
    // V8 writes MODULE.FUNCTION if the name section names the module, too.
    const own = name.startsWith(`${module}.`) ? name.slice(module.length + 1) : name
    const at = delta === undefined ? undefined : Number.parseInt(offset!, 16) - delta
    frames.push({ name: printable(own), index: Number(index), offset: at })
  }
  return frames.slice(0, TRAP_FRAMES_MAX)
}

// A function that goes on with the guest's; others of that module are ours. Where in it that was isn't known.
function continued(name: string): Frame[] {
  const [, index, own] = /^(?:.*\.)?(\d+) (.*)$/.exec(name) ?? []
  return index === undefined ? [] : [{ name: printable(own!), index: Number(index), offset: undefined }]
}
