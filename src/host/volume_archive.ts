// host/volume_archive.ts: what is in a volume as a tar archive, and the other way.
//
// The volume belongs to guests, who may change it meanwhile, and the archive comes from a client: neither is trusted.
// The place asked for is resolved beneath the volume by the kernel (services/file/resolve.ts). What an archive has
// beneath that place is reached from folder to folder by descriptors, and no link on the way is followed. A file is
// written under another name, then takes the place of what was there: a file that is shared with a clone is never
// written, a link never written through. Elsewhere: paths and limits of an archive's entries (archive_entries.ts).

import { basename } from 'node:path'
import { Readable } from 'node:stream'
import type { ReadableStream as NodeReadableStream } from 'node:stream/web'
import { createTarPacker, type TarHeader, type TarPackController } from 'modern-tar'
import { ELOOP, ENOENT, ENOTDIR, EPERM } from '../base/errno.ts'
import { CellarError } from '../base/errors.ts'
import { COPY_STEP_BYTES, PATH_BYTES_MAX } from '../base/limits.ts'
import { reading } from '../services/file/copy_content.ts'
import { contentsOf } from '../services/file/open_quota.ts'
import { refusePath } from '../services/file/paths.ts'
import { bestResolver, openBeneath } from '../services/file/resolve.ts'
import { isShared } from '../services/file/shared_file.ts'
import { walkTree } from '../services/file/tree_walk.ts'
import { openHostFolder } from '../services/file/volume.ts'
import * as sys from '../sys/linux_files.ts'
import { Unpacking } from './archive_entries.ts'
import { failure } from './volume_clone.ts'

/**
 * A tar archive of the file or folder `path` of the volume in the host's folder `folder`; its names begin with the last
 * of `path`. Sockets and devices are left out. Throws PATH_UNSAFE, NOT_FOUND, VOLUME_*; the stream fails with
 * REQUEST_TOO_LARGE if a path is too long for an archive.
 */
export function readArchive(folder: string, path: string): Readable {
  const top = openPlace(folder, path, sys.O_RDONLY | sys.O_NONBLOCK | sys.O_NOCTTY)
  const { readable, controller } = createTarPacker()
  const packing = new Packing(controller)
  void packing.run(top, basename(normal(path)) || '.').then(() => { controller.finalize() }, (error: unknown) => {
    controller.error(error)
  }).finally(() => { sys.close(top) })
  return Readable.fromWeb(readable as NodeReadableStream<Uint8Array>)
}

/**
 * Unpacks `tar` into the folder `path` of the volume, which may hold `sizeBytes` in all. Files become `uid`'s, if
 * given. Throws PATH_UNSAFE, NOT_FOUND, ARCHIVE_INVALID, VOLUME_TOO_SMALL, HOST_DISK_FULL, VOLUME_*. What was unpacked
 * before stays. Cells that have the volume don't count what is unpacked until their process opens its quota anew.
 */
export async function writeArchive(folder: string, path: string, tar: Readable, { sizeBytes, uid }: {
  sizeBytes: number; uid?: number | undefined
}): Promise<void> {
  const place = openPlace(folder, path, sys.O_PATH | sys.O_DIRECTORY)
  try {
    const { bytes } = await contentsOf(folder)
    const depth = normal(path).split('/').filter((name) => name !== '' && name !== '.').length
    await new Unpacking(place, { name: basename(folder), depth, sizeBytes, usedBytes: bytes, uid }).run(tar)
  } finally {
    sys.close(place)
    tar.destroy()
  }
}

// Opens `path`, from the volume's top whether it begins with a slash or not.
function openPlace(folder: string, path: string, flags: number): number {
  const bytes = Buffer.from(normal(path))
  if (refusePath(bytes) !== 0) throw new CellarError('PATH_UNSAFE', [folder, path])
  const root = openHostFolder(folder)
  const fd = openBeneath(bestResolver(root), root, bytes, flags, 0)
  sys.close(root)
  if (fd >= 0) return fd
  if (fd === -ENOENT || fd === -ENOTDIR) throw new CellarError('NOT_FOUND', ['path', path])
  if (fd === -EPERM || fd === -ELOOP) throw new CellarError('PATH_UNSAFE', [basename(folder), path])
  throw failure(`read "${path}"`, folder, fd)
}

