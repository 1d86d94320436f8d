// qemu/qemu_engine.ts: a machine run by QEMU: the engine where KVM can't run it, or where it begins with firmware.
//
// QEMU is a child of this process. It is started stopped, with every file and socket that it needs, and told over QMP
// what to do. `prepare` starts it, so that its owner can give up the right to start programs before the guest's first
// instruction: prepare → (the owner's walls) → start. Without it `start` does both.
//
//   command_line.ts  what it is told at its start   qmp.ts         what it is told then, and tells
//   qemu_process.ts  the child                      vm_state.ts    save and restore
//   disk_chain.ts    its disks' files               agent_port.ts  the line to the guest's agent
//
// RAM is always shared with QEMU: of private RAM we make a copy first (`ram`), as QEMU's balloon and free page
// reporting punch holes into the file behind it, which others have, too.

import { accessSync, closeSync, constants, fstatSync, readFileSync, readSync, writeSync } from 'node:fs'
import { Socket } from 'node:net'
import { CellarError } from '../base/errors.ts'
import { loadKernel } from '../machine/boot.ts'
import type { Engine, EngineOptions, MachineEnd, MachineFigures, Sections } from '../machine/engine.ts'
import type { MachineSpec } from '../machine/spec.ts'
import { makeRam, mapRam, unmapRam, type Mapped } from '../sys/guest_ram.ts'
import { clockGettime } from '../sys/libc.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { AgentPort } from './agent_port.ts'
import { commandLine } from './command_line.ts'
import { closeChain, openChain } from './disk_chain.ts'
import { checkVersion } from './qemu_probe.ts'
import { QemuProcess, type QemuExit } from './qemu_process.ts'
import { isObject, Qmp } from './qmp.ts'
import { checkState, giveState, Migration, prepareState, takeState } from './vm_state.ts'

/** What a QemuEngine is made with: `qemu` as probeQemu found it; 'kvm' only where KVM runs ordinary guests. */
export type QemuOptions = EngineOptions & {
  readonly qemu: { readonly path: string; readonly accelerator: 'kvm' | 'tcg' }
}

/** How long QEMU has to end by itself, with its disks flushed. */
const QUIT_MS_MAX = 3000
/** How long the last of its output is waited for. */
const OUTPUT_MS_MAX = 1000
const LOOK_MS = 5
/** Input that waits for a guest which doesn't read. */
const INPUT_BYTES_MAX = 64 * 1024
/** Lines for the log of one machine. */
const SAID_MAX = 64
const COPY_BYTES = 1024 * 1024

/** One machine under QEMU. */
export class QemuEngine implements Engine {
  readonly name = 'qemu'
  readonly ram: Uint8Array | undefined
  /** The owner's memfd, or our own copy if it was to be private; mapped here then. */
  readonly #ramFd: number
  readonly #copy: Mapped | undefined
  readonly #options: QemuOptions
  readonly #shape: readonly number[]
  readonly #machineType: string | undefined
  #process: QemuProcess | undefined
  #qmp: Qmp | undefined
  #agent: AgentPort | undefined
  #serial: Socket | undefined
  #outputs: readonly Socket[] = []
  #isHeld = false
  #migration = new Migration()
  #saved: Promise<Sections> | undefined
  #figures: MachineFigures = NOTHING_YET
  #vcpuThreads: readonly number[] | undefined
  #shutdown: string | undefined
  /** Why we have ended QEMU, if we have. */
  #fault: string | undefined
  #isLost = false
  #said = 0
  #isBegun = false
  #isClosing = false
  #isTold = false
  #isCopyGone = false
  #end: Promise<void> | undefined

  /** Throws CellarError if it is to go on from what isn't its own. */
  constructor(options: QemuOptions) {
    this.#options = options
    const { spec, from, qemu, ramFd, isRamPrivate } = options
    this.#shape = [spec.vcpus, spec.memoryBytes, spec.nics.length, spec.disks.length]
    this.#machineType = from === undefined ? undefined : checkState(spec.name, from, qemu.accelerator, this.#shape)
    this.#ramFd = isRamPrivate ? copyOf(ramFd, spec.memoryBytes) : ramFd
    this.#copy = isRamPrivate ? mapRam(this.#ramFd, spec.memoryBytes, false) : undefined
    this.ram = this.#copy?.bytes
  }

