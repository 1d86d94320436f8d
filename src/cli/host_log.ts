// cli/host_log.ts: where a host's own log goes: stderr, for whoever runs it, or a file that is rotated.
//
// A file is rotated by its size, and opened anew on SIGHUP, for who rotates it otherwise. Lines are few: they are
// written as they come.

import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { LOG_FILE_BYTES_MAX, LOG_FILES_MAX } from '../base/limits.ts'
import { newLog, type Log } from '../base/log.ts'

/** The host's log. `reopen`: its file may have been moved away. */
export type HostLog = Log & { readonly reopen: () => void }

/** A log to stderr, or to the file at `path`. Throws FLAG_VALUE_INVALID. */
export function openLog(path: string | undefined): HostLog {
  if (path === undefined) {
    // systemd says that it reads stderr: then lines begin with their priority.
    const log = newLog((line) => {
      try {
        writeSync(2, line)
      } catch {
        // As below: a full disk, or nobody who reads it any more.
      }
    }, process.env['JOURNAL_STREAM'] !== undefined)
    return { ...log, reopen: () => {} }
  }
  let [fd, size] = open(path)
  const reopen = (): void => {
    const before = fd;
    [fd, size] = open(path)
    closeSync(before)
  }
  const log = newLog((line) => {
    try {
      size += writeSync(fd, line)
      if (size < LOG_FILE_BYTES_MAX) return
      for (let i = LOG_FILES_MAX - 1; i > 0; i--) moveIfThere(i === 1 ? path : `${path}.${i - 1}`, `${path}.${i}`)
      reopen()
    } catch {
      // A full disk must not end the host: the line is lost, the next one may not be.
    }
  })
  return { ...log, reopen }
}

function open(path: string): [fd: number, size: number] {
  try {
    const fd = openSync(path, 'a', 0o640)
    return [fd, fstatSync(fd).size]
  } catch (cause) {
    throw new CellarError('FLAG_VALUE_INVALID',
      ['--log', path, `a file that can be written: ${(cause as Error).message}`], { cause })
  }
}

function moveIfThere(from: string, to: string): void {
  try {
    renameSync(from, to)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}
