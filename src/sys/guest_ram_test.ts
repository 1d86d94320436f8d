// sys/guest_ram_test.ts: RAM that threads share, and RAM that is one mapping's own.

import assert from 'node:assert/strict'
import { closeSync, ftruncateSync, readSync, writeSync } from 'node:fs'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { makeRam, mapRam, residentBytes, sealRam, unmapRam, viewRam } from './guest_ram.ts'
import { isSupported } from './libc.ts'

const MIB = 1024 * 1024
const skip = isSupported() ? false : 'mappings are made through FFI, on Linux'

function withRam(isPrivate: boolean, work: (ram: ReturnType<typeof mapRam>, fd: number) => void): void {
  const fd = makeRam(4 * MIB)
  const ram = mapRam(fd, 4 * MIB, isPrivate)
  try {
    work(ram, fd)
  } finally {
    unmapRam(ram)
    closeSync(fd)
  }
}

const inFile = (fd: number, position: number): number => {
  const byte = new Uint8Array(1)
  readSync(fd, byte, 0, 1, position)
  return byte[0]!
}

test('mapRam shared is the memfd itself, and private keeps what is written', { skip }, () => {
  withRam(false, (ram, fd) => {
    ram.bytes[MIB] = 7
    assert.equal(inFile(fd, MIB), 7)
  })
  withRam(true, (ram, fd) => {
    ram.bytes[MIB] = 7
    assert.equal(ram.bytes[MIB], 7)
    assert.equal(inFile(fd, MIB), 0)
  })
})

test('sealed RAM is what it is for all who have it, and each maps it for itself', { skip }, () => {
  const fd = makeRam(MIB)
  writeSync(fd, new Uint8Array([7]), 0, 1, 5)
  assert.ok(sealRam(fd, MIB))
  assert.throws(() => writeSync(fd, new Uint8Array(1), 0, 1, 5), { code: 'EPERM' })
  assert.throws(() => ftruncateSync(fd, 0), { code: 'EPERM' })
  assert.throws(() => mapRam(fd, MIB, false), { code: 'EPERM' })
  const ram = mapRam(fd, MIB, true)
  ram.bytes[6] = ram.bytes[5]! + 1
  assert.deepEqual([ram.bytes[6], inFile(fd, 6)], [8, 0])
  unmapRam(ram)
  closeSync(fd)
})

test('RAM that somebody has mapped to write, or has cut, can\'t be sealed', { skip }, () => {
  withRam(false, (_, fd) => assert.equal(sealRam(fd, 4 * MIB), false))
  const fd = makeRam(MIB)
  ftruncateSync(fd, MIB / 2)
  assert.equal(sealRam(fd, MIB), false)
  closeSync(fd)
})

test('residentBytes counts pages that were written, and no others', { skip }, () => {
  withRam(false, (ram) => {
    assert.equal(residentBytes(ram), 0)
    ram.bytes[5000] = 1
    const resident = residentBytes(ram)
    assert.ok(resident >= 4096 && resident <= 2 * MIB, `${resident} bytes`)
  })
})

test('viewRam in another thread sees the same bytes', { skip }, async () => {
  const fd = makeRam(MIB)
  const ram = mapRam(fd, MIB, false)
  const worker = new Worker(`
    const { workerData, parentPort } = require('node:worker_threads')
    import(workerData.module).then(({ viewRam }) => {
      const bytes = viewRam(workerData.address, ${MIB})
      bytes[1] = bytes[0] + 1
      parentPort.postMessage('done')
    })`, { eval: true, workerData: { module: new URL('./guest_ram.ts', import.meta.url).href, address: ram.address } })
  ram.bytes[0] = 41
  await new Promise((resolve) => worker.once('message', resolve))
  assert.equal(ram.bytes[1], 42)
  assert.equal(viewRam(ram.address, MIB)[1], 42)
  await worker.terminate()
  unmapRam(ram)
  closeSync(fd)
})
