// api/log_session.ts: a guest's log as a session: for who has a WebSocket and no server-sent events.

import type { LogLine, Session } from '../host/operator.ts'
import { STDERR, STDOUT } from '../host/protocol.ts'

/** A session whose output is the log; it takes no input. `read`: begins to read, until the signal. */
export function logSession(read: (signal: AbortSignal) => AsyncIterable<LogLine>): Session {
  const over = new AbortController()
  const { promise, resolve } = Promise.withResolvers<undefined>()
  const output = async function* (): AsyncGenerator<{ channel: number; bytes: Uint8Array }> {
    try {
      for await (const { stream, text, partial } of read(over.signal)) {
        yield { channel: stream === 'stdout' ? STDOUT : STDERR, bytes: Buffer.from(partial ? text : `${text}\n`) }
      }
    } finally {
      resolve(undefined)
    }
  }
  const close = (): void => {
    over.abort()
    resolve(undefined)
  }
  return { output: output(), status: promise, write: async () => {}, endInput: () => {}, close }
}
