// host/guest_files.ts: files of a machine that runs, as archives, through its agent.
//
// An archive is what `exec` has as streams, with a path in place of a program: its process tells on stderr what went
// wrong, before a byte of the archive or at its end.

import { randomBytes } from 'node:crypto'
import { Readable } from 'node:stream'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import type { Lifecycle } from './lifecycle.ts'
import type { LinkStream } from './process_link.ts'
import { STDERR } from './protocol.ts'
import { linkOf } from './sessions.ts'
import type { Guest } from './state.ts'

const WORDS_LENGTH_MAX = 400

/** An archive (tar) of a path. Throws CELL_WORD, GUEST_NOT_RUNNING, AGENT_FAILED. */
export async function readFiles(lifecycle: Lifecycle, guest: Guest, path: string): Promise<Readable> {
  const stream = open(lifecycle, guest, 'get', path)
  const pieces = stream.output[Symbol.asyncIterator]()
  const first = await pieces.next()
  if (first.done === true || first.value.channel === STDERR) {
    const words = first.done === true ? '' : Buffer.from(first.value.bytes).toString()
    stream.close()
    throw refusal(guest, path, words)
  }
  return Readable.from((async function* () {
    yield first.value.bytes
    let words = ''
    for (let next; (next = await pieces.next()).done !== true;) {
      if (next.value.channel === STDERR) words += Buffer.from(next.value.bytes).toString()
      else yield next.value.bytes
    }
    if (await stream.status !== 0) throw refusal(guest, path, words)
  })(), { objectMode: false })
}

/** Unpacks an archive (tar) in a folder. Throws as readFiles. */
export async function writeFiles(lifecycle: Lifecycle, guest: Guest, path: string, archive: Readable): Promise<void> {
  const stream = open(lifecycle, guest, 'put', path)
  let words = ''
  const heard = (async () => {
    for await (const { bytes } of stream.output) {
      words = (words + Buffer.from(bytes).toString()).slice(0, WORDS_LENGTH_MAX)
    }
  })()
  try {
    for await (const bytes of archive) await stream.write(bytes as Uint8Array)
    stream.end()
    await heard
    if (await stream.status !== 0) throw refusal(guest, path, words)
  } finally {
    stream.close()
  }
}

function open(lifecycle: Lifecycle, guest: Guest, way: 'get' | 'put', path: string): LinkStream {
  const { name, spec } = guest.row
  if (spec.machine === undefined) throw new CellarError('CELL_WORD', [name, 'cp'])
  const link = linkOf(guest)
  const stream = link.openStream()
  link.send({ start: { ...lifecycle.launchBeside(guest), id: `files-${randomBytes(6).toString('hex')}`, run: 1,
    ports: [], health: undefined, timeoutNs: undefined, stdin: true, stream: stream.id, files: { way, path } } })
  return stream
}

// A machine's agent has said it: it may say anything.
function refusal({ row: { name } }: Guest, path: string, words: string): CellarError {
  const why = words.replace(/^cellar: /, '').trim()
  return new CellarError('AGENT_FAILED', [name, printable(path), printable(why || 'it says nothing', WORDS_LENGTH_MAX)])
}
