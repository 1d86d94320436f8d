// host/permissions.ts: what an actor may not have of the host itself: its folders, its own network, low ports.

import { CellarError } from '../base/errors.ts'
import { inwardRule } from './egress.ts'
import type { Actor } from './operator.ts'
import { parsePort, type GuestSpec } from './spec.ts'

/** Throws FORBIDDEN for a folder of this machine, which is read and written as the host's user. */
export function checkFolder(reference: string, { name, scope }: Actor): void {
  if (!reference.startsWith('oci:') || scope === 'admin') return
  throw new CellarError('FORBIDDEN', [name, 'use folders of the host'])
}

type Reach = Pick<GuestSpec, 'egress' | 'ports' | 'machine'>
type Given = { readonly egress: readonly string[]; readonly ports: readonly string[]; readonly taps: readonly string[] }

/** What guests have been given already, by whoever might. */
export function givenTo(specs: readonly Reach[]): Given {
  return { egress: specs.flatMap(({ egress }) => egress), ports: specs.flatMap(({ ports }) => ports),
    taps: specs.flatMap(({ machine }) => machine?.tap ?? []) }
}

/**
 * Throws FORBIDDEN. Who is limited to a project reaches by its guests what the host reaches of the world, not of its
 * own network, and publishes no port that is the administrator's. A network device of the host is the administrator's
 * to give: behind it are no rules. Unless somebody who may has given that to the project.
 */
export function checkLimited({ egress, ports, machine }: Reach, given: Given | undefined,
  { name, project, scope }: Actor): void {
  const tap = machine?.tap
  if (tap !== undefined && scope !== 'admin' && given?.taps.includes(tap) !== true) {
    throw new CellarError('FORBIDDEN', [name, `use "${tap}", a network device of the host`])
  }
  if (project === undefined) return
  const inward = inwardRule(egress.filter((rule) => given?.egress.includes(rule) !== true))
  if (inward !== undefined) throw new CellarError('FORBIDDEN', [name, `open "${inward}": it is not all public`])
  const low = ports.find((text) => {
    const { port = 0 } = parsePort(text) ?? {}
    return port !== 0 && port < PORT_FREE_MIN && given?.ports.includes(text) !== true
  })
  if (low !== undefined) throw new CellarError('FORBIDDEN', [name, `publish "${low}": ports below 1024 are reserved`])
}

const PORT_FREE_MIN = 1024
