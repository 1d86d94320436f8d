// services/file/open_quota.ts: counts what a volume holds, and makes the memory in which its cells count on.
//
// Once for each volume of a process, before the first cell that has it starts. What a killed process left behind of a
// copy (shared_file.ts) is removed then; what a killed host left behind of an archive, too, but the host may be writing
// one right now: only what hasn't changed for an hour.

import * as sys from '../../sys/linux_files.ts'
import { VOLUME_ENTRY_BYTES } from '../../base/limits.ts'
import { folderExcess, newQuota } from './quota.ts'
import { COPY_PREFIX, PUT_PREFIX, isShared } from './shared_file.ts'
import { walkTree } from './tree_walk.ts'
import { openHostFolder } from './volume.ts'

/** What a volume holds: bytes as they are charged (quota.ts), and names. */
export type Contents = { readonly bytes: number; readonly entries: number }

/**
 * The shared memory by which the volume in the host's folder `path` never holds more than `sizeBytes`: for the grants
 * of all cells of this process that have it (Grants.volumes). Throws CellarError VOLUME_*.
 */
export async function openQuota(path: string, sizeBytes: number): Promise<SharedArrayBuffer> {
  const { bytes } = await contentsOf(path, { removesLeftovers: true })
  return newQuota(sizeBytes, bytes)
}

/** Counts what is in the host's folder `path`. Throws CellarError VOLUME_*, or the reason of `signal`. */
export async function contentsOf(path: string, { signal, removesLeftovers = false }: {
  signal?: AbortSignal | undefined; removesLeftovers?: boolean
} = {}): Promise<Contents> {
  const root = openHostFolder(path)
  sys.statx(root, NOTHING, sys.AT_EMPTY_PATH)
  let bytes = folderExcess(sys.statxSize())
  let entries = 0
  const severalNames = new Set<string>()
  const id = new Int32Array(4)
  const count = (): void => {
    entries++
    bytes += VOLUME_ENTRY_BYTES
  }
  try {
    await walkTree(root, {
      enter: (_folder, _name, fd) => {
        count()
        sys.statx(fd, NOTHING, sys.AT_EMPTY_PATH)
        bytes += folderExcess(sys.statxSize())
      },
      entry: (folder, name) => {
        if (removesLeftovers && isLeftover(name) && sys.unlinkat(folder, name, 0) === 0) return
        count()
        const mode = sys.statxMode()
        if ((mode & sys.S_IFMT) !== sys.S_IFREG) return
        if (sys.statxLinks() > 1 && !isShared(mode)) {
          sys.statxIdentity(id)
          const key = id.join()
          if (severalNames.has(key)) return
          severalNames.add(key)
        }
        bytes += sys.statxSize()
      },
    }, signal)
  } finally {
    sys.close(root)
  }
  return { bytes, entries }
}

// By its name, and the last statx.
function isLeftover(name: Uint8Array): boolean {
  if (name[0] !== DOT) return false
  const text = Buffer.from(name).toString()
  if (text.startsWith(COPY_PREFIX)) return true
  return text.startsWith(PUT_PREFIX) && Date.now() - Number(sys.statxResult().ctim / 1_000_000n) > PUT_MS_MAX
}

const NOTHING = new Uint8Array(0)
const DOT = 0x2e
const PUT_MS_MAX = 3_600_000
