// qemu/vm_state.ts: the state of a stopped QEMU beside its RAM, as sections, and back.
//
//   qemu/machine   u16 version, then JSON: what QEMU, which machine
//   qemu/vmstate   u16 version, then QEMU's own migration stream, without RAM
//
// RAM is a memfd of ours, shared with QEMU: with `x-ignore-shared` it is left out. The stream is QEMU's to understand,
// and QEMU trusts it more than it should: it is checked here for its size, and for being of a machine like this one;
// a state that somebody has made up harms the QEMU that reads it, in its jail.

import { Socket } from 'node:net'
import { CellarError } from '../base/errors.ts'
import { MACHINE_SECTION_BYTES_MAX } from '../base/limits.ts'
import type { Sections } from '../machine/engine.ts'
import { closeFd, socketPair } from '../sys/sockets.ts'
import { isObject, type Qmp } from './qmp.ts'

/** What the state is of. Another QEMU may be newer, within what its machine types promise. */
export type SavedMachine = {
  /** A version of q35, such as 'pc-q35-7.2'. */
  readonly machineType: string
  readonly accelerator: 'kvm' | 'tcg'
  /** vCPUs, bytes of RAM, network cards and disks. */
  readonly shape: readonly number[]
}

const VERSION = 1
const VERSION_BYTES = 2
const MACHINE_BYTES_MAX = 1024
const MACHINE = 'qemu/machine'
const VMSTATE = 'qemu/vmstate'
const MACHINE_TYPE = /^pc-q35-\d{1,2}\.\d{1,2}$/

/** What must be set in both QEMUs, before anything moves. */
export async function prepareState(qmp: Qmp): Promise<void> {
  await qmp.execute('migrate-set-capabilities', { capabilities: ['x-ignore-shared', 'events']
    .map((capability) => ({ capability, state: true })) })
}

/** Tells how a migration goes: `changed` is given what QEMU says of it. */
export class Migration {
  readonly #done = Promise.withResolvers<boolean>()

  /** Of the event MIGRATION. */
  changed(status: unknown): void {
    if (status === 'completed') this.#done.resolve(true)
    if (status === 'failed' || status === 'cancelled') this.#done.resolve(false)
  }

  /** True if it came to its end, false if it failed, also because QEMU has ended. */
  get done(): Promise<boolean> { return this.#done.promise }
}

/** Takes the state of a stopped machine. */
export async function takeState(qmp: Qmp, migration: Migration, machine: SavedMachine): Promise<Sections> {
  const [ours, theirs] = socketPair()
  const stream = new Socket({ fd: ours, readable: true, writable: true })
  const collected = collect(stream)
  try {
    try {
      await qmp.pass('state', theirs)
    } finally {
      closeFd(theirs)
    }
    await qmp.execute('migrate', { uri: 'fd:state' })
    const isDone = await Promise.race([migration.done, collected.then(() => migration.done)])
    if (!isDone) throw new Error(await reasonOf(qmp))
    return new Map([[MACHINE, versioned(Buffer.from(JSON.stringify(machine)))], [VMSTATE, versioned(await collected)]])
  } finally {
    stream.destroy()
    collected.catch(() => { /* It was thrown above, or isn't wanted any more. */ })
  }
}

/** Gives a QEMU that waits for it (`-incoming defer`) a state. False if it doesn't take it. */
export async function giveState(qmp: Qmp, migration: Migration, from: Sections): Promise<boolean> {
  const [ours, theirs] = socketPair()
  const stream = new Socket({ fd: ours, readable: true, writable: true })
  // A QEMU that doesn't like it closes its end.
  stream.on('error', () => { /* As `migration` tells. */ })
  try {
    try {
      await qmp.pass('state', theirs)
    } finally {
      closeFd(theirs)
    }
    await qmp.execute('migrate-incoming', { uri: 'fd:state' })
    stream.end(from.get(VMSTATE)!.subarray(VERSION_BYTES))
    return await migration.done
  } finally {
    stream.destroy()
  }
}

/** The machine type that a state is of, or an error if it isn't of a machine like this one. Throws CellarError. */
export function checkState(name: string, from: Sections, accelerator: 'kvm' | 'tcg', shape: readonly number[]): string {
  const machine = unversioned(name, from, MACHINE, MACHINE_BYTES_MAX)
  unversioned(name, from, VMSTATE, MACHINE_SECTION_BYTES_MAX)
  let saved: unknown
  try {
    saved = JSON.parse(Buffer.from(machine).toString())
  } catch {
    throw new CellarError('SNAPSHOT_DAMAGED', [name, `${MACHINE} isn't JSON`])
  }
  if (!isObject(saved) || typeof saved.machineType !== 'string' || !MACHINE_TYPE.test(saved.machineType)) {
    throw new CellarError('SNAPSHOT_DAMAGED', [name, `${MACHINE} names no machine`])
  }
  if (saved.accelerator !== accelerator) {
    throw new CellarError('SNAPSHOT_FOREIGN', [`it was taken under ${String(saved.accelerator).slice(0, 10)}`])
  }
  if (JSON.stringify(saved.shape) !== JSON.stringify(shape)) {
    throw new CellarError('SNAPSHOT_FOREIGN', ['it is of a machine with other vCPUs, memory, network cards or disks'])
  }
  return saved.machineType
}

function unversioned(name: string, from: Sections, section: string, most: number): Uint8Array {
  const bytes = from.get(section)
  if (bytes === undefined) throw new CellarError('SNAPSHOT_FOREIGN', ['it was taken under another engine than QEMU'])
  if (bytes.length < VERSION_BYTES || bytes.length > most) {
    throw new CellarError('SNAPSHOT_DAMAGED', [name, `${section} has ${bytes.length} bytes`])
  }
  const version = bytes[0]! | bytes[1]! << 8
  if (version > VERSION) throw new CellarError('SNAPSHOT_NEWER', [name, version, VERSION])
  if (version < VERSION) throw new CellarError('SNAPSHOT_DAMAGED', [name, `${section} has version ${version}`])
  return bytes.subarray(VERSION_BYTES)
}

function versioned(bytes: Uint8Array): Uint8Array {
  const section = new Uint8Array(VERSION_BYTES + bytes.length)
  section[0] = VERSION
  section.set(bytes, VERSION_BYTES)
  return section
}

// All that comes until the end. Rejects if it is too much.
function collect(stream: Socket): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
  const pieces: Buffer[] = []
  let length = 0
  stream.on('data', (piece: Buffer) => {
    pieces.push(piece)
    length += piece.length
    if (length > MACHINE_SECTION_BYTES_MAX - VERSION_BYTES) reject(new Error(`its state has more than ${length} bytes`))
  })
  stream.on('end', () => resolve(Buffer.concat(pieces)))
  stream.on('error', reject)
  stream.on('close', () => reject(new Error('the stream of its state was closed')))
  return promise
}

async function reasonOf(qmp: Qmp): Promise<string> {
  const info = await qmp.execute('query-migrate')
  return isObject(info) && typeof info['error-desc'] === 'string' ? info['error-desc'] : 'QEMU can\'t save it'
}
