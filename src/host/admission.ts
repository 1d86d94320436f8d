// host/admission.ts: whether the host can promise what a guest asks for: pure.
//
// CPU: reservations of guests outside of pools, and of pools, are of the host's pCPUs; a pool's cells are promised no
// more than their pool. Memory: what guests reserve is of the host's; in a pool with a limit the limits of its cells
// add up to no more than that, so that they can't outgrow it together, whatever they do. What is refused says what is
// missing. Nothing is promised twice: whoever is to run counts, whether or not it runs just now. Sums are kept, not
// made anew: a host has many guests.

import { CellarError } from '../base/errors.ts'
import { WASM_PAGE_BYTES, WASM_PAGES_MAX } from '../base/limits.ts'
import { formatSize, parseSize } from '../base/units.ts'
import { RESERVABLE } from '../sched/placement.ts'
import { cpuPart, type GuestSpec, type PoolSpec } from './spec.ts'

/** What the host has to give. */
export type Capacity = { readonly pcpus: number; readonly memoryBytes: number }

/** Sums of what is promised: of the host, or of a pool. */
export type Promised = { cpu: number; memoryBytes: number }

/** Sums of reservations such as 0.1 are off by their last bits. */
const EPSILON = 1e-9

/** Most memory that a guest may have. */
export function memoryLimit(spec: Pick<GuestSpec, 'memory'>): number {
  return spec.memory === undefined ? WASM_PAGES_MAX * WASM_PAGE_BYTES : parseSize(spec.memory)!
}

/** What a guest adds to the host's sums. Its CPU is its pool's, if it is in one. */
export function ofHost(spec: GuestSpec): Promised {
  const memory = spec['memory-reservation']
  return { cpu: spec.pool === undefined ? cpuPart(spec['cpu-reservation'], 0) : 0,
    memoryBytes: memory === undefined ? 0 : parseSize(memory)! }
}

/** What a guest adds to its pool's sums: memory up to its limit. */
export function ofPool(spec: GuestSpec): Promised {
  return { cpu: cpuPart(spec['cpu-reservation'], 0), memoryBytes: memoryLimit(spec) }
}

/**
 * Throws ADMISSION_REFUSED if the guest can't have what it asks for beside the others. `host`, `inPool`: what the
 * others are promised.
 */
export function admit(name: string, spec: GuestSpec, { host, pool, inPool, capacity }: {
  readonly host: Promised; readonly pool: PoolSpec | undefined; readonly inPool: Promised; readonly capacity: Capacity
}): void {
  const wanted = ofHost(spec)
  // A cell runs on one pCPU, and none promises all of itself.
  check(name, 'CPU on one pCPU', percent, cpuPart(spec['cpu-reservation'], 0), RESERVABLE)
  check(name, 'CPU', percent, wanted.cpu, capacity.pcpus * RESERVABLE - host.cpu)
  check(name, 'memory', formatSize, wanted.memoryBytes, capacity.memoryBytes - host.memoryBytes)
  if (pool === undefined) return
  const { cpu, memoryBytes } = ofPool(spec)
  check(name, `CPU of pool "${spec.pool}"`, percent, cpu, cpuPart(pool['cpu-reservation'], 0) - inPool.cpu)
  if (pool.memory === undefined) return
  check(name, `memory of pool "${spec.pool}"`, formatSize, memoryBytes, parseSize(pool.memory)! - inPool.memoryBytes)
}

/** Throws if a pool can't have these terms. `host`: what is promised beside this pool; `inPool`: to its cells. */
export function admitPool(name: string, pool: PoolSpec, { host, inPool, capacity }: {
  readonly host: Promised; readonly inPool: Promised; readonly capacity: Capacity
}): void {
  const cpu = cpuPart(pool['cpu-reservation'], 0)
  check(name, 'CPU', percent, cpu, capacity.pcpus * RESERVABLE - host.cpu)
  check(name, 'CPU for its cells', percent, inPool.cpu, cpu)
  if (pool.memory === undefined) return
  check(name, 'memory for its cells', formatSize, inPool.memoryBytes, parseSize(pool.memory)!)
}

function check(name: string, what: string, format: (amount: number) => string, wanted: number, left: number): void {
  if (wanted === 0 || wanted <= left + EPSILON) return
  throw new CellarError('ADMISSION_REFUSED', [name, what, format(wanted), format(Math.max(0, left))])
}

function percent(part: number): string {
  return `${Number((part * 100).toFixed(1))}% of a pCPU`
}
