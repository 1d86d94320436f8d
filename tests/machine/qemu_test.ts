// tests/machine/qemu_test.ts: Debian's kernel with busybox under the QEMU engine: every device, every end, its state.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { CpioWriter } from '../../src/image/machine_cpio.ts'
import type { DiskSpec, MachineSpec } from '../../src/machine/spec.ts'
import type { QemuOptions } from '../../src/qemu/qemu_engine.ts'
import { eventually, qemuMissing, scratchFolder, TestMachine } from '../../src/qemu/test_support.ts'
import { createDisk, openDisk } from '../../src/services/block/open_disk.ts'
import { socketPair } from '../../src/sys/sockets.ts'
import { findPackages } from './nested_packages.ts'

const packages = qemuMissing === undefined ? findPackages() : { missing: qemuMissing }
const MIB = 2 ** 20

/** Modules of Debian's cloud kernel, each after those that it needs; the last: the input device of the power button. */
const MODULES = ['virtio/virtio_ring', 'virtio/virtio', 'virtio/virtio_pci_modern_dev', 'virtio/virtio_pci_legacy_dev',
  'virtio/virtio_pci', '../net/core/failover', 'net/net_failover', 'net/virtio_net', 'block/virtio_blk',
  'char/virtio_console', 'char/hw_random/virtio-rng', 'virtio/virtio_balloon', 'misc/pvpanic/pvpanic',
  'misc/pvpanic/pvpanic-mmio', 'acpi/button', 'input/evdev']

