// tests/conformance/wasi_testsuite_test.ts: one test for each preview 1 program of WebAssembly/wasi-testsuite.
//
// The suite is somebody else's and stays outside the repository: without it there is one skipped test that says where
// it is looked for. The same programs can be run by hand, see wasi_testsuite.ts.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CELLAR, expectations, findPrograms, findSuite, runProgram } from './wasi_testsuite.ts'

const suite = findSuite()

if ('missing' in suite) {
  test('the programs of wasi-testsuite end as they should', { skip: suite.missing }, () => {})
} else {
  const programs = findPrograms(suite.folder)
  const known = expectations()

  test('wasi-testsuite has its 72 programs of preview 1', () => {
    assert.ok(programs.length >= 72, `found ${programs.length} in ${suite.folder}`)
  })

  for (const program of programs) {
    test(`wasi-testsuite program ${program.name} ends as it should`, async (t) => {
      const { result, lines } = await runProgram(program, known[program.name], CELLAR)
      if (result === 'skipped') t.skip(lines.join('; '))
      else assert.equal(result, 'passed', lines.join('\n'))
    })
  }
}
