// host/apply.ts: what has to change for a project to be as its manifest says: pure.
//
// A manifest describes pools, volumes, networks and cells by name. What it doesn't name stays as it is; with `prune`
// guests that an earlier manifest made are removed. Fields that a running guest takes as it runs don't restart it.

import { isDeepStrictEqual } from 'node:util'
import { CellarError } from '../base/errors.ts'
import { GUESTS_MAX } from '../base/limits.ts'
import { parseSize } from '../base/units.ts'
import type { ApplyChange } from './operator.ts'
import { GUEST_SPEC, type GuestSpec, type Manifest, type PoolSpec } from './spec.ts'

/** What a project has now. */
export type Current = {
  readonly guests: ReadonlyMap<string, { readonly spec: GuestSpec; readonly digest: string; readonly managed: boolean }>
  readonly pools: ReadonlyMap<string, PoolSpec>
  readonly volumes: ReadonlyMap<string, { readonly sizeBytes: number }>
  readonly networks: ReadonlySet<string>
  /** The digest that an image's name leads to now. */
  readonly resolve: (image: string) => string
  /** A guest's spec with what its image adds to it. */
  readonly complete: (name: string, spec: GuestSpec) => GuestSpec
}

/** Fields that are changed while the guest runs. */
const LIVE: ReadonlySet<string> = new Set(['shares', 'cpu-limit', 'cpu-reservation', 'restart', 'labels',
  'hibernate', 'may'])

/** The changes, in the order in which they are made. */
export function planApply(manifest: Manifest, current: Current, prune: boolean): ApplyChange[] {
  const specs = guestSpecs(manifest)
  return [
    ...Object.keys(manifest.networks).map((name): ApplyChange =>
      ({ kind: 'network', name, action: current.networks.has(name) ? 'none' : 'create' })),
    ...Object.entries(manifest.pools).map(([name, spec]) => changeOf('pool', name, spec, current.pools.get(name))),
    ...Object.entries(manifest.volumes).map(([name, spec]): ApplyChange => {
      const found = current.volumes.get(name)
      if (found === undefined) return { kind: 'volume', name, action: 'create' }
      return found.sizeBytes === parseSize(spec.size) ? { kind: 'volume', name, action: 'none' }
        : { kind: 'volume', name, action: 'change', fields: ['size'] }
    }),
    ...[...specs].map(([name, spec]): ApplyChange => {
      const found = current.guests.get(name)
      const change = changeOf('guest', name, current.complete(name, spec), found?.spec)
      if (found === undefined) return change
      const hasImage = current.resolve(spec.image) === found.digest
      const fields = [...new Set([...change.fields ?? [], ...(hasImage ? [] : ['image'])])]
      if (fields.length === 0) return change
      return { ...change, fields, action: fields.every((field) => LIVE.has(field)) ? 'change' : 'restart' }
    }),
    ...(prune ? [...current.guests].filter(([name, { managed }]) => managed && !specs.has(name))
      .map(([name]): ApplyChange => ({ kind: 'guest', name, action: 'remove' })) : []),
  ]
}

/** The guests that a manifest describes, copies spelled out. Throws what a host can't do with it. */
export function guestSpecs(manifest: Manifest): Map<string, GuestSpec> {
  const found = new Map<string, GuestSpec>()
  for (const key of ['quantum', 'pcpus', 'for'] as const) {
    if (manifest[key] !== undefined) throw new CellarError('GUEST_UNSUPPORTED', ['the manifest', `it says "${key}"`])
  }
  const count = Object.values(manifest.cells).reduce((sum, { copies }) => sum + copies, 0)
  if (count > GUESTS_MAX) throw new CellarError('GUEST_UNSUPPORTED', ['the manifest', `it has ${count} cells`])
  for (const [name, { program, listen, copies, image, ...rest }] of Object.entries(manifest.cells)) {
    if (program !== undefined || image === undefined) {
      throw new CellarError('GUEST_UNSUPPORTED', [name, 'it names a program of the client: give an image'])
    }
    if (listen.length > 0) throw new CellarError('GUEST_UNSUPPORTED', [name, 'it says "listen": say "ports"'])
    const result = GUEST_SPEC.safeParse({ ...rest, image })
    if (!result.success) {
      const [issue] = result.error.issues
      throw new CellarError('GUEST_UNSUPPORTED', [name, `${issue!.path.join('.')}: ${issue!.message}`])
    }
    if (copies > 1 && result.data.ports.length > 0) {
      throw new CellarError('GUEST_UNSUPPORTED', [name, 'its copies can\'t all publish the same port'])
    }
    const names = copies === 1 ? [name] : Array.from({ length: copies }, (_, i) => `${name}-${i + 1}`)
    for (const one of names) {
      if (found.has(one)) throw new CellarError('GUEST_UNSUPPORTED', [one, 'another cell has this name'])
      found.set(one, result.data)
    }
  }
  return found
}

function changeOf(kind: 'guest' | 'pool', name: string, wanted: object, found: object | undefined): ApplyChange {
  if (found === undefined) return { kind, name, action: 'create' }
  const fields = changedFields(wanted, found)
  return fields.length === 0 ? { kind, name, action: 'none' } : { kind, name, action: 'change', fields }
}

/** Fields in which two specs differ. */
export function changedFields(a: object, b: object): string[] {
  const [one, other] = [a as Record<string, unknown>, b as Record<string, unknown>]
  return [...new Set([...Object.keys(one), ...Object.keys(other)])]
    .filter((key) => !isDeepStrictEqual(one[key], other[key]))
}

/** True if all of the fields can be changed while the guest runs. */
export function areLive(fields: readonly string[]): boolean {
  return fields.every((field) => LIVE.has(field))
}
