// host/process_code.ts: what guests' processes run: ten files, joined from the sources when the host starts.
//
// From its sources a cell process would load some hundred modules in two processes and as many threads as the machine
// has processors, and strip the types of each: half a second and more, of which a third is left. It also makes every
// process that a host starts one of the host's own version, though the sources have changed since. The files are the
// host's own: cell processes read them (jail_launch.ts), and can't change them. They are made anew when the sources'
// contents have changed: packages are unpacked with the same time stamp always.

import { createHash } from 'node:crypto'
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { joinPrograms } from '../base/joined.ts'

/** What is started: the launcher, the process, its threads. */
const ENTRIES: readonly string[] = ['./jail_launch.ts', './cell_process.ts', '../cell/pcpu_worker.ts',
  '../cell/timer_worker.ts', './translation_worker.ts', '../snapshot/crew_worker.ts',
  '../sys/flush_worker.ts', './machine_process.ts', '../machine/vcpu_worker.ts', '../machine/device_thread.ts',
].map((path) => fileURLToPath(new URL(path, import.meta.url)))

/** In the folder: which sources the files are of, and a digest of what these held. */
const SOURCES = 'sources.json'

/** Writes the files into the folder, which anybody may read, unless they are there. Throws a system error. */
export function writeProcessCode(folder: string): void {
  mkdirSync(folder, { recursive: true })
  chmodSync(folder, 0o755)
  if (isFresh(folder)) return
  rmSync(join(folder, SOURCES), { force: true })
  const joined = new Map(ENTRIES.map((path) => [path, join(folder, `${basename(path, '.ts')}.cjs`)]))
  const made = new Map<string, string>()
  for (const [path, code] of joinPrograms(joined, made)) {
    const partial = `${path}.new`
    writeFileSync(partial, code)
    chmodSync(partial, 0o644)
    renameSync(partial, path)
  }
  const paths = [...made.keys()]
  writeFileSync(join(folder, SOURCES), JSON.stringify({ paths, digest: digestOf(paths) }))
}

// The list is of the sources that were joined: it can't change but with one of them.
function isFresh(folder: string): boolean {
  try {
    const { paths, digest } = JSON.parse(readFileSync(join(folder, SOURCES), 'utf8')) as
      { paths: readonly string[]; digest: string }
    return ENTRIES.every((path) => paths.includes(path)) && digestOf(paths) === digest
  } catch {
    return false
  }
}

// With Node's version, as Node strips the types.
function digestOf(paths: readonly string[]): string {
  const hash = createHash('sha256').update(process.version)
  for (const path of paths) hash.update(path).update(readFileSync(path))
  return hash.digest('hex')
}
