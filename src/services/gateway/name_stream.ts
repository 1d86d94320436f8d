// services/gateway/name_stream.ts: questions to the name server by TCP: each after its length, 16 bits (RFC 7766 §8).
//
// One question at a time for a client; who sends none for a while is hung up on.

import type { Duplex } from 'node:stream'
import { GATEWAY_QUESTION_BYTES_MAX } from '../../base/limits.ts'
import type { Clock } from './clock.ts'
import type { NameServer } from './name_server.ts'

const IDLE_MS_MAX = 10_000
const LENGTH_BYTES = 2

/** Serves one client until it ends, or says what can't be a question. */
export async function serveNames(client: Duplex, names: NameServer, clock: Clock): Promise<void> {
  let hangUp = (): void => {}
  const rest = (): void => { hangUp = clock.after(IDLE_MS_MAX, () => client.destroy()) }
  rest()
  try {
    let held: Buffer = Buffer.alloc(0)
    for await (const piece of client as AsyncIterable<Buffer>) {
      held = held.length === 0 ? piece : Buffer.concat([held, piece])
      while (held.length >= LENGTH_BYTES) {
        const size = held.readUInt16BE(0)
        if (size > GATEWAY_QUESTION_BYTES_MAX) return
        if (held.length < LENGTH_BYTES + size) break
        hangUp()
        const answer = await names.answer(held.subarray(LENGTH_BYTES, LENGTH_BYTES + size), true)
        held = held.subarray(LENGTH_BYTES + size)
        rest()
        if (answer === undefined) return
        const head = Buffer.alloc(LENGTH_BYTES)
        head.writeUInt16BE(answer.length)
        // Who doesn't read its answers is hung up on, too: it isn't asked for more questions meanwhile.
        if (!client.write(Buffer.concat([head, answer]))) await drained(client)
      }
    }
    client.end()
  } catch {
    // It has hung up.
  } finally {
    hangUp()
    if (!client.writableEnded) client.destroy()
  }
}

function drained(client: Duplex): Promise<void> {
  return new Promise((resolve, reject) => {
    client.once('drain', resolve).once('close', () => reject(new Error('closed')))
  })
}
