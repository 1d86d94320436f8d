// machine/halt_watch.ts: notices that a guest has halted for good: all its vCPUs wait, and nothing can wake one.
//
// With interrupt controllers in the kernel a HLT doesn't come out to us: a vCPU that halts with interrupts off looks
// as one that is idle. So, when no vCPU's thread has run for a while, they are brought to rest once, and looked at: if
// each is halted with interrupts off, or was never woken, the guest is done. A guest that is idle with interrupts on is
// looked at once, and again only when it has run in between.

import * as abi from '../kvm/abi.ts'

import type { Board } from './board.ts'
import type { VcpuThreads } from './vcpu_threads.ts'

/** Watches from now on. `halted` is called once. `isPaused`: somebody else holds the vCPUs now. */
export function watchHalts(
  board: Board, threads: VcpuThreads, { halted, exclusively }: {
    halted(): void
    /** Runs `look` while all vCPUs rest, unless they rest for another reason. */
    exclusively(look: () => void): Promise<void>
  },
): Disposable {
  let last: number[] = []
  let hasLooked = false
  // The look itself takes the threads some time: the tick after it only counts anew.
  let isSettling = false
  let isLooking = false
  const timer = setInterval(() => {
    if (isLooking) return
    const now = threads.timesNs()
    const hasRun = !isSettling && (now.length !== last.length || now.some((ns, i) => ns !== last[i]))
    last = now
    isSettling = false
    if (hasRun) hasLooked = false
    if (hasRun || hasLooked) return
    hasLooked = true
    isLooking = true
    let isOver = false
    exclusively(() => { isOver = board.vcpus.every(isStopped) }).then(() => {
      isLooking = false
      isSettling = true
      if (isOver) {
        clearInterval(timer)
        halted()
      }
    }, () => clearInterval(timer))
  }, PERIOD_MS)
  timer.unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }

  function isStopped(vcpu: Board['vcpus'][number]): boolean {
    const state = new DataView(vcpu.get(abi.KVM_GET_MP_STATE, abi.kvm_mp_state).buffer).getUint32(0, true)
    if (state === abi.KVM_MP_STATE_UNINITIALIZED) return true
    if (state !== abi.KVM_MP_STATE_HALTED) return false
    const regs = new DataView(vcpu.get(abi.KVM_GET_REGS, abi.kvm_regs).buffer)
    return (regs.getBigUint64(abi.kvm_regs.at.rflags, true) & RFLAGS_IF) === 0n
  }
}

const PERIOD_MS = 1000
const RFLAGS_IF = 1n << 9n
