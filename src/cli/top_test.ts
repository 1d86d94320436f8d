// cli/top_test.ts: the table of who got what of the CPU.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Figures } from '../cell/pcpu_worker.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'
import { table, type Row } from './top.ts'

const S = 1e9

function figuresOf(more: Partial<Figures> = {}): Figures {
  return {
    id: 0, memoryBytes: 65_536, ageNs: 10 * S, runningNs: 0, runnableNs: 0, waitingNs: 10 * S, throttledNs: 0,
    pausedNs: 0, stints: 0, switches: 0, preemptions: 0, waitedFor: [], throttledBy: undefined, ...more,
  }
}

function rowOf(more: Partial<Row> = {}): Row {
  return {
    name: 'web', pcpu: 0, terms: DEFAULT_TERMS, pool: undefined, figures: figuresOf(), demand: 0, due: 0,
    elapsedNs: 10 * S, waitedFor: [], end: undefined, ...more,
  }
}

/** The texts of the first row below the heads. */
const cells = (row: Row): string[] => table([row], 1).split('\n')[1]!.split(/\s{2,}/)

test('a row tells the terms of its cell and what became of the time', () => {
  const figures = figuresOf({ runningNs: 2 * S, runnableNs: 1.5 * S, throttledNs: 0.5 * S, waitingNs: 6 * S })
  const row = rowOf({ pcpu: 3, terms: { shares: 250, reservation: 0.25, limit: 1.5 }, figures, due: 0.333 })
  assert.deepEqual(cells(row), ['web', '3', '250', '25.0 %', '150.0 %', '33.3 %', '20.0 %', '15.0 %', '5.0 %', '60.0 %',
    'runs'])
})

test('what is not set, or not known, is a dash', () => {
  assert.deepEqual(cells(rowOf({ figures: undefined })),
    ['web', '0', '100', '-', '-', '0.0 %', '-', '-', '-', '-', 'runs'])
})

test('the time before a cell was there, and after its end, is waiting', () => {
  const figures = figuresOf({ ageNs: 4 * S, runningNs: 3 * S, waitingNs: S })
  assert.deepEqual(cells(rowOf({ figures })).slice(6, 10), ['30.0 %', '0.0 %', '0.0 %', '70.0 %'])
})

test('a cell of a pool has the name of its pool, and each kind of end its word', () => {
  assert.equal(cells(rowOf({ pool: 'batch' }))[0], 'batch/web')
  const trap = { kind: 'trap', reason: 'unreachable', frames: [] } as unknown as Row['end']
  const ends: [Row['end'], string][] = [[{ kind: 'exit', code: 7 }, 'exit 7'], [{ kind: 'signal', signal: 15 },
    'signal 15'], [trap, 'trap'], [undefined, 'runs']]
  for (const [end, word] of ends) assert.equal(cells(rowOf({ end }))[10], word)
})

test('the three who had the most of the pCPU are named, and nobody who had next to nothing', () => {
  const waitedFor = [['a', 3 * S], ['b', 2 * S], ['c', S], ['d', 0.5 * S]] as const
  assert.equal(cells(rowOf({ waitedFor }))[11], 'a 30.0 %, b 20.0 %, c 10.0 %')
  assert.equal(cells(rowOf({ waitedFor: [['a', S], ['b', 0.009 * S]] }))[11], 'a 10.0 %')
  assert.equal(cells(rowOf({ waitedFor: [['b', 0.009 * S]] }))[11], undefined)
})

test('columns are aligned, numbers at their ends, and no line ends in blanks', () => {
  const figures = figuresOf({ runningNs: 10 * S, waitingNs: 0 })
  const rows = [rowOf({ name: 'a', terms: { ...DEFAULT_TERMS, shares: 1 } }),
    rowOf({ name: 'a-long-name', terms: { ...DEFAULT_TERMS, shares: 10_000 }, figures, waitedFor: [['a', S]] })]
  const lines = table(rows, 2).split('\n')
  assert.equal(lines.length, 5)
  const [heads, first, second] = lines as [string, string, string]
  for (const head of ['SHARES', 'GOT', 'WAITING']) {
    const end = heads.indexOf(` ${head} `) + head.length + 1
    for (const line of [first, second]) assert.match(line.slice(end - 1, end + 2), /^\S {2}/, line)
  }
  assert.equal(second.indexOf('a 10.0 %'), heads.indexOf('WAITED FOR'))
  for (const line of lines) assert.equal(line, line.trimEnd())
})

test('the last line sums up what was used of all pCPUs', () => {
  const half = figuresOf({ runningNs: 5 * S, waitingNs: 5 * S })
  assert.match(table([rowOf({ figures: half }), rowOf({ figures: half }), rowOf({ figures: undefined })], 4),
    /\n3 cells on 4 pCPUs for 10\.0 s: 25\.0 % of their time was used\n$/)
  assert.match(table([], 4), /\n0 cells on 4 pCPUs for 0\.0 s: 0\.0 % of their time was used\n$/)
})
