// host/log_writer.ts: what guests write, as files: LOGFOLDER/GUEST/current, rotated.
//
// Pieces are collected while a batch of the same guest is on its way to the disk, and then go as one. They become lines
// only when it is their turn: lines may take twenty times the room. A file is open for a batch only, so there are as
// many open as there are writes at once (LOG_WRITES_MAX), and a guest that writes nothing has nothing here. Who wrote
// is told when its piece is done with, which is how a guest is slowed to the disk. But a disk that fails, or hangs,
// must hold nobody up: then lines are dropped and counted, and a note says how many when writing works again.
// Elsewhere: the lines (log_lines.ts), reading (log_reader.ts).

import { constants } from 'node:fs'
import { mkdir, open, rename, rm, type FileHandle } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { LOG_FILE_BYTES_MAX, LOG_FILES_MAX, LOG_WRITES_MAX } from '../base/limits.ts'
import { LogLines, type LogPiece } from './log_lines.ts'

/** A write that isn't done after this is of a disk that hangs: nobody waits for it any more. */
const STALLED_MS = 5000

/** What takes the place of lines that can't be written, in the note about them. */
const HANGS = 'the disk does not answer'

/** The file of a guest's log that is written to; then `current.1`, the one before it, and so on. */
export const CURRENT_LOG = 'current'

type GuestLog = {
  readonly guest: string
  readonly lines: LogLines
  /** What is to be written, and who waits for that; who waits for the batch that is on its way. */
  pieces: LogPiece[]
  done: (() => void)[]
  sending: (() => void)[]
  /** A batch is on its way, or waits for others' to be done. */
  isBusy: boolean
  /** Lines that were dropped since the last note, and why. */
  lost: number; why: string
  /** The file's end may be within a line. */
  isTorn: boolean
  isEnded: boolean
}

/** The logs of a process's guests. */
export class LogWriter {
  readonly #folder: string
  readonly #logs = new Map<string, GuestLog>()
  readonly #waiting: GuestLog[] = []
  readonly #times = new Timestamps()
  #writes = 0
  #doneCount = 0
  #watch: NodeJS.Timeout | undefined
  #isStalled = false
  #idle: (() => void)[] = []

  /** `folder`: that of all guests. It is made when the first one writes. */
  constructor(folder: string) {
    this.#folder = folder
  }

