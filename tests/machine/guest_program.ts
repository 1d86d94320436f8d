// tests/machine/guest_program.ts: boots one machine under our VMM and says what became of it, as one line of JSON.
//
//   node tests/machine/guest_program.ts '{"kernel":…}'
// It runs where there is an ordinary /dev/kvm (kvm_place.ts); guests.ts starts it and reads the answer.

import { closeSync } from 'node:fs'
import { CellarError } from '../../src/base/errors.ts'
import { KvmEngine } from '../../src/machine/kvm_engine.ts'
import { makeRam } from '../../src/sys/guest_ram.ts'
import type { MachineEnd } from '../../src/machine/engine.ts'
import type { GuestOutcome, GuestRequest } from './guests.ts'

const CONSOLE_BYTES_MAX = 8 * 2 ** 20

async function boot(request: GuestRequest): Promise<GuestOutcome> {
  const { vcpus, memoryBytes, kernel, initrd, commandLine, until, limitMs } = request
  const done = Promise.withResolvers<MachineEnd | 'said' | 'late'>()
  let said = Buffer.alloc(0)
  let consoleBytes = 0
  const ramFd = makeRam(memoryBytes)
  const engine = new KvmEngine({
    spec: { name: 'test', vcpus, memoryBytes, boot: { kernel, initrd, commandLine }, disks: [], nics: [], cid: 3,
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
  const timer = setTimeout(() => done.resolve('late'), limitMs)
  const begun = performance.now()
  try {
    await engine.start()
    if (request.powerButton !== undefined) {
      while (!said.includes(request.powerButton)) await new Promise((next) => { setTimeout(next, 50) })
      engine.powerButton()
    }
    const end = await done.promise
    const ms = performance.now() - begun
    const { exits } = await engine.figures()
    return { end, ms, exits, consoleBytes, console: said.toString('latin1'),
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

console.log(JSON.stringify(await boot(JSON.parse(process.argv[2]!) as GuestRequest)))
