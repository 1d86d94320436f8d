// qemu/command_line_test.ts: the arguments of whole machines, as they stand.

import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { MachineSpec } from '../machine/spec.ts'
import { commandLine, type CommandLineOptions } from './command_line.ts'
import type { ChainLink } from './disk_chain.ts'

const SPEC: MachineSpec = {
  name: 'web', vcpus: 2, memoryBytes: 256 * 2 ** 20, cid: 3, generation: '00112233445566778899aabbccddeeff',
  boot: { kernel: '/blobs/kernel', initrd: '/blobs/initrd', commandLine: 'console=ttyS0 a=b,c' }, disks: [], nics: [],
}
const FILE: ChainLink = { fd: 20, format: 'qcow2', isReadOnly: false }

function lineOf(spec: Partial<MachineSpec>, options: Partial<CommandLineOptions> = {}): string[] {
  return commandLine({ spec: { ...SPEC, ...spec }, disks: [], accelerator: 'tcg', machineType: 'q35', isIncoming: false,
    ...options })
}

/** What stands behind each use of a flag. */
function all(line: readonly string[], flag: string): string[] {
  return line.flatMap((word, at) => word === flag ? [line[at + 1]!] : [])
}

const objects = (line: readonly string[], flag: string): Record<string, unknown>[] =>
  all(line, flag).filter((text) => text.startsWith('{')).map((text) => JSON.parse(text) as Record<string, unknown>)