  /** Output of a guest (`channel`: 1 stdout, 2 stderr). `done` is called when the piece is done with. */
  write(guest: string, channel: 1 | 2, bytes: Uint8Array, done: () => void): void {
    const log = this.#logOf(guest)
    log.isEnded = false
    log.pieces.push({ time: this.#times.next(), channel, bytes })
    log.done.push(done)
    this.#schedule(log)
  }

  /** The guest has ended: what it left without an end of line is written, too. */
  end(guest: string): void {
    const log = this.#logs.get(guest)
    if (log === undefined) return
    log.isEnded = true
    log.pieces.push({ time: this.#times.next(), channel: 1, bytes: undefined })
    this.#schedule(log)
  }

  /** Resolves when all is written, or `ms` milliseconds later. */
  async settled(ms: number): Promise<void> {
    if (this.#writes === 0 && this.#waiting.length === 0) return
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#idle.push(resolve)
    const late = setTimeout(resolve, ms)
    await promise
    clearTimeout(late)
  }

  #logOf(guest: string): GuestLog {
    let log = this.#logs.get(guest)
    if (log === undefined) {
      log = { guest, lines: new LogLines(), pieces: [], done: [], sending: [], isBusy: false, lost: 0, why: '',
        isTorn: false, isEnded: false }
      this.#logs.set(guest, log)
    }
    return log
  }

  #schedule(log: GuestLog): void {
    if (this.#isStalled) drop(log)
    if (log.isBusy || log.pieces.length === 0) return
    log.isBusy = true
    this.#waiting.push(log)
    this.#next()
  }

  #next(): void {
    while (this.#writes < LOG_WRITES_MAX) {
      const log = this.#waiting.shift()
      if (log === undefined) break
      this.#writes++
      this.#watch ??= setTimeout(this.#look, STALLED_MS, this.#doneCount)
      void this.#flush(log)
    }
    if (this.#writes > 0) return
    clearTimeout(this.#watch)
    this.#watch = undefined
    for (const resolve of this.#idle.splice(0)) resolve()
  }

  async #flush(log: GuestLog): Promise<void> {
    const pieces = log.pieces.splice(0)
    log.sending = log.done.splice(0)
    const { bytes, count } = log.lines.take(pieces)
    try {
      if (count > 0) await this.#append(log, bytes)
    } catch (error) {
      log.lost += count
      log.why = (error as NodeJS.ErrnoException).code ?? String(error)
    }
    this.#writes--
    this.#doneCount++
    this.#isStalled = false
    log.isBusy = false
    for (const call of log.sending.splice(0)) call()
    this.#schedule(log)
    this.#forgetIdle(log)
    this.#next()
  }

  // What has been written by then need not be remembered.
  #forgetIdle({ guest, lines, pieces, isBusy, lost, isTorn, isEnded }: GuestLog): void {
    const isWhole = lost === 0 && !isTorn && lines.isWhole
    if (!isBusy && pieces.length === 0 && (isWhole || isEnded)) this.#logs.delete(guest)
  }

  async #append(log: GuestLog, lines: Buffer): Promise<void> {
    const path = join(this.#folder, log.guest, CURRENT_LOG)
    let file = await openFile(path)
    try {
      if ((await file.stat()).size >= LOG_FILE_BYTES_MAX) {
        await rotate(path)
        await file.close()
        file = await openFile(path)
        log.isTorn = false
      }
      const note = this.#noteOf(log)
      const before = Buffer.from(`${log.isTorn ? '\n' : ''}${note ?? ''}`)
      log.isTorn = true
      if (before.length > 0) await file.appendFile(before)
      await file.appendFile(lines)
      log.isTorn = false
      if (note !== undefined) log.lost = 0
    } finally {
      await file.close()
    }
  }

  #noteOf({ lost, why }: GuestLog): string | undefined {
    return lost === 0 ? undefined
      : `${this.#times.next()} stderr F [${lost} lines are lost: this log could not be written: ${why}]\n`
  }

  // Nothing was done since the last look: nobody waits for this disk any more.
  readonly #look = (doneBefore: number): void => {
    this.#watch = undefined
    if (this.#writes === 0) return
    this.#watch = setTimeout(this.#look, STALLED_MS, this.#doneCount)
    if (this.#doneCount !== doneBefore) return
    this.#isStalled = true
    for (const log of this.#logs.values()) {
      for (const call of log.sending.splice(0)) call()
      drop(log)
    }
  }
}

// Its folder is made if it isn't there.
async function openFile(path: string): Promise<FileHandle> {
  const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW } = constants
  for (let again = false; ; again = true) {
    try {
      return await open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o600)
    } catch (error) {
      if (again || (error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
      await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    }
  }
}

async function rotate(path: string): Promise<void> {
  await rm(`${path}.${LOG_FILES_MAX - 1}`, { force: true })
  for (let i = LOG_FILES_MAX - 2; i >= 0; i--) {
    const from = i === 0 ? path : `${path}.${i}`
    await rename(from, `${path}.${i + 1}`).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    })
  }
}

// What waits to be written is done with, for what it is worth.
function drop(log: GuestLog): void {
  log.lost += log.lines.take(log.pieces.splice(0)).count
  log.why = HANGS
  for (const call of log.done.splice(0)) call()
}

/** Times of the wall clock that grow with each: within a millisecond the last digits count. */
class Timestamps {
  #ms = 0
  #text = ''
  #count = 0

  next(): string {
    const now = Date.now()
    if (now !== this.#ms) {
      this.#ms = now
      this.#text = new Date(now).toISOString().slice(0, -1)
      this.#count = 0
    } else if (this.#count < 999_999) this.#count++
    return `${this.#text}${String(this.#count).padStart(6, '0')}Z`
  }
}
