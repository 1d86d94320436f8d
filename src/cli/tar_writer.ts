// cli/tar_writer.ts: files and folders of this machine as a tar archive (POSIX ustar, pax where that is too narrow).
//
// What is neither file, folder nor symbolic link is left out. A file is sent with the size that it had when it was
// opened: one that grows is cut off there, one that shrinks ends the archive with an error.

import { open, lstat, readdir, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'

const BLOCK = 512
const CHUNK_BYTES = 256 * 1024
const NAME_BYTES_MAX = 100
/** What eleven octal digits hold. */
const SIZE_MAX = 8 ** 11
const FOLDER = '5', FILE = '0', LINK = '2', PAX = 'x'

type Entry = { readonly name: string; readonly mode: number; readonly time: number; readonly size: number
  readonly flag: string; readonly link?: string }

/** The archive of `path`, which is called `name` in it: '' for a folder whose content is at the archive's top. */
export async function* archiveOf(path: string, name: string): AsyncGenerator<Uint8Array> {
  yield* entriesOf(path, name)
  yield Buffer.alloc(2 * BLOCK)
}

async function* entriesOf(path: string, name: string): AsyncGenerator<Uint8Array> {
  const found = await reading(path, () => lstat(path))
  const common = { mode: found.mode & 0o777, time: Math.floor(found.mtimeMs / 1000) }
  if (found.isDirectory()) {
    if (name !== '') yield headerOf({ ...common, name: `${name}/`, size: 0, flag: FOLDER })
    const names = await reading(path, () => readdir(path))
    for (const one of names.sort()) yield* entriesOf(join(path, one), name === '' ? one : `${name}/${one}`)
  } else if (found.isSymbolicLink()) {
    const link = await reading(path, () => readlink(path))
    yield headerOf({ ...common, name, size: 0, flag: LINK, link })
  } else if (found.isFile()) {
    yield* fileOf(path, name, common)
  }
}

async function* fileOf(path: string, name: string, common: { mode: number; time: number }): AsyncGenerator<Uint8Array> {
  await using file = await reading(path, () => open(path))
  const { size } = await file.stat()
  yield headerOf({ ...common, name, size, flag: FILE })
  for (let left = size; left > 0;) {
    const chunk = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, left))
    const { bytesRead } = await reading(path, () => file.read(chunk, 0, chunk.length))
    if (bytesRead === 0) throw new CellarError('ARCHIVE_INVALID', [`"${path}"`, 'it became shorter meanwhile'])
    left -= bytesRead
    yield chunk.subarray(0, bytesRead)
  }
  yield Buffer.alloc((BLOCK - size % BLOCK) % BLOCK)
}

async function reading<T>(path: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT') throw new CellarError('NOT_FOUND', ['file', path], { cause })
    throw new CellarError('ARCHIVE_INVALID', [`"${path}"`, (cause as Error).message], { cause })
  }
}

/** The header's block; before it a pax header if a name or the size doesn't fit. */
function headerOf(entry: Entry): Buffer {
  const records = [
    ...(Buffer.byteLength(entry.name) > NAME_BYTES_MAX ? [record('path', entry.name)] : []),
    ...(Buffer.byteLength(entry.link ?? '') > NAME_BYTES_MAX ? [record('linkpath', entry.link!)] : []),
    ...(entry.size >= SIZE_MAX ? [record('size', String(entry.size))] : []),
  ].join('')
  if (records === '') return block(entry)
  const bytes = Buffer.from(records)
  return Buffer.concat([
    block({ ...entry, name: 'pax', size: bytes.length, flag: PAX, link: '' }), bytes,
    Buffer.alloc((BLOCK - bytes.length % BLOCK) % BLOCK), block(entry),
  ])
}

/** `LENGTH KEY=VALUE\n`, where the length counts itself. */
function record(key: string, value: string): string {
  const length = Buffer.byteLength(` ${key}=${value}\n`)
  let total = length
  while (total !== length + String(total).length) total = length + String(total).length
  return `${total} ${key}=${value}\n`
}

function block({ name, mode, time, size, flag, link = '' }: Entry): Buffer {
  const bytes = Buffer.alloc(BLOCK)
  const octal = (value: number, at: number, digits: number): void => {
    bytes.write(`${value.toString(8).padStart(digits, '0')}\0`, at)
  }
  Buffer.from(name).copy(bytes, 0, 0, NAME_BYTES_MAX)
  octal(mode, 100, 7)
  octal(0, 108, 7)
  octal(0, 116, 7)
  octal(size >= SIZE_MAX ? 0 : size, 124, 11)
  octal(Math.max(0, time), 136, 11)
  bytes.write(' '.repeat(8), 148)
  bytes.write(flag, 156)
  Buffer.from(link).copy(bytes, 157, 0, NAME_BYTES_MAX)
  bytes.write('ustar\x0000', 257)
  const sum = bytes.reduce((total, byte) => total + byte, 0)
  bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return bytes
}
