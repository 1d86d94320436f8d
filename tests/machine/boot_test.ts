// tests/machine/boot_test.ts: Debian's kernel under our VMM, from its first instruction to each way of ending.
//
// Each test boots a machine in a process of its own where KVM is ordinary: here, or in a nested host. What a machine
// did is known from its console, from how it ended, and from the exits that were counted.

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, suite, test, type TestContext } from 'node:test'
import { bootGuest, bootGuests, makeGuestInitrd, QUIET_LINE, type GuestRequest } from './guests.ts'
import { findKvm, type KvmPlace } from './kvm_place.ts'

const kvm = await findKvm('boot-test')
const TEST_MS_MAX = 150_000

suite('a machine under KVM', { skip: kvm.skip }, () => {
  let place: KvmPlace
  let folder: string
  let initrd: string

  before(() => {
    place = kvm.open()
    folder = mkdtempSync(join(tmpdir(), 'cellar-boot-test-'))
    initrd = makeGuestInitrd(folder, place)
  })
  after(async () => {
    await place[Symbol.asyncDispose]()
    rmSync(folder, { recursive: true })
  })

  /** Boots a guest that does `word`, and gives how it ended. */
  async function does(t: TestContext, word: string, request: Partial<GuestRequest> = {}, npt = true) {
    const outcome = await bootGuest(place, { initrd, commandLine: `${QUIET_LINE} do=${word}`, ...request },
      { npt, say: (text) => t.diagnostic(text) })
    assert.ok('end' in outcome, JSON.stringify(outcome))
    t.diagnostic(`${Math.round(outcome.ms)} ms; exits ${JSON.stringify(outcome.exits)}`)
    return outcome
  }

  const cut = (path: string, bytes: number): string => {
    const made = join(folder, `cut-${bytes}`)
    writeFileSync(made, readFileSync(path).subarray(0, bytes))
    return made
  }

  test('two processors come up, all that is written to the serial line arrives, and poweroff ends it', {
    timeout: TEST_MS_MAX,
  }, async (t) => {
    t.diagnostic(place.way)
    const { end, console } = await does(t, 'flood', { vcpus: 2 })
    assert.match(console, /up with 2 cpus/)
    assert.ok(console.includes(`\n${'x'.repeat(FLOOD_BYTES)}\r\n`), `of ${FLOOD_BYTES} bytes some are lost`)
    assert.match(console, /flood over/)
    assert.deepEqual(end, { kind: 'off', reason: 'poweroff' })
  })

  test('a guest boots on shadow page tables as it does on nested ones', {
    timeout: TEST_MS_MAX, skip: kvm.isNested ? false : 'kvm_amd npt=0 is tried in a nested host',
  }, async (t) => {
    assert.deepEqual((await does(t, 'off', {}, false)).end, { kind: 'off', reason: 'poweroff' })
  })

  test('a guest that reboots ends as reset', { timeout: TEST_MS_MAX }, async (t) => {
    assert.deepEqual((await does(t, 'reset')).end, { kind: 'reset', reason: 'reset' })
  })

  test('a triple fault ends a machine and is named', { timeout: TEST_MS_MAX }, async (t) => {
    const { end } = await does(t, 'reset', { commandLine: `${QUIET_LINE} reboot=t do=reset` })
    assert.deepEqual(end, { kind: 'crashed', reason: 'triple-fault' })
  })

  test('a guest that halts with interrupts off is noticed', { timeout: TEST_MS_MAX }, async (t) => {
    assert.deepEqual((await does(t, 'halt', { vcpus: 2 })).end, { kind: 'off', reason: 'halted' })
  })

  test('a guest that idles with interrupts on goes on, and hears the power button', {
    timeout: TEST_MS_MAX,
  }, async (t) => {
    const { end, console } = await does(t, 'button', { powerButton: 'waits for the button', powerAfterMs: IDLE_MS })
    assert.match(console, /heard the button/)
    assert.deepEqual(end, { kind: 'off', reason: 'poweroff' })
  })

  test('a damaged initrd is the guest\'s own misfortune: it panics, and the machine ends', {
    timeout: TEST_MS_MAX,
  }, async (t) => {
    const { end, console } = await does(t, 'off', { initrd: cut(initrd, 100_000) })
    assert.match(console, /Kernel panic/)
    assert.deepEqual(end, { kind: 'reset', reason: 'reset' })
  })

  test('too little memory, and a kernel or an initrd that is damaged or missing, are refused', {
    timeout: TEST_MS_MAX,
  }, async (t) => {
    const cases: readonly [string, Partial<GuestRequest>][] = [
      ['MACHINE_MEMORY_SMALL', { memoryBytes: 16 * 2 ** 20 }],
      ['MACHINE_KERNEL_DAMAGED', { kernel: cut(place.kernel, 1000) }],
      ['MACHINE_KERNEL_DAMAGED', { kernel: cut(place.kernel, 100_001) }],
      ['MACHINE_KERNEL_DAMAGED', { kernel: initrd }],
      ['MACHINE_KERNEL_UNREADABLE', { kernel: join(folder, 'none') }],
      ['MACHINE_INITRD_UNREADABLE', { initrd: join(folder, 'none') }],
    ]
    const outcomes = await bootGuests(place, cases.map(([, request]) => ({ initrd, ...request })),
      { say: (text) => t.diagnostic(text) })
    assert.deepEqual(outcomes.map((outcome) => 'error' in outcome ? outcome.error : outcome),
      cases.map(([code]) => code))
    assert.match('message' in outcomes[0]! ? outcomes[0].message : '', /\d+ MiB/)
  })
})

/** As many as `do=flood` of guests.ts writes, in one line. */
const FLOOD_BYTES = 20_000
/** Longer than an idle machine is left alone (halt_watch.ts). */
const IDLE_MS = 4_000
