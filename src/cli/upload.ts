// cli/upload.ts: programs of this machine as images of a host: sent only if the host doesn't have them.

import { createHash } from 'node:crypto'
import { closeSync, createReadStream, openSync, readSync } from 'node:fs'
import { basename } from 'node:path'
import { CellarError } from '../base/errors.ts'
import type { ImageView } from '../host/operator.ts'
import { isPath } from '../image/reference.ts'
import type { Client } from './client.ts'
import { isTold } from './told.ts'

const CHUNK_BYTES = 1024 * 1024

/** The path of an image: its reference is one part of it. */
export function imagePath(reference: string): string {
  return `/v1/images/${encodeURIComponent(reference)}`
}

/**
 * A reference to a module that the host has now: `FILE@sha256:…`, so that people see what it is, or the digest alone if
 * the file's name can't be part of one. Throws PROGRAM_NOT_FOUND, PROGRAM_UNREADABLE.
 */
export async function uploaded(host: Client, path: string): Promise<string> {
  const digest = digestOf(path)
  try {
    await host.ask('GET', imagePath(digest))
  } catch (error) {
    if (!isTold(error) || error.code !== 'NOT_FOUND') throw error
    await importProgram(host, path, undefined)
  }
  const name = basename(path).toLowerCase()
  return isPath(name) ? `${name}@${digest}` : digest
}

/** Sends a program as an image, with a name if it is to have one. */
export async function importProgram(host: Client, path: string, name: string | undefined): Promise<ImageView> {
  // A file that can't be read is told before anything is asked of the host.
  const file = createReadStream('', { fd: open(path) })
  return await host.ask<ImageView>('POST', '/v1/images', { query: { name }, body: file, type: 'application/wasm' })
}

function digestOf(path: string): string {
  const hash = createHash('sha256')
  const fd = open(path)
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES)
  try {
    for (let count = 0; (count = readSync(fd, chunk)) > 0;) hash.update(chunk.subarray(0, count))
  } catch (cause) {
    throw new CellarError('PROGRAM_UNREADABLE', [path, (cause as Error).message], { cause })
  } finally {
    closeSync(fd)
  }
  return `sha256:${hash.digest('hex')}`
}

function open(path: string): number {
  try {
    return openSync(path, 'r')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') throw new CellarError('PROGRAM_NOT_FOUND', [path],
      { cause })
    throw new CellarError('PROGRAM_UNREADABLE', [path, (cause as Error).message], { cause })
  }
}
