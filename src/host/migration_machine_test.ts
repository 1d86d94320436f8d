// host/migration_machine_test.ts: a move in every way that it can go.
//
// The world is two hosts and their cell processes, which outlive them, and a network that never forgets: a message that
// was sent once may arrive at any time, any number of times, or never. A commit and what is done after it are two
// steps, with a crash possible between. All states that any interleaving leads to are visited, without a bound: crashes
// of hosts and of cell processes as often as one likes. There are a few hundred.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  canFail, incomingAfter, isKept, outgoingAfter, outgoingAfterCrash, type Incoming, type Outgoing,
} from './migration_machine.ts'

type Cell = 'running' | 'held' | 'none'
type Message = 'store' | 'stored' | 'activate' | 'drop' | 'active' | 'dropped'

type World = {
  /** `knows`: undefined while the host is down. `row`: of the move, in its database. */
  readonly source: { readonly knows: Outgoing | undefined; readonly row: 'none' | 'committed' | 'gone'
    readonly cell: Cell }
  readonly destination: { readonly knows: Incoming | undefined; readonly row: Incoming; readonly cell: Cell }
  readonly sent: readonly Message[]
}

type Step = { readonly name: string; readonly isFault: boolean; readonly to: World }

/** What the hosts do, to be done wrongly by a test of the test. */
type Rules = {
  readonly incomingAfter: typeof incomingAfter; readonly isKept: (state: Incoming) => boolean
  readonly canFail: typeof canFail; readonly asksBeforeCommit: boolean; readonly wakesAfterCrash: boolean
  readonly asksAfterCrash: boolean
}
const RIGHT: Rules = { incomingAfter, isKept, canFail, asksBeforeCommit: false, wakesAfterCrash: false,
  asksAfterCrash: true }

const START: World = {
  source: { knows: 'sending', row: 'none', cell: 'running' },
  destination: { knows: 'unknown', row: 'unknown', cell: 'none' }, sent: [],
}

/** What the source can do, or has done to it. */
function sourceSteps(world: World, rules: Rules): Step[] {
  const { source, sent } = world
  const { knows, row, cell } = source
  const steps: Step[] = []
  const step = (name: string, change: Partial<World['source']>, says?: Message, isFault = false): void => {
    steps.push({ name: `source ${name}`, isFault,
      to: { ...world, source: { ...source, ...change }, sent: withMessage(sent, says) } })
  }
  const hears = (message: Message): boolean => sent.includes(message)
  if (cell !== 'none') step('loses its cell process', { cell: 'none' }, undefined, true)
  if (knows === undefined) {
    const state = row === 'gone' || (row === 'committed' && !rules.asksAfterCrash) ? 'moved'
      : outgoingAfterCrash(row === 'committed')
    // Hello: a held guest that is the host's own goes on, one that isn't is released.
    if (rules.wakesAfterCrash && state === 'asking') step('comes back', { knows: state, cell: 'running' })
    else step('comes back', { knows: state, cell: state === 'here' ? cell === 'held' ? 'running' : cell : 'none' })
    return steps
  }
  step('crashes', { knows: undefined }, undefined, true)
  const isOurs = row === 'none' && knows !== 'moved'
  // The capture is the process's; the host hears of it later, or never.
  if (knows === 'sending' && cell === 'running') step('stops the guest', { cell: 'held' })
  if (knows === 'sending' && cell === 'held') step('hears of the stop', { knows: outgoingAfter(knows, 'stopped') })
  // An end is heard and the guest started anew: there is no move any more.
  if (isOurs && cell === 'none') step('restarts the guest', { knows: 'here', cell: 'running' })
  if (knows === 'here' && cell === 'held') step('lets it go on', { cell: 'running' })
  if (knows === 'held') step('sends the rest', {}, 'store')
  if (knows === 'held' && hears('stored')) step('hears that it is stored', { knows: outgoingAfter(knows, 'stored') })
  if (knows === 'stored' && row === 'none') step('commits', { row: 'committed' })
  if (knows === 'stored' && (row === 'committed' || rules.asksBeforeCommit)) {
    step('acts on its commit', { knows: outgoingAfter(knows, 'committed') })
  }
  if (rules.canFail(knows) && row === 'none') step('gives up', { knows: 'here' }, 'drop')
  if (knows === 'asking' && cell === 'held') step('releases the guest', { cell: 'none' })
  if (knows === 'asking') step('asks', {}, 'activate')
  if (knows === 'asking' && rules.canFail(knows)) step('loses patience', { knows: 'here', row: 'none' })
  if (knows === 'asking' && hears('active') && row !== 'gone') step('removes its rows', { row: 'gone' })
  if (knows === 'asking' && row === 'gone') step('acts on that', { knows: outgoingAfter(knows, 'active') })
  if (knows === 'asking' && hears('dropped') && row === 'committed') step('takes it back', { row: 'none' })
  if (knows === 'asking' && row === 'none') step('acts on that', { knows: outgoingAfter(knows, 'dropped') })
  return steps
}

