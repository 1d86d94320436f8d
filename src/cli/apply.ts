// cli/apply.ts: `cellar apply` and `cellar diff`: a manifest as the desired state of a project.
//
// The manifest is checked here, with lines and columns, then sent whole. Programs that it names by their files are sent
// first, unless the host has them, and stand in it by their digests.

import { dirname, resolve } from 'node:path'
import { CellarError } from '../base/errors.ts'
import type { ApplyChange } from '../host/operator.ts'
import { ManifestFile } from '../host/manifest_file.ts'
import { MANIFEST, type Manifest } from '../host/spec.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { print } from './print.ts'
import { uploaded } from './upload.ts'

const WORDS: Readonly<Record<ApplyChange['action'], string>> = {
  create: 'create', change: 'change', restart: 'change and restart', remove: 'remove', none: 'unchanged',
}

/** `cellar apply -f`. */
export async function apply(call: Call): Promise<number> {
  const changes = await changesOf(call, call.flags['dry-run'] !== undefined)
  print(linesOf(changes, true))
  return 0
}

/** `cellar diff -f`: 0 if nothing differs, else 1. */
export async function diff(call: Call): Promise<number> {
  const changes = await changesOf(call, true)
  print(linesOf(changes, false))
  return changes.some(({ action }) => action !== 'none') ? 1 : 0
}

async function changesOf({ flags, client }: Call, isDry: boolean): Promise<ApplyChange[]> {
  const path = flags.file?.[0]
  if (path === undefined) throw new CellarError('USAGE', ['Cannot apply without a manifest: give one with -f'])
  const file = new ManifestFile(path)
  if (!file.hasCells) file.refuse("a host takes a manifest with 'cells'", [])
  const manifest = file.check(MANIFEST)
  const host = await client()
  const project = flags.project?.[0] ?? manifest.project ?? host.project
  if (manifest.project !== undefined && manifest.project !== project) {
    file.refuse(`it describes another project than --project ${project}`, ['project'])
  }
  const body = await withImages(host, dirname(resolve(path)), { ...manifest, project })
  const query = { dryRun: isDry ? '' : undefined, prune: flags.prune?.[0] }
  const at = `/v1/projects/${encodeURIComponent(project)}/apply`
  return (await host.ask<{ items: ApplyChange[] }>('POST', at, { body, query })).items
}

/** The manifest with `image` in place of each `program`. */
async function withImages(host: Client, folder: string, manifest: Manifest): Promise<Manifest> {
  const digests = new Map<string, string>()
  const cells: Manifest['cells'] = {}
  for (const [name, { program, ...cell }] of Object.entries(manifest.cells)) {
    if (program === undefined) {
      cells[name] = cell
      continue
    }
    const path = resolve(folder, program)
    const image = digests.get(path) ?? await uploaded(host, path)
    digests.set(path, image)
    cells[name] = { ...cell, image }
  }
  return { ...manifest, cells }
}

/** `+ guest web: create`, a line each; those that stay as they are only if `all`. */
function linesOf(changes: readonly ApplyChange[], all: boolean): string {
  return changes.filter(({ action }) => all || action !== 'none').map(({ kind, name, action, fields = [] }) => {
    const sign = action === 'none' ? ' ' : action === 'create' ? '+' : action === 'remove' ? '-' : '~'
    return `${sign} ${kind} ${name}: ${WORDS[action]}${fields.length === 0 ? '' : ` (${fields.join(', ')})`}\n`
  }).join('')
}
