// host/machines.ts: what a machine is given before it starts: an engine, a folder, and descriptors that only a host has.
//
// A machine's process runs as its project's user and may open neither /dev/kvm nor a network device: the host opens them
// and hands them over. Elsewhere: which engine (machine_engine.ts), the process (machine_process.ts), the rest of a
// launch (launch.ts).

import { openSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { errnoOf, ERRNO_NAMES } from '../base/errno.ts'
import { openTap } from '../sys/tap.ts'
import { Engines, type EngineChoice } from './machine_engine.ts'
import type { Paths } from './paths.ts'
import { giveFd } from './ports.ts'
import type { ProcessHandle } from './processes.ts'
import { makeMachineFolder } from './project_folder.ts'
import type { MachineLaunch } from './protocol.ts'
import type { Guest, State } from './state.ts'

/** What a machine is told beside its spec. */
export type GivenToMachine = Omit<MachineLaunch, 'vcpus' | 'memoryBytes' | 'kernelArgs'>

type Parts = {
  readonly state: State; readonly paths: Paths
  /** Whether the image of a guest has a kernel of its own. Throws CellarError. */
  readonly hasKernel: (manifestDigest: string) => boolean
}

/** The first address of a machine on its virtual socket: those below are reserved (virtio-vsock). */
const CID_FIRST = 3

/** Gives machines what they need. */
export class Machines {
  readonly #parts: Parts
  readonly engines = new Engines()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** What runs a machine. Throws MACHINE_NO_ENGINE. */
  async engineOf({ row }: Guest): Promise<EngineChoice> {
    const { engine } = row.spec.machine!
    return await this.engines.choose(row.name, engine, this.#parts.hasKernel(row.manifestDigest))
  }

  /** Opens and hands over what the machine's process can't open. Throws CellarError, a system error. */
  async give({ row }: Guest, handle: ProcessHandle): Promise<GivenToMachine> {
    const { state, paths } = this.#parts
    const { id, project, spec, address } = row
    makeMachineFolder(paths, project, id, state.projects.get(project)?.uid ?? undefined)
    const engine = handle.engine!.name
    const hasKvm = engine === 'kvm' || await this.engines.hasKvm()
    return {
      engine, folder: paths.machine(project, id), address, cid: CID_FIRST + address,
      ...(hasKvm ? { kvm: await giveFd(handle, openKvm(row.name)) } : {}),
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
