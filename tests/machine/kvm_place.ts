// tests/machine/kvm_place.ts: where tests that need an ordinary /dev/kvm run: on this machine, or in a nested host.
//
// A test asks once, skips with the reason where neither is to be had, and says which way was taken. The nested host
// is a test file's own and ends with it.

import { spawn, spawnSync } from 'node:child_process'
import { probeMachines } from '../../src/machine/kvm_probe.ts'
import { NestedHost, type RunOptions } from './nested_host.ts'
import type { Output } from './nested_line.ts'
import { findPackages, ROOT } from './nested_packages.ts'

const RUN_MS_MAX = 300_000
const TEST_IDLE_S_MAX = 180

/** A machine on which commands find an ordinary /dev/kvm. */
export type KvmPlace = AsyncDisposable & {
  /** Which way was taken, and why. */
  readonly way: string
  readonly isNested: boolean
  /** The kernel and busybox for guests: the same paths there. */
  readonly kernel: string
  readonly busybox: string
  readonly modules: string
  /** Runs a line for sh in the project's folder. */
  run(command: string, options?: RunOptions): Promise<Output>
}

/** A place to open, or why there is none: what `node:test` takes as `skip`. */
export type FoundKvm = { readonly skip: string | false; readonly isNested: boolean; open(): KvmPlace }

/** Finds a place. A nested host's name begins with `name`. */
export async function findKvm(name: string): Promise<FoundKvm> {
  const none = (skip: string): FoundKvm => ({ skip, isNested: false, open: () => { throw new Error(skip) } })
  if (process.platform !== 'linux' || process.arch !== 'x64') return none('machines need Linux on x86-64')
  const packages = findPackages()
  if ('missing' in packages) return none(packages.missing)
  const problem = process.env.CELLAR_NESTED === '1' ? 'CELLAR_NESTED is set' : await whyNotHere()
  if (problem === undefined) {
    return { skip: false, isNested: false, open: () => ({
      ...packages, way: 'on this machine: its /dev/kvm is ordinary', isNested: false, run: runHere,
      [Symbol.asyncDispose]: () => Promise.resolve(),
    }) }
  }
  for (const [program, from] of [['qemu-system-x86_64', 'qemu-system-x86'], ['mke2fs', 'e2fsprogs']] as const) {
    if (spawnSync(program, ['-V']).error !== undefined) return none(`${problem}, and ${from} isn't installed`)
  }
  return { skip: false, isNested: true, open: () => {
    const host = new NestedHost(`${name}-${process.pid}`, { idleS: TEST_IDLE_S_MAX })
    return { ...packages, way: `in a nested host: ${problem}`, isNested: true,
      run: (command, options) => host.run(command, options), [Symbol.asyncDispose]: () => host.stop() }
  } }
}

/** Why ordinary guests can't run on this machine; undefined if they can. */
async function whyNotHere(): Promise<string | undefined> {
  const { ok, reason } = await probeMachines()
  return ok ? undefined : reason
}

function runHere(command: string, { timeoutMs = RUN_MS_MAX, env = {}, listeners = {} }: RunOptions = {}):
  Promise<Output> {
  const child = spawn('sh', ['-c', command], { cwd: ROOT, env: { ...process.env, ...env }, detached: true,
    stdio: ['ignore', 'pipe', 'pipe'] })
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout.on('data', (bytes: Buffer) => { stdout.push(bytes); listeners.stdout?.(bytes) })
  child.stderr.on('data', (bytes: Buffer) => { stderr.push(bytes); listeners.stderr?.(bytes) })
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    process.kill(-child.pid!, 'SIGKILL')
  }, timeoutMs)
  return new Promise((done, fail) => {
    child.on('error', fail)
    child.on('close', (status) => {
      clearTimeout(timer)
      done({ status: status ?? 137, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr), timedOut })
    })
  })
}
