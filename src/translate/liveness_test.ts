// translate/liveness_test.ts: the sets of live locals are those that a search through the code finds.
//
// Random structured code, as events, is also made a graph of steps: a local is live at a site if a path leads from
// there to where it is read, and isn't set on the way.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EVENT, Liveness } from './liveness.ts'

/** Code as a tree. `set` and `get` of a local; `br`, `brIf` to a label. */
type Code =
  | { readonly what: 'get' | 'set' | 'br' | 'brIf'; readonly a: number }
  | { readonly what: 'site' | 'exit' | 'throw' | 'call' }
  | { readonly what: 'brTable'; readonly labels: readonly number[] }
  | { readonly what: 'block' | 'loop'; readonly body: readonly Code[] }
  | { readonly what: 'if' | 'try'; readonly body: readonly Code[]; readonly arms: readonly (readonly Code[])[] }

const LOCALS = 40

type Below = (limit: number) => number

function random(seed: number): Below {
  let state = Math.imul(seed + 1, 0x9e37_79b1) >>> 0
  return (limit) => {
    state = Math.imul(state ^ state >>> 15, 0x85eb_ca6b) + 0x6d2b_79f5 >>> 0
    return state % limit
  }
}

function randomCode(below: Below, depth: number, labels: number): Code[] {
  const code: Code[] = []
  for (let count = below(7); count > 0; count--) {
    const kind = below(depth > 5 ? 10 : 16)
    const inner = (): Code[] => randomCode(below, depth + 1, labels + 1)
    if (kind < 2) code.push({ what: 'get', a: below(LOCALS) })
    else if (kind < 4) code.push({ what: 'set', a: below(LOCALS) })
    else if (kind < 6) code.push({ what: 'site' })
    else if (kind === 6) code.push({ what: 'call' })
    else if (kind === 7) code.push({ what: 'brIf', a: below(labels) })
    else if (kind === 8) {
      // What comes behind can't be reached, and has no events.
      const last = below(4)
      code.push(last === 0 ? { what: 'exit' } : last === 1 ? { what: 'throw' }
        : last === 2 ? { what: 'br', a: below(labels) } : { what: 'brTable',
          labels: Array.from({ length: 1 + below(3) }, () => below(labels)) })
      return code
    } else if (kind === 9) code.push({ what: 'get', a: 0 })
    else if (kind < 12) code.push({ what: 'block', body: inner() })
    else if (kind < 14) code.push({ what: 'loop', body: inner() })
    else if (kind === 14) code.push({ what: 'if', body: inner(), arms: below(2) === 0 ? [] : [inner()] })
    else code.push({ what: 'try', body: inner(), arms: Array.from({ length: 1 + below(2) }, inner) })
  }
  return code
}

/** Adds the events of the code. */
function events(liveness: Liveness, code: readonly Code[], sites: { count: number }): void {
  for (const one of code) {
    switch (one.what) {
      case 'get': case 'set': case 'br': case 'brIf': liveness.add(EVENT[one.what], one.a); break
      case 'site': liveness.add(EVENT.site, sites.count++); break
      case 'exit': case 'throw': case 'call': liveness.add(EVENT[one.what]); break
      case 'brTable': {
        const first = liveness.labels
        for (const label of one.labels) liveness.addLabel(label)
        liveness.add(EVENT.brTable, first, one.labels.length)
        break
      }
      default: {
        const labels = one.what === 'loop' ? liveness.loops++ : 0
        liveness.add(EVENT[one.what], labels)
        events(liveness, one.body, sites)
        if (one.what === 'if' || one.what === 'try') {
          one.arms.forEach((arm, i) => {
            if (one.what === 'if') liveness.add(EVENT.else)
            else liveness.add(EVENT.catch, 0, i === 0 ? 1 : 0)
            events(liveness, arm, sites)
          })
        }
        liveness.add(EVENT.end, EVENT[one.what], labels)
      }
    }
  }
}

/** A step, and those that may follow it. */
type Step = { get?: number; set?: number; site?: number; next: Step[] }

/** The steps of the code, made from its end: the first of them. */
class Graph {
  readonly steps: Step[] = []
  #sites: number

  constructor(sites: number) {
    this.#sites = sites
  }

