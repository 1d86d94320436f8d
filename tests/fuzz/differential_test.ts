// tests/fuzz/differential_test.ts: a short run of the differential fuzzer, and proof that it can fail.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { translate } from '../../src/translate/translate.ts'
import { decodeModule } from '../../src/wasm/decode.ts'
import { importsOf, memoriesOf, type Module } from '../../src/wasm/module.ts'
import { opcodeOf } from '../../src/wasm/opcodes.ts'
import { differenceOf, totals, type Translator } from './differential.ts'
import { randomModule } from './random_module.ts'
import { recoded, type WriteInstruction } from './recoded.ts'

const SEEDS = 300
/** A broken translator must be caught by one of so many. */
const SEEDS_TO_CATCH = 100

test('random modules do translated what they do untranslated, in every mode', async () => {
  const sums = totals()
  for (let seed = 0; seed < SEEDS; seed++) {
    assert.equal(await differenceOf({ seed }, sums), undefined, `node tests/fuzz/differential.ts --seed ${seed}`)
  }
  assert.equal(sums.overflows, 0)
  const { here, anew } = sums.captures
  assert.ok(here > 10 * SEEDS && anew > 10 * SEEDS, `it went on ${here} times in place, and ${anew} times anew`)
  assert.ok(sums.invalid < SEEDS / 20, `${sums.invalid} modules are not valid`)
  assert.ok(sums.trapped < sums.calls / 2, `${sums.trapped} of ${sums.calls} calls trap: the others show more`)
})

test('a seed gives the same module each time', () => {
  for (const seed of [0, 7, 4711]) assert.deepEqual(randomModule(seed).bytes, randomModule(seed).bytes)
  assert.notDeepEqual(randomModule(1).bytes, randomModule(2).bytes)
})

/** A translator whose work is written again, with changes. */
function broken(changes: (original: Module) => WriteInstruction): Translator {
  return (module, options) => recoded(decodeModule(translate(module, options).bytes), changes(module))
}

const CALL = opcodeOf('call')
const NOP = opcodeOf('nop')
const BR_IF = opcodeOf('br_if')
const I32_CONST = opcodeOf('i32.const')
const I32_ADD = opcodeOf('i32.add')
const I32_SUB = opcodeOf('i32.sub')
const GLOBAL_GET = opcodeOf('global.get')
const I64_STORE = opcodeOf('i64.store')

const BROKEN: Record<string, readonly [mode: string, Translator]> = {
  'subtracts instead of adding': ['preempt', broken(() => (reader, out) => {
    if (reader.opcode === I32_ADD) out.opcode(I32_SUB)
    else out.instruction(reader)
  })],
  'forgets that a label has moved': ['preempt', broken(() => (reader, out) => {
    if (reader.opcode === BR_IF && reader.slots[0]! > 0) reader.slots[0]!--
    out.instruction(reader)
  })],
  'leaves out the checks': ['preempt', broken((module) => (reader, out) => {
    const yields = importsOf(module, 'func').length + module.functionCount
    if (reader.opcode === CALL && reader.slots[0] === yields) out.opcode(NOP)
    else out.instruction(reader)
  })],
  'forgets where a value of a frame is': ['captured', broken((module) => {
    // The second of two that are kept at once lands on the first.
    const control = memoriesOf(module).length
    return (reader, out) => {
      if (reader.opcode === I64_STORE && reader.slots[1] === control && reader.slots[2] === 8) reader.slots[2] = 0
      out.instruction(reader)
    }
  })],
  'counts an instruction too much': ['fuel', broken((module) => {
    const fuel = importsOf(module, 'global').length + module.globalCount
    let isFuel = false
    return (reader, out) => {
      if (isFuel && reader.opcode === I32_CONST && reader.slots[0]! > 0) reader.slots[0]!++
      isFuel = reader.opcode === GLOBAL_GET && reader.slots[0] === fuel
      out.instruction(reader)
    }
  })],
}

for (const [what, [filter, translator]] of Object.entries(BROKEN)) {
  test(`a translator that ${what} is caught`, async () => {
    const sums = totals()
    let difference: string | undefined
    for (let seed = 0; seed < SEEDS_TO_CATCH && difference === undefined; seed++) {
      difference = await differenceOf({ seed, filter, translator }, sums)
    }
    assert.notEqual(difference, undefined)
  })
}
