// host/machine_snapshots.ts: what is saved of a machine, and what one goes on from.
//
//   capture, then resume   stopped → copied → runs on → its snapshot is written → `captured`
//   capture, then hold     stopped → copied → its snapshot is written → `captured` → until `go` or `release`
//   fork                   stopped → RAM, disks and state copied for its children → runs on → `captured`
//
// One after the other. A snapshot has RAM, the disks that are the machine's own, and what its engine has saved; volumes
// stay where they are. A fork's children have processes of their own: RAM is copied into a memfd that the host has made
// and gives to each, which shares it until it writes; the rest lies in each child's folder. As with cells, a host that
// has gone before it was told has decided nothing: the machine goes on. Elsewhere: pages (machine/pages.ts), files
// (snapshot/store.ts), how streams get to and from other hosts (cells_transfers.ts, in a cell process).

import { randomBytes } from 'node:crypto'
import { constants, copyFileSync, existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { WASM_PAGE_BYTES } from '../base/limits.ts'
import { nowNs } from '../base/stopwatch.ts'
import type { Engine, Sections } from '../machine/engine.ts'
import {
  closePages, copyRam, copyWritten, copyWrittenRam, heldCopy, openPages, putPages, takePages, type PageSource,
} from '../machine/pages.ts'
import type { MachineParts, MachineState } from '../machine/state.ts'
import type { SnapshotMeta } from '../snapshot/format.ts'
import type { Known, SnapshotStore } from '../snapshot/store.ts'
import { makeRam } from '../sys/guest_ram.ts'
import { closeFd, type FdReceiver } from '../sys/sockets.ts'
import type { HostLine } from './host_line.ts'
import { diskFiles } from './machine_parts.ts'
import { readForked, writeForked } from './machine_forked.ts'
import { Requests } from './machine_requests.ts'
import type { GuestLaunch, ToProcess, Written } from './protocol.ts'

type Capture = Extract<ToProcess, { readonly capture: string }>
type Fork = Extract<ToProcess, { readonly forkMachine: string }>

/** A machine that can be captured now. */
export type Capturable = { readonly engine: Engine; readonly ramFd: number; readonly isPaused: boolean }

/** What a machine goes on from. */
export type Restored = { readonly sections: Sections; readonly ramFd: number; readonly isRamPrivate: boolean }

/** What captures of a machine work with. */
export type MachineSnapshotParts = {
  readonly line: HostLine; readonly store: SnapshotStore; readonly receiver: FdReceiver
  /** undefined: it has ended, or has not begun. */
  machine(): Capturable | undefined
  /** It is given up: it goes on elsewhere. */
  release(): void
  /** It is held, or isn't any more. */
  rest(): void
  die(error: unknown): void
}

/** A machine that stands still since `began`, copied: pages are made of that while it runs on. */
type Stopped = { readonly engine: Engine; readonly wasPaused: boolean; readonly began: number
  readonly state: { readonly machine: MachineParts; readonly sources: readonly PageSource[] } }

/** Captures of one machine. */
export class MachineSnapshots {
  readonly requests: Requests
  /** The version of the host: what snapshots say that took them. */
  cellar = ''
  /** VMGenID: another one after each fork and restore. */
  generation = randomBytes(16).toString('hex')
  isHeld = false
  readonly #launch: GuestLaunch
  readonly #parts: MachineSnapshotParts
  #work: Promise<unknown> = Promise.resolve()
  #known: Known | undefined
  #isOver = false

  constructor(launch: GuestLaunch, parts: MachineSnapshotParts) {
    this.#launch = launch
    this.#parts = parts
    this.requests = new Requests(launch, parts.line)
  }

  /** What the host says of it. */
  heard(message: ToProcess): void {
    if ('capture' in message) this.#answer(message.request, async (isAsked) => await this.#capture(message, isAsked))
    else if ('forkMachine' in message) this.#answer(message.request, async () => await this.#fork(message))
    else if ('go' in message) void this.#goOn()
    else if ('release' in message && this.isHeld) {
      this.#isOver = true
      this.#parts.release()
    }
  }

  hostGone(): void {
    this.requests.hostGone()
  }

  close(): void {
    this.#isOver = true
    this.#known = undefined
    this.requests.hostGone()
  }

  /** RAM and state of what the machine goes on from; its disks are in their places then. Throws CellarError. */
  async read(from: NonNullable<GuestLaunch['from']>): Promise<Restored> {
    const { machine, module, name } = this.#launch
    if (from.snapshot === '') {
      const forked = readForked(this.#launch)
      const ramFd = this.#parts.receiver.take(machine!.ram ?? -1)
      if (ramFd === undefined) throw new CellarError('CAPTURE_ENDED', [name])
      return { sections: forked, ramFd, isRamPrivate: true }
    }
    const { state } = await this.#parts.store.readMachine(from.snapshot, { module })
    this.#checkLike(state)
    const ramFd = makeRam(state.machine.ramBytes)
    try {
      putPages(state.memory, 0, { fd: ramFd, sizeBytes: state.machine.ramBytes })
      let first = state.machine.ramBytes / WASM_PAGE_BYTES
      for (const disk of state.machine.disks) {
        this.#putDisk(state, disk, first)
        first += Math.ceil(disk.sizeBytes / WASM_PAGE_BYTES)
      }
    } catch (error) {
      closeFd(ramFd)
      throw diskFull(error, `restore "${name}"`)
    }
    if (from.event === 'wake' || from.event === 'migrate') this.generation = state.machine.generation
    const sections = new Map(state.machine.sections.map((section) => [section.name, section.bytes]))
    return { sections, ramFd, isRamPrivate: false }
  }

  #checkLike({ machine }: MachineState): void {
    const { engine, vcpus, memoryBytes } = this.#launch.machine!
    const foreign = (why: string): CellarError => new CellarError('SNAPSHOT_FOREIGN', [why])
    if (machine.engine !== engine) throw foreign(`its machine ran under ${machine.engine}, this one is under ${engine}`)
    if (machine.vcpus !== vcpus) throw foreign(`its machine has ${machine.vcpus} vCPUs, this one has ${vcpus}`)
    if (machine.ramBytes !== memoryBytes) throw foreign(`its RAM has ${machine.ramBytes} bytes, not ${memoryBytes}`)
    const names = diskFiles(this.#launch).map(({ name }) => name).join()
    if (machine.disks.map(({ name }) => name).join() !== names) throw foreign('its disks are others')
  }

  #putDisk(state: MachineState, { name, sizeBytes }: MachineState['machine']['disks'][number], first: number): void {
    const { path } = diskFiles(this.#launch).find((one) => one.name === name)!
    rmSync(path, { force: true })
    const { fd } = openPages(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL)
    try {
      putPages(state.memory, first, { fd, sizeBytes })
    } finally {
      closeFd(fd)
    }
  }

  // ---- captures

  async #capture({ next, durable, spec }: Capture, isAsked: () => boolean): Promise<Written> {
    const { store, rest } = this.#parts
    const { state, wasPaused, engine, began } = await this.#stopped()
    if (next === 'hold') {
      this.isHeld = true
      rest()
    } else if (!wasPaused) await engine.resume()
    const stoppedNs = nowNs() - began
    try {
      const { module, name, from } = this.#launch
      const meta: SnapshotMeta = { kind: 'machine', module, guest: name, spec: spec ?? null, createdAt: Date.now(),
        cellar: this.cellar, ...(from === undefined || from.snapshot === '' ? {} : { parent: from.snapshot }) }
      const whole = { machine: state.machine, memory: takePages(state.sources) }
      const { known, digest, ...sizes } = await store.write(meta, whole, { durable, known: this.#known })
      this.#known = known
      if (next === 'hold' && this.#isOver) throw new CellarError('CAPTURE_ENDED', [name])
      if (next === 'hold' && !isAsked()) await this.#goOn()
      const { memoryBytes, newBytes, storedBytes, chunks, newChunks } = sizes
      return { snapshot: digest, memoryBytes, newBytes, storedBytes, chunks, newChunks,
        stoppedNs: next === 'hold' ? nowNs() - began : stoppedNs }
    } catch (error) {
      await this.#goOn()
      throw error
    }
  }

  async #fork({ ram, children }: Fork): Promise<undefined> {
    const { receiver } = this.#parts
    const ramFd = receiver.take(ram)
    if (ramFd === undefined) throw new CellarError('CAPTURE_ENDED', [this.#launch.name])
    try {
      const { engine, wasPaused, ramFd: own } = await this.#pause()
      const source = this.#ramOf(engine, own)
      const isCopied = !wasPaused && await this.#meanwhile(engine, () => copyRam(source, ramFd))
      try {
        const sections = await engine.save()
        if (isCopied) copyWrittenRam(source, engine.takeWritten(), ramFd)
        else copyRam(source, ramFd)
        for (const { folder } of children) {
          for (const { path, name } of diskFiles(this.#launch)) {
            if (existsSync(path)) copyFileSync(path, join(folder, name), constants.COPYFILE_FICLONE)
          }
          writeForked(folder, sections)
        }
      } finally {
        if (!wasPaused && !this.#isOver) await engine.resume()
      }
    } catch (error) {
      throw diskFull(error, `fork "${this.#launch.name}"`)
    } finally {
      closeFd(ramFd)
    }
  }

  async #pause(): Promise<{ engine: Engine; wasPaused: boolean; ramFd: number }> {
    const { name } = this.#launch
    const machine = this.#parts.machine()
    if (machine === undefined || this.#isOver) throw new CellarError('CAPTURE_ENDED', [name])
    if (this.isHeld) throw new CellarError('CAPTURE_IMPOSSIBLE', [name, 'it is held, and saved already'])
    const { engine, isPaused, ramFd } = machine
    if (!isPaused) await engine.pause()
    return { engine, wasPaused: isPaused, ramFd }
  }

  // Most of RAM is copied while the machine runs, where its engine knows what is written meanwhile: it stands still for
  // that and its disks only. False: nothing was done, as the engine doesn't know.
  async #meanwhile(engine: Engine, copy: () => void): Promise<boolean> {
    if (!engine.watchWrites()) return false
    await engine.resume()
    copy()
    // It may have ended since.
    if (this.#parts.machine()?.engine !== engine) throw new CellarError('CAPTURE_ENDED', [this.#launch.name])
    await engine.pause()
    return true
  }

  async #stopped(): Promise<Stopped> {
    let began = nowNs()
    const { engine, wasPaused, ramFd } = await this.#pause()
    const { engine: name, vcpus, memoryBytes: ramBytes } = this.#launch.machine!
    const files: { name: string; source: PageSource }[] = []
    try {
      const source = this.#ramOf(engine, ramFd)
      let ram: PageSource | undefined
      if (!wasPaused && await this.#meanwhile(engine, () => { ram = heldCopy(source) })) began = nowNs()
      const sections = [...await engine.save()]
        .map(([section, bytes]) => ({ name: section, bytes: Uint8Array.from(bytes) }))
        .sort((a, b) => a.name < b.name ? -1 : 1)
      for (const disk of diskFiles(this.#launch)) {
        files.push({ name: disk.name, source: openPages(disk.path, constants.O_RDONLY) })
      }
      ram = ram === undefined ? heldCopy(source) : copyWritten(source, engine.takeWritten(), ram)
      const sources = [ram, ...files.map((file) => heldCopy(file.source))]
      const disks = files.map((file) => ({ name: file.name, sizeBytes: file.source.sizeBytes }))
      return { engine, wasPaused, began, state: { sources,
        machine: { engine: name, vcpus, ramBytes, sections, disks, generation: this.generation } } }
    } catch (error) {
      if (!wasPaused && !this.#isOver) await engine.resume().catch(() => {})
      throw error
    } finally {
      for (const { source } of files) closePages(source)
    }
  }

  #ramOf({ ram }: Engine, fd: number): PageSource {
    return { fd, sizeBytes: this.#launch.machine!.memoryBytes, mapped: ram }
  }

  async #goOn(): Promise<void> {
    if (!this.isHeld || this.#isOver) return
    this.isHeld = false
    this.#parts.rest()
    const machine = this.#parts.machine()
    if (machine !== undefined && !machine.isPaused) await machine.engine.resume()
  }

  // What the work results in is told to the host that has asked.
  #answer(request: number, work: (isAsked: () => boolean) => Promise<Written | undefined>): void {
    const { line, die } = this.#parts
    const { id, name } = this.#launch
    const host = line.connections
    const isAsked = (): boolean => line.isConnected && line.connections === host
    const doing = this.#work.then(() => work(isAsked))
    this.#work = doing.then(() => {}, () => {})
    doing.then((written) => {
      if (isAsked()) line.send({ captured: request, id, ...(written === undefined ? {} : { written }) })
    }, (error: unknown) => {
      const known = error instanceof CellarError ? error : error instanceof Error && 'syscall' in error
        ? new CellarError('PROCESS_LOST', [name, error.message]) : undefined
      if (known === undefined) return die(error)
      if (isAsked()) line.send({ captured: request, id, error: { code: known.code, values: known.values } })
    })
  }
}

// What is half-written then is removed with its guest, or written anew.
function diskFull(error: unknown, what: string): unknown {
  return (error as NodeJS.ErrnoException).code === 'ENOSPC' ? new CellarError('HOST_DISK_FULL', [what]) : error
}