/** The same for the destination. */
function destinationSteps(world: World, rules: Rules): Step[] {
  const { destination, sent } = world
  const { knows, row, cell } = destination
  const steps: Step[] = []
  const step = (name: string, change: Partial<World['destination']>, says?: Message, isFault = false): void => {
    steps.push({ name: `destination ${name}`, isFault,
      to: { ...world, destination: { ...destination, ...change }, sent: withMessage(sent, says) } })
  }
  if (cell !== 'none') step('loses its cell process', { cell: 'none' }, undefined, true)
  if (knows === undefined) {
    step('comes back', { knows: row })
    return steps
  }
  step('crashes', { knows: undefined }, undefined, true)
  if (knows === 'active' && cell === 'none') step('launches', { cell: 'running' })
  if (row !== 'unknown' && row !== knows) {
    // Messages about this move wait until its commit is done.
    step('acts on its commit', { knows: row })
    return steps
  }
  const becomes = (name: string, next: Incoming | undefined, says?: Message): void => {
    if (next === undefined) return
    if (next !== knows && rules.isKept(next)) step(`${name} (commits)`, { row: next })
    else step(name, { knows: next, ...(rules.isKept(next) ? {} : { row: 'unknown' }) }, says)
  }
  if (sent.includes('store')) becomes('stores', rules.incomingAfter(knows, 'store'), 'stored')
  if (sent.includes('drop')) becomes('drops', rules.incomingAfter(knows, 'drop'))
  becomes('expires', rules.incomingAfter(knows, 'expire'))
  if (sent.includes('activate')) {
    for (const event of ['activate', 'refuse'] as const) {
      const next = rules.incomingAfter(knows, event)
      becomes(`${event}s`, next, next === 'active' ? 'active' : 'dropped')
    }
  }
  return steps
}

function withMessage(sent: readonly Message[], says: Message | undefined): readonly Message[] {
  return says === undefined || sent.includes(says) ? sent : [...sent, says].toSorted()
}

type Found = { readonly worlds: ReadonlyMap<string, World>
  /** What each leads to, and comes from, without a fault. */
  readonly on: ReadonlyMap<string, readonly string[]>; readonly back: ReadonlyMap<string, readonly string[]>
  readonly paths: ReadonlyMap<string, { from: string; by: string } | undefined> }

