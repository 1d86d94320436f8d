// tests/machine/guest_program.ts: boots machines under our VMM, one after the other: what became of each is a line of
// JSON.
//
//   node tests/machine/guest_program.ts '[{"kernel":…}, …]'
// It runs where there is an ordinary /dev/kvm (kvm_place.ts); guests.ts starts it and reads the answer.

import { closeSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CellarError } from '../../src/base/errors.ts'
import { KvmEngine } from '../../src/machine/kvm_engine.ts'
import { makeRam } from '../../src/sys/guest_ram.ts'
import { socketPair } from '../../src/sys/sockets.ts'
import type { MachineEnd } from '../../src/machine/engine.ts'
import type { DiskSpec, NicSpec } from '../../src/machine/spec.ts'
import type { GuestOutcome, GuestRequest } from './guests.ts'

const CONSOLE_BYTES_MAX = 8 * 2 ** 20

async function boot(request: GuestRequest): Promise<GuestOutcome> {
  const { vcpus, memoryBytes, kernel, initrd, commandLine, until, limitMs } = request
  const done = Promise.withResolvers<MachineEnd | 'said' | 'late'>()
  let said = Buffer.alloc(0)
  let consoleBytes = 0
  const ramFd = makeRam(memoryBytes)
  using rest = new DisposableStack()
  const disks = request.diskBytes === undefined ? [] : [emptyDisk(rest, request.diskBytes)]
  const nics = request.hasNic === true ? [lonelyNic(rest)] : []
  const engine = new KvmEngine({
    spec: { name: 'test', vcpus, memoryBytes, boot: { kernel, initrd, commandLine }, disks, nics, cid: 3,
      generation: '00'.repeat(16) },
    ramFd, isRamPrivate: false,
    events: {
      console: (bytes) => {
        consoleBytes += bytes.length
        if (said.length < CONSOLE_BYTES_MAX) said = Buffer.concat([said, bytes])
        if (until !== undefined && said.includes(until)) done.resolve('said')
      },
      ended: (end) => done.resolve(end), agent: (stream) => void stream.destroy(), say: () => {},
    },
  })
  const over = new AbortController()
  void done.promise.then(() => over.abort())
  const timer = setTimeout(() => done.resolve('late'), limitMs)
  const begun = performance.now()
  try {
    await engine.start()
    if (request.powerButton !== undefined) {
      while (!said.includes(request.powerButton) && !over.signal.aborted) await sleep(50)
      await sleep(request.powerAfterMs ?? 0)
      engine.powerButton()
    }
    const end = await done.promise
    const ms = performance.now() - begun
    const { exits, devices } = await engine.figures()
    return { end, ms, exits, devices, consoleBytes, console: said.toString('latin1'),
      residentBytes: process.memoryUsage().rss }
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    return { error: error.code, message: error.message }
  } finally {
    clearTimeout(timer)
    await engine.close()
    closeSync(ramFd)
  }
}

function emptyDisk(rest: DisposableStack, bytes: number): DiskSpec {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-guest-'))
  rest.defer(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'disk')
  writeFileSync(path, '')
  truncateSync(path, bytes)
  return { path, format: 'raw', readOnly: false, serial: 'test', backingFolders: [] }
}

// What it sends is read, and forgotten. Its own end is the engine's to close.
function lonelyNic(rest: DisposableStack): NicSpec {
  const [fd, theirs] = socketPair()
  const socket = new Socket({ fd: theirs })
  socket.on('error', () => {}).resume()
  rest.defer(() => socket.destroy())
  return { mac: '52:54:00:00:00:01', fd, kind: 'stream', mtu: 1500 }
}

for (const request of JSON.parse(process.argv[2]!) as GuestRequest[]) console.log(JSON.stringify(await boot(request)))
