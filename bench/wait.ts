// bench/wait.ts: a hypercall that waits: fd_read of a stream that says "later" once, and is ready at once.
//
// What is measured is the switching: try, park the stack, microtask, resume, try again. The baseline is one bare
// WebAssembly.Suspending import on a resolved promise. The switching is the difference to a read that needn't wait.

import { EAGAIN } from '../src/base/errno.ts'
import { Pcpu } from '../src/cell/pcpu.ts'
import { cellOf, executableOfText } from '../src/cell/test_support.ts'
import { FILETYPE_UNKNOWN, type Descriptor } from '../src/services/descriptor.ts'
import { loopOf, nsPer } from './guest.ts'
import type { Figure } from './main.ts'

const WAT = `(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory 1 16)
  (data (i32.const 16) "\\20\\00\\00\\00\\01\\00\\00\\00")
  ${loopOf('waiting', '$read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 64)')}
  ${loopOf('ready', '$read (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 64)')})`
const BARE = `(module
  (import "host" "wait" (func $wait (result i32)))
  ${loopOf('wait', '$wait')})`
const ROUNDS = 200_000

export async function measure(): Promise<Figure[]> {
  const executable = await executableOfText(WAT)
  const cell = cellOf(new Pcpu(), executable, { stdin: oftenLater(), stdout: { ...oftenLater(), read: () => 1 } })
  const { module } = await executableOfText(BARE)
  const resolved = Promise.resolve(0)
  const suspending = new WebAssembly.Suspending(() => resolved) as unknown as WebAssembly.ImportValue
  const bare = new WebAssembly.Instance(module, { host: { wait: suspending } })
  const enter = WebAssembly.promising(bare.exports['wait'] as never) as (n: number) => Promise<unknown>
  const baseline = await nsPer(ROUNDS, enter)
  const waiting = await nsPer(ROUNDS, (n) => cell.call('waiting', n))
  const ready = await nsPer(ROUNDS, (n) => cell.call('ready', n))
  const baselineOf = 'WebAssembly.Suspending on a resolved promise'
  return [{ name: 'wait', value: waiting - ready, unit: 'ns', baseline, baselineOf }]
}

/** Every second read would have to wait, and whoever waits is woken at once. */
function oftenLater(): Descriptor {
  let ready = true
  return {
    filetype: FILETYPE_UNKNOWN,
    read: () => { ready = !ready; return ready ? 1 : -EAGAIN },
    awaitReadable: (waker) => waker(),
    close: () => {},
  }
}
