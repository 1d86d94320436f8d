// host/complete.ts: a guest's spec with what its image adds to it, and what doesn't fit that image refused: pure.
//
// What is a machine is said by the image. Its spec has `machine`, and a size of memory, from then on; whoever compares
// specs compares completed ones.

import { CellarError } from '../base/errors.ts'
import { MACHINE_MEMORY_BYTES_MIN, MACHINE_PAGES_MAX, WASM_PAGE_BYTES } from '../base/limits.ts'
import { formatSize, parseSize } from '../base/units.ts'
import { MACHINE, type GuestSpec } from './spec.ts'

/** What of an image matters here. `machine`: it is one; `memory`: what it suggests, such as '256MiB'. */
export type OfImage = { readonly machine?: { readonly memory?: string | undefined } | undefined }

/** A machine's memory, if neither its spec nor its image says. */
const MEMORY_DEFAULT = '256MiB'
/** What engines map as large pages. */
const MEMORY_STEP_BYTES = 2 * 1024 * 1024
const MEMORY_BYTES_MAX = MACHINE_PAGES_MAX * WASM_PAGE_BYTES

/** Fields that only cells have, and how to see that they are used. */
const CELL_ONLY: readonly (readonly [field: keyof GuestSpec, isUsed: (spec: GuestSpec) => boolean])[] = [
  ['stubs', ({ stubs }) => stubs.length > 0], ['calls', ({ calls }) => calls !== undefined],
  ['deterministic', ({ deterministic }) => deterministic === true],
  ['unbounded', ({ unbounded }) => unbounded === true], ['connect', ({ connect }) => connect.length > 0],
  ['files', ({ files }) => Object.keys(files).length > 0],
]

/** The spec as it is kept. Throws MACHINE_WORD, CELL_WORD, GUEST_UNSUPPORTED. */
export function complete(name: string, spec: GuestSpec, { machine }: OfImage): GuestSpec {
  if (machine === undefined) {
    if (spec.machine !== undefined) throw new CellarError('CELL_WORD', [name, 'machine'])
    return spec
  }
  for (const [field, isUsed] of CELL_ONLY) if (isUsed(spec)) throw new CellarError('MACHINE_WORD', [name, field])
  const memory = spec.memory ?? machine.memory ?? MEMORY_DEFAULT
  const bytes = parseSize(memory)!
  if (bytes < MACHINE_MEMORY_BYTES_MIN || bytes > MEMORY_BYTES_MAX || bytes % MEMORY_STEP_BYTES !== 0) {
    throw new CellarError('GUEST_UNSUPPORTED', [name, `its memory must be ${formatSize(MACHINE_MEMORY_BYTES_MIN)} to ${
      formatSize(MEMORY_BYTES_MAX)} in steps of ${formatSize(MEMORY_STEP_BYTES)}, but is "${memory}"`])
  }
  return { ...spec, memory, machine: spec.machine ?? MACHINE.parse({}) }
}
