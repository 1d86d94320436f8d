// machine/agent_line.ts: one stream to a machine's agent, from its hello to its end.
//
// The agent may be anything. One that breaks the protocol, sends more than it was granted or doesn't answer loses its
// line. Its output is bounded by windows, its requests by their number; while it doesn't read what we say we don't read
// what it sends. What it asks for is checked here, and permitted by the owner (`request`).

import { randomBytes, randomInt } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { EAGAIN, EINVAL, EIO, ESUCCESS } from '../base/errno.ts'
import type { CellarError } from '../base/errors.ts'
import { FORKS_MAX, HOST_NAME_BYTES_MAX, SNAPSHOT_NAME_BYTES_MAX } from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { errnoFromLinux } from '../sys/errno_linux.ts'
import {
  AGENT_PROTOCOL_VERSION, AgentDecoder, ASKS, BODY_BYTES_MAX, encodeFrame, ENDS, GUEST_ID, paddingBytes,
  type GuestFrame, type TO_GUEST,
} from './agent_protocol.ts'
import { AgentSession, joinStream, type AgentEnd } from './agent_session.ts'

/** Programs and archives at one time, as the agent itself has them; and what a guest asks for, connections apart. */
const SESSIONS_MAX = 64
const REQUESTS_MAX = 32
/** Connections that a guest has opened through its agent. */
const CONNECTIONS_MAX = 64
/** How long an agent may take to answer a hello, and anything else: a guest may be emulated, and busy. */
const HELLO_MS_MAX = 20_000
const ANSWER_MS_MAX = 20_000
/** Bytes that an agent leaves unread until we hear no more of it. */
const UNREAD_BYTES_MAX = 1024 * 1024

/** What a guest asks for. */
export type AgentRequest =
  | { readonly what: 'metadata' } | { readonly what: 'snapshot'; readonly name?: string }
  | { readonly what: 'fork'; readonly count: number } | { readonly what: 'hibernate' }
  | { readonly what: 'connect'; readonly name: string; readonly port: number }

/**
 * The answer: `errno` of base/errno.ts; `value`: what its fork() returns; `text`: what it is told, metadata or a
 * reason; `stream`: the connection that it asked for.
 */
export type AgentAnswer = {
  readonly errno: number; readonly value?: number; readonly text?: string; readonly stream?: Duplex
}

/** What the guest says of itself: hostile, and shortened. */
export type AgentGuest = {
  readonly source: string; readonly system: string; readonly release: string; readonly arch: string
  readonly hostname: string
}

/** Answers what a guest asks for. May reject: the guest is told EIO. */
type Requester = (asked: AgentRequest) => Promise<AgentAnswer>

type Done = { readonly errno: number; readonly did: number }

/** One stream to an agent, from its hello to its end. */
export class AgentLine {
  readonly #stream: Duplex
  readonly #tag = randomInt(1, 2 ** 32)
  readonly #decoder: AgentDecoder
  readonly #request: Requester
  readonly #told: { begun(guest: AgentGuest): void; lost(why: string): void }
  readonly #sessions = new Map<number, AgentSession>()
  readonly #asked = new Map<number, (done: Done | undefined) => void>()
  readonly #late: NodeJS.Timeout
  #requests = 0
  #connections = 0
  #nextId = 1
  #hasBegun = false
  #isLost = false

