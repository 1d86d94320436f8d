// host/cgroup.ts: what of the CPU a machine's process gets: a cgroup (version 2) for each, where the host may make one.
//
// A machine's vCPUs are threads that the kernel schedules, beside the pCPUs of cell processes. Shares are the kernel's
// own weights, on the same scale (1 to 10,000, 100 if nothing is said); a limit is `cpu.max`; a reservation is kept by
// admission and, under full load, by weights only. Without cgroups v2, or without root, machines share the CPU as any
// processes do, and the host's log says so once.
//
//   /sys/fs/cgroup/cellar/machine-ID     one for each machine that runs; empty ones are swept

import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Terms } from '../sched/node.ts'

const ROOT = '/sys/fs/cgroup'
const PREFIX = 'machine-'
const PERIOD_US = 100_000
/** The smallest that the kernel takes for cpu.max. */
const QUOTA_US_MIN = 1000
/** What a machine's process may have beside RAM: Node, QEMU, what is on its way. */
const OVERHEAD_BYTES = 1024 * 1024 * 1024

/** The groups of all machines of a host. */
export class Cgroups {
  readonly #folder: string
  #why: string | undefined | null = null

  /** `root`: tests have one of their own. */
  constructor(root = ROOT) {
    this.#folder = join(root, 'cellar')
  }

  /** Why there are none; undefined: there are. */
  get why(): string | undefined {
    if (this.#why === null) this.#why = this.#prepare()
    return this.#why
  }

  /** Puts a process, and what it starts from now on, into the group of a machine. */
  put(id: string, pid: number, terms: Terms, ramBytes: number): void {
    if (this.why !== undefined) return
    this.#sweep()
    const group = this.#of(id)
    mkdirSync(group, { recursive: true })
    this.setTerms(id, terms)
    write(group, 'memory.max', String(ramBytes + OVERHEAD_BYTES))
    writeFileSync(join(group, 'cgroup.procs'), String(pid))
  }

  /** Gives a machine's group other terms; nothing if it has none. */
  setTerms(id: string, { shares, limit }: Terms): void {
    const group = this.#of(id)
    if (!existsSync(group)) return
    write(group, 'cpu.weight', String(shares))
    write(group, 'cpu.max', Number.isFinite(limit)
      ? `${Math.max(QUOTA_US_MIN, Math.round(limit * PERIOD_US))} ${PERIOD_US}` : `max ${PERIOD_US}`)
  }

  #of(id: string): string {
    return join(this.#folder, PREFIX + id)
  }

  // The root group may have processes and controllers for its children at once; no other may.
  #prepare(): string | undefined {
    try {
      const root = join(this.#folder, '..')
      const has = readFileSync(join(root, 'cgroup.controllers'), 'utf8').trim().split(' ')
      if (!has.includes('cpu')) return 'cgroup v2 has no CPU controller here'
      const wanted = ['cpu', 'memory'].filter((one) => has.includes(one)).map((one) => `+${one}`).join(' ')
      writeFileSync(join(root, 'cgroup.subtree_control'), wanted)
      mkdirSync(this.#folder, { recursive: true })
      writeFileSync(join(this.#folder, 'cgroup.subtree_control'), wanted)
      return undefined
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      return code === 'ENOENT' ? 'there is no cgroup v2 at /sys/fs/cgroup' : message
    }
  }

  // A group that has processes can't be removed.
  #sweep(): void {
    for (const name of readdirSync(this.#folder)) {
      if (!name.startsWith(PREFIX)) continue
      try {
        rmdirSync(join(this.#folder, name))
      } catch { /* Its machine runs. */ }
    }
  }
}

// A controller that isn't there has no file.
function write(group: string, file: string, value: string): void {
  if (existsSync(join(group, file))) writeFileSync(join(group, file), value)
}