/** Every world that can come to be. */
function explore(rules: Rules): Found {
  const worlds = new Map([[JSON.stringify(START), START]])
  const paths = new Map<string, { from: string; by: string } | undefined>([[JSON.stringify(START), undefined]])
  const back = new Map<string, string[]>()
  const on = new Map<string, string[]>()
  for (const [key, world] of worlds) {
    const follow: string[] = []
    on.set(key, follow)
    for (const { name, isFault, to } of [...sourceSteps(world, rules), ...destinationSteps(world, rules)]) {
      const next = JSON.stringify(to)
      if (!isFault) {
        follow.push(next)
        const before = back.get(next)
        if (before === undefined) back.set(next, [key])
        else before.push(key)
      }
      if (worlds.has(next)) continue
      worlds.set(next, to)
      paths.set(next, { from: key, by: name })
    }
  }
  return { worlds, on, back, paths }
}

function copies({ source, destination }: World): number {
  return Number(source.cell === 'running') + Number(destination.cell === 'running')
}

/** Worlds that have one copy, and lead, until the next fault, only to such. */
function settled({ worlds, on, back }: Found): Set<string> {
  const good = new Set([...worlds].filter(([, world]) => copies(world) === 1).map(([key]) => key))
  const leaves = [...good].filter((key) => on.get(key)!.some((next) => !good.has(next)))
  for (const key of leaves) {
    if (!good.delete(key)) continue
    leaves.push(...(back.get(key) ?? []).filter((before) => good.has(before)))
  }
  return good
}

/** Why the rules are wrong: the way to a world that mustn't be; undefined if there is none. */
function flaw(rules: Rules): string | undefined {
  const found = explore(rules)
  const { worlds, back, paths } = found
  const way = (key: string): string => {
    const names: string[] = []
    for (let at = paths.get(key); at !== undefined; at = paths.get(at.from)) names.unshift(at.by)
    return names.join(', ')
  }
  for (const [key, world] of worlds) if (copies(world) > 1) return `two run: ${way(key)}`
  // Once there are no more faults: what is asked again for ever is answered some time.
  const ends = settled(found)
  for (const key of ends) for (const before of back.get(key) ?? []) ends.add(before)
  for (const key of worlds.keys()) if (!ends.has(key)) return `none runs for ever: ${way(key)}`
  return undefined
}

test('a move never runs two copies, and ends with one, whoever crashes and whatever is lost, doubled or late', () => {
  assert.equal(flaw(RIGHT), undefined)
  const found = explore(RIGHT)
  assert(found.worlds.size > 200, `few worlds: ${found.worlds.size}`)
  const places = new Set([...settled(found)].map((key) => found.worlds.get(key)!.source.cell === 'running'))
  assert.deepEqual(places, new Set([true, false]), 'it ends here, and there')
})

const WRONG: readonly (readonly [what: string, outcome: RegExp, rules: Partial<Rules>])[] = [
  ['a destination that answers what it has not committed', /^two run/, { isKept: (state) => state === 'active' }],
  ['a destination that forgets what runs there', /^two run/, { isKept: (state) => state === 'dropped' }],
  ['a destination that forgets what it never had', /^two run/, {
    incomingAfter: (state, event) => state === 'unknown' && event === 'activate' ? 'unknown'
      : incomingAfter(state, event) }],
  ['a destination that takes again what it dropped', /^two run/, {
    incomingAfter: (state, event) => state === 'dropped' && event === 'store' ? 'ready'
      : incomingAfter(state, event) }],
  ['a destination that lets go of what runs', /^two run/, {
    incomingAfter: (state, event) => state === 'active' && event === 'activate' ? 'dropped'
      : incomingAfter(state, event) }],
  ['a source that loses patience', /^two run/, { canFail: (state) => state === 'asking' || canFail(state) }],
  ['a source that asks before its commit', /^two run/, { asksBeforeCommit: true }],
  ['a source that wakes what it was moving', /^two run/, { wakesAfterCrash: true }],
  ['a source that forgets to ask after a crash', /^none runs/, { asksAfterCrash: false }],
]
for (const [what, outcome, rules] of WRONG) {
  test(`the walk through all moves finds ${what}`, () => {
    assert.match(flaw({ ...RIGHT, ...rules }) ?? 'nothing', outcome)
  })
}
