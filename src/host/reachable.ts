// host/reachable.ts: whether projects can be users of their own on this host: who changes must still find its way.
//
// A process that becomes another user reads the program, Node and its folders as that user. A checkout or a state
// folder below somebody's private folder (/root, a home) can't be reached so; then all projects run as the host does,
// which doctor and the log say.

import { statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Others may pass through a folder, or read a file. */
const MAY_PASS = 0o001
const MAY_READ = 0o004

/** True, or why not. `state`: the state folder, which is there. */
export function canSeparate(state: string): true | string {
  if (process.getuid?.() !== 0) return 'the host does not run as root'
  const program = fileURLToPath(import.meta.url)
  for (const path of [process.execPath, program]) {
    if ((statSync(path).mode & MAY_READ) === 0) return `others may not read ${path}`
  }
  const folders = new Set([process.execPath, program, resolve(state, 'x')].flatMap(parents))
  for (const folder of folders) {
    if ((statSync(folder).mode & MAY_PASS) === 0) return `others may not pass through ${folder}`
  }
  return true
}

function parents(path: string): string[] {
  const parent = dirname(path)
  return parent === path ? [] : [parent, ...parents(parent)]
}
