// machine/device_loop.ts: the device thread's loop: whoever is ready is served, in turns; nothing is awaited.
//
// It waits (ppoll) for the eventfds of the queues' notifications, for the descriptors that devices wait for, and for a
// bell: a vCPU that has written a register (virtio/mailbox.ts), or a command of the main thread. A device that has more
// to do than one turn comes again after the others, without a wait. Hot path: no allocation.

import { POLLIN } from '../sys/libc.ts'
import { clearEventFd } from '../sys/eventfd.ts'
import { PollSet } from '../sys/ppoll.ts'
import { answerCall, M_COMMAND } from '../virtio/mailbox.ts'
import type { Port } from '../virtio/port.ts'

/** Commands, as bits of the word M_COMMAND. */
export const COMMAND_LEAVE = 1
export const COMMAND_BALLOON = 2
export const COMMAND_CONSOLE_SIZE = 4

type Kick = { readonly slot: number; readonly fd: number; readonly port: Port; readonly queue: number }
type Watch = { readonly slot: number; readonly port: Port }

/** The loop of one machine's devices. */
export class DeviceLoop {
  readonly #words: Int32Array
  readonly #bell: number
  readonly #set: PollSet
  readonly #bellSlot: number
  readonly #ports: readonly Port[]
  readonly #kicks: Kick[] = []
  readonly #watches: Watch[] = []
  // When the ports are due by time, in performance.now(); -1: not.
  readonly #due: Float64Array
  readonly #act: (index: number, offset: number, size: number, value: number, queue: number) => void
  readonly #command: (bits: number) => void

  /** `kicks`: for each device the eventfds of its queues. `command` is told of commands other than COMMAND_LEAVE. */
  constructor(o: {
    words: Int32Array; bell: number; ports: readonly Port[]; kicks: readonly (readonly number[])[]
    command: (bits: number) => void
  }) {
    this.#words = o.words
    this.#bell = o.bell
    this.#ports = o.ports
    this.#command = o.command
    this.#due = new Float64Array(o.ports.length)
    this.#act = (index, offset, size, value, queue) => this.#ports[index]?.changed(offset, size, value, queue)
    this.#set = new PollSet(1 + o.ports.reduce((count, port) => count + port.queues.length + 1, 0))
    this.#bellSlot = this.#set.add(o.bell, POLLIN)
    o.ports.forEach((port, i) => {
      o.kicks[i]!.forEach((fd, queue) => this.#kicks.push({ slot: this.#set.add(fd, POLLIN), fd, port, queue }))
      if (port.device.fd >= 0) this.#watches.push({ slot: this.#set.add(port.device.fd, 0), port })
    })
  }

  /** Until COMMAND_LEAVE. Nothing is under way then, and what comes meanwhile waits for the next `run`. */
  run(): void {
    for (;;) {
      this.#set.wait(this.#prepare())
      if (this.#set.ready(this.#bellSlot) !== 0) {
        clearEventFd(this.#bell)
        answerCall(this.#words, this.#act)
        const command = Atomics.exchange(this.#words, M_COMMAND, 0)
        if ((command & ~COMMAND_LEAVE) !== 0) this.#command(command)
        if ((command & COMMAND_LEAVE) !== 0) return
      }
      this.#serve()
    }
  }

  // Says what is waited for, and for how many milliseconds.
  #prepare(): number {
    for (let i = 0; i < this.#watches.length; i++) {
      const { slot, port } = this.#watches[i]!
      this.#set.want(slot, port.wanted())
    }
    let timeoutMs = -1
    for (let i = 0; i < this.#ports.length; i++) {
      const port = this.#ports[i]!
      if (port.pending !== 0) timeoutMs = 0
      const dueMs = port.device.dueMs()
      if (dueMs < 0) {
        this.#due[i] = -1
        continue
      }
      this.#due[i] = performance.now() + dueMs
      timeoutMs = timeoutMs < 0 ? dueMs : Math.min(timeoutMs, dueMs)
    }
    return timeoutMs
  }

  #serve(): void {
    const set = this.#set
    for (let i = 0; i < this.#kicks.length; i++) {
      const { slot, fd, port, queue } = this.#kicks[i]!
      if (set.ready(slot) === 0) continue
      clearEventFd(fd)
      port.serve(queue)
    }
    for (let i = 0; i < this.#watches.length; i++) {
      const { slot, port } = this.#watches[i]!
      const events = set.ready(slot)
      if (events !== 0) port.ready(events)
    }
    for (let i = 0; i < this.#ports.length; i++) {
      const port = this.#ports[i]!
      if (this.#due[i]! >= 0 && performance.now() >= this.#due[i]!) port.serveAll()
      for (let queue = 0; port.pending >>> queue !== 0; queue++) {
        if ((port.pending >>> queue & 1) === 1) port.serve(queue)
      }
    }
  }
}
