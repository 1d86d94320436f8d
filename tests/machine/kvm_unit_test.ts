// tests/machine/kvm_unit_test.ts: programs of kvm-unit-tests under our VMM.
//
// The programs are somebody else's and stay outside the repository: CELLAR_KVM_UNIT_TESTS, or .cache/kvm-unit-tests,
// is a checkout of kvm-unit-tests in which `./configure && make` was run. Without it there is one skipped test. Those
// listed need what every machine of ours has; left out are those for devices that it lacks (fw_cfg, the PIT, the test
// device, PCI), for Intel's or Hyper-V's interfaces, and for nested virtualisation, which guests aren't offered.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { bootGuests } from './guests.ts'
import { findKvm } from './kvm_place.ts'
import { wrapUnitProgram } from './kvm_unit_program.ts'
import { ROOT } from './nested_packages.ts'

/** Programs, processors, and how many checks pass at least, as under QEMU (microvm, -accel kvm) on the same kernel. */
const PROGRAMS: readonly { name: string; vcpus: number; passes: number }[] = [
  { name: 'smptest', vcpus: 2, passes: 1 },
  { name: 'eventinj', vcpus: 1, passes: 13 },
  { name: 'hypercall', vcpus: 1, passes: 4 },
  { name: 'idt_test', vcpus: 1, passes: 4 },
  { name: 'memory', vcpus: 1, passes: 6 },
  { name: 'pcid', vcpus: 1, passes: 2 },
  { name: 'pku', vcpus: 1, passes: 7 },
  { name: 'rdpru', vcpus: 1, passes: 1 },
  { name: 'rmap_chain', vcpus: 1, passes: 1 },
]

const MEMORY_BYTES = 256 * 2 ** 20
const LIMIT_MS = 40_000
const TEST_MS_MAX = 290_000

const folder = process.env.CELLAR_KVM_UNIT_TESTS ?? join(ROOT, '.cache/kvm-unit-tests')
const kvm = await findKvm('unit-test')
const missing = existsSync(join(folder, 'x86')) ? kvm.skip
  : `no kvm-unit-tests in ${folder}: set CELLAR_KVM_UNIT_TESTS to a checkout in which they were built`

test('programs of kvm-unit-tests find no fault', { skip: missing, timeout: TEST_MS_MAX }, async (t) => {
  const built = PROGRAMS.filter(({ name }) => existsSync(join(folder, 'x86', `${name}.flat`)))
  const made = mkdtempSync(join(tmpdir(), 'cellar-unit-test-'))
  t.after(() => rmSync(made, { recursive: true }))
  await using place = kvm.open()
  t.diagnostic(place.way)
  const outcomes = await bootGuests(place, built.map(({ name, vcpus }) => {
    const kernel = join(made, name)
    writeFileSync(kernel, wrapUnitProgram(readFileSync(join(folder, 'x86', `${name}.flat`)), { name, args: [], vcpus,
      memoryBytes: MEMORY_BYTES }))
    return { kernel, commandLine: '', vcpus, memoryBytes: MEMORY_BYTES, limitMs: LIMIT_MS, until: '--- DONE' }
  }), { say: (text) => t.diagnostic(text) })
  for (const { name, passes } of PROGRAMS) {
    await t.test(`the program ${name} of kvm-unit-tests finds no fault`, (t) => {
      const at = built.findIndex((program) => program.name === name)
      if (at < 0) return t.skip('it was not built')
      const outcome = outcomes[at]!
      assert.ok('end' in outcome, JSON.stringify(outcome))
      const said = outcome.console.replaceAll('\r', '')
      const passed = (said.match(/^PASS/gm) ?? []).length
      t.diagnostic(`${passed} checks; ${Math.round(outcome.ms)} ms; exits ${JSON.stringify(outcome.exits)}`)
      assert.equal(outcome.end, 'said', said)
      assert.doesNotMatch(said, /^FAIL|Unhandled exception/m)
      assert.ok(passed >= passes, said)
    })
  }
})
