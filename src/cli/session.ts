// cli/session.ts: `cellar exec` and `cellar attach`: a guest's streams over a WebSocket.
//
// A frame begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 control in JSON. A slow reader of our stdout slows
// the guest, and a guest that doesn't read slows our stdin: neither side is read before what was read has been taken.

import { WebSocket, type RawData } from 'ws'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import type { GuestView, Problem } from '../host/operator.ts'
import type { Client, Query } from './client.ts'
import type { Call } from './commands.ts'
import { onInterrupt } from './output.ts'
import { endWithReaders } from './print.ts'
import { ToldError } from './told.ts'

const PROTOCOL = 'v1.session.cellar'
const STDIN = 0, STDOUT = 1, STDERR = 2, CONTROL = 3
/** Bytes on their way to the host: with more, stdin isn't read. */
const UNSENT_BYTES_MAX = 256 * 1024
/** Bytes of one frame of stdin. */
const FRAME_BYTES_MAX = 16 * 1024
const PAUSE_MS = 5
/** Ctrl-], as telnet and virsh have it. */
const LEAVE_KEY = 0x1d
/** The close code of WebSockets for an end without a fault. */
const CLOSE_NORMAL = 1000

/** `cellar exec`: the program's own exit status. */
export async function exec({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const [guest, ...given] = words
  // As of other tools: what follows is the program's.
  const args = given[0] === '--' ? given.slice(1) : given
  const env = (flags.env ?? []).flatMap((text) => {
    if (text.includes('=')) return [text]
    const own = process.env[text]
    return own === undefined ? [] : [`${text}=${own}`]
  })
  const query = { arg: args, image: flags.image, env }
  const status = await session(host, host.path('guests', guest!, 'exec'), query,
    { input: flags.interactive !== undefined, output: true })
  return status ?? 0
}

/** `cellar attach`: until the guest ends, or Ctrl-C; of a machine, on a terminal, until Ctrl-]. */
export async function attach({ client, words }: Call): Promise<number> {
  return await attachTo(await client(), words[0]!)
}

/** A guest's console until its end, or ours. */
export async function attachTo(host: Client, guest: string): Promise<number> {
  const isTerminal = process.stdin.isTTY && process.stdout.isTTY
  const isRaw = isTerminal && (await host.ask<GuestView>('GET', host.path('guests', guest))).kind === 'machine'
  if (isRaw) process.stderr.write(`Connected to "${guest}". Ctrl-] leaves it.\r\n`)
  return await session(host, host.path('guests', guest, 'attach'), {}, { input: true, output: true, isRaw }) ?? 0
}

/** Our stdin for a guest, until it ends; what the guest writes is somebody else's to show. */
export async function feedGuest(host: Client, guest: string): Promise<void> {
  await session(host, host.path('guests', guest, 'attach'), {}, { input: true, output: false })
}

type Control = { readonly exit?: number; readonly error?: Problem }

/** Carries the streams that are wanted until the session's end: the status, if there is one. */
async function session(host: Client, path: string, query: Query, wanted: { readonly input: boolean
  readonly output: boolean; readonly isRaw?: boolean }): Promise<number | undefined> {
  endWithReaders()
  // Each key as it is pressed, Ctrl-C too: the guest's own terminal does what they mean.
  if (wanted.isRaw === true) process.stdin.setRawMode(true)
  const { url, options } = host.socket(path, query)
  const socket = new WebSocket(url, PROTOCOL, { ...options, perMessageDeflate: false })
  const { promise, resolve, reject } = Promise.withResolvers<number | undefined>()
  let status: number | undefined
  let isInterrupted = false
  using _ = onInterrupt(() => {
    isInterrupted = true
    socket.close(CLOSE_NORMAL)
    resolve(128 + signals.SIGINT)
  })
  const leave = (): void => {
    socket.close(CLOSE_NORMAL)
    resolve(undefined)
  }
  socket.on('open', () => { feed(socket, wanted.input, wanted.isRaw === true ? leave : undefined).catch(reject) })
  socket.on('message', (data: RawData) => {
    const frame = data as Buffer
    if (frame[0] !== CONTROL) return wanted.output ? write(socket, frame) : undefined
    const { exit, error } = JSON.parse(frame.subarray(1).toString()) as Control
    if (error !== undefined) reject(told(error))
    if (exit !== undefined) status = exit
  })
  socket.on('unexpected-response', (_request, answer) => {
    const chunks: Buffer[] = []
    answer.on('data', (chunk: Buffer) => { chunks.push(chunk) })
    answer.on('end', () => reject(refusal(host, answer.statusCode, Buffer.concat(chunks).toString())))
  })
  socket.on('error', (cause) => reject(host.unreachable(cause)))
  socket.on('close', (code) => {
    if (status === undefined && code !== CLOSE_NORMAL && !isInterrupted) {
      reject(new CellarError('HOST_UNREACHABLE', [host.address.text, `it ended the session (${code})`]))
    }
    resolve(status)
  })
  try {
    return await promise
  } finally {
    if (wanted.isRaw === true) process.stdin.setRawMode(false).pause()
    if (socket.readyState !== WebSocket.CLOSED) socket.terminate()
  }
}

/** Output for us. The socket waits while a pipe is full. */
function write(socket: WebSocket, frame: Buffer): void {
  const to = frame[0] === STDOUT ? process.stdout : frame[0] === STDERR ? process.stderr : undefined
  if (to === undefined || to.write(frame.subarray(1))) return
  socket.pause()
  to.once('drain', () => socket.resume())
}

/** Our stdin for the guest, then its end. `leave`: on the key that leaves. */
async function feed(socket: WebSocket, withInput: boolean, leave?: () => void): Promise<void> {
  if (withInput) {
    for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
      if (leave !== undefined && chunk.includes(LEAVE_KEY)) return leave()
      for (let at = 0; at < chunk.length; at += FRAME_BYTES_MAX) {
        socket.send(Buffer.concat([Buffer.of(STDIN), chunk.subarray(at, at + FRAME_BYTES_MAX)]))
      }
      while (socket.bufferedAmount > UNSENT_BYTES_MAX && socket.readyState === WebSocket.OPEN) {
        await new Promise((done) => { setTimeout(done, PAUSE_MS) })
      }
    }
  }
  if (socket.readyState === WebSocket.OPEN) {
    socket.send(Buffer.concat([Buffer.of(CONTROL), Buffer.from(JSON.stringify({ eof: true }))]))
  }
}

function refusal(host: Client, status: number | undefined, text: string): Error {
  try {
    return told(JSON.parse(text) as Problem)
  } catch {
    return new CellarError('HOST_UNREACHABLE', [host.address.text, `it answered with status ${status ?? 0}`])
  }
}

function told({ detail, code, hint }: Problem): ToldError {
  return new ToldError({ message: detail, code, hint, exit: 1 })
}