describe('the command line of a machine', () => {
  test('a machine with a kernel is this', () => {
    assert.deepEqual(lineOf({}), [
      '-name', 'guest=web,debug-threads=on', '-nodefaults', '-no-user-config', '-display', 'none',
      '-machine', 'q35,memory-backend=ram,dump-guest-core=off,smm=off,vmport=off,usb=off,sata=off,i8042=off,hpet=on',
      '-accel', 'tcg,thread=multi,tb-size=256', '-cpu', 'max,-svm,-vmx,-la57',
      '-smp', 'cpus=2,sockets=1,cores=2,threads=1', '-m', 'size=262144k',
      '-object', '{"qom-type":"memory-backend-file","id":"ram","size":268435456,"mem-path":"/proc/self/fd/7",' +
        '"share":true,"dump":false}',
      '-rtc', 'base=utc', '-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
      '-action', 'reboot=shutdown,shutdown=poweroff,panic=shutdown', '-d', 'cpu_reset', '-S',
      '-chardev', 'socket,id=qmp,fd=3', '-mon', 'chardev=qmp,mode=control',
      '-chardev', 'socket,id=console,fd=4', '-serial', 'chardev:console',
      '-chardev', 'socket,id=hvc,fd=5', '-chardev', 'socket,id=agent,fd=6',
      '-object', '{"qom-type":"rng-builtin","id":"entropy"}',
      '-device', '{"driver":"pvpanic"}',
      '-device', '{"driver":"vmgenid","guid":"00112233-4455-6677-8899-aabbccddeeff"}',
      '-device', '{"driver":"virtio-serial-pci","bus":"pcie.0","addr":"0x1","id":"serial"}',
      '-device', '{"driver":"virtconsole","id":"hvc","bus":"serial.0","nr":0,"chardev":"hvc"}',
      '-device', '{"driver":"virtserialport","id":"agent","bus":"serial.0","nr":1,"chardev":"agent",' +
        '"name":"cellar.agent.0"}',
      '-device', '{"driver":"virtio-rng-pci","bus":"pcie.0","addr":"0x2","rng":"entropy"}',
      '-device', '{"driver":"virtio-balloon-pci","bus":"pcie.0","addr":"0x3","id":"balloon",' +
        '"free-page-reporting":true,"deflate-on-oom":true}',
      '-kernel', '/blobs/kernel', '-initrd', '/blobs/initrd', '-append', 'console=ttyS0 a=b,c',
    ])
  })

  test('a disk and what it is based on are nodes that name each other, each a descriptor', () => {
    const disk = { path: '/x', format: 'qcow2', readOnly: false, serial: 's,1', backingFolders: [] } as const
    const base: ChainLink = { fd: 21, format: 'qcow2', isReadOnly: true }
    const raw: ChainLink = { fd: 22, format: 'raw', isReadOnly: true }
    const line = lineOf({ disks: [disk, { ...disk, format: 'raw', readOnly: true, serial: 's2' }],
      nics: [{ mac: '52:54:00:00:00:01', fd: 9, kind: 'stream', mtu: 1500 }] }, { disks: [[FILE, base, raw], [raw]] })
    assert.deepEqual(all(line, '-add-fd'), ['fd=11,set=11', 'fd=10,set=10', 'fd=9,set=9', 'fd=12,set=12'])
    const nodes = objects(line, '-blockdev')
    assert.deepEqual(nodes.map((node) => [node['node-name'], node.driver, node['read-only']]), [
      ['disk0-2-file', 'file', true], ['disk0-2', 'raw', true], ['disk0-1-file', 'file', true],
      ['disk0-1', 'qcow2', true], ['disk0-file', 'file', false], ['disk0', 'qcow2', false],
      ['disk1-file', 'file', true], ['disk1', 'raw', true]])
    assert.deepEqual(nodes.filter(({ driver }) => driver === 'file').map(({ filename }) => filename),
      ['/dev/fdset/11', '/dev/fdset/10', '/dev/fdset/9', '/dev/fdset/12'])
    assert.deepEqual(nodes.flatMap((node) => 'backing' in node ? [[node['node-name'], node.backing]] : []),
      [['disk0-1', 'disk0-2'], ['disk0', 'disk0-1']])
    for (const node of nodes) assert.deepEqual(node.cache, { direct: false, 'no-flush': false })
    assert.deepEqual(objects(line, '-device').filter(({ driver }) => driver === 'virtio-blk-pci'), [
      { driver: 'virtio-blk-pci', bus: 'pcie.0', addr: '0x5', id: 'blk0', drive: 'disk0', serial: 's,1',
        werror: 'report', rerror: 'report', 'write-cache': 'on' },
      { driver: 'virtio-blk-pci', bus: 'pcie.0', addr: '0x6', id: 'blk1', drive: 'disk1', serial: 's2',
        werror: 'report', rerror: 'report', 'write-cache': 'auto' }])
  })

  test('a qcow2 that is based on nothing says so, whatever its header says', () => {
    const disk = { path: '/x', format: 'qcow2', readOnly: false, serial: 's', backingFolders: [] } as const
    assert.equal(objects(lineOf({ disks: [disk] }, { disks: [[FILE]] }), '-blockdev').at(-1)!.backing, null)
  })

  test('network cards are streams or TAP devices by descriptor', () => {
    const line = lineOf({ nics: [{ mac: '52:54:00:00:00:01', fd: 90, kind: 'stream', mtu: 1500 },
      { mac: '52:54:00:00:00:02', fd: 91, kind: 'tap', mtu: 9000 }] })
    assert.deepEqual(all(line, '-netdev'), ['stream,id=net0,server=off,addr.type=fd,addr.str=8',
      'tap,id=net1,fd=9,vhost=off'])
    assert.deepEqual(objects(line, '-device').filter(({ netdev }) => netdev !== undefined)
      .map(({ mac, host_mtu, addr }) => [mac, host_mtu, addr]),
    [['52:54:00:00:00:01', 1500, '0x4'], ['52:54:00:00:00:02', 9000, '0x5']])
  })

  test('without a kernel the first disk boots, and firmware speaks on the serial line', () => {
    const disk = { path: '/x', format: 'raw', readOnly: false, serial: 's', backingFolders: [] } as const
    const line = lineOf({ boot: undefined, disks: [disk] }, { disks: [[{ ...FILE, format: 'raw' }]] })
    assert.equal(objects(line, '-device').at(-1)!.bootindex, 0)
    assert.match(all(line, '-machine')[0]!, /,graphics=off$/)
    assert.deepEqual(['-kernel', '-initrd', '-append'].filter((flag) => line.includes(flag)), [])
  })

  test('under KVM the processor is the host\'s, without what guests of guests need', () => {
    const line = lineOf({}, { accelerator: 'kvm', machineType: 'pc-q35-7.2', isIncoming: true })
    assert.deepEqual([...all(line, '-accel'), ...all(line, '-cpu')], ['kvm', 'host,-svm,-vmx'])
    assert.ok(!line.includes('-d'))
    assert.match(all(line, '-machine')[0]!, /^pc-q35-7\.2,.*,hpet=off$/)
    assert.deepEqual(all(line, '-incoming'), ['defer'])
  })

  test('a name with a comma stays one value', () => {
    assert.equal(all(lineOf({ name: 'a,b=c' }), '-name')[0], 'guest=a,,b=c,debug-threads=on')
  })

  test('a machine with all that it may have has room for it', () => {
    const disk = { path: '/x', format: 'raw', readOnly: false, serial: 's', backingFolders: [] } as const
    const many = <T>(count: number, one: T): T[] => Array.from({ length: count }, () => one)
    const line = lineOf({ disks: many(8, disk), nics: many(4, { mac: '', fd: 1, kind: 'tap', mtu: 1500 } as const) },
      { disks: many(8, [FILE]) })
    assert.equal(objects(line, '-device').at(-1)!.addr, '0xf')
  })
})
