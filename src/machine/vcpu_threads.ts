// machine/vcpu_threads.ts: the threads of a machine's vCPUs, as the main thread has them: start, rest, go on, end.
//
// A thread enters its loop as soon as it is there, and rests until it is told to run: nothing runs before all threads
// are ready. Threads can't be ended from outside while they are in the kernel; they are kicked until they have seen
// that they are to quit.

import { SHARE_ENV, Worker } from 'node:worker_threads'
import { assert } from '../base/assert.ts'
import { kvm_run } from '../kvm/abi.ts'
import { allowKicks, kickThread, threadTimeNs } from '../sys/threads.ts'
import { QUIT, REST, RUN, VcpuControl } from './vcpu_control.ts'

import type { Vcpu } from '../kvm/kvm.ts'
import type { MachineEnd } from './engine.ts'
import type { VcpuMessage, VcpuStart } from './vcpu_worker.ts'

/** What threads tell their owner. */
export type VcpuThreadsEvents = {
  /** The serial line has output. */
  output(): void
  /** A vCPU has met the end of the machine; all rest, or will. May come from more than one. */
  ended(end: MachineEnd): void
}

type Thread = { readonly vcpu: Vcpu; readonly worker: Worker; id: number; readonly gone: Promise<void> }

/** The threads of a machine's vCPUs. */
export class VcpuThreads {
  readonly control: VcpuControl
  readonly #threads: Thread[] = []
  readonly #kicks: Disposable
  readonly #events: VcpuThreadsEvents

  constructor(vcpus: number, events: VcpuThreadsEvents) {
    this.control = VcpuControl.make(vcpus)
    for (let id = 0; id < vcpus; id++) this.control.setWish(id, REST)
    this.#events = events
    this.#kicks = allowKicks()
  }

  /** Starts a thread for each vCPU; resolves when all of them rest. */
  async start(vcpus: readonly Vcpu[], given: Pick<VcpuStart, 'uart' | 'uartInterruptFd' | 'windows' | 'devices'>):
  Promise<void> {
    await Promise.all(vcpus.map((vcpu) => this.#startOne(vcpu, {
      id: vcpu.id, fd: vcpu.fd, run: { address: vcpu.run.address, sizeBytes: vcpu.run.bytes.length },
      control: this.control.shared, ...given,
    })))
  }

  run(): void {
    for (const { vcpu } of this.#threads) this.control.setWish(vcpu.id, RUN)
  }

  /** Resolves when no vCPU runs. */
  async rest(): Promise<void> {
    for (const thread of this.#threads) this.#recall(thread, REST)
    await Promise.all(this.#threads.map(async (thread) => {
      // A kick can come too early only if immediate_exit is overwritten in between; then another one is needed.
      while (!await this.control.rested(thread.vcpu.id, KICK_AGAIN_MS)) this.#recall(thread, REST)
    }))
  }

  /** Nanoseconds for which each vCPU's thread has run. */
  timesNs(): number[] {
    return this.#threads.map(({ id }) => Math.max(0, threadTimeNs(id)))
  }

  /** Ends all threads. Resolves when they are gone. */
  async close(): Promise<void> {
    const again = setInterval(() => this.#threads.forEach((thread) => this.#recall(thread, QUIT)), KICK_AGAIN_MS)
    for (const thread of this.#threads) this.#recall(thread, QUIT)
    await Promise.all(this.#threads.map(({ gone }) => gone))
    clearInterval(again)
    this.#kicks[Symbol.dispose]()
  }

  #recall({ vcpu, id }: Thread, wish: number): void {
    this.control.setWish(vcpu.id, wish)
    Atomics.store(vcpu.run.bytes, kvm_run.at.immediate_exit, 1)
    if (id !== 0) kickThread(id)
  }

  async #startOne(vcpu: Vcpu, start: VcpuStart): Promise<void> {
    const worker = new Worker(new URL('./vcpu_worker.ts', import.meta.url), { env: SHARE_ENV, workerData: start })
    const gone = Promise.withResolvers<void>()
    const ready = Promise.withResolvers<void>()
    const thread: Thread = { vcpu, worker, id: 0, gone: gone.promise }
    this.#threads.push(thread)
    worker.on('message', (message: VcpuMessage) => {
      if (message.kind === 'output') this.#events.output()
      else if (message.kind === 'end') this.#events.ended(message.end)
      else {
        thread.id = message.thread
        ready.resolve()
      }
    })
    worker.on('error', (error) => {
      this.#events.ended({ kind: 'failed', reason: `vCPU ${vcpu.id}: ${(error as Error).message}` })
      ready.reject(error)
    })
    worker.on('exit', () => {
      thread.id = 0
      gone.resolve()
      ready.reject(new Error(`The thread of vCPU ${vcpu.id} ended before it began`))
    })
    await ready.promise
    assert(await this.control.rested(vcpu.id, READY_MS_MAX), 'a new vCPU rests', vcpu.id)
  }
}

const KICK_AGAIN_MS = 100
const READY_MS_MAX = 60_000
