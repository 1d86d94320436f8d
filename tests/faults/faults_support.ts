// tests/faults/faults_support.ts: what tests of faults share: what runs and who owns it, and a disk that is full.
//
// A small disk is a tmpfs of its own, which needs root; it goes with `using`.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually, type TestHost } from '../host_support.ts'
import { guest, wat } from '../support.ts'

const TICK_BYTES = 1000

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

/** A program that writes a line of 1 kB, "tick" and dots, every 20 ms, for ever. */
export async function ticker(): Promise<Uint8Array> {
  return await wat(`(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 256) "tick${'.'.repeat(TICK_BYTES - 5)}\\0a")
    (func (export "_start")
      (i32.store (i32.const 0) (i32.const 256)) (i32.store (i32.const 4) (i32.const ${TICK_BYTES}))
      (i64.store (i32.const 64) (i64.const 0)) (i32.store8 (i32.const 72) (i32.const 0))
      (i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 20000000))
      (loop $again
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
        (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 40)))
        (br $again))))`)
}

/** A program of `bytes` or some more: with a custom section behind what it is. */
export function padded(module: Uint8Array, bytes: number): Buffer {
  const content = Buffer.concat([Buffer.from([3]), Buffer.from('pad'), Buffer.alloc(bytes, 7)])
  const size = [0, 7, 14, 21, 28].map((shift) => content.length >> shift & 0x7f | (shift < 28 ? 0x80 : 0))
  return Buffer.concat([module, Buffer.from([0, ...size]), content])
}

/** Bytes of what a host has fetched and isn't whole. */
export function partialBytes({ state }: TestHost): number {
  const folder = join(state, 'ingest')
  return readdirSync(folder).reduce((sum, name) =>
    sum + (statSync(join(folder, name), { throwIfNoEntry: false })?.size ?? 0), 0)
}
