// cell/pcpu.ts: a thread that runs cells.
//
// A pCPU holds what its cells share: the buffers of the hypercall in progress, the clocks, the loaded hypercalls. The
// foreground `cellar run` makes its main thread one; the host starts one worker for each core (pcpu_worker.ts).
// Cells take turns at hypercalls that wait, and those that are preemptible at the end of each quantum, too; any other
// guest that never waits keeps its pCPU.

import { WASM_PAGES_MAX } from '../base/limits.ts'
import { CellarError } from '../base/errors.ts'
import { hostClock, type Clock } from '../services/clock/clock.ts'
import type { Descriptor } from '../services/descriptor.ts'
import { hostEntropy } from '../services/entropy/entropy.ts'
import { Iovecs } from '../services/iovecs.ts'
import type { Lifecycle } from '../services/lifecycle/lifecycle.ts'
import type { Dialer } from '../services/net/dialer.ts'
import { RIGHTS_DIRECTORY, RIGHTS_FILE, RIGHTS_LISTENER, RIGHTS_SOCKET, RIGHTS_STREAM } from '../wasi/p1/abi.ts'
import { CONTROL_PAGES } from '../translate/control_words.ts'
import type { Turn } from '../wasi/p1/context.ts'
import { Descriptors } from '../wasi/p1/descriptors.ts'
import { Cell, type CellParts, type Origin } from './cell.ts'
import type { Executable } from './executable.ts'
import { HYPERCALL_NAMES, loadHypercalls, type Tracer } from './hypercalls.ts'

/** A folder of the host, as a guest's `guest`. */
type GrantedVolume = {
  readonly host: string; readonly guest: string; readonly readOnly: boolean
  /** Of openQuota (services/file/open_quota.ts): one for all cells of the process that have this folder. */
  readonly quota?: SharedArrayBuffer | undefined
}

/** What a guest is granted. Plain data: it can be posted to a worker. */
export type Grants = {
  readonly args: readonly string[]
  readonly env: readonly (readonly [name: string, value: string])[]
  /** Folders of the host, as the guest's `guest`. */
  readonly volumes?: readonly GrantedVolume[]
  /** Sockets to listen on, such as `tcp:127.0.0.1:8080`. */
  readonly listen?: readonly string[]
  readonly memoryPagesMax?: number
  /** Nanoseconds that the guest's clocks count in. */
  readonly clockResolution?: number
}

/** The three streams of a cell's console. */
export type Console = { readonly stdin: Descriptor; readonly stdout: Descriptor; readonly stderr: Descriptor }

/**
 * How a cell is watched and scheduled: a tracer, where its answers are counted (by HYPERCALL_NAMES), its turn; and how
 * it reaches others.
 */
export type Watch = {
  readonly tracer?: Tracer | undefined; readonly counts?: Uint32Array; readonly turn?: Turn | undefined
  readonly dialer?: Dialer | undefined
  /** Gives it more descriptors, after its folders and sockets. */
  readonly more?: ((descriptors: Descriptors) => Promise<void>) | undefined
  /** Who it is, and what it may ask of its host. */
  readonly lifecycle?: Lifecycle | undefined
  /** It goes on from there, in place of beginning. */
  readonly from?: Origin | undefined
}

/** A pCPU's control memory: shared with the thread that keeps the time (alarm.ts). */
export function newControl(): WebAssembly.Memory {
  return new WebAssembly.Memory({ initial: CONTROL_PAGES, maximum: CONTROL_PAGES, shared: true })
}

// Loaded by the first program that can be captured.
let captureOf: CellParts['captureOf']
// By the first cell that goes on from elsewhere.
let restoring: Promise<[typeof import('../wasi/p1/saved_descriptors.ts'),
  typeof import('../services/lifecycle/events.ts')]> | undefined

/** One thread's share of the hypervisor. */
export class Pcpu {
  readonly #iovecs = new Iovecs()
  readonly #clock = hostClock()
  #control: WebAssembly.Memory | undefined

  /** `control`: made by another thread. Default: made when the first cell needs it. */
  constructor(control?: WebAssembly.Memory) {
    this.#control = control
  }

  get control(): WebAssembly.Memory {
    return this.#control ??= newControl()
  }

  /**
   * Makes a cell: opens what it is granted, then its memory and instance. Nothing of the guest runs before `run`.
   * Throws CellarError, and then holds nothing.
   */
  async create(executable: Executable, grants: Grants, console: Console, watch: Watch = {}): Promise<Cell> {
    await loadHypercalls(executable.hypercalls)
    if (executable.capture?.can === true) captureOf ??= (await import('./cell_capture.ts')).captureOf
    const descriptors = new Descriptors()
    try {
      addStreams(descriptors, console)
      if (grants.volumes !== undefined && grants.volumes.length > 0) await addVolumes(descriptors, grants.volumes)
      if (grants.listen !== undefined && grants.listen.length > 0) await addListeners(descriptors, grants.listen)
      await watch.more?.(descriptors)
      if (watch.from === undefined) return this.createNow(executable, grants, descriptors, watch)
      return await this.#createFrom(watch.from, executable, grants, descriptors, watch)
    } catch (error) {
      descriptors.closeAll()
      throw error
    }
  }

