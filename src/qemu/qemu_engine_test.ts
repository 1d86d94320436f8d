// qemu/qemu_engine_test.ts: machines of one boot sector under a real QEMU: lives, ends, state. Linux: tests/machine.

import assert from 'node:assert/strict'
import { chmodSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { makeRam } from '../sys/guest_ram.ts'
import { bootDisk, eventually, qemuMissing, scratchFolder, TestMachine, type BootCode } from './test_support.ts'

async function boot(t: TestContext, code: BootCode): Promise<TestMachine> {
  const machine = new TestMachine({ disks: [bootDisk(scratchFolder(t), code)] })
  t.after(() => machine.close())
  await machine.engine.start()
  return machine
}

/** Processes whose parent we are. */
function children(): number[] {
  return readFileSync(`/proc/self/task/${process.pid}/children`, 'latin1').split(' ').filter(Boolean).map(Number)
}

describe('a machine under QEMU', { skip: qemuMissing ?? false }, () => {
  test('a machine without a kernel boots from its first disk by firmware, and its power off is an end', async (t) => {
    const machine = await boot(t, 'hello')
    await machine.says(/BOOTED/)
    assert.deepEqual(await machine.ended(), { kind: 'off', reason: 'poweroff' })
    assert.equal(machine.ends, 1)
  })

  test('what a machine says last is heard before its end', async (t) => {
    const machine = await boot(t, 'hello')
    machine.engine.holdConsole(true)
    await eventually(() => children().length === 0, () => 'QEMU is still there')
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.equal(machine.ends, 0)
    machine.engine.holdConsole(false)
    await machine.ended()
    assert.match(machine.output, /BOOTED/)
  })

  test('a guest that resets its machine has ended it so', async (t) => {
    assert.deepEqual(await (await boot(t, 'reset')).ended(), { kind: 'reset', reason: 'reset' })
  })

  test('a triple fault is told from a reset', async (t) => {
    assert.deepEqual(await (await boot(t, 'tripleFault')).ended(), { kind: 'crashed', reason: 'triple-fault' })
  })

  test('what is typed comes to the guest, and what it answers comes back', async (t) => {
    const machine = await boot(t, 'echo')
    await machine.says(/Booting from Hard Disk/)
    await eventually(() => {
      machine.engine.input(Buffer.from('e'))
      return machine.output.includes('eee')
    }, () => machine.output)
    assert.equal(machine.engine.input(Buffer.from('q')), 1)
    assert.equal((await machine.ended()).kind, 'off')
    assert.equal(machine.engine.input(Buffer.from('q')), 0)
  })

  test('a guest that reads no input has a bounded amount of it waiting', async (t) => {
    const machine = await boot(t, 'halt')
    let taken = 0
    for (let i = 0; i < 100; i++) taken += machine.engine.input(Buffer.alloc(64 * 1024))
    assert.ok(taken >= 64 * 1024 && taken < 1024 * 1024, `${taken}`)
  })

  test('a guest that floods its console waits while nobody takes it, and costs us no memory', async (t) => {
    const machine = await boot(t, 'flood')
    await machine.says(/xxxx/)
    machine.engine.holdConsole(true)
    await new Promise((resolve) => setTimeout(resolve, 300))
    machine.output = ''
    await new Promise((resolve) => setTimeout(resolve, 300))
    assert.equal(machine.output, '')
    machine.engine.holdConsole(false)
    await machine.says(/xxxx/)
  })

  test('a QEMU that is killed ends its machine as failed, with the reason', async (t) => {
    const machine = await boot(t, 'halt')
    const [pid] = children()
    process.kill(pid!, 'SIGKILL')
    assert.deepEqual(await machine.ended(), { kind: 'failed', reason: 'QEMU: it was ended by SIGKILL' })
    assert.deepEqual((await machine.engine.figures()).exits, {})
    await assert.rejects(machine.engine.pause(), { code: 'QEMU_FAILED' })
  })

  test('a close ends QEMU at once, tells no end, and leaves no descriptor behind', async (t) => {
    const before = readdirSync('/proc/self/fd').length
    const machine = new TestMachine({ disks: [bootDisk(scratchFolder(t), 'flood')] })
    await machine.engine.start()
    await machine.says(/xx/)
    await machine.close()
    await machine.engine.close()
    assert.deepEqual(children(), [])
    assert.equal(machine.ends, 0)
    await eventually(() => readdirSync('/proc/self/fd').length <= before, () =>
      `${readdirSync('/proc/self/fd').length} descriptors in place of ${before}`)
  })

  test('a paused machine stands still, and goes on when it is resumed', async (t) => {
    const machine = await boot(t, 'count')
    await machine.says(/ABCD/)
    await machine.engine.pause()
    await new Promise((resolve) => setTimeout(resolve, 100))
    machine.output = ''
    await new Promise((resolve) => setTimeout(resolve, 300))
    assert.equal(machine.output, '')
    assert.equal(machine.engine.watchWrites(), false)
    await machine.engine.resume()
    await machine.says(/[A-P]/)
  })

  test('figures tell the time, the RAM and the disk accesses of a machine', async (t) => {
    const machine = await boot(t, 'count')
    await machine.says(/ABCD/)
    const figures = await machine.engine.figures()
    assert.ok(figures.vcpuNs > 1e6 && figures.vcpuNs < 1e12, `${figures.vcpuNs}`)
    assert.ok(figures.residentBytes > 0 && figures.residentBytes <= 32 * 2 ** 20, `${figures.residentBytes}`)
    assert.ok(figures.devices.blk0!.readBytes! >= 512, JSON.stringify(figures))
    assert.equal(figures.balloonBytes, 0)
  })
})

describe('the state of a machine under QEMU', { skip: qemuMissing ?? false }, () => {
  test('save, close, and a new QEMU goes on at the very next count', async (t) => {
    const machine = await boot(t, 'count')
    const path = join(scratchFolder(t), 'none')
    await machine.says(/ABCD/)
    const from = await machine.saved()
    assert.equal(await machine.engine.save(), from)
    await new Promise((resolve) => setTimeout(resolve, 50))
    const last = machine.output.at(-1) ?? 'D'
    await machine.engine.close()
    const next = new TestMachine({ disks: [bootDisk(scratchFolder(t), 'count')] }, { from, ramFd: machine.ramFd })
    t.after(() => next.engine.close())
    await next.engine.start()
    const { 0: first } = await next.says(/[A-P]/)
    assert.equal(first, String.fromCharCode(65 + (last.charCodeAt(0) - 64) % 16), path)
  })

  test('a machine goes on after it was saved, and is saved again', async (t) => {
    const machine = await boot(t, 'count')
    await machine.says(/ABCD/)
    const first = await machine.saved()
    await machine.engine.resume()
    machine.output = ''
    await machine.says(/[A-P]{4}/)
    assert.notEqual(await machine.saved(), first)
    await machine.engine.resume()
    await machine.says(/[A-P]/)
  })

  test('children of one state have RAM of their own, and leave what they come from alone', async (t) => {
    const machine = await boot(t, 'count')
    await machine.says(/ABCD/)
    const from = await machine.saved()
    const child = new TestMachine({ disks: [bootDisk(scratchFolder(t), 'count')] },
      { from, ramFd: machine.ramFd, isRamPrivate: true })
    t.after(() => child.engine.close())
    await child.engine.start()
    await child.says(/[A-P]{8}/)
    await child.engine.pause()
    const counted = child.engine.ram![0x7e00]!
    await machine.engine.resume()
    machine.output = ''
    await machine.says(/[A-P]{2}/)
    await machine.engine.pause()
    assert.equal(child.engine.ram![0x7e00]!, counted)
  })

  test('a state that QEMU does not take is damaged, and nothing is left of the try', async (t) => {
    const machine = await boot(t, 'count')
    const from = new Map(await machine.saved())
    from.set('qemu/vmstate', from.get('qemu/vmstate')!.slice(0, 5000))
    await machine.engine.close()
    const next = new TestMachine({ disks: [bootDisk(scratchFolder(t), 'count')] }, { from })
    await assert.rejects(next.engine.start(), { code: 'SNAPSHOT_DAMAGED' })
    assert.deepEqual(children(), [])
    assert.equal(next.ends, 0)
  })
})

describe('a QEMU that cannot be had', () => {
  async function startWith(path: string): Promise<unknown> {
    const ramFd = makeRam(2 ** 21)
    const machine = new TestMachine({ memoryBytes: 2 ** 21 }, { ramFd, qemu: { path, accelerator: 'tcg' } })
    const error = await machine.engine.start().then(() => 'it started', (reason: unknown) => reason)
    await machine.close()
    return error
  }

  function script(t: TestContext, text: string): string {
    const path = join(scratchFolder(t), 'qemu-system-x86_64')
    writeFileSync(path, `#!/bin/sh\n${text}\n`)
    chmodSync(path, 0o755)
    return path
  }

  test('one that is not there is an error with a hint how to have it', async () => {
    const error = await startWith('/nowhere/qemu-system-x86_64') as Error & { code: string; hint: string }
    assert.equal(error.code, 'QEMU_MISSING')
    assert.match(error.hint, /apt-get install qemu-system-x86/)
  })

  test('the last words of one that ends at its start are in the error', async (t) => {
    const error = await startWith(script(t, 'echo "qemu-system-x86_64: cannot do that" >&2; exit 1')) as Error
    assert.match(error.message, /as QEMU failed: cannot do that$/)
  })

  test('one that is too old is refused when it says so', async (t) => {
    const greeting = '{"QMP": {"version": {"qemu": {"major": 6, "minor": 2, "micro": 0}}, "capabilities": []}}'
    const path = script(t, `echo '${greeting}' >&3; sleep 0.3; echo '{"return": {}, "id": 1}' >&3; exec sleep 5`)
    assert.equal((await startWith(path) as { code: string }).code, 'QEMU_OLD')
  })

  test('one that says what is not QMP is ended', async (t) => {
    const error = await startWith(script(t, 'echo nonsense >&3; exec sleep 5')) as Error
    assert.match(error.message, /isn't JSON/)
    assert.deepEqual(children(), [])
  })
})
