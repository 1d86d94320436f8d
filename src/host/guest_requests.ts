// host/guest_requests.ts: what guests ask of the host by a hypercall: to be saved, copied, hibernated.
//
// A guest is granted that by its spec (`may`), as what it costs is the host's: disk, memory, room for guests. Each asks
// for so much in a while. The answer is an errno; who is hibernated hears none, until it is woken.

import { EACCES, EAGAIN, EINVAL, EIO, ENOMEM, ENOSPC, ENOTSUP } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { Allowance } from './allowance.ts'
import type { Hibernation } from './hibernation.ts'
import type { ProcessHandle } from './processes.ts'
import type { FromProcess } from './protocol.ts'
import type { SnapshotActions } from './snapshot_actions.ts'
import type { Guest, State } from './state.ts'

type Asked = Extract<FromProcess, { readonly asked: number }>
type Parts = { readonly state: State; readonly snapshots: SnapshotActions; readonly hibernation: Hibernation
  readonly log: Log }

/** So many requests of one guest, in so much time. */
const REQUESTS_MAX = 60
const REQUESTS_MS = 60_000

/** Requests of all guests. */
export class GuestRequests {
  readonly #parts: Parts
  readonly #allowances = new WeakMap<Guest, Allowance>()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** A guest asks; its process is answered, whatever becomes of it. */
  async asked(handle: ProcessHandle, asked: Asked): Promise<void> {
    const guest = this.#parts.state.guests.get(asked.id)
    const told = (errno: number, value?: number): void =>
      handle.link?.send({ told: asked.asked, errno, ...(value === undefined ? {} : { value }) })
    // A process speaks for its own guests only; one of `exec` is not known by its id.
    if (guest?.handle !== handle || guest.row.run !== asked.run) return told(EACCES)
    if (!guest.row.spec.may.includes(asked.what)) return told(EACCES)
    let allowance = this.#allowances.get(guest)
    if (allowance === undefined) this.#allowances.set(guest, allowance = new Allowance(REQUESTS_MAX, REQUESTS_MS))
    if (!allowance.allow()) return told(EAGAIN)
    try {
      told(0, await this.#do(guest, asked))
    } catch (error) {
      if (!(error instanceof CellarError)) {
        this.#parts.log.error('cannot do what a guest asks for', { guest: asked.id, why: String(error) })
      }
      told(error instanceof CellarError ? ERRNOS[error.code] ?? EIO : EIO)
    }
  }

  async #do(guest: Guest, { what, name, count }: Asked): Promise<number | undefined> {
    const { snapshots, hibernation } = this.#parts
    if (what === 'hibernate') await hibernation.hibernate(guest, 'itself')
    else if (what === 'snapshot') await snapshots.save(guest, { name: name === '' ? undefined : name })
    else return (await snapshots.fork(guest, { count: count ?? 1 })).length
    return undefined
  }
}

const ERRNOS: { readonly [code: string]: number } = {
  CAPTURE_IMPOSSIBLE: ENOTSUP, NAME_INVALID: EINVAL, HOST_DISK_FULL: ENOSPC, ADMISSION_REFUSED: ENOMEM,
  HOST_DRAINING: EAGAIN, IN_USE: EAGAIN, MOVE_UNDERWAY: EAGAIN, GUEST_PHASE_WRONG: EAGAIN,
}
