// host/operations_test.ts: an operation ends as done, failed, cancelled or interrupted; a crash leaves a trace of it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { CellarError } from '../base/errors.ts'
import { OPERATIONS_MAX, OPERATIONS_RUNNING_MAX } from '../base/limits.ts'
import { Operations, type Control } from './operations.ts'
import type { OperationView } from './operator.ts'
import { disposableStore, TESTER } from './test_support.ts'

type Work = (control: Control) => Promise<unknown>

async function disposableOperations(): Promise<{ operations: Operations; reported: unknown[]
  rows(): OperationView['status'][]; reopen(): Promise<Operations>; start(work: Work): Promise<OperationView> } &
  AsyncDisposable> {
  const made = await disposableStore()
  const reported: unknown[] = []
  const open = (): Promise<Operations> =>
    Operations.open(made.store, made.store.load().operations, (error) => reported.push(error))
  const all = {
    operations: await open(), reported,
    rows: () => made.store.load().operations.map(({ status }) => status),
    async reopen() {
      await made.reopen()
      return all.operations = await open()
    },
    start: (work: Work) => all.operations.start('image.pull', 'app:1', TESTER, work),
    async [Symbol.asyncDispose]() {
      await all.operations.close()
      await made[Symbol.asyncDispose]()
    },
  }
  return all
}

/** A work that ends when its signal says so. */
const untilAborted: Work = ({ signal }) => new Promise((_, reject) => {
  signal.addEventListener('abort', () => reject(new Error('stopped')), { once: true })
})

test('start commits an operation before its work begins, and its result when it is done', async () => {
  await using made = await disposableOperations()
  const { promise, resolve } = Promise.withResolvers<unknown>()
  let before: unknown
  const { id, ...started } = await made.start(async ({ stage, progress }) => {
    before = made.rows()
    stage('fetching')
    progress(3, 9, 'bytes')
    return await promise
  })
  assert.deepEqual({ ...started, createdAt: 0, updatedAt: 0 }, { kind: 'image.pull', target: 'app:1', status: 'running',
    stage: '', createdAt: 0, updatedAt: 0, by: 'test' })
  await turn()
  assert.deepEqual(before, ['running'])
  assert.deepEqual((({ stage, progress }) => ({ stage, progress }))(made.operations.get(id)),
    { stage: 'fetching', progress: { done: 3, total: 9, unit: 'bytes' } })
  assert.equal((await made.operations.wait(id, 1)).status, 'running')
  resolve({ digest: 'sha256:0' })
  const done = await made.operations.wait(id, 30_000)
  assert.deepEqual([done.status, done.result], ['done', { digest: 'sha256:0' }])
  assert.deepEqual((await made.reopen()).get(id), done)
})

test('an operation that fails has the problem; what is no error of an operator is reported, not told', async () => {
  await using made = await disposableOperations()
  const known = await made.start(async () => { throw new CellarError('NOT_FOUND', ['image', 'app:1']) })
  const failed = await made.operations.wait(known.id, 30_000)
  assert.equal(failed.status, 'failed')
  assert.deepEqual(failed.error, { type: '/errors/NOT_FOUND', title: 'Not found', status: 404,
    detail: 'Cannot find image "app:1"', code: 'NOT_FOUND', hint: failed.error?.hint })
  const bug = new TypeError('secret /path')
  const unknown = await made.start(() => { throw bug })
  const { error } = await made.operations.wait(unknown.id, 30_000)
  assert.deepEqual([error?.code, error?.status], ['INTERNAL', 500])
  assert.doesNotMatch(JSON.stringify(error), /secret/)
  assert.deepEqual(made.reported, [bug])
})

test('cancel ends an operation; one that is done stays done', async () => {
  await using made = await disposableOperations()
  const { id } = await made.start(untilAborted)
  await turn()
  assert.equal(made.operations.cancel(id).stage, 'cancelling')
  made.operations.cancel(id)
  const ended = await made.operations.wait(id, 30_000)
  assert.deepEqual([ended.status, ended.error?.code], ['cancelled', 'OPERATION_CANCELLED'])
  const stubborn = await made.start(({ signal }) => untilAborted({ signal } as Control).catch(() => 'done anyway'))
  await turn()
  made.operations.cancel(stubborn.id)
  assert.equal((await made.operations.wait(stubborn.id, 30_000)).result, 'done anyway')
  assert.equal(made.operations.cancel(stubborn.id).status, 'done')
  for (const look of [() => made.operations.get('x'), () => made.operations.cancel('x')]) {
    assert.throws(look, { code: 'NOT_FOUND' })
  }
  await assert.rejects(made.operations.wait('x', 1), { code: 'NOT_FOUND' })
})

test('what runs when the host ends is interrupted, whether it is told or not', async () => {
  await using made = await disposableOperations()
  const told = await made.start(untilAborted)
  await made.operations.close()
  assert.deepEqual(made.rows(), ['failed'])
  const { promise, resolve } = Promise.withResolvers<unknown>()
  const untold = await made.start(() => promise)
  const old = made.operations
  const operations = await made.reopen()
  for (const { id } of [told, untold]) assert.equal(operations.get(id).error?.code, 'OPERATION_INTERRUPTED')
  assert.deepEqual(made.rows(), ['failed', 'failed'])
  // The work of the host that was, whose store is closed.
  resolve(undefined)
  await old.wait(untold.id, 30_000)
  assert.deepEqual(made.reported.map((error) => (error as CellarError).code), ['HOST_DRAINING'])
})

test('list has the newest first and no more than are kept; those that run are kept, but not too many', async () => {
  await using made = await disposableOperations()
  const running = await made.start(untilAborted)
  let last = running
  for (let i = 0; i < OPERATIONS_MAX + 5; i++) {
    last = await made.start(async () => undefined)
    await made.operations.wait(last.id, 30_000)
  }
  const list = made.operations.list()
  assert.equal(list.length, OPERATIONS_MAX)
  assert.deepEqual([list[0]?.id, list.at(-1)?.id], [last.id, running.id])
  assert.equal(made.rows().length, OPERATIONS_MAX)
  const more = Array.from({ length: OPERATIONS_RUNNING_MAX }, () => made.start(untilAborted))
  const results = await Promise.allSettled(more)
  assert.deepEqual(results.filter(({ status }) => status === 'rejected').map((result) =>
    (result as { reason: { code?: string } }).reason.code), ['OPERATIONS_FULL'])
})
