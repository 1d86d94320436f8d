// sched/eligible_tree.ts: the earliest deadline among those whose time has come.
//
// Each entry has a start and a deadline. `first(x)` is the entry with the earliest deadline of those with start ≤ x;
// of equal deadlines, the one that was inserted first. A search tree by deadline in which each entry knows the earliest
// start below it: the search goes left whenever something there has started. A treap: priorities are drawn once for
// each entry and have nothing to do with the keys, so the tree is about 2 ln n deep whatever is inserted, O(log n) for
// every operation. Linux's EEVDF keeps its run queue so, with a red-black tree.
//
// Hot path: no allocation, no closures. The entries are intrusive: they belong to what is queued.

/** A place in one tree. `start` and `deadline` are its owner's to change, but only while it is in no tree. */
export class Entry<Owner> {
  readonly owner: Owner
  start = 0
  deadline = 0
  /** The earliest start of this entry and those below it. */
  earliest = 0
  left: Entry<Owner> | undefined = undefined
  right: Entry<Owner> | undefined = undefined
  sequence = 0
  readonly priority: number

  constructor(owner: Owner) {
    this.owner = owner
    this.priority = nextPriority()
  }
}

/** The entries of one queue. An entry is in at most one tree. */
export class EligibleTree<Owner> {
  #root: Entry<Owner> | undefined = undefined
  #sequence = 0

  /** The earliest start of all; Infinity if there is nothing. */
  get earliest(): number {
    return this.#root === undefined ? Infinity : this.#root.earliest
  }

  insert(entry: Entry<Owner>): void {
    entry.left = undefined
    entry.right = undefined
    entry.earliest = entry.start
    entry.sequence = this.#sequence++
    this.#root = inserted(this.#root, entry)
  }

  /** Takes out an entry that is in this tree. */
  remove(entry: Entry<Owner>): void {
    this.#root = removed(this.#root, entry)
    entry.left = undefined
    entry.right = undefined
  }

  /** The earliest deadline of the entries with start ≤ `time`. */
  first(time: number): Entry<Owner> | undefined {
    let entry = this.#root
    if (entry === undefined || entry.earliest > time) return undefined
    for (;;) {
      if (entry.left !== undefined && entry.left.earliest <= time) entry = entry.left
      else if (entry.start <= time) return entry
      else entry = entry.right! // what is earliest below isn't on the left and isn't here
    }
  }
}

function inserted<Owner>(root: Entry<Owner> | undefined, entry: Entry<Owner>): Entry<Owner> {
  if (root === undefined) return entry
  if (before(entry, root)) {
    const left = inserted(root.left, entry)
    root.left = left
    if (left.priority > root.priority) {
      root.left = left.right
      left.right = root
      measure(root)
      measure(left)
      return left
    }
  } else {
    const right = inserted(root.right, entry)
    root.right = right
    if (right.priority > root.priority) {
      root.right = right.left
      right.left = root
      measure(root)
      measure(right)
      return right
    }
  }
  if (entry.start < root.earliest) root.earliest = entry.start
  return root
}

function removed<Owner>(root: Entry<Owner> | undefined, entry: Entry<Owner>): Entry<Owner> | undefined {
  if (root === undefined) throw new Error('Bug in Cellar: an entry is removed from a tree that it is not in')
  if (root === entry) return merged(entry.left, entry.right)
  if (before(entry, root)) root.left = removed(root.left, entry)
  else root.right = removed(root.right, entry)
  measure(root)
  return root
}

/** One tree of two, where all of `left` comes before all of `right`. */
function merged<Owner>(left: Entry<Owner> | undefined, right: Entry<Owner> | undefined): Entry<Owner> | undefined {
  if (left === undefined) return right
  if (right === undefined) return left
  if (left.priority > right.priority) {
    left.right = merged(left.right, right)
    measure(left)
    return left
  }
  right.left = merged(left, right.left)
  measure(right)
  return right
}

function before<Owner>(a: Entry<Owner>, b: Entry<Owner>): boolean {
  return a.deadline < b.deadline || (a.deadline === b.deadline && a.sequence < b.sequence)
}

function measure<Owner>(entry: Entry<Owner>): void {
  let earliest = entry.start
  if (entry.left !== undefined && entry.left.earliest < earliest) earliest = entry.left.earliest
  if (entry.right !== undefined && entry.right.earliest < earliest) earliest = entry.right.earliest
  entry.earliest = earliest
}

// Mulberry32: every process draws the same priorities, so that a run can be repeated.
let drawn = 0
function nextPriority(): number {
  drawn = (drawn + 0x6d2b79f5) | 0
  let x = Math.imul(drawn ^ (drawn >>> 15), drawn | 1)
  x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
  return (x ^ (x >>> 14)) >>> 1
}
