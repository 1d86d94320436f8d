// host/confinement.ts: which walls around cell processes this machine has, found out by putting one up.
//
// What a kernel says of itself isn't what it does: a container may refuse what the kernel can, and a setting what it
// was built with. So a probe (jail_probe.ts) is started as a cell process is, and tells which walls it is within.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { jailCommand, ownFolder, uidOf, type Confinement, type Layer } from './jail.ts'

const PROBE = fileURLToPath(new URL('./jail_probe.ts', import.meta.url))
const PROBE_MS_MAX = 10_000
const LAYERS: readonly Layer[] =
  ['uid', 'network', 'ipc', 'uts', 'no-new-privs', 'landlock', 'seccomp', 'permission-model']
/** The uid of a probe is that of no project: those count up from 0. */
const PROBE_PROJECT = 0x0ffd0000

/** The walls of this machine, and, if no cell process can start in them, why. Starts one: some 0.2 s. */
export function confinement(): { readonly walls: Confinement; readonly failure?: string } {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-probe-'))
  try {
    const uid = process.getuid?.() === 0 ? uidOf(PROBE_PROJECT) : undefined
    const [runFolder, projectFolder, blobFolder] = ['run', 'project', 'blobs'].map((name) => join(folder, name))
    ownFolder(folder, uid)
    for (const path of [runFolder!, projectFolder!]) ownFolder(path, uid)
    mkdirSync(blobFolder!, { mode: 0o755 })
    const { file, args, env } = jailCommand({ runFolder: runFolder!, projectFolder: projectFolder!,
      blobFolder: blobFolder!, uid, program: PROBE })
    const { stdout, stderr, status, error } = spawnSync(file, args, { env, timeout: PROBE_MS_MAX, encoding: 'utf8' })
    if (status === 0) return { walls: JSON.parse(stdout) as Confinement }
    const why = error?.message ?? (stderr.trim() || `the probe ended with status ${status}`)
    return { walls: LAYERS.map((layer) => ({ layer, on: false, why: 'the probe did not start' })), failure: why }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
