// tests/security/rogue_process.ts: what has taken over a cell process and speaks for it: `node rogue_process.ts JSON`.
//
// It listens in the run folder of the process, says what it was told to say (Script) to each host that connects, and
// writes what the host sends as lines of JSON on stdout.

import { rmSync, symlinkSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { FrameDecoder, messageFrame } from '../../src/host/frames.ts'

/** What it does. */
export type Script = {
  readonly runFolder: string
  /** Said first, and a moment later. */
  readonly hello: unknown; readonly later: readonly unknown[]
  /** Where its socket leads, if it is to be a link. */
  readonly linkTo?: string
}

const { runFolder, hello, later, linkTo } = JSON.parse(process.argv[2]!) as Script
const path = join(runFolder, 'c')
rmSync(path, { force: true })
if (linkTo !== undefined) symlinkSync(linkTo, path)
const server = createServer((socket) => {
  const decoder = new FrameDecoder()
  socket.on('error', () => {})
  socket.on('data', (chunk: Buffer) => {
    for (const frame of decoder.push(chunk)) {
      if (frame.kind === 'message') process.stdout.write(`${JSON.stringify(frame.message)}\n`)
    }
  })
  socket.write(messageFrame(hello))
  setTimeout(() => { for (const message of later) socket.write(messageFrame(message)) }, 300)
})
if (linkTo === undefined) server.listen(path)
else setInterval(() => {}, 1000)
process.stdout.write('"ready"\n')
