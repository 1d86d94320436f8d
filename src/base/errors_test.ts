// base/errors_test.ts: the catalogue: every message can be made and reads as it should.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CellarError, ERRORS, type ErrorCode } from './errors.ts'

type Message = (...values: readonly (string | number)[]) => string

// Values as they come: what is wrong is between quotation marks or at the end of the message.
const VALUES = ['Value1', 'value2', 'value3', 'value4']

for (const code of Object.keys(ERRORS) as ErrorCode[]) {
  test(`${code} has a message, a hint and an exit status as the house has them`, () => {
    const { exit, hint } = ERRORS[code]
    const render = ERRORS[code].message as Message
    const message = render(...VALUES)
    assert.match(code, /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$/)
    assert.ok([1, 124, 125, 126, 127].includes(exit))
    assert.match(message, /^[A-Z]/)
    assert.doesNotMatch(message, /[.!]$|undefined|\[object|\n/)
    for (let i = 0; i < render.length; i++) assert.ok(message.includes(VALUES[i]!), `value ${i + 1} is in: ${message}`)
    assert.ok(!message.includes(VALUES[render.length]!))
    assert.match(hint, /^[A-Z'.]/)
    assert.doesNotMatch(hint, /[.!]$|undefined|\n/)
    assert.notEqual(hint, message)
  })
}

test('CellarError is made of its entry and its values, and can be made again from them', () => {
  const cause = new Error('why')
  const error = new CellarError('PROGRAM_NOT_FOUND', ['a b.wasm'], { cause })
  assert.equal(error.message, 'Cannot find program "a b.wasm"')
  assert.deepEqual([error.name, error.code, error.exit, error.cause], ['CellarError', 'PROGRAM_NOT_FOUND', 127, cause])
  assert.equal(error.hint, ERRORS.PROGRAM_NOT_FOUND.hint)
  assert.ok(error instanceof Error)
  const again = new CellarError(error.code, structuredClone(error.values) as [string])
  assert.deepEqual([again.message, again.hint, again.exit], [error.message, error.hint, error.exit])
})
