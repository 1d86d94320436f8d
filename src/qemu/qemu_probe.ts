// qemu/qemu_probe.ts: whether there is a QEMU here that our engine can drive, found out by starting it.
//
// Elsewhere: whether KVM runs ordinary guests, QEMU's too (machine/kvm_probe.ts).

import { spawnSync } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { CellarError } from '../base/errors.ts'

/** What was found. `path` and `version` of a QEMU that is there, whether or not it will do. */
export type QemuProbe = {
  readonly ok: boolean
  /** In words: why it will do, or why not. */
  readonly reason: string
  readonly path?: string
  /** Such as '7.2.22'. */
  readonly version?: string
  /** What runs its guests' code, as built: 'tcg', 'kvm'. Whether KVM works is another matter. */
  readonly accelerators: readonly string[]
}

/** The oldest that has `-netdev stream`. */
const MAJOR_MIN = 7
const MINOR_MIN = 2
const PROGRAM = 'qemu-system-x86_64'
/** Where it is if PATH doesn't say. */
const FOLDERS: readonly string[] = ['/usr/bin', '/usr/local/bin']
const PROBE_MS_MAX = 10_000
const OUTPUT_BYTES_MAX = 1024 * 1024

/** Looks for a QEMU and asks what it is: some 0.1 s. */
export function probeQemu(path: string | undefined = findQemu()): QemuProbe {
  if (path === undefined) return { ok: false, accelerators: [], reason: `there is no ${PROGRAM} here` }
  const text = ask(path, ['--version'])
  const version = /version (\d+\.\d+(\.\d+)?)/.exec(text.output)?.[1]
  if (version === undefined) return { ok: false, path, accelerators: [], reason: `${path} doesn't start: ${text.why}` }
  if (!isNewEnough(version)) {
    return { ok: false, path, version, accelerators: [], reason: `QEMU ${version} is too old: 7.2 is the oldest` }
  }
  const { output } = ask(path, ['-accel', 'help'])
  const accelerators = output.split('\n').map((line) => line.trim()).filter((line) => /^[a-z]+$/.test(line))
  if (!accelerators.includes('tcg') && !accelerators.includes('kvm')) {
    return { ok: false, path, version, accelerators, reason: `QEMU ${version} was built with neither TCG nor KVM` }
  }
  if (!/^q35\s/m.test(ask(path, ['-machine', 'help']).output)) {
    return { ok: false, path, version, accelerators, reason: `QEMU ${version} was built without the machine q35` }
  }
  return { ok: true, path, version, accelerators, reason: `QEMU ${version} is at ${path}` }
}

/** Throws QEMU_OLD if a QEMU of this version can't be driven. */
export function checkVersion(path: string, version: string): void {
  if (!isNewEnough(version)) throw new CellarError('QEMU_OLD', [path, version])
}

function isNewEnough(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return major > MAJOR_MIN || (major === MAJOR_MIN && minor >= MINOR_MIN)
}

/** The QEMU of this machine, if there is one. */
export function findQemu(): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter).filter((folder) => folder.startsWith('/')), ...FOLDERS]
  return folders.map((folder) => join(folder, PROGRAM)).find((path) => {
    try {
      accessSync(path, constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

function ask(path: string, args: readonly string[]): { output: string; why: string } {
  const { stdout, stderr, status, error } =
    spawnSync(path, args, { encoding: 'utf8', timeout: PROBE_MS_MAX, maxBuffer: OUTPUT_BYTES_MAX })
  const why = error?.message ?? (stderr.trim().split('\n').at(-1)! || `it ends with status ${status}`)
  return { output: status === 0 ? stdout : '', why }
}
