// machine/kvm_probe.ts: whether KVM here runs ordinary guests, found out by running one.
//
// /dev/kvm may be there and yet be of no use: on some hosts, KVM itself is only emulated, or made for guests that know
// of it. So a guest of some 200 bytes does what a kernel does as it begins (kvm_probe_worker.ts) in a thread of its
// own, and is stopped when its time is up: a guest that hangs costs LIMIT_MS and nothing else.

import { SHARE_ENV, Worker } from 'node:worker_threads'
import { ERRNO_NAMES, ENOENT, EACCES, EPERM } from '../base/errno.ts'
import { isSupported } from '../sys/libc.ts'
import { allowKicks, kickThread } from '../sys/threads.ts'

import type { ProbeMessage } from './kvm_probe_worker.ts'

/** `reason`: in words, for an operator; of a success, too. */
export type Probe = { readonly ok: boolean; readonly reason: string }

/** Tries. Takes less than a second where there is anything to try; for the main thread. */
export async function probeMachines(): Promise<Probe> {
  if (process.platform !== 'linux' || process.arch !== 'x64') return no('KVM is for Linux on x86-64 here')
  if (!isSupported()) return no('this Node has no FFI, which KVM needs')
  using _ = allowKicks()
  const worker = new Worker(new URL('./kvm_probe_worker.ts', import.meta.url), { env: SHARE_ENV })
  let thread = 0
  let step = 0
  let isLate = false
  let timer: NodeJS.Timeout | undefined
  const result = await new Promise<Probe>((resolve) => {
    // Kicked again until it answers: a signal may come before the guest runs.
    const stop = (): void => {
      isLate = true
      kickThread(thread)
      timer = setTimeout(stop, KICK_AGAIN_MS)
    }
    worker.on('message', (message: ProbeMessage) => {
      if (message.kind === 'runs') {
        thread = message.thread
        timer = setTimeout(stop, LIMIT_MS)
      } else {
        step = message.step
        resolve(judge(message, isLate))
      }
    })
    worker.on('error', (error) => resolve(no(`a test guest can't be made: ${(error as Error).message}`)))
    worker.on('exit', () => resolve(no(`the test guest ended at step ${step}`)))
  })
  clearTimeout(timer)
  await worker.terminate()
  return result
}

const no = (reason: string): Probe => ({ ok: false, reason })

function judge(message: Extract<ProbeMessage, { kind: 'done' }>, isLate: boolean): Probe {
  const { step, why, errno } = message
  if (errno !== 0) {
    const name = ERRNO_NAMES[-errno] ?? String(errno)
    if (errno === -ENOENT) return no('there is no /dev/kvm: no virtualisation, or none for machines in a machine')
    if (errno === -EACCES || errno === -EPERM) {
      return no(`/dev/kvm may not be opened (${name}): add this user to the group kvm`)
    }
    return no(`/dev/kvm answers ${name}`)
  }
  if (step === STEPS.length && why === '') return { ok: true, reason: 'a test guest ran as on the processor itself' }
  if (step === 1 && isLate) {
    return no('/dev/kvm emulates guests, instruction by instruction, in place of running them on the processor: ' +
      'an ordinary kernel does not come up in any useful time')
  }
  const next = STEPS[Math.min(step, STEPS.length - 1)]!
  return no(`the test guest failed as it was ${next}: ${isLate ? 'it took too long' : why}`)
}

/** What the guest does, in its order. */
const STEPS: readonly string[] = [
  'entering long mode', 'counting to a million', 'taking page tables of its own', 'taking an exception',
  'setting a register of the processor', 'going to user mode and back',
]
const LIMIT_MS = 600
const KICK_AGAIN_MS = 50
