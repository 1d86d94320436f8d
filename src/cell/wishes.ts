// cell/wishes.ts: what the cells of a stack want, as the policy takes it (sched/placement.ts).

import type { Terms } from '../sched/node.ts'
import type { Wish } from '../sched/placement.ts'

/** What each of the cells is due, by its index, if all want all that they can get. */
export function wishes(
  members: readonly { readonly terms: Terms; readonly pool?: string | undefined; readonly demand?: number }[],
  pools: ReadonlyMap<string, Terms>,
): Wish[] {
  const all = members.map(({ terms, demand = 1 }, i): Wish => ({ id: String(i), terms, demand }))
  const free = all.filter((_, i) => members[i]!.pool === undefined)
  return [...free, ...[...pools].map(([name, terms]): Wish =>
    ({ id: `pool ${name}`, terms, children: all.filter((_, i) => members[i]!.pool === name) }))]
}