  constructor(stream: Duplex, generation: string, request: Requester,
    told: { begun(guest: AgentGuest): void; lost(why: string): void }) {
    const nonce = randomBytes(16).toString('hex')
    this.#stream = stream
    this.#request = request
    this.#told = told
    this.#decoder = new AgentDecoder(nonce, this.#tag)
    this.#late = setTimeout(() => this.lose('it answers no hello'), HELLO_MS_MAX)
    stream.on('error', (error) => this.lose(error.message))
    stream.on('close', () => this.lose('it closed the line'))
    stream.on('end', () => this.lose('it closed the line'))
    stream.on('data', (chunk: Buffer) => this.#read(chunk))
    stream.write(paddingBytes())
    this.#send('hello', 0, { version: AGENT_PROTOCOL_VERSION, tag: this.#tag, nonce, generation })
  }

  /** Ends it, and all that is on it. */
  lose(why: string): void {
    if (this.#isLost) return
    this.#isLost = true
    clearTimeout(this.#late)
    this.#stream.destroy()
    for (const session of this.#sessions.values()) session.over({ kind: 'lost' })
    this.#sessions.clear()
    for (const done of this.#asked.values()) done(undefined)
    this.#told.lost(why)
  }

  /** A session of ours. */
  open<N extends 'exec' | 'get' | 'put'>(name: N, values: Parameters<typeof encodeFrame<N>>[2],
    failure: (why: string) => CellarError): AgentSession {
    if (this.#sessions.size - this.#connections >= SESSIONS_MAX) throw failure('too much is under way there')
    const id = this.#newId()
    try {
      this.#send(name, id, values)
    } catch (cause) {
      if (cause instanceof RangeError) throw failure(`it can't be said to the guest: ${cause.message}`)
      throw cause
    }
    return this.#session(id)
  }

  /** Asks what is answered by `done` or `pong`. Rejects with what `away` gives. */
  async ask<N extends 'stop' | 'event' | 'ping'>(name: N, values: Parameters<typeof encodeFrame<N>>[2],
    away: () => CellarError): Promise<Done> {
    const id = this.#newId()
    const { promise, resolve } = Promise.withResolvers<Done | undefined>()
    this.#asked.set(id, resolve)
    const late = setTimeout(() => resolve(undefined), ANSWER_MS_MAX)
    this.#send(name, id, values)
    const done = await promise
    clearTimeout(late)
    this.#asked.delete(id)
    if (done === undefined) throw away()
    return done
  }

  #newId(): number {
    do {
      this.#nextId = this.#nextId % (GUEST_ID - 1) + 1
    } while (this.#sessions.has(this.#nextId) || this.#asked.has(this.#nextId))
    return this.#nextId
  }

  #send<N extends keyof typeof TO_GUEST>(name: N, id: number, values: Parameters<typeof encodeFrame<N>>[2]): void {
    const frame = encodeFrame(name, id, values, this.#tag)
    if (!this.#isLost) this.#stream.write(frame)
  }

  #session(id: number): AgentSession {
    const session = new AgentSession({
      input: (bytes) => this.#send('input', id, { bytes }),
      eof: () => this.#send('eof', id, {}),
      credit: (bytes) => this.#send('credit', id, { bytes }),
      signal: (signal) => this.#send('signal', id, { signal }),
      resize: (cols, rows) => this.#send('resize', id, { cols, rows }),
      close: () => {
        this.#sessions.delete(id)
        this.#send('close', id, {})
      },
    })
    this.#sessions.set(id, session)
    return session
  }

  #read(chunk: Buffer): void {
    try {
      for (const frame of this.#decoder.push(chunk)) {
        if (this.#isLost) return
        this.#hear(frame)
      }
    } catch (error) {
      return this.lose((error as Error).message)
    }
    // Who asks and doesn't read the answers isn't heard until it does: they would pile up here.
    if (this.#stream.writableLength > UNREAD_BYTES_MAX && !this.#isLost) {
      this.#stream.pause().once('drain', () => this.#stream.resume())
    }
  }

  #hear(frame: GuestFrame): void {
    const session = this.#sessions.get(frame.id)
    switch (frame.name) {
      case 'hello': return this.#begin(frame)
      // What was closed here may still be sent to.
      case 'output':
        // A connection has one channel, whatever is said.
        if (session?.came(frame.id >= GUEST_ID ? 0 : frame.channel, frame.bytes) !== false) return
        throw new Error('it sent more than it was granted')
      case 'eof': return session?.cameAll()
      case 'exit': {
        const end = endOf(frame)
        this.#sessions.delete(frame.id)
        return session?.over(end)
      }
      case 'credit': return session?.granted(frame.bytes)
      case 'pong': return this.#asked.get(frame.id)?.({ errno: 0, did: 0 })
      case 'done': return this.#asked.get(frame.id)?.(frame)
      case 'request': return void this.#answer(frame)
    }
  }

  #begin(frame: GuestFrame & { readonly name: 'hello' }): void {
    if (this.#hasBegun) throw new Error('it said hello again')
    if (frame.version !== AGENT_PROTOCOL_VERSION) throw new Error(`it speaks version ${frame.version}`)
    this.#hasBegun = true
    clearTimeout(this.#late)
    const said = (text: string): string => printable(text, 128)
    this.#told.begun({ source: said(frame.source), system: said(frame.system), release: said(frame.release),
      arch: said(frame.arch), hostname: said(frame.hostname) })
  }

  async #answer({ id, what, value, text }: GuestFrame & { readonly name: 'request' }): Promise<void> {
    const asked = id >= GUEST_ID && !this.#sessions.has(id) ? requestOf(what, value, text) : undefined
    const isFull = this.#requests >= REQUESTS_MAX || (what === ASKS.indexOf('connect') &&
      this.#connections >= CONNECTIONS_MAX)
    if (asked === undefined || isFull) return this.#tell(id, { errno: asked === undefined ? EINVAL : EAGAIN })
    const isConnection = asked.what === 'connect'
    this.#requests++
    if (isConnection) this.#connections++
    let answer: AgentAnswer
    try {
      answer = await this.#request(asked)
    } catch {
      answer = { errno: EIO }
    }
    this.#requests--
    const { stream } = answer
    const isGood = answer.errno === ESUCCESS && isConnection && stream !== undefined && !this.#isLost &&
      !this.#sessions.has(id)
    if (isGood) {
      const session = this.#session(id)
      this.#tell(id, { errno: ESUCCESS })
      await joinStream(session, stream)
    } else {
      stream?.destroy()
      this.#tell(id, isConnection && answer.errno === ESUCCESS ? { errno: EIO } : answer)
    }
    if (isConnection) this.#connections--
  }

  #tell(id: number, { errno, value = 0, text = '' }: AgentAnswer): void {
    const bytes = Buffer.from(text).subarray(0, BODY_BYTES_MAX - 8)
    this.#send('answer', id, { errno: linuxErrno(errno), value, bytes })
  }
}

function endOf({ kind, value }: { readonly kind: number; readonly value: number }): AgentEnd {
  switch (ENDS[kind]) {
    case 'exited': return { kind: 'exited', status: value & 0xff }
    case 'signalled': return { kind: 'signalled', signal: value & 0x7f }
    case 'failed': return { kind: 'failed', errno: errnoFromLinux(value) || EIO }
    default: throw new Error(`an end of kind ${kind}`)
  }
}

function requestOf(what: number, value: number, name: string): AgentRequest | undefined {
  const size = Buffer.byteLength(name)
  switch (ASKS[what]) {
    case 'metadata': return { what: 'metadata' }
    case 'snapshot':
      if (size > SNAPSHOT_NAME_BYTES_MAX) return undefined
      return name === '' ? { what: 'snapshot' } : { what: 'snapshot', name }
    case 'fork': return value < 1 || value > FORKS_MAX ? undefined : { what: 'fork', count: value }
    case 'hibernate': return { what: 'hibernate' }
    case 'connect':
      if (size === 0 || size > HOST_NAME_BYTES_MAX || value < 1 || value > 65_535) return undefined
      return { what: 'connect', name, port: value }
    default: return undefined
  }
}

/** Linux's number of one of base/errno.ts: EIO for one that it hasn't. */
function linuxErrno(errno: number): number {
  if (errno === ESUCCESS) return 0
  for (let linux = 1; linux < 134; linux++) if (errnoFromLinux(linux) === errno) return linux
  return 5
}
