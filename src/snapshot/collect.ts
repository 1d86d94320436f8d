// snapshot/collect.ts: freeing the chunks that no snapshot names any more, while others write and read.
//
// There is no lock. Who removes a pack first takes its name away, and then looks for snapshots that have come
// meanwhile: if one needs it, the pack gets its name back. Who writes a snapshot first gives it its name, and then
// looks whether the packs that it relies on have theirs: if one hasn't, the chunks are stored anew. One of the two sees
// the other, whatever the order. Readers find packs under both names.
//
// A pack of which less than half is needed goes, too: what is needed of it is copied into a new pack, verified on the
// way. So do small packs when there are many. A snapshot of a newer format may need any chunk: then all stay.

import { CellarError } from '../base/errors.ts'
import { SNAPSHOT_BYTES_MAX } from '../base/limits.ts'
import type { Folder } from './disk.ts'
import { decodeSnapshot } from './format.ts'
import { OLD, PACK, type Draft, type Pack, type Packs } from './packs.ts'

/** The ending of a snapshot's file. */
export const SNAPSHOT_FILE = '.snapshot'
/** A pack below this is small, and so many small ones are many: each costs every process a look at it. */
const SMALL_BYTES = 1024 * 1024
const SMALL_PACKS_MAX = 32

/** Frees what no snapshot needs; answers the bytes. */
export async function collectGarbage(folder: Folder, packs: Packs): Promise<number> {
  const early = needsOf(folder, folder.names(SNAPSHOT_FILE))
  packs.refresh()
  // Those that another has begun to remove, and was killed: as if we had begun.
  const going = [...packs.all()].filter((pack) => pack.file.endsWith(OLD))
  const kept = [...packs.all()].filter((pack) => pack.file.endsWith(PACK))
  if (early === undefined) return 0
  const dead = kept.filter((pack) => !pack.hashes.some((hash) => early.chunks.has(hash)))
  const copied = await copy(sparseOf(kept.filter((pack) => !dead.includes(pack)), packs, early.chunks), packs,
    early.chunks)
  if (copied.from.length > 0) await folder.sync()
  const files = [...dead, ...copied.from].map((pack) => pack.file).filter((file) => folder.rename(file, oldOf(file)))
  // Only now: who has come before sees that the names are gone, or is seen here.
  const late = needsOf(folder, folder.names(SNAPSHOT_FILE).filter((name) => !early.snapshots.has(name)))
  packs.refresh()
  let freed = -copied.bytes
  for (const pack of packs.all()) {
    const isGoing = going.some(({ file }) => file === pack.file)
    if (!isGoing && !(pack.file.endsWith(OLD) && files.includes(keptOf(pack.file)))) continue
    const isNeeded = late === undefined || pack.hashes.some((hash) => late.chunks.has(hash)) ||
      (isGoing && pack.hashes.some((hash) => early.chunks.has(hash) && !packs.isKept(hash)))
    if (isNeeded) folder.rename(pack.file, keptOf(pack.file))
    else if (folder.remove(pack.file)) freed += pack.bytes
  }
  for (const file of packs.damaged()) folder.remove(file)
  packs.refresh()
  return Math.max(0, freed)
}

type Needs = { readonly snapshots: ReadonlySet<string>; readonly chunks: ReadonlySet<string> }

// What the snapshots that could be read need; undefined: it can't be known. One that is damaged can't be read at all.
function needsOf(folder: Folder, names: Iterable<string>): Needs | undefined {
  const [snapshots, chunks] = [new Set<string>(), new Set<string>()]
  for (const name of names) {
    const bytes = folder.read(name + SNAPSHOT_FILE, SNAPSHOT_BYTES_MAX)
    if (bytes === undefined) continue
    try {
      for (const { hash } of decodeSnapshot(bytes, name).chunks) chunks.add(hash)
      snapshots.add(name)
    } catch (error) {
      if (!(error instanceof CellarError)) throw error
      if (error.code === 'SNAPSHOT_NEWER') return undefined
    }
  }
  return { snapshots, chunks }
}

// Packs of which most isn't needed; small ones, if they are many.
function sparseOf(kept: readonly Pack[], packs: Packs, live: ReadonlySet<string>): Pack[] {
  const sum = (hashes: readonly string[]): number => hashes.reduce((sum, hash) => sum + packs.storedBytes(hash), 0)
  const small = kept.filter((pack) => pack.bytes < SMALL_BYTES)
  return kept.filter((pack) => 2 * sum(pack.hashes.filter((hash) => live.has(hash))) < sum(pack.hashes) ||
    (small.length > SMALL_PACKS_MAX && small.includes(pack)))
}

// Copies what is needed of these packs into new ones, on the disk; answers those that needn't stay.
async function copy(sparse: readonly Pack[], packs: Packs, live: ReadonlySet<string>):
Promise<{ from: readonly Pack[]; bytes: number }> {
  const needed = new Set(sparse.flatMap((pack) => pack.hashes.filter((hash) => live.has(hash))))
  const lost = new Set(await packs.lacking(needed))
  const from = sparse.filter((pack) => !pack.hashes.some((hash) => lost.has(hash)))
  const hashes = [...new Set(from.flatMap((pack) => pack.hashes.filter((hash) => live.has(hash))))]
  const drafts: Draft[] = []
  try {
    let at = 0
    for (const stored of packs.stored(hashes, 'collected')) {
      let draft = drafts.at(-1)
      if (draft === undefined || draft.isFull) {
        draft = packs.draft()
        drafts.push(draft)
      }
      draft.add(hashes[at++]!, stored)
    }
    for (const draft of drafts) await draft.finish(true)
    packs.publish(drafts, true)
    return { from, bytes: drafts.reduce((sum, draft) => sum + draft.size, 0) }
  } finally {
    for (const draft of drafts) draft[Symbol.dispose]()
  }
}

function oldOf(file: string): string { return file.replace(PACK, OLD) }

function keptOf(file: string): string { return file.replace(OLD, PACK) }
