// host/machines.ts: what a machine is given before it starts: an engine, a folder, descriptors that only a host has.
//
// A machine's process runs as its project's user and may open neither /dev/kvm nor a network device: the host opens
// them and hands them over. Elsewhere: which engine (machine_engine.ts), the process (machine_process.ts), the rest of
// a launch (launch.ts).

import { openSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { errnoOf, ERRNO_NAMES } from '../base/errno.ts'
import type { Log } from '../base/log.ts'
import { openTap } from '../sys/tap.ts'
import { memoryLimit } from './admission.ts'
import { Cgroups } from './cgroup.ts'
import { termsOf } from './launch.ts'
import type { MachineConfig } from '../image/machine_image.ts'
import { Engines, type EngineChoice } from './machine_engine.ts'
import type { Paths } from './paths.ts'
import { giveFd, shareFd } from './ports.ts'
import type { ProcessHandle, Processes } from './processes.ts'
import { makeMachineFolder } from './project_folder.ts'
import type { MachineLaunch } from './protocol.ts'
import type { MachineTerms } from './spec.ts'
import type { Guest, State } from './state.ts'

/** What a machine is told beside its spec. */
export type GivenToMachine = Omit<MachineLaunch, 'vcpus' | 'memoryBytes' | 'kernelArgs'>

type Parts = {
  readonly state: State; readonly paths: Paths; readonly processes: Processes; readonly log: Log
  /** What the image of a machine has, by its manifest. Throws CellarError. */
  readonly imageOf: (manifestDigest: string) => MachineConfig
}

/** Changes of a project's guests are told together. */
const TELL_MS = 50
/** The first address of a machine on its virtual socket: those below are reserved (virtio-vsock). */
const CID_FIRST = 3

/** Gives machines what they need. */
export class Machines {
  readonly #parts: Parts
  readonly engines = new Engines()
  readonly #groups = new Cgroups()
  #isTold = false
  readonly #changed = new Set<string>()

  constructor(parts: Parts) {
    this.#parts = parts
    parts.state.peersChanged = (project) => {
      if (this.#changed.size === 0) setTimeout(() => this.#tellPeers(), TELL_MS).unref()
      this.#changed.add(project)
    }
  }

  /** Its share of the CPU is another from now on. */
  setTerms({ row }: Guest): void {
    if (row.spec.machine !== undefined) this.#groups.setTerms(row.id, termsOf(row.spec))
  }

  #group({ row }: Guest, { pid }: ProcessHandle): void {
    const { why } = this.#groups
    if (why !== undefined && !this.#isTold) {
      this.#isTold = true
      this.#parts.log.warn('machines have no limits and weights of CPU', { why })
    }
    try {
      this.#groups.put(row.id, pid, termsOf(row.spec), memoryLimit(row.spec))
    } catch (error) {
      this.#parts.log.warn('a machine has no limits and weights of CPU', { guest: row.id,
        why: (error as Error).message })
    }
  }

  // Machines know their peers by name, as they must answer the guest's questions at once.
  #tellPeers(): void {
    const { state } = this.#parts
    for (const project of this.#changed) {
      for (const guest of state.ofProject(project)) {
        if (guest.handle?.kind !== 'machine') continue
        guest.handle.link?.send({ peers: guest.row.id, are: state.peersOf(guest) })
      }
    }
    this.#changed.clear()
  }

  /** A process for a guest, which is counted in it at once: one of its own for a machine. Throws CellarError. */
  async take(guest: Guest, volumes: readonly string[]): Promise<ProcessHandle> {
    const { processes } = this.#parts
    const { id, project, spec: { machine } } = guest.row
    if (machine === undefined) return await processes.take(project, id, volumes)
    return await processes.takeMachine(project, id, volumes, await this.#engineOf(guest, machine.engine))
  }

  async #engineOf({ row }: Guest, wanted: MachineTerms['engine']): Promise<EngineChoice> {
    return await this.engines.choose(row.name, wanted, this.#parts.imageOf(row.manifestDigest).kernel !== undefined)
  }

  /**
   * Opens and hands over what the machine's process can't open; nothing for a cell. `ramFd`: RAM that it begins with,
   * which stays the caller's. Throws CellarError, a system error.
   */
  async give(guest: Guest, handle: ProcessHandle, ramFd?: number): Promise<GivenToMachine | undefined> {
    if (guest.row.spec.machine === undefined) return undefined
    const { state, paths } = this.#parts
    const { row } = guest
    const { id, project, spec, address } = row
    makeMachineFolder(paths, project, id, state.projects.get(project)?.uid ?? undefined)
    const engine = handle.engine!.name
    this.#group(guest, handle)
    const hasKvm = engine === 'kvm' || await this.engines.hasKvm()
    return {
      engine, egress: spec.egress, peers: state.peersOf(guest), image: this.#parts.imageOf(row.manifestDigest),
      folder: paths.machine(project, id), address, cid: CID_FIRST + address,
      ...(hasKvm ? { kvm: await giveFd(handle, openKvm(row.name)) } : {}),
      ...(ramFd === undefined ? {} : { ram: await shareFd(handle, ramFd) }),
      ...(spec.machine!.tap === undefined ? {} : { tap: await giveFd(handle, tapOf(row.name, spec.machine!.tap)) }),
    }
  }
}

function openKvm(name: string): number {
  try {
    return openSync('/dev/kvm', 'r+')
  } catch (error) {
    throw new CellarError('KVM_NOT_PERMITTED', [name, ERRNO_NAMES[errnoOf(error)] ?? 'an error'])
  }
}

function tapOf(name: string, tap: string): number {
  const fd = openTap(tap)
  if (fd < 0) throw new CellarError('MACHINE_TAP_FAILED', [name, tap, ERRNO_NAMES[-fd] ?? 'an error'])
  return fd
}
