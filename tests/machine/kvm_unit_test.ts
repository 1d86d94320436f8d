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
import { after, before, suite, test } from 'node:test'
import { bootGuest } from './guests.ts'
import { findKvm, type KvmPlace } from './kvm_place.ts'
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
  { name: 'pku', vcpus: 1, passes: 0 },
  { name: 'rdpru', vcpus: 1, passes: 0 },
  { name: 'rmap_chain', vcpus: 1, passes: 1 },
]

const MEMORY_BYTES = 256 * 2 ** 20
const TEST_MS_MAX = 150_000

const folder = process.env.CELLAR_KVM_UNIT_TESTS ?? join(ROOT, '.cache/kvm-unit-tests')
const kvm = await findKvm('unit-test')
const missing = existsSync(join(folder, 'x86')) ? kvm.skip
  : `no kvm-unit-tests in ${folder}: set CELLAR_KVM_UNIT_TESTS to a checkout in which they were built`

suite('kvm-unit-tests', { skip: missing }, () => {
  let place: KvmPlace
  let made: string

  before(() => {
    place = kvm.open()
    made = mkdtempSync(join(tmpdir(), 'cellar-unit-test-'))
  })
  after(async () => {
    await place[Symbol.asyncDispose]()
    rmSync(made, { recursive: true })
  })

  for (const { name, vcpus, passes } of PROGRAMS) {
    test(`the program ${name} of kvm-unit-tests finds no fault`, { timeout: TEST_MS_MAX }, async (t) => {
      const flat = join(folder, 'x86', `${name}.flat`)
      if (!existsSync(flat)) return t.skip(`${flat} was not built`)
      const kernel = join(made, name)
      writeFileSync(kernel, wrapUnitProgram(readFileSync(flat), { name, args: [], vcpus, memoryBytes: MEMORY_BYTES }))
      const outcome = await bootGuest(place, {
        kernel, commandLine: '', vcpus, memoryBytes: MEMORY_BYTES, until: '--- DONE',
      }, { say: (text) => t.diagnostic(text) })
      assert.ok('end' in outcome, JSON.stringify(outcome))
      t.diagnostic(`${place.way}; ${Math.round(outcome.ms)} ms; exits ${JSON.stringify(outcome.exits)}`)
      const said = outcome.console.replaceAll('\r', '')
      assert.equal(outcome.end, 'said', said)
      assert.doesNotMatch(said, /^FAIL|Unhandled exception/m)
      assert.ok((said.match(/^PASS/gm) ?? []).length >= passes, said)
    })
  }
})
