// qemu/qmp.ts: the line to a running QEMU (its docs/interop/qmp-spec.txt): JSON objects, one a line, on a Unix socket.
//
// QEMU greets; we answer with `qmp_capabilities`; from then on each command has a number and gets one reply with the
// same number, and events come whenever they do. The other side is a program that works for a hostile guest: a line has
// a greatest length, a reply a time in which it must come, and what isn't understood ends the line for good (`lost`).
// Nothing is tried again: the owner ends the machine then.

import { Socket } from 'node:net'
import { EAGAIN, ERRNO_NAMES } from '../base/errno.ts'
import { sendWithFd } from '../sys/fd_passing.ts'

/** What comes without being asked for. */
export type QmpEvents = {
  event(name: string, data: Readonly<Record<string, unknown>>): void
  /** The line is of no use any more, and why; undefined: QEMU has closed it. Once, and not after `close`. */
  lost(why: string | undefined): void
}

/** The longest line: a reply on a machine with all its devices has some 20 KiB. */
const LINE_BYTES_MAX = 1024 * 1024
/** How long a reply may take. Flushing disks is part of some commands. */
const ANSWER_MS_MAX = 60_000
/** How long a command that takes a descriptor with it waits for room in the socket. */
const ROOM_MS = 10

type Pending = { readonly resolve: (value: unknown) => void; readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout }

/** One line to one QEMU. */
export class Qmp {
  readonly #fd: number
  readonly #socket: Socket
  readonly #events: QmpEvents
  readonly #answerMs: number
  readonly #pending = new Map<number, Pending>()
  readonly #greeting = Promise.withResolvers<string>()
  #next = 1
  #line: Buffer[] = []
  #lineBytes = 0
  #isOver = false

  /** `fd`: a connected stream socket, owned from now on. `answerMs`: for tests. */
  constructor(fd: number, events: QmpEvents, answerMs = ANSWER_MS_MAX) {
    this.#fd = fd
    this.#events = events
    this.#answerMs = answerMs
    this.#greeting.promise.catch(() => { /* Whoever greets hears of it; perhaps nobody does. */ })
    this.#socket = new Socket({ fd, readable: true, writable: true })
    this.#socket.on('data', (bytes: Buffer) => this.#received(bytes))
    this.#socket.on('error', () => { /* 'close' follows. */ })
    this.#socket.on('close', () => this.#lose(undefined))
  }

  /** Waits for the greeting and answers it. QEMU's version, such as '7.2.22'. */
  async greet(): Promise<string> {
    const timer = setTimeout(() => this.#lose('it says nothing'), this.#answerMs)
    try {
      const version = await this.#greeting.promise
      await this.execute('qmp_capabilities')
      return version
    } finally {
      clearTimeout(timer)
    }
  }

  /** What QEMU returns for a command. Rejects with its words if it can't, and when the line is lost. */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    return this.#expect(command, (id) => {
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`)
    })
  }

  /** Gives QEMU a copy of a descriptor, under a name. */
  async pass(name: string, fd: number): Promise<void> {
    // Past the socket's own queue, so that must be empty.
    while (this.#socket.writableLength > 0) await new Promise((resolve) => setTimeout(resolve, ROOM_MS))
    await this.#expect('getfd', (id) => {
      const text = Buffer.from(`${JSON.stringify({ execute: 'getfd', arguments: { fdname: name }, id })}\n`)
      const sent = this.#isOver ? 0 : sendWithFd(this.#fd, text, fd)
      if (sent === -EAGAIN) throw new Error('Cannot give QEMU a descriptor: it reads nothing')
      if (sent < 0) throw new Error(`Cannot give QEMU a descriptor: ${ERRNO_NAMES[-sent] ?? sent}`)
      if (sent < text.length) this.#socket.write(text.subarray(sent))
    })
  }

  /** Ends the line: what waits for replies is rejected. */
  close(): void {
    this.#end('it was closed')
  }

  #expect(command: string, send: (id: number) => void): Promise<unknown> {
    if (this.#isOver) return Promise.reject(new Error(`Cannot tell QEMU "${command}": the line is closed`))
    const id = this.#next++
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    const timer = setTimeout(() => this.#lose(`it hasn't answered ${command} for ${this.#answerMs} ms`), this.#answerMs)
    this.#pending.set(id, { resolve, reject, timer })
    try {
      send(id)
    } catch (error) {
      this.#settle(id)?.reject(error as Error)
    }
    return promise
  }

  #settle(id: unknown): Pending | undefined {
    const pending = this.#pending.get(id as number)
    clearTimeout(pending?.timer)
    this.#pending.delete(id as number)
    return pending
  }

  #received(bytes: Buffer): void {
    for (let from = 0; from < bytes.length && !this.#isOver;) {
      const end = bytes.indexOf(10, from)
      const piece = bytes.subarray(from, end < 0 ? bytes.length : end)
      this.#lineBytes += piece.length
      if (this.#lineBytes > LINE_BYTES_MAX) return this.#lose('it sends a line that is too long')
      this.#line.push(piece)
      if (end < 0) return
      const line = Buffer.concat(this.#line).toString().trim()
      this.#line = []
      this.#lineBytes = 0
      if (line !== '') this.#heard(line)
      from = end + 1
    }
  }

  #heard(line: string): void {
    let message: unknown
    try {
      message = JSON.parse(line)
    } catch {
      return this.#lose('it sends what isn\'t JSON')
    }
    if (!isObject(message)) return this.#lose('it sends what isn\'t an object')
    if ('QMP' in message) this.#greeting.resolve(versionOf(message.QMP))
    else if (typeof message.event === 'string') {
      this.#events.event(message.event, isObject(message.data) ? message.data : {})
    } else if ('return' in message) this.#settle(message.id)?.resolve(message.return)
    else if (isObject(message.error)) {
      const { desc } = message.error
      this.#settle(message.id)?.reject(new Error(typeof desc === 'string' ? desc.slice(0, 1000) : 'an error'))
    } else this.#lose('it sends what QMP doesn\'t know')
  }

  #lose(why: string | undefined): void {
    if (this.#isOver) return
    this.#end(why ?? 'it closed it')
    this.#events.lost(why)
  }

  #end(why: string): void {
    if (this.#isOver) return
    this.#isOver = true
    const error = new Error(`Lost the line to QEMU: ${why}`)
    this.#greeting.reject(error)
    for (const id of this.#pending.keys()) this.#settle(id)?.reject(error)
    this.#socket.destroy()
  }
}

/** True for a JSON object: not for null and arrays. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

// { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: … } }; '0.0.0' if it is anything else.
function versionOf(greeting: unknown): string {
  const version = isObject(greeting) && isObject(greeting.version) ? greeting.version.qemu : undefined
  const numbers = isObject(version) ? [version.major, version.minor, version.micro] : []
  return [0, 1, 2].map((at) => Number.isInteger(numbers[at]) ? String(numbers[at]) : '0').join('.')
}