const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
dmesg -n 1
stty -echo </dev/ttyS0
echo READY
exec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'
`

function initramfs(found: Exclude<typeof packages, { missing: string }>): Buffer {
  const archive = new CpioWriter().file('init', INIT, 0o755).file('bin/busybox', readFileSync(found.busybox), 0o755)
  const paths = MODULES.map((name) => join(found.modules, 'kernel/drivers', `${name}.ko`)).filter((path) =>
    existsSync(path))
  const names = paths.map((path) => path.slice(path.lastIndexOf('/') + 1))
  paths.forEach((path, at) => archive.file(`modules/${names[at]}`, readFileSync(path)))
  for (const folder of ['dev', 'proc', 'sys']) archive.folder(folder)
  return archive.file('modules/order', names.join('\n')).device('dev/console', 'char', 5, 1).finish()
}

type More = Partial<MachineSpec> & { readonly kernelArgs?: string }

/** A booted guest, at its shell. */
async function boot(t: TestContext, { kernelArgs = '', ...spec }: More = {}, options: Partial<QemuOptions> = {}):
  Promise<TestMachine> {
  if ('missing' in packages) throw new Error(packages.missing)
  const initrd = join(scratchFolder(t), 'initrd')
  writeFileSync(initrd, initramfs(packages))
  const machine = new TestMachine({ memoryBytes: 192 * MIB, vcpus: 2, ...spec,
    boot: { kernel: packages.kernel, initrd, commandLine: `console=ttyS0 quiet ${kernelArgs}` } }, options)
  t.after(() => machine.close())
  await machine.engine.start()
  if (options.from === undefined) await machine.says(/READY[^]*?# /)
  return machine
}

/** What a command says in the guest. */
async function run(machine: TestMachine, command: string): Promise<string> {
  machine.engine.input(Buffer.from(`${command}; echo "DO""NE"\n`))
  const found = await machine.says(/([^]*?)DONE\r?\n/)
  return found[1]!.replaceAll('\r', '').replaceAll('/ # ', '')
}

const disk = (path: string, more: Partial<DiskSpec> = {}): DiskSpec =>
  ({ path, format: 'qcow2', readOnly: false, serial: 'cellar-test', backingFolders: [], ...more })

describe('Linux under QEMU', { skip: 'missing' in packages ? packages.missing : false }, () => {
  test('it has its vCPUs, its RAM, a console in both directions, and powers off', async (t) => {
    const machine = await boot(t)
    assert.match(await run(machine, 'grep -c ^processor /proc/cpuinfo'), /^2$/m)
    assert.match(await run(machine, 'echo hello from $((6 * 7))'), /hello from 42/)
    machine.engine.input(Buffer.from('echo by hvc > /dev/hvc0\n'))
    await machine.says(/by hvc/)
    machine.engine.input(Buffer.from('poweroff -f\n'))
    assert.deepEqual(await machine.ended(), { kind: 'off', reason: 'poweroff' })
  })

  test('a reboot is a reset, and a panic a crash that is noted', async (t) => {
    const machine = await boot(t)
    machine.engine.input(Buffer.from('reboot -f\n'))
    assert.deepEqual(await machine.ended(), { kind: 'reset', reason: 'reset' })
    const other = await boot(t)
    other.engine.input(Buffer.from('echo c > /proc/sysrq-trigger\n'))
    assert.deepEqual(await other.ended(), { kind: 'crashed', reason: 'panic' })
    assert.deepEqual(other.said, ['the guest\'s kernel has panicked'])
  })

  test('it hears the power button', async (t) => {
    const machine = await boot(t)
    machine.engine.input(Buffer.from('head -c 1 /dev/input/event0 >/dev/null && poweroff -f\n'))
    // Until it listens a press is lost.
    const pressing = setInterval(() => machine.engine.powerButton(), 500)
    t.after(() => clearInterval(pressing))
    assert.deepEqual(await machine.ended(), { kind: 'off', reason: 'poweroff' })
  })

  test('its balloon takes memory, which we have then, and gives it back', async (t) => {
    const machine = await boot(t)
    await run(machine, 'dd if=/dev/zero of=/tmp.fill bs=1M count=64 2>/dev/null; rm /tmp.fill')
    const before = await machine.engine.figures()
    machine.engine.balloon(96 * MIB)
    let figures = before
    await eventually(() => {
      void machine.engine.figures().then((found) => { figures = found })
      return figures.balloonBytes === 96 * MIB
    }, () => `${figures.balloonBytes} bytes`)
    assert.ok((await machine.engine.figures()).residentBytes < before.residentBytes)
    machine.engine.balloon(0)
    await eventually(() => {
      void machine.engine.figures().then((found) => { figures = found })
      return figures.balloonBytes === 0
    }, () => `${figures.balloonBytes} bytes`)
  })

  test('what it writes to a qcow2 over a base is there for our own reader, and the base is as it was', async (t) => {
    const folder = scratchFolder(t)
    writeFileSync(join(folder, 'base'), Buffer.alloc(4 * MIB, 'base'))
    createDisk(join(folder, 'top'), { format: 'qcow2', sizeBytes: 4 * MIB, backing: { path: 'base', format: 'raw' } })
    const machine = await boot(t, { disks: [disk(join(folder, 'top'), { backingFolders: [folder] }),
      disk(join(folder, 'base'), { format: 'raw', readOnly: true, serial: 'second' })] })
    const seen = await run(machine, 'cat /sys/block/vda/serial; echo; cat /sys/block/vdb/ro')
    assert.equal(seen.trim(), 'cellar-test\n1')
    assert.match(await run(machine, 'dd if=/dev/vda bs=4 count=1 skip=1000 2>/dev/null'), /base/)
    await run(machine, 'yes cellar | dd of=/dev/vda bs=4096 seek=100 count=2 conv=fsync 2>/dev/null')
    assert.match(await run(machine, 'echo x | dd of=/dev/vdb 2>&1'), /not permitted|Read-only|error/)
    const { devices } = await machine.engine.figures()
    assert.ok(devices.blk0!.writtenBytes! >= 8192 && devices.blk0!.flushes! >= 1, JSON.stringify(devices))
    assert.equal(devices.blk1!.writes, 0)
    await machine.engine.close()
    const top = openDisk(join(folder, 'top'), 'qcow2', { readOnly: true, backingFolders: [folder] })
    const bytes = Buffer.alloc(4096)
    assert.equal(top.read(100 * 4096, bytes, 0, 4096), 0)
    assert.match(bytes.toString(), /^(cellar\n)+/)
    top.read(99 * 4096, bytes, 0, 4096)
    assert.match(bytes.toString(), /^(base)+$/)
    top.close()
    assert.deepEqual(readFileSync(join(folder, 'base')), Buffer.alloc(4 * MIB, 'base'))
  })

  test('a full disk of the host is an error to it, and it runs on', { skip: noTmpfs() }, async (t) => {
    let folder = ''
    // What is to be undone first is said first.
    t.after(() => spawnSync('umount', ['-l', folder]))
    folder = join(scratchFolder(t), 'small')
    mkdirSync(folder)
    assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]).status, 0)
    const path = join(folder, 'disk')
    writeFileSync(path, '')
    truncateSync(path, 8 * MIB)
    const machine = await boot(t, { disks: [disk(path, { format: 'raw' })] })
    assert.match(await run(machine, 'dd if=/dev/zero of=/dev/vda bs=64k conv=fsync 2>&1 | grep -v records'),
      /No space left|I\/O error|Input\/output/)
    assert.match(await run(machine, 'echo still here'), /still here/)
    assert.ok(machine.said.some((text) => text.endsWith('No space left on device')), machine.said.join('; '))
    assert.ok(machine.said.length <= 64)
    assert.ok(statSync(path).blocks * 512 <= MIB)
  })

  test('frames go out with their length before them, and come in the same way', async (t) => {
    const [fd, theirs] = socketPair()
    const net = new Socket({ fd: theirs, readable: true, writable: true })
    t.after(() => net.destroy())
    const frames: Buffer[] = []
    let bytes = Buffer.alloc(0)
    net.on('error', () => { /* The machine went. */ }).on('data', (piece: Buffer) => {
      bytes = Buffer.concat([bytes, piece])
      while (bytes.length >= 4 && bytes.length >= 4 + bytes.readUInt32BE(0)) {
        frames.push(bytes.subarray(4, 4 + bytes.readUInt32BE(0)))
        bytes = bytes.subarray(4 + bytes.readUInt32BE(0))
      }
    })
    const machine = await boot(t, { nics: [{ mac: '52:54:00:12:34:56', fd, kind: 'stream', mtu: 1400 }] })
    const seen = await run(machine, 'cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu')
    assert.match(seen, /52:54:00:12:34:56\n1400/)
    machine.engine.input(Buffer.from('ip a add 10.0.0.2/24 dev eth0; ip link set eth0 up; ping -c 1 -W 5 10.0.0.1\n'))
    const isArp = (frame: Buffer): boolean => frame.readUInt16BE(12) === 0x806 && frame.readUInt32BE(38) === 0x0a000001
    const asked = await eventually(() => frames.find(isArp), () => `${frames.length} frames`)
    const answer = Buffer.concat([Buffer.from(asked.subarray(6, 12)), Buffer.from('525400000001', 'hex'),
      Buffer.from('080600010800060400025254000000010a000001', 'hex'), asked.subarray(22, 32)])
    net.write(Buffer.concat([Buffer.of(0, 0, 0, answer.length), answer]))
    const isPing = (frame: Buffer): boolean => frame.readUInt16BE(12) === 0x800 && frame[23] === 1 && frame[34] === 8
    await eventually(() => frames.find(isPing), () => `${frames.length} frames`)
  })

  test('its agent has a stream when it opens its port, and a new one when it does so again', async (t) => {
    const machine = await boot(t)
    assert.match(await run(machine, 'cat /sys/class/virtio-ports/vport*p1/name'), /cellar\.agent\.0/)
    for (const [at, word] of ['first', 'second'].entries()) {
      machine.engine.input(Buffer.from(`P=/dev/$(basename /sys/class/virtio-ports/vport*p1);
        (echo ${word}; read answer; echo "heard $answer" >/dev/ttyS0; sleep 1.5) <>$P >&0\n`))
      const stream = await eventually(() => machine.agents[at], () => `${machine.agents.length} streams`)
      let heard = ''
      const ended = new Promise((resolve) => stream.once('end', resolve))
      stream.on('data', (bytes: Buffer) => { heard += bytes.toString() })
      await eventually(() => heard === `${word}\n`, () => heard)
      stream.write(`to ${word}\n`)
      await machine.says(new RegExp(`heard to ${word}`))
      await ended
    }
  })

  test('it goes on in a new QEMU with what its RAM held, under a new generation', async (t) => {
    const machine = await boot(t)
    await run(machine, 'echo nonce-$$-$(cat /proc/sys/kernel/random/uuid) > /nonce')
    const nonce = await run(machine, 'cat /nonce; cat /proc/sys/kernel/random/boot_id')
    await run(machine, 'N=0')
    const from = await machine.saved()
    await machine.engine.close()
    const next = await boot(t, { generation: 'ff'.repeat(16) }, { from, ramFd: machine.ramFd })
    assert.equal(await run(next, 'cat /nonce; cat /proc/sys/kernel/random/boot_id'), nonce)
    assert.match(await run(next, 'echo $((N + 1))'), /^1$/m)
    next.engine.input(Buffer.from('poweroff -f\n'))
    assert.equal((await next.ended()).kind, 'off')
  })

  test('a kernel that is none, and one that its memory is too small for, are errors of its machine', async (t) => {
    const path = join(scratchFolder(t), 'kernel')
    writeFileSync(path, Buffer.alloc(100_000, 'not a kernel'))
    const none = new TestMachine({ boot: { kernel: path, commandLine: '' } })
    t.after(() => none.close())
    await assert.rejects(none.engine.start(), { code: 'MACHINE_KERNEL_DAMAGED' })
    if ('missing' in packages) return
    const small = new TestMachine({ memoryBytes: 32 * MIB, boot: { kernel: packages.kernel, commandLine: '' } })
    t.after(() => small.close())
    await assert.rejects(small.engine.start(), { code: 'MACHINE_MEMORY_SMALL' })
  })
})

function noTmpfs(): string | false {
  return process.getuid?.() === 0 && process.platform === 'linux' ? false : 'mounting needs root'
}
