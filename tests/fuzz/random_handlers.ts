// tests/fuzz/random_handlers.ts: statements that throw and catch: the old kind (try, catch, delegate, rethrow), and the
// new one (try_table, throw_ref).

import { leb } from '../../src/wasm/encode.ts'
import type { Code } from './random_code.ts'
import { anyTypes, begin, count, end, restart, someOperands, unreachable, type Statements } from './random_control.ts'
import type { ValueType } from './random_shape.ts'

const RESULTS_MAX = 2

/** A block that catches. */
export function handler(code: Code, statements: Statements): void {
  if (code.shape.exceptions === 'old') oldHandler(code, statements)
  else newHandler(code, statements)
}

/** throw, rethrow, throw_ref. */
export function raise(code: Code): void {
  const { random, frames, shape: { tags, types, exceptions } } = code
  const caught = frames.flatMap(({ kind }, i) => kind === 'caught' ? [frames.length - 1 - i] : [])
  if (caught.length > 0 && random.chance(50)) code.emit('rethrow', code.u32(random.pick(caught)))
  else if (exceptions === 'new' && (tags.length === 0 || random.chance(30))) {
    code.need(['exnref'])
    code.emit('throw_ref')
  } else if (tags.length > 0) {
    const tag = random.below(tags.length)
    code.need(types.at(tags[tag]!).params)
    code.emit('throw', code.u32(tag))
  } else return
  unreachable(code)
}

function oldHandler(code: Code, statements: Statements): void {
  const { random, shape: { tags, types } } = code
  const params = someOperands(code)
  begin(code, 'try', 'try', params, random.chance(50) ? params : anyTypes(code, RESULTS_MAX))
  statements(code, count(code))
  if (random.chance(25)) return end(code, 'delegate', code.u32(random.below(code.frames.length - 1)))
  for (let clauses = tags.length > 0 ? random.below(3) : 0; clauses > 0; clauses--) {
    const tag = random.below(tags.length)
    restart(code, 'catch', types.at(tags[tag]!).params, code.u32(tag))
    code.frame.kind = 'caught'
    statements(code, count(code))
  }
  if (random.chance(60)) {
    restart(code, 'catch_all', [])
    code.frame.kind = 'caught'
    statements(code, count(code))
  }
  end(code)
}

/** catch, catch_ref, catch_all, catch_all_ref. */
type Clause = { readonly kind: 0 | 1 | 2 | 3; readonly tag: number; readonly types: readonly ValueType[] }

function anyClause({ random, shape: { tags, types } }: Code): Clause {
  const kind = tags.length === 0 ? random.pick([2, 3] as const) : random.pick([0, 0, 1, 2, 3] as const)
  const tag = random.below(tags.length)
  const carried = kind < 2 ? types.at(tags[tag]!).params : []
  return { kind, tag, types: kind % 2 === 1 ? [...carried, 'exnref'] : carried }
}

// A clause needs a label that takes what was thrown: one that is there, or else a block is put around.
function newHandler(code: Code, statements: Statements): void {
  const { random, frames } = code
  const clauses = Array.from({ length: random.between(0, 3) }, () => anyClause(code))
  let around = 0
  const targets = clauses.map(({ types }) => {
    const there = frames.findLastIndex(({ label }) => label.join() === types.join() && random.chance(80))
    if (there >= 0 && random.chance(70)) return there
    begin(code, 'block', 'block', [], types)
    around++
    return frames.length - 1
  })
  const params = someOperands(code)
  const results = random.chance(50) ? params : anyTypes(code, RESULTS_MAX)
  const labels = clauses.flatMap(({ kind, tag }, i) => [
    kind, ...(kind < 2 ? code.u32(tag) : []), ...code.u32(frames.length - 1 - targets[i]!),
  ])
  begin(code, 'block', 'try_table', params, results, [...leb(clauses.length), ...labels])
  statements(code, count(code))
  end(code)
  for (; around > 0; around--) {
    statements(code, random.below(2))
    end(code)
  }
}
