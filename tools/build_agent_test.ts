// tools/build_agent_test.ts: the agent that is committed is the one of its sources, and they can be built again.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { AGENT, agentCompiler, agentSource, buildAgent } from './build_agent.ts'

const compiler = agentCompiler()
const otherMachine = process.platform !== 'linux' || process.arch !== 'x64'

test('the committed agent was built from the sources beside it', { skip: otherMachine && 'no Linux on x86-64' }, () => {
  const { stdout } = spawnSync(AGENT, ['--version'], { encoding: 'utf8' })
  assert.equal(stdout, `1 ${agentSource()}\n`)
})

test('the committed agent needs no library: it is static', () => {
  // Program headers of an ELF64: none is PT_INTERP (3) or PT_DYNAMIC (2).
  const bytes = readFileSync(AGENT)
  const at = Number(bytes.readBigUInt64LE(32))
  const types = Array.from({ length: bytes.readUInt16LE(56) }, (_, i) => bytes.readUInt32LE(at + i * 56))
  assert.ok(types.includes(1) && !types.includes(2) && !types.includes(3))
  assert.ok(bytes.length < 150_000)
})

const why = 'why' in compiler ? compiler.why : !compiler.isSame && 'musl-gcc is of another version'
test('buildAgent() gives the bytes that are committed', { skip: why }, () => {
  assert.ok(buildAgent().equals(readFileSync(AGENT)), 'run `npm run guests agent`')
})