function normal(path: string): string {
  return path.replace(/^\/+/, '').replace(/\/+$/, '') || '.'
}

class Packing {
  readonly #controller: TarPackController
  // The names of the folders that we are in, each with its final slash.
  readonly #parents: string[] = []
  readonly #firstNames = new Map<string, string>()

  constructor(controller: TarPackController) { this.#controller = controller }

  async run(top: number, name: string): Promise<void> {
    sys.statx(top, NOTHING, sys.AT_EMPTY_PATH)
    if ((sys.statxMode() & sys.S_IFMT) === sys.S_IFREG) return this.#file(top, Buffer.from(name))
    if ((sys.statxMode() & sys.S_IFMT) !== sys.S_IFDIR) return
    await this.#add({ ...attributes(), name: `${name}/`, type: 'directory', size: 0 })
    this.#parents.push(name === '.' ? '' : `${name}/`)
    const folders: TarHeader[] = []
    await walkTree(top, {
      enter: (_folder, name) => {
        folders.push({ ...attributes(), name: `${this.#path(name)}/`, type: 'directory', size: 0 })
        this.#parents.push(`${this.#parents.at(-1)}${Buffer.from(name).toString()}/`)
      },
      leave: () => {
        this.#parents.pop()
      },
      entry: async (folder, name) => {
        await this.#addAll(folders)
        await this.#entry(folder, name)
      },
    })
    await this.#addAll(folders)
  }

  async #entry(folder: number, name: Uint8Array): Promise<void> {
    const kind = sys.statxMode() & sys.S_IFMT
    if (kind === sys.S_IFLNK) {
      const header = attributes()
      const length = sys.readlinkat(folder, name)
      if (length <= 0) return
      const linkname = Buffer.from(sys.linkTarget(length)).toString()
      await this.#add({ ...header, name: this.#path(name), type: 'symlink', linkname, size: 0 })
      return
    }
    if (kind !== sys.S_IFREG) return
    const fd = sys.openat(folder, name, sys.O_RDONLY | sys.O_NOFOLLOW | sys.O_NONBLOCK | sys.O_NOCTTY, 0)
    if (fd < 0) return
    try {
      sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
      if ((sys.statxMode() & sys.S_IFMT) === sys.S_IFREG) await this.#file(fd, name)
    } finally {
      sys.close(fd)
    }
  }

  // The last statx was about `fd`.
  async #file(fd: number, name: Uint8Array): Promise<void> {
    const path = this.#path(name)
    const header = { ...attributes(), name: path, size: sys.statxSize() }
    if (sys.statxLinks() > 1 && !isShared(sys.statxMode())) {
      const id = new Int32Array(4)
      sys.statxIdentity(id)
      const first = this.#firstNames.get(id.join())
      if (first !== undefined) return this.#add({ ...header, type: 'link', linkname: first, size: 0 })
      this.#firstNames.set(id.join(), path)
    }
    const body = this.#controller.add({ ...header, type: 'file' }).getWriter()
    for (let at = 0; at < header.size;) {
      // New each time: the stream keeps what it is given.
      const bytes = new Uint8Array(Math.min(COPY_STEP_BYTES, header.size - at))
      const got = await reading(fd, bytes, bytes.length, at)
      if (got < 0) throw failure(`read "${path}"`, path, got)
      // A guest has cut the file: what was promised is zeros.
      const sent = got === 0 ? bytes : bytes.subarray(0, got)
      await body.write(sent)
      at += sent.length
    }
    await body.close()
  }

  async #addAll(headers: TarHeader[]): Promise<void> {
    for (const header of headers.splice(0)) await this.#add(header)
  }

  async #add(header: TarHeader): Promise<void> {
    await this.#controller.add(header).close()
  }

  #path(name: Uint8Array): string {
    const path = `${this.#parents.at(-1) ?? ''}${Buffer.from(name).toString()}`
    if (path.length > PATH_BYTES_MAX) throw new CellarError('REQUEST_TOO_LARGE', ['a path', `${PATH_BYTES_MAX} bytes`])
    return path
  }
}

// Of the last statx. An archive's times are whole seconds.
function attributes(): { mode: number; mtime: Date } {
  return { mode: sys.statxMode() & 0o777, mtime: new Date(Number(sys.statxResult().mtim / 1_000_000n)) }
}

const NOTHING = new Uint8Array(0)
