// services/lifecycle/remote.ts: the life of a guest whose host is reached through another thread, as console/remote.ts
// is a console that another thread keeps.
//
// A guest has one vCPU, which waits for what it has asked: one request at a time. What it asks again under the same
// serial, from another thread of the process to which it was moved, `Requests` joins to what is under way there.

import type { Asked, Lifecycle, LifecycleGrant } from './lifecycle.ts'

/** The way to who passes requests on, by the number of the guest. */
export interface LifecyclePort {
  ask(guest: number, asked: Asked, serial: number): void
}

/** In the guest's thread. */
export class RemoteLifecycle implements Lifecycle {
  readonly grant: LifecycleGrant
  readonly #port: LifecyclePort
  readonly #guest: number
  #waiting: { readonly serial: number; readonly resolve: (errno: number) => void } | undefined

  constructor(port: LifecyclePort, guest: number, grant: LifecycleGrant) {
    this.#port = port
    this.#guest = guest
    this.grant = grant
  }

  request(asked: Asked, serial: number): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<number>()
    this.#waiting = { serial, resolve }
    this.#port.ask(this.#guest, asked, serial)
    return promise
  }

  /** The answer has come; one to an earlier request is nobody's. */
  told(serial: number, errno: number): void {
    if (this.#waiting?.serial !== serial) return
    const { resolve } = this.#waiting
    this.#waiting = undefined
    resolve(errno)
  }
}

/** What guests have asked, in the thread that passes it on: the last of each, with its answer once it is there. */
export class Requests {
  readonly #last = new Map<number, { readonly serial: number; errno: number | undefined }>()

  /** 'new': to be passed on. 'waiting': that was done already. A number: it was answered so. */
  ask(guest: number, serial: number): 'new' | 'waiting' | number {
    const last = this.#last.get(guest)
    if (last?.serial === serial) return last.errno ?? 'waiting'
    this.#last.set(guest, { serial, errno: undefined })
    return 'new'
  }

  /** The answer to the last request: its serial, or undefined if the guest is gone. */
  told(guest: number, errno: number): number | undefined {
    const last = this.#last.get(guest)
    if (last === undefined) return undefined
    last.errno = errno
    return last.serial
  }

  /** It has ended. */
  forget(guest: number): void {
    this.#last.delete(guest)
  }
}
