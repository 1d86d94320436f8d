// cli/copy.ts: `cellar cp`: files between here and a volume, or a machine that runs, as tar archives on the way.
//
// A name is a volume's if there is one, else a guest's.
//
// A target that ends in / (or is a folder of this machine) is put into, any other is the copy's new name. What comes
// out of a volume was written by a guest: names that lead out of the target are refused, links are left out and told.

import { createWriteStream, mkdirSync, rmSync, statSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { TarError, TarReader } from '../image/tar_reader.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { print } from './print.ts'
import { archiveOf } from './tar_writer.ts'
import { isTold } from './told.ts'

const TAR = 'application/x-tar'

type InVolume = { readonly volume: string; readonly path: string; readonly isFolder: boolean }

/** `cellar cp`. */
export async function copy({ client, words }: Call): Promise<number> {
  const [from, to] = [volumePath(words[0]!), volumePath(words[1]!)]
  if ((from === undefined) === (to === undefined)) {
    throw new CellarError('USAGE', ['Cannot copy unless one of the two is VOLUME:PATH'])
  }
  const host = await client()
  const { volume } = (from ?? to)!
  const files = await isVolume(host, volume) ? host.path('volumes', volume, 'files')
    : host.path('guests', volume, 'files')
  if (from !== undefined) await copyOut(host, files, from, words[1]!)
  else await copyIn(host, files, words[0]!, to!)
  return 0
}

async function isVolume(host: Client, name: string): Promise<boolean> {
  try {
    await host.ask('GET', host.path('volumes', name))
    return true
  } catch (error) {
    if (isTold(error) && error.code === 'NOT_FOUND') return false
    throw error
  }
}

/** VOLUME:PATH; undefined for a path of this machine, such as ./a:b. */
export function volumePath(text: string): InVolume | undefined {
  const match = /^([A-Za-z0-9][\w.-]{0,39}):(.*)$/s.exec(text)
  if (match === null) return undefined
  const path = posix.resolve('/', match[2]!)
  return { volume: match[1]!, path, isFolder: path === '/' || match[2]!.endsWith('/') }
}

async function copyIn(host: Client, files: string, source: string, { path, isFolder }: InVolume): Promise<void> {
  if (source === '-') return await host.ask('PUT', files, { query: { path }, body: process.stdin, type: TAR })
  const isWhole = statSync(source, { throwIfNoEntry: false })?.isDirectory() === true && /(?:^|\/)\.?$/.test(source)
  const name = isFolder && !isWhole ? posix.join(path, posix.basename(posix.resolve(source))) : path
  const body = Readable.from(archiveOf(source, name.slice(1)), { objectMode: false })
  await host.ask('PUT', files, { query: { path: '/' }, body, type: TAR })
}

async function copyOut(host: Client, files: string, { volume, path }: InVolume, target: string): Promise<void> {
  const answer = await host.open('GET', files, { query: { path }, accept: TAR })
  try {
    if (target !== '-') return await unpack(new TarReader(answer), posix.basename(path), target)
    for await (const chunk of answer) print(chunk as Uint8Array)
  } catch (cause) {
    const isCut = (cause as NodeJS.ErrnoException).code === 'ECONNRESET'
    if (!isCut && !(cause instanceof TarError)) throw cause
    throw new CellarError('ARCHIVE_INVALID', [`what "${volume}" holds`, isCut ? 'it is cut off'
      : (cause as Error).message], { cause })
  } finally {
    answer.destroy()
  }
}

/** `name`: of what is copied, with which all names in the archive begin; '' for the whole volume. */
async function unpack(archive: TarReader, name: string, target: string): Promise<void> {
  const into = target.endsWith('/') || statSync(target, { throwIfNoEntry: false })?.isDirectory() === true
  const root = into ? join(target, name) : target
  let links = 0
  for (let entry; (entry = await archive.next()) !== undefined;) {
    const parts = entry.name.split('/').filter((part) => part !== '' && part !== '.')
    if (parts.includes('..') || entry.name.includes('\0') || (name !== '' && parts.shift() !== name)) {
      throw new CellarError('PATH_UNSAFE', ['the volume', printable(entry.name)])
    }
    const path = join(root, ...parts)
    if (entry.type === 'folder') makeFolder(path)
    else if (entry.type === 'file') await write(path, archive.content())
    else links++
  }
  if (links > 0) process.stderr.write(`cellar: left out ${links} link${links === 1 ? '' : 's'}\n`)
}

function makeFolder(path: string): void {
  try {
    mkdirSync(path, { recursive: true })
  } catch (cause) {
    throw new CellarError('OUTPUT_FAILED', [(cause as Error).message], { cause })
  }
}

async function write(path: string, content: AsyncIterable<Uint8Array>): Promise<void> {
  makeFolder(dirname(path))
  try {
    // A link that lies there is replaced, not followed.
    rmSync(path, { force: true })
    await pipeline(content, createWriteStream(path))
  } catch (cause) {
    if (cause instanceof TarError || (cause as NodeJS.ErrnoException).syscall === undefined) throw cause
    throw new CellarError('OUTPUT_FAILED', [(cause as Error).message], { cause })
  }
}
