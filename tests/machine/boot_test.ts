// tests/machine/boot_test.ts: Debian's kernel under our VMM, from its first instruction to each way of ending.
//
// Each test boots a machine in a process of its own where KVM is ordinary: here, or in a nested host. What a machine
// did is known from its console, from how it ended, and from the exits that were counted.

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, suite, test, type TestContext } from 'node:test'
import { bootGuest, makeGuestInitrd, QUIET_LINE, type GuestOutcome, type GuestRequest } from './guests.ts'
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
  async function does(t: TestContext, word: string, request: Partial<GuestRequest> = {}) {
    const outcome = await bootGuest(place, { initrd, commandLine: `${QUIET_LINE} do=${word}`, ...request })
    assert.ok('end' in outcome, JSON.stringify(outcome))
    t.diagnostic(`${place.way}; ${Math.round(outcome.ms)} ms; exits ${JSON.stringify(outcome.exits)}`)
    return outcome
  }

  async function isRefused(request: Partial<GuestRequest>, code: string): Promise<GuestOutcome> {
    const outcome = await bootGuest(place, { initrd, ...request })
    assert.ok('error' in outcome, JSON.stringify(outcome))
    assert.equal(outcome.error, code, outcome.message)
    return outcome
  }

  const cut = (path: string, bytes: number): string => {
    const made = join(folder, `cut-${bytes}`)
    writeFileSync(made, readFileSync(path).subarray(0, bytes))
    return made
  }

  test('two processors come up, user space runs, and poweroff ends it', { timeout: TEST_MS_MAX }, async (t) => {
    const { end, console } = await does(t, 'off', { vcpus: 2 })
    assert.match(console, /up with 2 cpus/)
    assert.deepEqual(end, { kind: 'off', reason: 'poweroff' })
  })

  test('a guest boots on shadow page tables as it does on nested ones', {
    timeout: TEST_MS_MAX, skip: kvm.isNested ? false : 'kvm_amd npt=0 is tried in a nested host',
  }, async (t) => {
    const outcome = await bootGuest(place, { initrd, commandLine: `${QUIET_LINE} do=off` }, { npt: false })
    assert.ok('end' in outcome, JSON.stringify(outcome))
    t.diagnostic(`npt=0: ${Math.round(outcome.ms)} ms`)
    assert.deepEqual(outcome.end, { kind: 'off', reason: 'poweroff' })
  })

  test('a guest that reboots ends as reset', { timeout: TEST_MS_MAX }, async (t) => {
    assert.deepEqual((await does(t, 'reset')).end, { kind: 'reset', reason: 'reset' })
  })

  test('a triple fault ends a machine and is named', { timeout: TEST_MS_MAX }, async (t) => {
    const { end } = await does(t, 'reset', { commandLine: `${QUIET_LINE} reboot=t do=reset` })
    assert.ok(typeof end === 'object' && end.reason === 'triple-fault', JSON.stringify(end))
  })

  test('a guest that halts with interrupts off is noticed', { timeout: TEST_MS_MAX }, async (t) => {
    assert.deepEqual((await does(t, 'halt', { vcpus: 2 })).end, { kind: 'off', reason: 'halted' })
  })

  test('a guest that idles with interrupts on goes on', { timeout: TEST_MS_MAX }, async (t) => {
    const { end } = await does(t, 'nothing', { limitMs: 30_000 })
    assert.equal(end, 'late')
  })

  test('a guest hears the power button', { timeout: TEST_MS_MAX }, async (t) => {
    const { end, console } = await does(t, 'button', { powerButton: 'waits for the button' })
    assert.match(console, /heard the button/)
    assert.deepEqual(end, { kind: 'off', reason: 'poweroff' })
  })

  test('a guest that floods its serial line loses no byte and ends as it should', {
    timeout: TEST_MS_MAX,
  }, async (t) => {
    const { end, console } = await does(t, 'flood')
    assert.ok(console.includes(`\n${'x'.repeat(FLOOD_BYTES)}\r\n`), `of ${FLOOD_BYTES} bytes some are lost`)
    assert.match(console, /flood over/)
    assert.deepEqual(end, { kind: 'off', reason: 'poweroff' })
  })

  test('memory too small for the kernel is refused with what it needs', { timeout: TEST_MS_MAX }, async () => {
    const outcome = await isRefused({ memoryBytes: 16 * 2 ** 20 }, 'MACHINE_MEMORY_SMALL')
    assert.match('message' in outcome ? outcome.message : '', /\d+ MiB/)
  })

  test('a kernel that is damaged or missing is refused', { timeout: TEST_MS_MAX }, async () => {
    await isRefused({ kernel: cut(place.kernel, 1000) }, 'MACHINE_KERNEL_DAMAGED')
    await isRefused({ kernel: cut(place.kernel, 100_000) }, 'MACHINE_KERNEL_DAMAGED')
    await isRefused({ kernel: initrd }, 'MACHINE_KERNEL_DAMAGED')
    await isRefused({ kernel: join(folder, 'none') }, 'MACHINE_KERNEL_UNREADABLE')
  })

  test('a damaged initrd is the guest\'s own misfortune: it panics, and the machine ends', {
    timeout: TEST_MS_MAX,
  }, async (t) => {
    const { end, console } = await does(t, 'off', { initrd: cut(initrd, 100_000) })
    assert.match(console, /Kernel panic/)
    assert.ok(typeof end === 'object' && end.kind === 'reset', JSON.stringify(end))
  })

  test('an initrd that is missing is refused', { timeout: TEST_MS_MAX }, async () => {
    await isRefused({ initrd: join(folder, 'none') }, 'MACHINE_INITRD_UNREADABLE')
  })
})

/** As many as `do=flood` of guests.ts writes, in one line. */
const FLOOD_BYTES = 100_000
