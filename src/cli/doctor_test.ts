// cli/doctor_test.ts: `cellar doctor` as a process.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cellar, Folder } from '../../tests/support.ts'

const skip = process.platform === 'linux' ? false : 'needs Linux'

test('doctor -o json tells the findings, and the status whether cells can run', { skip }, async () => {
  using folder = new Folder()
  const { status, stdout, stderr } = await cellar(['doctor', '-o', 'json', '--state', folder.path])
  const report = JSON.parse(String(stdout)) as { ok: boolean; version: string; findings: { name: string }[] }
  assert.equal(stderr, '')
  assert.equal(status, report.ok ? 0 : 1)
  assert.match(report.version, /^\d+\.\d+\.\d+/)
  assert.ok(report.findings.some(({ name }) => name === 'node'))
})

test('doctor tells people a line for each finding and a verdict', { skip }, async () => {
  using folder = new Folder()
  const { stdout } = await cellar(['doctor', '--state', folder.path])
  assert.match(String(stdout), /^ok +node +Node 26\./)
  assert.match(String(stdout), /\n\nCells (run here|can't run here).*\n$/)
})

test('doctor refuses words and formats that it doesn\'t know', { skip }, async () => {
  assert.match((await cellar(['doctor', 'x'])).stderr, /\[USAGE\]/)
  assert.match((await cellar(['doctor', '-o', 'xml'])).stderr, /\[FLAG_VALUE_INVALID\]/)
})
