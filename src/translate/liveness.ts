// translate/liveness.ts: which locals are live at the sites of a function: those that may be read before they are set.
//
// The code is structured, so a walk from its end to its beginning does it: at each point the set of live locals is
// known from what follows, a branch takes the set of its label, and a loop's label has the set of the loop's beginning,
// which the walk reaches last. So it is done again until no loop's set changes (each round brings the sets of one more
// level of loops; when that takes too long, all is taken for live there). A call in a try may go on in its handlers.
//
// Events are what matters of a body, three numbers each, written by operands.ts in the order of the code. A set too
// many costs space in frames that are hardly ever written, one too few would be wrong.

/** What an event is; `a` and `b` are its numbers. */
export const EVENT = {
  /** The local `a` is read, or set. */
  get: 0, set: 1,
  /** Site `a`. */
  site: 2,
  /** Beginnings; `a` of a loop is its number, of a try_table the first of its `b` labels. */
  block: 3, loop: 4, if: 5, try: 6, tryTable: 7,
  else: 8, catch: 9,
  /** Of the block that `a` began as. */
  end: 10,
  /** To label `a`; to label `a` or on; to one of `b` labels from `a` on. */
  br: 11, brIf: 12, brTable: 13,
  /** The function is left; something is thrown; something may be thrown. */
  exit: 14, throw: 15, call: 16,
} as const

/** Steps that one body may take: some 100 ms. */
const STEPS_MAX = 20_000_000

/** The events of one body; one object serves all bodies. */
export class Liveness {
  readonly #events: number[] = []
  readonly #labels: number[] = []
  loops = 0
  #words = 0
  #live = new Uint32Array(64)
  // Stacks of sets, by depth: the label's set, what follows an if or a try, what the else begins with, handlers.
  readonly #label: Uint32Array[] = []
  readonly #after: Uint32Array[] = []
  readonly #other: Uint32Array[] = []
  readonly #handlers: Uint32Array[] = []
  readonly #kind: number[] = []
  readonly #hasElse: boolean[] = []
  #depth = 0
  #headers = new Uint32Array(256)
  #isChanged = false
  /** Sets of the sites: `words` of each, after solve(). */
  sites = new Uint32Array(1024)

