// host/transfers.ts: snapshots on their way between the host and a cell process, whose project they are of.
//
// The host has no hand in a project's folder of snapshots: it has a process of the project read and write them, and
// carries the bytes. Elsewhere: the process's end (cells_transfers.ts), who wants them (migrate_actions.ts,
// migration_incoming.ts, snapshot_remotes.ts).

import { CellarError, ERRORS, type ErrorCode } from '../base/errors.ts'
import type { LinkStream } from './process_link.ts'
import type { ProcessHandle } from './processes.ts'
import type { FromProcess, ToProcess } from './protocol.ts'

type Answer = Extract<FromProcess, { readonly transferred: number }>
type Pending = { readonly handle: ProcessHandle; readonly resolve: (answer: Answer) => void }

/** Which chunks go along: these, or all but those of another snapshot. Default: all. */
export type Wanted = { readonly chunks?: readonly string[]; readonly without?: string | undefined }
/** How a snapshot is taken. `warm`: what will soon run it. */
export type Taking = Pick<Extract<ToProcess, { readonly receive: number }>, 'durable' | 'warm'>

/** All transfers of a host. */
export class Transfers {
  readonly #pending = new Map<number, Pending>()
  #next = 1

  /** The bytes of a snapshot, as the store sends it. Throws PROCESS_LOST and what the store does. */
  async *transmit(handle: ProcessHandle, snapshot: string, wanted: Wanted = {}): AsyncGenerator<Uint8Array> {
    const { request, answer, stream } = this.#open(handle)
    handle.link!.send({ transmit: snapshot, request, stream: stream.id, ...wanted })
    try {
      for await (const { bytes } of stream.output) yield bytes
      check(handle, await answer)
    } finally {
      this.#pending.delete(request)
      stream.close()
    }
  }

  /** Gives a process a snapshot: its digest, and which of its chunks it hasn't got. Throws as `transmit`. */
  async receive(handle: ProcessHandle, bytes: AsyncIterable<Uint8Array>, taking: Taking):
  Promise<{ snapshot: string; missing: readonly string[] }> {
    const { request, answer, stream } = this.#open(handle)
    handle.link!.send({ receive: request, stream: stream.id, ...taking })
    try {
      for await (const piece of bytes) await stream.write(piece)
      stream.end()
      const { snapshot, missing } = check(handle, await answer)
      if (snapshot === undefined || missing === undefined) throw lost(handle, 'it does not say what it was sent')
      return { snapshot, missing }
    } finally {
      this.#pending.delete(request)
      stream.close()
    }
  }

  /** What a process says. */
  heard(handle: ProcessHandle, message: Answer): void {
    const pending = this.#pending.get(message.transferred)
    if (pending?.handle === handle) pending.resolve(message)
  }

  #open(handle: ProcessHandle): { request: number; answer: Promise<Answer>; stream: LinkStream } {
    if (handle.link === undefined) throw lost(handle, 'it is not connected')
    const request = this.#next++
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    const stream = handle.link.openStream()
    this.#pending.set(request, { handle, resolve })
    // The answer comes before the stream's end.
    void stream.status.then(() => reject(lost(handle, 'the connection was lost')))
    promise.catch(() => {})
    return { request, answer: promise, stream }
  }
}

// A process says it: the code may be none of ours, and the values none of its.
function check(handle: ProcessHandle, answer: Answer): Answer {
  const { error } = answer
  if (error === undefined) return answer
  if (!Object.hasOwn(ERRORS, error.code)) throw lost(handle, 'it fails for a reason that nobody knows')
  throw new CellarError(error.code as ErrorCode, error.values as never)
}

function lost({ project }: ProcessHandle, why: string): CellarError {
  return new CellarError('PROCESS_LOST', [project, why])
}
