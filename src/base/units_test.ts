// base/units_test.ts: sizes and durations, read and written.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { formatDuration, formatSize, parseCpu, parseDuration, parseSize } from './units.ts'

const SIZES: readonly [string, number | undefined][] = [
  ['65536', 65_536], ['0', 0], ['1b', 1], ['64MiB', 64 * 1024 ** 2], ['64 mib', 64 * 1024 ** 2],
  ['64m', 64 * 1024 ** 2], ['64MB', 64e6],
  ['2k', 2048], ['2KB', 2000], ['2KiB', 2048], ['1.5g', 1.5 * 1024 ** 3], ['1GB', 1e9],
  ['1GiB', 1024 ** 3], [' 7 ', 7], ['0.3', 0], ['0.5', 1],
  ['', undefined], ['m', undefined], ['-1', undefined], ['+1', undefined], ['1e3', undefined], ['0x10', undefined],
  ['1.', undefined], ['.5', undefined], ['1,5', undefined], ['64 Mi B', undefined], ['64x', undefined],
  ['64s', undefined], ['1T', undefined], ['Infinity', undefined], ['NaN', undefined], ['1\n2', undefined],
  ['1constructor', undefined],
]

const DURATIONS: readonly [string, number | undefined][] = [
  ['5s', 5e9], ['250ms', 250e6], ['1.5m', 90e9], ['2min', 120e9], ['10', 10e9], ['1h', 3600e9], ['3us', 3000],
  ['3µs', 3000], ['7ns', 7], ['0.5ns', 1], ['1 S', 1e9], ['0', 0],
  ['', undefined], ['s', undefined], ['-1s', undefined], ['5d', undefined], ['5s5', undefined], ['1k', undefined],
]

const CPUS: readonly [string, number | undefined][] = [
  ['25%', 0.25], ['25 %', 0.25], ['0.25', 0.25], ['1.5', 1.5], ['150%', 1.5], ['100%', 1], ['1', 1], [' 7 ', 7],
  ['0.1%', 0.001], ['12.5%', 0.125], ['1024', 1024], ['007%', 0.07],
  ['0', undefined], ['0%', undefined], ['0.0', undefined], ['', undefined], ['%', undefined], ['-10%', undefined],
  ['+10%', undefined], ['.5', undefined], ['5.', undefined], ['1e-1', undefined], ['10%%', undefined],
  ['10 percent', undefined], ['1,5', undefined], ['0x1', undefined], ['Infinity', undefined], ['NaN', undefined],
  ['half', undefined], ['1 2', undefined], ['10m', undefined],
]

for (const [text, bytes] of SIZES) {
  test(`parseSize takes ${JSON.stringify(text)} for ${bytes}`, () => { assert.equal(parseSize(text), bytes) })
}

for (const [text, ns] of DURATIONS) {
  test(`parseDuration takes ${JSON.stringify(text)} for ${ns}`, () => { assert.equal(parseDuration(text), ns) })
}

for (const [text, cpus] of CPUS) {
  test(`parseCpu takes ${JSON.stringify(text)} for ${cpus}`, () => { assert.equal(parseCpu(text), cpus) })
}

test('parseCpu reads percents and parts as the same', () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 1_000_000 }), (hundredths) => {
    const [whole, percent] = [parseCpu(String(hundredths / 100)), parseCpu(`${hundredths}%`)]
    assert.equal(whole, hundredths / 100)
    assert.equal(percent, hundredths / 100)
  }))
})

test('formatSize takes the largest unit that leaves at least 1, and a decimal only if it must', () => {
  const cases: [number, string][] = [
    [0, '0 B'], [1023, '1023 B'], [1024, '1 KiB'], [1536, '1.5 KiB'], [1024 ** 2, '1 MiB'], [64 * 1024 ** 2, '64 MiB'],
    [4 * 1024 ** 3, '4 GiB'], [1024 ** 4, '1 TiB'], [2048 * 1024 ** 4, '2048 TiB'], [1.26 * 1024 ** 3, '1.3 GiB'],
  ]
  for (const [bytes, text] of cases) assert.equal(formatSize(bytes), text)
})

test('formatDuration keeps one or two decimals, and no zeros at the end', () => {
  const cases: [number, string][] = [
    [0, '0 ns'], [850, '850 ns'], [999.4, '999 ns'], [1000, '1 µs'], [12_345, '12.3 µs'], [4_560_000, '4.56 ms'],
    [1_200_000_000, '1.2 s'], [3600e9, '3600 s'],
  ]
  for (const [ns, text] of cases) assert.equal(formatDuration(ns), text)
})

test('parseSize reads what formatSize wrote, within its decimal', () => {
  fc.assert(fc.property(fc.integer({ min: 0, max: 1024 ** 4 - 1 }), (bytes) => {
    const [value, unit] = formatSize(bytes).split(' ')
    if (unit === 'TiB') return
    const read = parseSize(`${value}${unit}`)!
    assert.ok(Math.abs(read - bytes) <= bytes * 0.05, `${bytes}: ${read}`)
  }))
})
