// host/log_reader.ts: reads a guest's log: the last lines, those since a time, those to come.
//
// The files are a cell process's to write (log_writer.ts), which may be anything by now: they are opened without
// following links, only if they are files and lie where they should, and a line that isn't one of a log is left out.
// All of them are opened at once, the newest first, so that a rotation meanwhile loses nothing: a descriptor stays with
// its file. Who follows learns of a rotation by the inode of `current`, and goes on with the files after its own.

import { constants, watch } from 'node:fs'
import { open, readlink, realpath, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { LOG_FILES_MAX, LOG_LINE_BYTES_MAX } from '../base/limits.ts'
import { CURRENT_LOG } from './log_writer.ts'
import type { LogLine, LogOptions } from './operator.ts'

/** Who follows looks so often, should the watch have missed something or not be had. */
const POLL_MS = 1000
const READ_BYTES = 64 * 1024
const NEWLINE = 0x0a
/** A longer line is none of ours: text, and what goes before it. */
const RAW_LINE_BYTES_MAX = LOG_LINE_BYTES_MAX + 64
const LINE = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z) (stdout|stderr) ([FP]) (.*)$/s

type LogFile = { readonly handle: FileHandle; readonly inode: bigint; at: number; readonly rest: LineCutter }

/**
 * Lines of the log in `folder`, oldest first. `since`: milliseconds since 1970. `tail`: so many of the last ones at
 * most. `follow`: then those to come, until `signal`. A log that isn't there is empty.
 */
export async function* readLog(folder: string, options: LogOptions): AsyncIterable<LogLine> {
  const { since, tail, follow = false, signal } = options
  const changes = follow ? new Changes(folder, signal) : undefined
  let files: LogFile[] = []
  try {
    files = await openAll(folder)
    if (tail !== undefined) files = await skipToTail(files, tail)
    while (!isOff(signal)) {
      while (files.length > 0) {
        const [file] = files
        for await (const line of linesOf(file!, signal)) {
          if (since === undefined || Date.parse(line.time) >= since) yield line
        }
        if (files.length === 1) break
        await files.shift()!.handle.close()
      }
      if (changes === undefined || !await changes.next()) return
      files = await renewed(folder, files)
    }
  } finally {
    changes?.close()
    await closeAll(files)
  }
}

function isOff(signal: AbortSignal | undefined): boolean {
  return signal?.aborted === true
}

// The file that was read last, and those after it.
async function renewed(folder: string, [last]: readonly LogFile[]): Promise<LogFile[]> {
  const found = await openAll(folder)
  if (last === undefined) return found
  const place = found.findIndex(({ inode }) => inode === last.inode)
  await closeAll(found.splice(0, place + 1))
  return [last, ...found]
}

// Oldest first. A file that is renamed between two openings is met twice, and taken once.
async function openAll(folder: string): Promise<LogFile[]> {
  const files: LogFile[] = []
  for (let i = 0; i < LOG_FILES_MAX; i++) {
    const file = await openFile(folder, i === 0 ? CURRENT_LOG : `${CURRENT_LOG}.${i}`)
    if (file === undefined) continue
    if (files.some(({ inode }) => inode === file.inode)) await file.handle.close()
    else files.unshift(file)
  }
  return files
}