  get words(): number { return this.#words }
  get size(): number { return this.#events.length / 3 + this.#labels.length }

  begin(): void {
    this.#events.length = 0
    this.#labels.length = 0
    this.loops = 0
  }

  add(event: number, a = 0, b = 0): void {
    this.#events.push(event, a, b)
  }

  addLabel(label: number): void {
    this.#labels.push(label)
  }

  /** How many labels were added. */
  get labels(): number { return this.#labels.length }

  /** Finds the sets of all sites. `locals`: how many there are. */
  solve(locals: number, sites: number): void {
    const words = this.#words = locals + 31 >>> 5
    if (this.#live.length < words) this.#live = new Uint32Array(words * 2)
    if (this.sites.length < sites * words) this.sites = new Uint32Array(sites * words * 2)
    if (this.#headers.length < this.loops * words) this.#headers = new Uint32Array(this.loops * words * 2)
    this.#headers.fill(0, 0, this.loops * words)
    const rounds = Math.max(2, STEPS_MAX / (this.size * words + 1))
    for (let round = 1; ; round++) {
      if (round > rounds) this.#headers.fill(0xffff_ffff, 0, this.loops * words)
      this.#isChanged = false
      this.#walk()
      if (!this.#isChanged || round > rounds) return
    }
  }

  #walk(): void {
    const events = this.#events
    const live = this.#live
    const words = this.#words
    live.fill(0, 0, words)
    this.#depth = 0
    this.#open(EVENT.block)
    for (let i = events.length - 3; i >= 0; i -= 3) {
      const a = events[i + 1]!
      switch (events[i]) {
        case EVENT.get: live[a >>> 5]! |= 1 << (a & 31); break
        case EVENT.set: live[a >>> 5]! &= ~(1 << (a & 31)); break
        case EVENT.site: {
          this.#join(live, this.#handlers[this.#depth]!)
          const at = a * words
          for (let w = 0; w < words; w++) this.sites[at + w] = live[w]!
          break
        }
        case EVENT.br: live.set(this.#labelOf(a)); break
        case EVENT.brIf: this.#join(live, this.#labelOf(a)); break
        case EVENT.brTable:
          live.fill(0, 0, words)
          for (let k = 0; k < events[i + 2]!; k++) this.#join(live, this.#labelOf(this.#labels[a + k]!))
          break
        case EVENT.exit: live.fill(0, 0, words); break
        case EVENT.throw: live.set(this.#handlers[this.#depth]!); break
        case EVENT.call: this.#join(live, this.#handlers[this.#depth]!); break
        default: this.#structure(i)
      }
    }
  }

  #structure(i: number): void {
    const events = this.#events
    const [event, a, b] = [events[i]!, events[i + 1]!, events[i + 2]!]
    const live = this.#live
    const depth = this.#depth
    switch (event) {
      case EVENT.end: this.#open(a, b); break
      case EVENT.else:
        this.#other[depth]!.set(live.subarray(0, this.#words))
        this.#hasElse[depth] = true
        live.set(this.#after[depth]!)
        break
      case EVENT.catch:
        // Its handler was gone over: what it needs, the body needs wherever it may throw.
        this.#join(this.#other[depth]!, live)
        live.set(this.#after[depth]!)
        break
      case EVENT.if:
        this.#join(live, this.#hasElse[depth]! ? this.#other[depth]! : this.#after[depth]!)
        this.#depth--
        break
      case EVENT.loop: {
        const at = a * this.#words
        for (let w = 0; w < this.#words; w++) {
          const grown = (this.#headers[at + w]! | live[w]!) >>> 0
          if (grown !== this.#headers[at + w]!) {
            this.#headers[at + w] = grown
            this.#isChanged = true
          }
        }
        this.#depth--
        break
      }
      default: this.#depth--
    }
    if (event === EVENT.catch) this.#enterBody(i)
  }

  // The handlers of a try are in force in what comes before its first `catch`.
  #enterBody(i: number): void {
    const events = this.#events
    const depth = this.#depth
    // Another handler comes before: it isn't covered by those of its own try.
    if (events[i + 2] === 0) return
    const handlers = this.#handlers[depth]!
    handlers.set(this.#handlers[depth - 1]!)
    this.#join(handlers, this.#other[depth]!)
  }

  // Enters a block from its end. `a`: as what it began; `b` of a loop: its number, of a try_table: its labels.
  #open(kind: number, b = 0): void {
    const words = this.#words
    const depth = ++this.#depth
    const live = this.#live
    const label = sized(this.#label, depth, words)
    const handlers = sized(this.#handlers, depth, words)
    sized(this.#after, depth, words).set(live.subarray(0, words))
    sized(this.#other, depth, words).fill(0)
    this.#kind[depth] = kind
    this.#hasElse[depth] = false
    if (kind === EVENT.loop) label.set(this.#headers.subarray(b * words, (b + 1) * words))
    else label.set(live.subarray(0, words))
    if (depth === 1) handlers.fill(0)
    else handlers.set(this.#handlers[depth - 1]!)
    if (kind !== EVENT.tryTable) return
    // Labels of its clauses count from outside of it: two numbers say where they are.
    const [first, count] = [this.#labels[b]!, this.#labels[b + 1]!]
    for (let k = 0; k < count; k++) this.#join(handlers, this.#label[depth - 1 - this.#labels[first + k]!]!)
  }

  #labelOf(label: number): Uint32Array {
    return this.#label[this.#depth - label]!
  }

  #join(into: Uint32Array, from: Uint32Array): void {
    for (let w = 0; w < this.#words; w++) into[w]! |= from[w]!
  }
}

function sized(list: Uint32Array[], at: number, words: number): Uint32Array {
  let set = list[at]
  if (set === undefined || set.length !== words) list[at] = set = new Uint32Array(words)
  return set
}
