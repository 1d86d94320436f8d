// translate/capture_cost_test.ts: what is made to be captured costs a bounded amount, whatever the guest is.
//
// Each module is one for which a translator that looks at all it has again and again takes minutes.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decodeModule } from '../wasm/decode.ts'
import {
  leb, PREAMBLE, SECTION_CODE, SECTION_DATA, SECTION_DATA_COUNT, SECTION_FUNCTION, SECTION_GLOBAL, SECTION_TYPE,
} from '../wasm/encode.ts'
import { translate } from './translate.ts'

/** A module of these bodies, () → (), that has a global, and passive data segments. */
function moduleOf(bodies: readonly (readonly number[])[], segments = 0): Uint8Array<ArrayBuffer> {
  const section = (id: number, ...content: (readonly number[])[]): Buffer => {
    const bytes = Buffer.concat(content.map((part) => Buffer.from(part)))
    return Buffer.concat([Buffer.from([id, ...leb(bytes.length)]), bytes])
  }
  return new Uint8Array(Buffer.concat([Buffer.from(PREAMBLE), section(SECTION_TYPE, [1, 0x60, 0, 0]),
    section(SECTION_FUNCTION, leb(bodies.length), bodies.map(() => 0)),
    section(SECTION_GLOBAL, [1, 0x7f, 1, 0x41, 0, 0x0b]), section(SECTION_DATA_COUNT, leb(segments)),
    section(SECTION_CODE, leb(bodies.length), ...bodies.flatMap((body) => [leb(body.length), body])),
    section(SECTION_DATA, leb(segments), repeat(segments, () => [1, 0]))]))
}

function repeat(count: number, code: (i: number) => readonly number[]): number[] {
  return Array.from({ length: count }, (_, i) => code(i)).flat()
}

const CALL_SELF = [0x10, 0]
const GET_GLOBAL = [0x23, 0]
const DROP = [0x1a]
const LOOP = [0x03, 0x40]
const END = [0x0b]

const MODULES: Readonly<Record<string, readonly [module: () => Uint8Array<ArrayBuffer>, refused?: RegExp]>> = {
  'calls above 49,000 operands': [() => moduleOf(Array.from({ length: 8 }, () =>
    [0, ...repeat(49_000, () => GET_GLOBAL), ...CALL_SELF, ...repeat(49_000, () => DROP), ...END]))],
  'copies of 49,000 locals, which are set one after the other beneath 150,000 operands': [() => moduleOf([[
    1, ...leb(49_000), 0x7f, ...repeat(49_000, (i) => [0x20, ...leb(i)]), ...repeat(150_000, () => GET_GLOBAL),
    ...repeat(49_000, (i) => [0x41, 0, 0x21, ...leb(i)]), ...CALL_SELF, ...repeat(199_000, () => DROP), ...END]]),
  /is too large/],
  '60,000 segments, each dropped': [() => moduleOf([[0, ...repeat(60_000, (i) => [0xfc, 9, ...leb(i)]), ...END]],
    60_000)],
  'handlers in each other, around 300,000 calls': [() => moduleOf([[0, ...repeat(90, () => [0x06, 0x40, 0x19]),
    ...repeat(300_000, () => CALL_SELF), ...repeat(90, () => END), ...END]])],
  'functions whose frames are a thousand values at 480 places': [() => moduleOf(Array.from({ length: 100 }, () =>
    [0, ...repeat(1000, () => GET_GLOBAL), ...repeat(480, () => CALL_SELF), ...repeat(1000, () => DROP), ...END])),
  /its stack would take too much code to keep/],
  'loops in each other, of which each would be twice in what goes on': [() => moduleOf([[0,
    ...repeat(50_000, () => LOOP), ...CALL_SELF, ...repeat(50_000, () => END), ...END]]),
  /has loops in too many others/],
  'branches to many labels, of a function with many locals': [() => moduleOf([[1, ...leb(30_000), 0x7f,
    ...repeat(90, () => LOOP), ...repeat(14, () => [0x02, 0x40, 0x41, 0, 0x0e, ...leb(65_000),
      ...repeat(65_001, (i) => [i % 80]), ...END]), ...repeat(90, () => END), ...END]]), /is too large/],
}

/** They take half a second or less. */
const CPU_US_MAX = 4_000_000

for (const [what, [make, refused]] of Object.entries(MODULES)) {
  test(`a module is translated in seconds, or refused: ${what}`, () => {
    const bytes = make()
    assert.ok(WebAssembly.validate(bytes))
    const module = decodeModule(bytes)
    const translated = (): Uint8Array => translate(module, { mode: 'preempt', capture: true }).bytes
    const before = process.cpuUsage()
    if (refused !== undefined) assert.throws(translated, { message: refused })
    else assert.ok(translated().length < 20_000_000)
    const { user, system } = process.cpuUsage(before)
    assert.ok(user + system < CPU_US_MAX, `${(user + system) / 1e6} s`)
  })
}
