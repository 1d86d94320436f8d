// tests/machine/host_guests.ts: machines of a whole host, for tests: an image that is made once, and words for them.
//
// The image is the small Debian guest that `cellar image debian` makes from the distribution's packages. Guests run
// under the engine that the host chooses. Where there is none, or no packages come, the tests say so and are skipped.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inPhase, type Seen } from '../faults/faults_support.ts'
import { qemuMissing } from '../../src/qemu/test_support.ts'
import { eventually, type TestHost } from '../host_support.ts'
import { cellar } from '../support.ts'
import { findPackages } from './nested_packages.ts'

/** Enough for the Debian guest: more would only make snapshots larger. */
const MEMORY = '128MiB'

const IMAGE_MS_MAX = 240_000
/** A guest under emulation, on a busy machine. */
const BOOT_MS_MAX = 90_000

/** Why there are no machines here; undefined: there are. */
export const missing: string | undefined = qemuMissing ?? noPackages()

function noPackages(): string | undefined {
  const found = findPackages()
  return 'missing' in found ? found.missing : undefined
}

/** The Debian guest as an image in a folder, for several hosts. */
export async function debianImage(): Promise<{ path: string } & Disposable> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-debian-'))
  const made = { path: join(folder, 'debian'),
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) }
  const { status, stderr } = await cellar(['image', 'debian', '--layout', made.path], { timeoutMs: IMAGE_MS_MAX })
  if (status === 0) return made
  made[Symbol.dispose]()
  throw new Error(`cellar image debian ended with ${status}: ${stderr}`)
}

/** Gives a host the image, as `debian`. */
export async function giveImage(host: TestHost, { path }: { readonly path: string }): Promise<void> {
  // A layout's folder gives an image its name.
  await host.ok(['pull', `oci:${path}:latest`])
}

/** Starts a machine of the image `debian`, whose agent answers when this resolves. */
export async function boot(host: TestHost, name: string, flags: readonly string[] = []): Promise<void> {
  await host.ok(['run', '-d', '--name', name, '-m', MEMORY, ...flags, 'debian'])
  await answers(host, name)
  // By DHCP, a moment later.
  await sh(host, name, 'until grep -q nameserver /etc/resolv.conf; do sleep 0.1; done')
}

/** Waits until the guest's agent answers. */
export async function answers(host: TestHost, name: string): Promise<void> {
  const { status, stderr } = await host.cellar(['exec', name, 'true'], { timeoutMs: BOOT_MS_MAX })
  if (status !== 0) throw new Error(`"${name}" does not answer (${status}): ${stderr}`)
}

/** Runs a line of sh in a machine: what it writes. Throws if it fails. */
export async function sh(host: TestHost, name: string, line: string, stdin?: string | Uint8Array): Promise<string> {
  return await host.ok(['exec', ...stdin === undefined ? [] : ['-i'], name, 'sh', '-c', line],
    { timeoutMs: BOOT_MS_MAX, ...stdin === undefined ? {} : { stdin } })
}

/** What the guest knows of itself. */
export async function metadata(host: TestHost, name: string): Promise<Metadata> {
  return JSON.parse(await sh(host, name, 'cellar-agent metadata')) as Metadata
}

type Metadata = { readonly name: string; readonly generation: string; readonly engine: string }

/** The guest, once it has been started anew: after `restarts` restarts, and running. */
export async function startedAgain(host: TestHost, name: string, restarts: number): Promise<Seen> {
  await eventually(`${name} was started again`, async () => (await inPhase(host, name, 'running')).restarts >= restarts)
  await answers(host, name)
  return await inPhase(host, name, 'running')
}