  // `granted` are closed, or are the cell's.
  async #createFrom(
    origin: Origin, executable: Executable, grants: Grants, granted: Descriptors, watch: Watch,
  ): Promise<Cell> {
    restoring ??= Promise.all([import('../wasi/p1/saved_descriptors.ts'), import('../services/lifecycle/events.ts')])
    const [{ restoreDescriptors }, { restoreEvents }] = await restoring
    const { state } = origin
    if (executable.capture?.can !== true || !Number.isFinite(state.monotonicNs)) {
      throw new CellarError('SNAPSHOT_FOREIGN', [executable.capture?.can === true ? 'its clock is none'
        : 'its program can\'t be captured here'])
    }
    const { lifecycle } = watch
    const descriptors = await restoreDescriptors(state.descriptors, granted, lifecycle === undefined ? undefined
      : (is) => restoreEvents(is, lifecycle.grant))
    try {
      return this.createNow(executable, { ...grants, args: state.args,
        env: state.env.map((one) => one.split(/=(.*)/s).slice(0, 2) as [string, string]) }, descriptors, watch)
    } catch (error) {
      descriptors.closeAll()
      throw error
    }
  }

  /**
   * As `create`, with descriptors that are already open and hypercalls that are already loaded: one synchronous step.
   */
  createNow(executable: Executable, grants: Grants, descriptors: Descriptors, watch: Watch = {}): Cell {
    const { tracer, counts, turn, dialer, lifecycle, from } = watch
    const parts: CellParts = {
      args: grants.args.map(terminated),
      // Of a variable that is given twice the later counts.
      env: [...new Map(grants.env)].map(([name, value]) => terminated(`${name}=${value}`)),
      clock: this.#clockOf(grants, from),
      captureOf,
      lifecycle,
      entropy: hostEntropy,
      iovecs: this.#iovecs,
      descriptors,
      memoryPagesMax: grants.memoryPagesMax ?? WASM_PAGES_MAX,
      control: () => this.control,
      turn,
      dialer,
      tracer,
      counts: counts ?? new Uint32Array(HYPERCALL_NAMES.length),
    }
    return new Cell(executable, parts, from)
  }

  // The monotonic clock of a cell that goes on from elsewhere goes on from what it was there.
  #clockOf({ clockResolution }: Grants, from: Origin | undefined): Clock {
    if (clockResolution === undefined && from === undefined) return this.#clock
    return hostClock(clockResolution, from === undefined ? 0 : from.state.monotonicNs - this.#clock.monotonic())
  }
}

/** How long a guest's end is held back for its peers to take what it has sent. */
const FLUSH_MS_MAX = 1000

/** Resolves when what a guest with these grants has sent is with its peers, or they had their time. Before an exit. */
export async function flushed({ listen }: Grants): Promise<void> {
  if (listen !== undefined && listen.length > 0) await (await import('../services/net/connection.ts')).flushed(
    FLUSH_MS_MAX)
}

/** Gives the cell descriptors 0, 1 and 2. */
export function addStreams(descriptors: Descriptors, { stdin, stdout, stderr }: Console): void {
  for (const descriptor of [stdin, stdout, stderr]) {
    descriptors.add({ descriptor, rightsBase: RIGHTS_STREAM, rightsInheriting: 0, flags: 0 })
  }
}

async function addVolumes(descriptors: Descriptors, volumes: NonNullable<Grants['volumes']>): Promise<void> {
  const { openVolume } = await import('../services/file/volume.ts')
  for (const { host, guest, readOnly, quota } of volumes) {
    // A read-only volume has every right, too: the file service answers EROFS. Programs would take a right that is
    // withheld for one that they needn't ask for, and be told only when they write.
    descriptors.add({
      descriptor: openVolume(host, { readOnly, quota }),
      rightsBase: RIGHTS_DIRECTORY,
      rightsInheriting: RIGHTS_DIRECTORY | RIGHTS_FILE,
      flags: 0,
      preopen: new TextEncoder().encode(guest),
    })
  }
}

async function addListeners(descriptors: Descriptors, specs: readonly string[]): Promise<void> {
  const { listen } = await import('../services/net/listener.ts')
  for (const spec of specs) {
    descriptors.add({ descriptor: await listen(spec), rightsBase: RIGHTS_LISTENER, rightsInheriting: RIGHTS_SOCKET,
      flags: 0 })
  }
}

function terminated(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\0`)
}
