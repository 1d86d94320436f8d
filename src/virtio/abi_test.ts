// virtio/abi_test.ts: what devices offer, against the table of what is supported and the kernel's headers.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { Balloon } from './balloon.ts'
import { Blk } from './blk.ts'
import { VirtioConsole } from './console.ts'
import type { Device } from './device.ts'
import { Net } from './net.ts'
import { Rng } from './rng.ts'
import { VIRTIO_SUPPORT } from './support.ts'
import { MemoryDisk } from './test_support.ts'
import { Vsock } from './vsock.ts'

const nowMs = (): number => 0
const net = { name: 'net0', mac: '02:00:00:00:00:01', mtu: 1500, fd: -1, takesSegments: false, nowMs }
const blk = { name: 'blk0', serial: '', queues: 1, nowMs }

// Each kind: the devices that together offer all that it can, its number, its features, its configuration.
const KINDS: readonly { prefix: string; id: string; config: string; devices: Device[] }[] = [
  { prefix: 'VIRTIO_NET_F_', id: 'VIRTIO_ID_NET', config: '12',
    devices: [new Net({ ...net, kind: 'stream', takesSegments: true }), new Net({ ...net, kind: 'tap' })] },
  { prefix: 'VIRTIO_BLK_F_', id: 'VIRTIO_ID_BLOCK', config: 'offsetof(struct virtio_blk_config, unused1) + 3',
    devices: [new Blk({ ...blk, disk: new MemoryDisk(512) }), new Blk({ ...blk, disk: new MemoryDisk(512, true) })] },
  { prefix: 'VIRTIO_CONSOLE_F_', id: 'VIRTIO_ID_CONSOLE', config: 'sizeof(struct virtio_console_config)',
    devices: [new VirtioConsole(-1)] },
  { prefix: 'VIRTIO_RNG_F_', id: 'VIRTIO_ID_RNG', config: '0', devices: [new Rng({ fill() {} })] },
  { prefix: 'VIRTIO_BALLOON_F_', id: 'VIRTIO_ID_BALLOON', config: 'sizeof(struct virtio_balloon_config)',
    devices: [new Balloon(() => 0)] },
  { prefix: 'VIRTIO_VSOCK_F_', id: 'VIRTIO_ID_VSOCK', config: 'sizeof(struct virtio_vsock_config)',
    devices: [new Vsock(3, -1)] },
]

// <linux/virtio_balloon.h> has another name for one.
const SPELLED: Readonly<Record<string, string>> = { VIRTIO_BALLOON_F_PAGE_REPORTING: 'VIRTIO_BALLOON_F_REPORTING' }

const headers = ['net', 'blk', 'console', 'rng', 'balloon', 'vsock', 'ids', 'mmio', 'config', 'ring']
  .map((name) => `#include <linux/virtio_${name}.h>\n`).join('')

// What C expressions are; undefined without a compiler or its headers.
function values(expressions: readonly string[]): number[] | undefined {
  const lines = expressions.map((each) => `  printf("%ld\\n", (long)(${each}));\n`).join('')
  const source = `#include <stdio.h>\n#include <stddef.h>\n${headers}int main(void) {\n${lines}  return 0;\n}\n`
  const path = `/tmp/cellar-virtio-abi-${process.pid}`
  const made = spawnSync('cc', ['-x', 'c', '-', '-o', path], { input: source, encoding: 'utf8' })
  if (made.status !== 0) return undefined
  const output = spawnSync(path, { encoding: 'utf8' }).stdout
  spawnSync('rm', [path])
  return output.trim().split('\n').map(Number)
}

test('devices have the numbers, features and configurations of the kernel\'s headers', (t) => {
  if (values(['VIRTIO_ID_NET']) === undefined) return t.skip('no C compiler, or no <linux/virtio_ids.h>')
  for (const { prefix, id, config, devices } of KINDS) {
    const named = VIRTIO_SUPPORT.filter(({ name, level }) => name.startsWith(prefix) && level !== 'none')
    const offered = [...new Set(devices.flatMap(({ type }) => type.features))].sort((a, b) => a - b)
    const [number, size, ...bits] = values([id, config, ...named.map(({ name }) => SPELLED[name] ?? name)])!
    assert.deepEqual(bits.toSorted((a, b) => a - b), offered, `${prefix}: what is offered is what the table has`)
    for (const { type } of devices) {
      assert.equal(type.id, number)
      assert.equal(type.config.length, size, id)
    }
  }
})

test('the table of what is supported has each thing once, and says why where something is missing', () => {
  const names = VIRTIO_SUPPORT.map(({ name }) => name)
  assert.equal(new Set(names).size, names.length)
  for (const { name, level, note } of VIRTIO_SUPPORT) assert.ok(level === 'full' || note !== '', name)
})