  /** `labels`: where branches lead, innermost first; `handlers`: where exceptions do. */
  of(code: readonly Code[], after: Step, labels: readonly Step[], handlers: readonly Step[]): Step {
    let next = after
    for (const one of code.toReversed()) next = this.#one(one, next, labels, handlers)
    return next
  }

  step(step: Step): Step {
    this.steps.push(step)
    return step
  }

  #one(one: Code, next: Step, labels: readonly Step[], handlers: readonly Step[]): Step {
    switch (one.what) {
      case 'get': return this.step({ get: one.a, next: [next] })
      case 'set': return this.step({ set: one.a, next: [next] })
      // At a site something may be thrown, too: it follows a call.
      case 'site': return this.step({ site: --this.#sites, next: [next, ...handlers] })
      case 'call': return this.step({ next: [next, ...handlers] })
      case 'exit': return this.step({ next: [] })
      case 'throw': return this.step({ next: [...handlers] })
      case 'br': return this.step({ next: [labels[one.a]!] })
      case 'brIf': return this.step({ next: [next, labels[one.a]!] })
      case 'brTable': return this.step({ next: one.labels.map((label) => labels[label]!) })
      case 'block': return this.of(one.body, next, [next, ...labels], handlers)
      case 'loop': {
        const begin = this.step({ next: [] })
        begin.next.push(this.of(one.body, next, [begin, ...labels], handlers))
        return begin
      }
      case 'if': {
        const arms = one.arms.map((arm) => this.of(arm, next, [next, ...labels], handlers))
        return this.step({ next: [this.of(one.body, next, [next, ...labels], handlers), ...arms,
          ...(arms.length === 0 ? [next] : [])] })
      }
      default: {
        // Sites are numbered in the order of the code: the last arm comes first here.
        const arms = one.arms.toReversed().map((arm) => this.of(arm, next, [next, ...labels], handlers))
        return this.of(one.body, next, [next, ...labels], [...arms, ...handlers])
      }
    }
  }
}

/** The locals that are live at each site. */
function searched({ steps }: Graph, sites: number): Set<number>[] {
  const live = new Map(steps.map((step) => [step, new Set<number>()]))
  for (let isChanged = true; isChanged;) {
    isChanged = false
    for (const step of steps) {
      const set = live.get(step)!
      const before = set.size
      for (const next of step.next) for (const local of live.get(next) ?? []) if (local !== step.set) set.add(local)
      if (step.get !== undefined) set.add(step.get)
      if (set.size !== before) isChanged = true
    }
  }
  const found = Array.from({ length: sites }, () => new Set<number>())
  for (const step of steps) if (step.site !== undefined) found[step.site] = live.get(step)!
  return found
}

function setsOf(liveness: Liveness, sites: number): Set<number>[] {
  return Array.from({ length: sites }, (_, site) => new Set(Array.from({ length: LOCALS }, (_, local) => local).filter(
    (local) => (liveness.sites[site * liveness.words + (local >>> 5)]! >>> (local & 31) & 1) === 1)))
}

test('in random code, a local is live where a search finds that it may be read before it is set', () => {
  const liveness = new Liveness()
  let all = 0
  let sum = 0
  for (let seed = 0; seed < 3000; seed++) {
    const code = randomCode(random(seed), 0, 1)
    const sites = { count: 0 }
    liveness.begin()
    events(liveness, code, sites)
    liveness.solve(LOCALS, sites.count)
    const graph = new Graph(sites.count)
    const end = graph.step({ next: [] })
    graph.of(code, end, [end], [])
    const expected = searched(graph, sites.count)
    assert.deepEqual(setsOf(liveness, sites.count), expected, `seed ${seed}: ${JSON.stringify(code)}`)
    all += sites.count
    for (const set of expected) sum += set.size
  }
  assert.ok(all > 5000 && sum > all, `${all} sites, ${sum} live locals: too few to tell anything`)
})

test('a branch out of a handler, and an exception in it, lead past its own try', () => {
  const liveness = new Liveness()
  const sites = { count: 0 }
  events(liveness, [
    { what: 'try', body: [
      { what: 'try', body: [{ what: 'call' }], arms: [[{ what: 'site' }, { what: 'get', a: 1 }]] },
      { what: 'set', a: 2 },
    ], arms: [[{ what: 'get', a: 2 }], [{ what: 'get', a: 3 }]] },
  ], sites)
  liveness.solve(4, 1)
  assert.equal(liveness.sites[0], 0b1110)
})