  /** Starts QEMU with the machine in it stopped. Throws CellarError. */
  prepare(): void {
    const { spec, qemu, from } = this.#options
    const disks = []
    const pairs: [number, number][] = []
    try {
      checkProgram(spec.name, qemu.path)
      if (from === undefined) checkBoot(this.#ramFd, spec)
      for (const disk of spec.disks) disks.push(openChain(disk))
      while (pairs.length < 4) pairs.push(socketPair())
      const args = commandLine({ spec, disks, accelerator: qemu.accelerator, isIncoming: from !== undefined,
        machineType: this.#machineType ?? 'q35' })
      const fds = [...pairs.map(([, theirs]) => theirs), this.#ramFd, ...spec.nics.map(({ fd }) => fd),
        ...disks.flat().map(({ fd }) => fd)]
      this.#process = new QemuProcess(qemu.path, args, fds)
    } catch (error) {
      for (const [ours] of pairs) closeFd(ours)
      throw error
    } finally {
      for (const [, theirs] of pairs) closeFd(theirs)
      for (const chain of disks) closeChain(chain)
      for (const { fd } of spec.nics) closeFd(fd)
    }
    this.#connect(pairs.map(([ours]) => ours))
    this.#end = this.#process.ended.then((exit) => this.#ended(exit))
  }

  /** QEMU's process id, once it was started. */
  get childPid(): number | undefined { return this.#process?.pid }

  async start(): Promise<void> {
    const { spec, qemu, from } = this.#options
    try {
      if (this.#process === undefined) this.prepare()
      checkVersion(qemu.path, await this.#tell((qmp) => qmp.greet()))
      await this.#tell(prepareState)
      if (from !== undefined && !await this.#tell((qmp) => giveState(qmp, this.#migration, from))) {
        throw new CellarError('SNAPSHOT_DAMAGED', [spec.name, `QEMU doesn't take it: ${await this.#lastWords()}`])
      }
      await this.#tell((qmp) => qmp.execute('cont'))
      this.#isBegun = true
      if (this.#process!.isOver) this.#tellEnd(await this.#process!.ended)
    } catch (error) {
      await this.close()
      throw error
    }
  }

  input(bytes: Uint8Array): number {
    const serial = this.#serial
    if (serial === undefined || serial.destroyed) return 0
    const taken = Math.min(bytes.length, Math.max(0, INPUT_BYTES_MAX - serial.writableLength))
    if (taken > 0) serial.write(Buffer.from(bytes.subarray(0, taken)))
    return taken
  }

  holdConsole(isHeld: boolean): void {
    this.#isHeld = isHeld
    for (const output of this.#outputs) {
      if (isHeld) output.pause()
      else output.resume()
    }
  }

  async pause(): Promise<void> {
    await this.#tell((qmp) => qmp.execute('stop'))
  }

  async resume(): Promise<void> {
    this.#saved = undefined
    await this.#tell((qmp) => qmp.execute('cont'))
  }

  /** QEMU can do it once for each time it is paused: a second call answers the same. */
  save(): Promise<Sections> {
    return this.#saved ??= this.#save()
  }

  /** QEMU doesn't say. */
  watchWrites(): boolean { return false }
  takeWritten(): Uint8Array { throw new Error('QEMU does not tell what was written') }

  powerButton(): void {
    this.#mention((qmp) => qmp.execute('system_powerdown'))
  }

  balloon(bytes: number): void {
    const value = Math.max(1, this.#options.spec.memoryBytes - bytes)
    this.#mention((qmp) => qmp.execute('balloon', { value }))
  }

  async figures(): Promise<MachineFigures> {
    try {
      if (!this.#isLost && this.#process !== undefined) this.#figures = await this.#count(this.#process.pid)
    } catch (error) {
      // It ends meanwhile, and those before are the last.
      if (!(error instanceof CellarError)) throw error
    }
    return this.#figures
  }

  async #count(pid: number): Promise<MachineFigures> {
    const { spec } = this.#options
    const [balloon, blocks, vcpuThreads] = await Promise.all([
      // Without a driver in the guest there is no balloon.
      this.#tell((qmp) => qmp.execute('query-balloon').catch(() => undefined)),
      this.#tell((qmp) => qmp.execute('query-blockstats')), this.#threads()])
    const actual = isObject(balloon) && typeof balloon.actual === 'number' ? balloon.actual : spec.memoryBytes
    const allNs = cpuNs(pid)
    // The kernel keeps it to itself where /proc isn't ours to read: then it all counts as the vCPUs'.
    const vcpuNs = vcpuThreads.reduce<number | undefined>((sum, id) => add(sum, threadNs(pid, id)), 0)
    return {
      vcpuNs: Math.min(allNs, vcpuNs ?? allNs), deviceNs: Math.max(0, allNs - (vcpuNs ?? allNs)), exits: {},
      devices: blockFigures(blocks), balloonBytes: Math.max(0, spec.memoryBytes - actual),
      residentBytes: fstatSync(this.#ramFd).blocks * 512,
    }
  }

  async close(): Promise<void> {
    this.#isClosing = true
    if (this.#process !== undefined) {
      this.#qmp!.execute('quit').catch(() => { /* Then it is killed. */ })
      const timer = setTimeout(() => this.#process!.kill(), this.#isBegun ? QUIT_MS_MAX : 0)
      await this.#end
      clearTimeout(timer)
    }
    this.#qmp?.close()
    this.#agent?.close()
    for (const output of this.#outputs) output.destroy()
    if (this.#copy !== undefined && !this.#isCopyGone) {
      this.#isCopyGone = true
      unmapRam(this.#copy)
      closeSync(this.#ramFd)
    }
  }

  #connect([qmp, serial, hvc, agent]: readonly number[]): void {
    this.#qmp = new Qmp(qmp!, {
      event: (name, data) => this.#heard(name, data),
      lost: (why) => {
        this.#isLost = true
        this.#fault = why
        this.#process!.kill()
      },
    })
    this.#agent = new AgentPort(agent!, (stream) => this.#options.events.agent(stream))
    this.#serial = new Socket({ fd: serial!, readable: true, writable: true })
    this.#outputs = [this.#serial, new Socket({ fd: hvc!, readable: true, writable: true })]
    for (const output of this.#outputs) {
      output.on('data', (bytes: Buffer) => this.#options.events.console(bytes))
      output.on('error', () => { /* 'close' follows. */ })
    }
  }

  #heard(name: string, data: Readonly<Record<string, unknown>>): void {
    if (name === 'SHUTDOWN') this.#shutdown ??= String(data.reason)
    else if (name === 'MIGRATION') this.#migration.changed(data.status)
    else if (name === 'VSERPORT_CHANGE' && data.id === 'agent') this.#agent?.changed(data.open === true)
    else if (name === 'BLOCK_IO_ERROR') {
      const [operation, node, why] = [data.operation, data['node-name'], data.reason].map((word) =>
        String(word).slice(0, 100))
      this.#say(`a ${operation} failed on ${node}: ${why}`)
    } else if (name === 'GUEST_PANICKED') this.#say('the guest\'s kernel has panicked')
  }

  #say(text: string): void {
    if (++this.#said <= SAID_MAX) this.#options.events.say(text)
  }

  async #ended(exit: QemuExit): Promise<void> {
    this.#migration.changed('failed')
    // Its last words are in the sockets still; whoever holds them back will take them later.
    const until = performance.now() + OUTPUT_MS_MAX
    while (this.#outputs.some(({ closed }) => !closed) && !this.#isClosing &&
      (this.#isHeld || performance.now() < until)) await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
    this.#agent?.close()
    if (this.#isBegun) this.#tellEnd(exit)
  }

  #tellEnd({ words, hasTripleFaulted }: QemuExit): void {
    if (this.#isTold || this.#isClosing) return
    this.#isTold = true
    this.#options.events.ended(endOf(this.#shutdown, hasTripleFaulted) ??
      { kind: 'failed', reason: `QEMU: ${this.#fault ?? words}` })
  }

  // What comes of a command; if QEMU ends or says nothing meanwhile, that, with its last words.
  async #tell<T>(command: (qmp: Qmp) => Promise<T>): Promise<T> {
    const { spec } = this.#options
    if (this.#qmp === undefined) throw new CellarError('QEMU_FAILED', [spec.name, 'it isn\'t running'])
    try {
      return await command(this.#qmp)
    } catch (error) {
      const why = this.#isLost ? await this.#lastWords() : (error as Error).message
      throw new CellarError('QEMU_FAILED', [spec.name, why], { cause: error })
    }
  }

  async #lastWords(): Promise<string> {
    const { words } = await this.#process!.ended
    return this.#fault ?? words
  }

  // For what has no answer: what goes wrong is for the log, or has ended the machine.
  #mention(command: (qmp: Qmp) => Promise<unknown>): void {
    if (this.#qmp !== undefined) command(this.#qmp).catch((error: Error) => this.#say(`QEMU: ${error.message}`))
  }

  async #save(): Promise<Sections> {
    const type = await this.#tell((qmp) => qmp.execute('qom-get', { path: '/machine', property: 'type' }))
    this.#migration = new Migration()
    return this.#tell((qmp) => takeState(qmp, this.#migration, { machineType: String(type).replace(/-machine$/, ''),
      accelerator: this.#options.qemu.accelerator, shape: this.#shape }))
  }

  async #threads(): Promise<readonly number[]> {
    if (this.#vcpuThreads !== undefined) return this.#vcpuThreads
    const cpus = await this.#tell((qmp) => qmp.execute('query-cpus-fast'))
    return this.#vcpuThreads = (Array.isArray(cpus) ? cpus : [])
      .flatMap((cpu) => isObject(cpu) && Number.isInteger(cpu['thread-id']) ? [cpu['thread-id'] as number] : [])
  }
}

const NOTHING_YET: MachineFigures =
  { vcpuNs: 0, deviceNs: 0, exits: {}, devices: {}, balloonBytes: 0, residentBytes: 0 }

/** What the reason of QEMU's SHUTDOWN means; undefined for what no guest does. */
function endOf(reason: string | undefined, hasTripleFaulted: boolean): MachineEnd | undefined {
  if (reason === 'guest-shutdown') return { kind: 'off', reason: 'poweroff' }
  if (reason === 'guest-panic') return { kind: 'crashed', reason: 'panic' }
  if (reason !== 'guest-reset') return undefined
  return hasTripleFaulted ? { kind: 'crashed', reason: 'triple-fault' } : { kind: 'reset', reason: 'reset' }
}

/** Counters of disks, from query-blockstats: their numbers are in the order of the devices' names. */
function blockFigures(answer: unknown): Record<string, Record<string, number>> {
  const devices: Record<string, Record<string, number>> = {}
  for (const block of Array.isArray(answer) ? answer : []) {
    const name = isObject(block) ? /^\/machine\/peripheral\/(blk\d)\b/.exec(String(block.qdev))?.[1] : undefined
    if (name === undefined || !isObject(block.stats)) continue
    const { stats } = block
    const count = (key: string): number => typeof stats[key] === 'number' ? stats[key] : 0
    devices[name] = { reads: count('rd_operations'), readBytes: count('rd_bytes'), writes: count('wr_operations'),
      writtenBytes: count('wr_bytes'), flushes: count('flush_operations') }
  }
  return devices
}

function add(sum: number | undefined, more: number | undefined): number | undefined {
  return sum === undefined || more === undefined ? undefined : sum + more
}

// clock_gettime(2): a process's clock is ~pid << 3 | CPUCLOCK_SCHED. It can be read of any process.
const time = new Float64Array(2)
function cpuNs(pid: number): number {
  return clockGettime((~pid << 3) | 2, time) < 0 ? 0 : time[0]! * 1e9 + time[1]!
}

// proc(5): /proc/PID/task/TID/schedstat begins with the nanoseconds that the thread ran.
function threadNs(pid: number, thread: number): number | undefined {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')[0])
  } catch {
    return undefined
  }
}

function checkProgram(name: string, path: string): void {
  try {
    accessSync(path, constants.X_OK)
  } catch (error) {
    // Node's permission model may not let us look, where the kernel lets us execute.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') return
    throw new CellarError('QEMU_MISSING', [name, `there is no ${path}`], { cause: error })
  }
}

/**
 * Throws for what doesn't boot, which QEMU would run all the same: by the loader of our own VMM, into pages that nobody
 * has but this call.
 */
function checkBoot(ramFd: number, { boot, memoryBytes }: MachineSpec): void {
  if (boot === undefined) return
  const ram = mapRam(ramFd, memoryBytes, true)
  try {
    loadKernel(ram.bytes, boot)
  } finally {
    unmapRam(ram)
  }
}

/** A memfd that holds what `fd` holds, without what is zero. */
function copyOf(fd: number, sizeBytes: number): number {
  const copy = makeRam(sizeBytes)
  const piece = Buffer.alloc(COPY_BYTES)
  const zeros = Buffer.alloc(COPY_BYTES)
  for (let at = 0; at < sizeBytes;) {
    const count = readSync(fd, piece, 0, COPY_BYTES, at)
    if (count === 0) break
    if (piece.compare(zeros, 0, count, 0, count) !== 0) writeSync(copy, piece, 0, count, at)
    at += count
  }
  return copy
}
