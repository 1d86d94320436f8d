// sys/tap_test.ts: a TAP device is opened if it is there, and is not made if it isn't.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { constants, existsSync, readFileSync, writeSync } from 'node:fs'
import { test } from 'node:test'
import { ENODEV } from '../base/errno.ts'
import { closeFd } from './sockets.ts'
import { openTap } from './tap.ts'

const isRoot = process.getuid?.() === 0
const hasTun = existsSync('/dev/net/tun') && existsSync('/usr/sbin/ip')
const skip = !isRoot ? 'devices need root' : !hasTun ? 'no /dev/net/tun, or no ip(8)' : false

const ip = (...words: string[]): number | null => spawnSync('/usr/sbin/ip', words).status

const whyNot = isRoot && existsSync('/dev/net/tun') ? false : 'needs root'
test('a device that is not there is not made', { skip: whyNot }, () => {
  for (const name of ['cellar-none0', 'cellar-name-that-is-too-long0', '', '../x', 'lo/..']) {
    const fd = openTap(name)
    if (fd >= 0) closeFd(fd)
    assert.equal(fd, -ENODEV, name)
    assert.equal(existsSync('/sys/class/net/cellar-none0'), false)
  }
})

test('a network card that is no TAP device is refused', { skip }, () => {
  const fd = openTap('lo')
  if (fd >= 0) closeFd(fd)
  assert.equal(fd, -ENODEV)
})

test('frames of a device begin with 12 bytes of header', { skip }, (t) => {
  const name = `cellar${process.pid % 10_000}`
  if (ip('tuntap', 'add', name, 'mode', 'tap', 'vnet_hdr') !== 0) return t.skip('no TAP device can be made here')
  try {
    ip('link', 'set', name, 'up')
    const fd = openTap(name)
    assert.ok(fd >= 0, String(fd))
    const frame = Buffer.alloc(12 + 60)
    frame.fill(0xff, 12, 18)
    assert.equal(writeSync(fd, frame), frame.length, 'the kernel takes a frame with its header')
    assert.throws(() => writeSync(fd, Buffer.alloc(11)), { code: 'EINVAL' })
    const flags = Number.parseInt(/^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8)
    assert.notEqual(flags & constants.O_NONBLOCK, 0, 'a read where no frame is must not wait: other devices do')
    closeFd(fd)
  } finally {
    ip('link', 'del', name)
  }
})
