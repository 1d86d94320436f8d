// host/launch.ts: from what a guest says of itself to what its cell process is told.
//
// Here the words of a spec get their meaning: defaults, units, folders of the host, the values of secrets. Elsewhere:
// the words (spec.ts), ports and the descriptors for them (lifecycle.ts).

import { chmodSync, chownSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { GUEST_SECRETS_BYTES_MAX, WASM_PAGE_BYTES } from '../base/limits.ts'
import { formatSize, parseDuration } from '../base/units.ts'
import type { Terms } from '../sched/node.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { memoryLimit } from './admission.ts'
import type { GuestLaunch, MachineLaunch, MountedVolume } from './protocol.ts'
import type { Beginning } from './rows.ts'
import { cpuPart, parsePort, type GuestSpec, type PoolSpec } from './spec.ts'

/** What a spec's terms are to the scheduler. */
export function termsOf(spec: Pick<PoolSpec, 'shares' | 'cpu-limit' | 'cpu-reservation'>): Terms {
  return {
    shares: spec.shares ?? DEFAULT_TERMS.shares,
    reservation: cpuPart(spec['cpu-reservation'], 0),
    limit: cpuPart(spec['cpu-limit'], Infinity),
  }
}

/** What a launch needs beside the spec. */
export type Surroundings = {
  readonly id: string; readonly run: number; readonly name: string; readonly digest: string
  /** The folder and size of a volume. */
  readonly volume: (name: string) => { readonly path: string; readonly sizeBytes: number }
  readonly secret: (name: string) => Uint8Array
  /** Where `files` are written: the guest's own folder. */
  readonly filesFolder: string
  /** False if they are there already: another cell is to see them as the guest does. */
  readonly writesFiles: boolean
  readonly uid: number | undefined
  /** Of a machine: what its engine is, where it keeps what it writes, its number, and what was opened for it. */
  readonly machine?: Omit<MachineLaunch, 'vcpus' | 'memoryBytes' | 'kernelArgs'> | undefined
  /** Tickets of the sockets opened for each guest port. */
  readonly tickets: ReadonlyMap<number, readonly number[]>
}

/** What the cell process is told. Writes the guest's `files`. Throws GUEST_UNSUPPORTED for too much of secrets. */
export function launchOf(spec: GuestSpec, surroundings: Surroundings): GuestLaunch {
  const around = bounded(surroundings)
  const { id, run, name, digest, tickets } = around
  const ports = guestPorts(spec)
  return {
    id, run, name, module: digest,
    args: spec.args.length > 0 ? spec.args : [name],
    env: [...Object.entries(spec.env), ...Object.entries(spec.secrets).map(([variable, secret]) =>
      [variable, new TextDecoder().decode(around.secret(secret))] as const)],
    memoryPagesMax: Math.floor(memoryLimit(spec) / WASM_PAGE_BYTES),
    stubs: spec.stubs, calls: spec.calls,
    deterministic: spec.deterministic ?? false, unbounded: spec.unbounded ?? false,
    terms: termsOf(spec), pool: spec.pool,
    volumes: [...spec.volumes.map((text) => mount(text, around)), ...writeFiles(spec, around)],
    ports: ports.map((port) => ({ port, tickets: tickets.get(port) ?? [] })),
    connect: spec.connect.map((text) => {
      const at = text.lastIndexOf(':')
      return { name: text.slice(0, at), port: Number(text.slice(at + 1)) }
    }),
    networks: spec.networks,
    health: spec.health,
    stdin: spec.stdin,
    timeoutNs: spec.timeout === undefined ? undefined : parseDuration(spec.timeout),
    machine: spec.machine === undefined || around.machine === undefined ? undefined : { ...around.machine,
      vcpus: spec.machine.vcpus, memoryBytes: memoryLimit(spec), kernelArgs: spec.machine['kernel-args'] },
  }
}

// What a spec says is bounded as a request; the secrets that it names, each as often as it likes, are not.
function bounded(around: Surroundings): Surroundings {
  let left = GUEST_SECRETS_BYTES_MAX
  return { ...around, secret: (name) => {
    const value = around.secret(name)
    left -= value.length
    if (left >= 0) return value
    throw new CellarError('GUEST_UNSUPPORTED', [around.name,
      `its secrets add up to more than ${formatSize(GUEST_SECRETS_BYTES_MAX)}`])
  } }
}

/** What a run goes on from, as its process is told. */
export function fromOf(from: Beginning): NonNullable<GuestLaunch['from']> {
  if ('fork' in from) return { snapshot: '', event: 'fork' }
  const { snapshot, event, at } = from
  return { snapshot, event, ...(event === 'wake' ? { sleptMs: Math.max(0, Date.now() - at) } : {}) }
}

/** The guest's own ports, in the order of its descriptors: published ones, then those of its networks only. */
export function guestPorts(spec: Pick<GuestSpec, 'ports' | 'expose'>): number[] {
  return [...new Set([...spec.ports.map((text) => parsePort(text)!.guest), ...spec.expose])]
}

/** `VOLUME:FOLDER[:ro]` */
export function parseVolume(text: string): { name: string; guest: string; readOnly: boolean } {
  const [name = '', guest = '', mode] = text.split(':')
  return { name, guest, readOnly: mode === 'ro' }
}

function mount(text: string, { volume }: Surroundings): MountedVolume {
  const { name, guest, readOnly } = parseVolume(text)
  return { ...volume(name), guest, readOnly }
}

// Written anew for each start: a secret may have changed. Nobody but the project's process reads them.
function writeFiles({ files }: GuestSpec, { filesFolder, writesFiles, uid, secret }: Surroundings): MountedVolume[] {
  if (!writesFiles) {
    return Object.keys(files).map((guest, i) => ({ path: join(filesFolder, String(i)), guest, readOnly: true }))
  }
  rmSync(filesFolder, { recursive: true, force: true })
  // The project's user reads them, and can't put anything in their place.
  const own = (path: string, mode: number): void => {
    if (uid === undefined) return
    chownSync(path, 0, uid)
    chmodSync(path, mode)
  }
  return Object.entries(files).map(([guest, contents], i) => {
    const folder = join(filesFolder, String(i))
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    for (const path of [filesFolder, folder]) own(path, 0o750)
    for (const [path, content] of Object.entries(contents)) {
      const file = join(folder, path)
      mkdirSync(dirname(file), { recursive: true, mode: 0o700 })
      for (let at = dirname(file); at !== folder; at = dirname(at)) own(at, 0o750)
      const bytes = typeof content === 'string' ? content : 'secret' in content ? secret(content.secret)
        : Buffer.from(content.base64, 'base64')
      writeFileSync(file, bytes, { mode: 0o400 })
      own(file, 0o440)
    }
    return { path: folder, guest, readOnly: true }
  })
}
