// services/net/test_support.ts: what tests of connections send and receive: ranges of one memory of theirs.

import assert from 'node:assert/strict'
import { EAGAIN } from '../../base/errno.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import type { StreamSocket } from './stream_socket.ts'

export const memory = new GuestMemory(new WebAssembly.Memory({ initial: 64 }))
const LIST = 0
export const DATA = 65_536

/** Ranges of the given lengths, one after another from DATA. */
export function ranges(...lengths: number[]): Iovecs {
  let at = DATA
  lengths.forEach((length, i) => {
    memory.setU32(LIST + 8 * i, at)
    memory.setU32(LIST + 8 * i + 4, length)
    at += length
  })
  const iovecs = new Iovecs()
  assert.equal(iovecs.load(memory, LIST, lengths.length), true)
  return iovecs
}

/** The first bytes of the ranges. */
export function textOf(length: number, from = DATA): string { return Buffer.from(memory.at(from, length)).toString() }

/** One range that holds `text`. */
export function put(text: string): Iovecs {
  memory.at(DATA, text.length).set(Buffer.from(text))
  return ranges(text.length)
}

export function readable(socket: Pick<StreamSocket, 'awaitReadable'>): Promise<void> {
  return new Promise((resolve) => { socket.awaitReadable(resolve) })
}

export function writable(socket: Pick<StreamSocket, 'awaitWritable'>): Promise<void> {
  return new Promise((resolve) => { socket.awaitWritable(resolve) })
}

/** The next received bytes as text, at most `length`; '' at the end, 'error N' for an errno. */
export async function receive(socket: StreamSocket, length = 1000): Promise<string> {
  for (;;) {
    const count = socket.recv(ranges(length))
    if (count !== -EAGAIN) return count < 0 ? `error ${-count}` : textOf(count)
    await readable(socket)
  }
}
