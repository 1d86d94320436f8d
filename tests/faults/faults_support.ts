// tests/faults/faults_support.ts: what tests of faults share: what runs and who owns it, and a disk that is full.
//
// A small disk is a tmpfs of its own, which needs root; it goes with `using`.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually, type TestHost } from '../host_support.ts'
import { guest } from '../support.ts'

/** A guest as the API tells of it. */
export type Seen = {
  readonly id: string; readonly name: string; readonly project: string; readonly phase: string
  readonly desired: string; readonly restarts: number; readonly process?: number; readonly retryAt?: number
  readonly startedAt?: number; readonly exit?: { readonly status: number; readonly reason: string }
  readonly ports: readonly { readonly port: number }[]
}

/** All guests of a host. */
export async function guestsOf(host: TestHost): Promise<Seen[]> {
  return ((await host.api('GET', '/v1/guests')).body as { items: Seen[] }).items
}

/** The guest, once it is in this phase. */
export async function inPhase(host: TestHost, name: string, phase: string): Promise<Seen> {
  return await eventually(`${name} is ${phase}`, async () =>
    (await guestsOf(host)).find((one) => one.name === name && one.phase === phase))
}

/** Every cell process is one that the host knows, and no guest is in two of them. */
export async function nothingUnowned(host: TestHost): Promise<void> {
  await eventually('every cell process belongs to the host', async () => {
    const { body } = await host.api('GET', '/v1/host')
    const known = (body as { processes: { pid: number }[] }).processes.map(({ pid }) => pid).toSorted()
    return JSON.stringify(host.cellProcesses().toSorted()) === JSON.stringify(known)
  })
  const { body } = await host.api('GET', '/v1/stats')
  const ids = (body as { items: { id: string }[] }).items.map(({ id }) => id)
  assert.equal(new Set(ids).size, ids.length, 'each runs once')
}

/** Gives the host a guests/ program as an image of its name. */
export async function importProgram(host: TestHost, name: string): Promise<void> {
  const { status, body } = await host.api('POST', `/v1/images?name=${name}`, readFileSync(guest(name)))
  assert.equal(status, 201, JSON.stringify(body))
}

/** Creates a guest; its answer's status. */
export async function createGuest(host: TestHost, name: string, spec: Record<string, unknown>, project = 'default'):
Promise<number> {
  return (await host.api('POST', `/v1/projects/${project}/guests`, { name, spec: { memory: '4MiB', ...spec } })).status
}

/** Memory of a process that is in RAM, in bytes: VmRSS. */
export function residentBytes(pid: number): number {
  const kilobytes = /^VmRSS:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kilobytes) * 1024
}

/** The number of the host's own process: the command line's program runs it as it is, or as its child. */
export async function pidOf(host: TestHost): Promise<number> {
  return ((await host.api('GET', '/v1/host')).body as { pid: number }).pid
}

/** A disk of so many MiB, or why there can be none here. */
export function smallDisk(megabytes: number): ({ readonly path: string } & Disposable) | string {
  if (process.getuid?.() !== 0) return 'a small disk needs root'
  const path = mkdtempSync(join(tmpdir(), 'cd-'))
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=711`, 'tmpfs', path])
  if (mounted.status !== 0) {
    rmSync(path, { recursive: true })
    return `a small disk cannot be mounted: ${mounted.stderr?.toString().trim() ?? mounted.error?.message}`
  }
  return { path, [Symbol.dispose]: () => {
    // Lazily: somebody may still have a file of it open.
    spawnSync('umount', ['-l', path])
    rmSync(path, { recursive: true, force: true })
  } }
}