async function openFile(folder: string, name: string): Promise<LogFile | undefined> {
  let handle: FileHandle | undefined
  try {
    const expected = join(await realpath(join(folder, '..')), folder.split('/').at(-1)!, name)
    handle = await open(join(folder, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const stat = await handle.stat({ bigint: true })
    const isThere = process.platform !== 'linux' || await readlink(`/proc/self/fd/${handle.fd}`) === expected
    if (stat.isFile() && stat.nlink === 1n && isThere) {
      return { handle, inode: stat.ino, at: 0, rest: new LineCutter() }
    }
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error
  }
  await handle?.close()
  return undefined
}

async function closeAll(files: readonly LogFile[]): Promise<void> {
  for (const { handle } of files) await handle.close()
}

async function* linesOf(file: LogFile, signal: AbortSignal | undefined): AsyncIterable<LogLine> {
  const buffer = Buffer.alloc(READ_BYTES)
  while (!isOff(signal)) {
    const { bytesRead } = await file.handle.read(buffer, 0, buffer.length, file.at)
    if (bytesRead === 0) return
    file.at += bytesRead
    for (const raw of file.rest.push(buffer.subarray(0, bytesRead))) {
      const match = LINE.exec(raw)
      if (match === null) continue
      const [, time, stream, tag, text] = match
      yield { time: time!, stream: stream as 'stdout' | 'stderr', text: text!, partial: tag === 'P' }
    }
  }
}

/** Cuts what is read into lines. Those that are too long are left out. */
class LineCutter {
  #partial = Buffer.alloc(0)
  #isTooLong = false

  push(chunk: Buffer): string[] {
    const lines: string[] = []
    let from = 0
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, from)) {
      const line = this.#partial.length === 0 ? chunk.subarray(from, end)
        : Buffer.concat([this.#partial, chunk.subarray(from, end)])
      if (!this.#isTooLong && line.length <= RAW_LINE_BYTES_MAX) lines.push(line.toString())
      this.#partial = Buffer.alloc(0)
      this.#isTooLong = false
      from = end + 1
    }
    this.#partial = Buffer.concat([this.#partial, chunk.subarray(from)])
    if (this.#partial.length > RAW_LINE_BYTES_MAX) {
      this.#isTooLong = true
      this.#partial = Buffer.alloc(0)
    }
    return lines
  }
}

// Sets where to begin for `count` lines, and closes what is before that.
async function skipToTail(files: LogFile[], count: number): Promise<LogFile[]> {
  let left = count
  for (let i = files.length - 1; i >= 0; i--) {
    const file = files[i]!
    const found = await findFromEnd(file.handle, left)
    file.at = found.at
    left -= found.lines
    if (left > 0) continue
    await closeAll(files.slice(0, i))
    return files.slice(i)
  }
  return files
}

// Where the last `count` lines of a file begin, and how many there are. What has no end yet is no line.
async function findFromEnd(handle: FileHandle, count: number): Promise<{ at: number; lines: number }> {
  const buffer = Buffer.alloc(READ_BYTES)
  let seen = 0
  for (let end = (await handle.stat()).size; end > 0;) {
    const from = Math.max(0, end - READ_BYTES)
    const { bytesRead } = await handle.read(buffer, 0, end - from, from)
    for (let at = buffer.lastIndexOf(NEWLINE, bytesRead - 1); at >= 0; at = lastNewline(buffer, at)) {
      if (seen === count) return { at: from + at + 1, lines: count }
      seen++
    }
    end = from
  }
  return { at: 0, lines: seen }
}

// That before `at`. (A negative place would be one from the end.)
function lastNewline(buffer: Buffer, at: number): number {
  return at === 0 ? -1 : buffer.lastIndexOf(NEWLINE, at - 1)
}

/** Tells that something in a folder may have changed. */
class Changes {
  readonly #signal: AbortSignal | undefined
  readonly #timer: NodeJS.Timeout
  readonly #stopWatching: () => void
  #isChanged = false
  #wake: (() => void) | undefined

  constructor(folder: string, signal: AbortSignal | undefined) {
    this.#signal = signal
    this.#stopWatching = watchFolder(folder, this.#changed)
    this.#timer = setInterval(this.#changed, POLL_MS)
    signal?.addEventListener('abort', this.#changed)
  }

  /** False if nobody wants to know any more. */
  async next(): Promise<boolean> {
    if (!this.#isChanged) await new Promise<void>((resolve) => { this.#wake = resolve })
    this.#isChanged = false
    return this.#signal?.aborted !== true
  }

  close(): void {
    clearInterval(this.#timer)
    this.#stopWatching()
    this.#signal?.removeEventListener('abort', this.#changed)
  }

  readonly #changed = (): void => {
    this.#isChanged = true
    this.#wake?.()
    this.#wake = undefined
  }
}

// A folder that isn't there yet, or watches that have run out: then looking from time to time has to do.
function watchFolder(folder: string, changed: () => void): () => void {
  try {
    const watcher = watch(folder, changed)
    watcher.on('error', () => watcher.close())
    return () => watcher.close()
  } catch {
    return () => {}
  }
}
