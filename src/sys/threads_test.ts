// sys/threads_test.ts: a thread that the kernel holds comes back when it is kicked.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { isSupported } from './libc.ts'
import { allowKicks, kickThread, threadId, threadTimeNs } from './threads.ts'

const skip = isSupported() ? false : 'threads are kicked through FFI, on Linux'

test('kickThread brings a thread back from a call that would last a minute', { skip }, async () => {
  using _ = allowKicks()
  const worker = new Worker(`
    const { workerData, parentPort } = require('node:worker_threads')
    Promise.all(workerData.map((module) => import(module))).then(([{ threadId }, { bind }]) => {
      const { usleep } = bind({ usleep: { arguments: ['uint32'], return: 'int32' } })
      // It stays when it has been woken.
      parentPort.on('message', () => {})
      parentPort.postMessage(threadId())
      parentPort.postMessage(usleep(60_000_000))
    })`, { eval: true, workerData: ['./threads.ts', './libc.ts'].map((path) => new URL(path, import.meta.url).href) })
  const messages: number[] = []
  const over = new Promise<void>((resolve) => worker.on('message', (message: number) => {
    messages.push(message)
    if (messages.length === 2) resolve()
  }))
  while (messages.length === 0) await sleep(5)
  assert.notEqual(messages[0], threadId())
  const before = threadTimeNs(messages[0]!)
  assert.ok(before > 0)
  // The first kick may come before the call.
  const kicks = setInterval(() => kickThread(messages[0]!), 20)
  await over
  clearInterval(kicks)
  assert.equal(messages[1], -1)
  assert.ok(threadTimeNs(messages[0]!) >= before)
  await worker.terminate()
})

test('kickThread is refused while nobody has allowed kicks, as they would be lost', { skip }, () => {
  assert.throws(() => kickThread(threadId()), /kicks are allowed/)
})

test('threadTimeNs is -1 for a thread that is not there', { skip }, () => {
  assert.equal(threadTimeNs(4_194_305), -1)
})
