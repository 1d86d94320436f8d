// wasi/p1/test_support.ts: a cell's context without a cell, for tests of hypercalls on files.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isSupported } from '../../sys/libc.ts'
import { newQuota } from '../../services/file/quota.ts'
import { openVolume } from '../../services/file/volume.ts'
import { GuestFault, GuestMemory } from '../../services/guest_memory.ts'
import { Iovecs } from '../../services/iovecs.ts'
import { EFAULT } from '../../base/errno.ts'
import * as abi from './abi.ts'
import { Context, WAIT, type Hypercall } from './context.ts'
import { Descriptors } from './descriptors.ts'

/** Why these tests can't run here, or false. */
export const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

/** The number of the granted folder. */
export const ROOT = 0

/** Where results go, and where guest pointers stop being good. */
export const OUT = 64
export const BUFFER = 8192
export const MEMORY_BYTES = 65_536

/** A guest with one granted folder, which is removed afterwards. */
export class Guest {
  readonly host = mkdtempSync(join(tmpdir(), 'cellar-p1-'))
  readonly memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
  readonly descriptors = new Descriptors()
  readonly context: Context
  #at = 1024

  constructor(grant: { readOnly?: boolean; base?: number; inheriting?: number; sizeBytes?: number } = {}) {
    const quota = grant.sizeBytes === undefined ? undefined : newQuota(grant.sizeBytes, 0)
    this.descriptors.add({
      descriptor: openVolume(this.host, { readOnly: grant.readOnly ?? false, quota }),
      rightsBase: grant.base ?? abi.RIGHTS_DIRECTORY,
      rightsInheriting: grant.inheriting ?? abi.RIGHTS_DIRECTORY | abi.RIGHTS_FILE,
      flags: 0,
    })
    const unused = undefined as never
    this.context = new Context({
      memory: this.memory, descriptors: this.descriptors, args: [], env: [], clock: unused, entropy: unused,
      iovecs: new Iovecs(),
    })
  }

  /** Puts `text` into memory: [pointer, length], as paths are given. */
  text(text: string): [number, number] {
    const bytes = new TextEncoder().encode(text)
    const at = this.#at
    this.memory.bytes.set(bytes, at)
    this.#at += bytes.length
    return [at, bytes.length]
  }

  path(...names: string[]): string { return join(this.host, ...names) }

  [Symbol.dispose](): void {
    this.descriptors.closeAll()
    rmSync(this.host, { recursive: true, force: true })
  }
}

/** A cell's context with only what a test gives it, and MEMORY_BYTES of memory. */
export function contextOf(parts: Partial<ConstructorParameters<typeof Context>[0]> = {}): Context {
  const unused = undefined as never
  const memory = new GuestMemory(new WebAssembly.Memory({ initial: 1 }))
  return new Context({
    memory, descriptors: new Descriptors(), args: [], env: [], clock: unused, entropy: unused, iovecs: new Iovecs(),
    ...parts,
  })
}

/** What the gate does: tries, and parks the vCPU as long as the answer is WAIT. */
export async function called(context: Context, hypercall: Hypercall, ...args: number[]): Promise<number> {
  for (;;) {
    const answer = hypercall(context, ...args)
    if (answer !== WAIT) return answer
    await context.parked()
  }
}

/** What the dispatcher makes of a hypercall: a GuestFault is EFAULT. */
export function answered(call: () => number): number {
  try {
    return call()
  } catch (error) {
    if (error instanceof GuestFault) return EFAULT
    throw error
  }
}
