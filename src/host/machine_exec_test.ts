// host/machine_exec_test.ts: programs run in a machine: when they begin, the order of their input, and their end.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises'
import type { Agent } from '../machine/agent.ts'
import type { Consoles, GuestConsole } from './consoles.ts'
import { MachineExec } from './machine_exec.ts'
import type { GuestLaunch } from './protocol.ts'

const OWNER = {} as GuestConsole
const LAUNCH = { args: ['cat'], env: [['A', '1']] } as unknown as GuestLaunch

function rig() {
  const did: string[] = []
  const end = Promise.withResolvers<{ kind: 'exited'; status: number }>()
  const isMounted = Promise.withResolvers<void>()
  const room: (() => void)[] = []
  const agent = {
    connected: async () => {},
    exec: ({ argv, env }: { argv: string[]; env: string[] }) => {
      did.push(`exec ${argv.join(' ')} ${env.join(' ')}`)
      return {
        output: { [Symbol.asyncIterator]: () => ({ next: async () => {
          await end.promise
          return { done: true as const, value: undefined }
        } }) }, ended: end.promise,
        write: async (bytes: Uint8Array) => {
          await new Promise<void>((resolve) => { room.push(resolve) })
          did.push(`write ${Buffer.from(bytes).toString()}`)
        },
        endInput: () => { did.push('end of input') }, signal: (signal: number) => { did.push(`signal ${signal}`) },
        close: () => { did.push('close') },
      }
    },
  } as unknown as Agent
  const consoles = { connect: () => {}, output: () => {},
    taken: (_: number, bytes: number) => { did.push(`taken ${bytes}`) },
    end: (_: GuestConsole, status: number) => { did.push(`status ${status}`) } } as unknown as Consoles
  return { did, end, room, isMounted, exec: new MachineExec(agent, consoles, async () => await isMounted.promise) }
}

test('the end of input comes after all input, however slowly that is taken', async () => {
  const { did, end, room, isMounted, exec } = rig()
  isMounted.resolve()
  exec.start(LAUNCH, OWNER)
  await sleep(1)
  exec.input(2, Buffer.from('one'))
  exec.input(2, Buffer.from('two'))
  exec.input(2, null)
  for (let i = 0; i < 2; i++) {
    await sleep(1)
    room.shift()!()
  }
  await sleep(1)
  assert.deepEqual(did, ['exec cat A=1', 'write one', 'taken 3', 'write two', 'taken 3', 'end of input'])
  end.resolve({ kind: 'exited', status: 3 })
  await sleep(1)
  assert.equal(did.at(-1), 'status 3')
})

test('a program begins when the volumes are mounted', async () => {
  const { did, isMounted, exec } = rig()
  exec.start(LAUNCH, OWNER)
  for (let i = 0; i < 5; i++) await immediate()
  assert.deepEqual(did, [])
  isMounted.resolve()
  await sleep(1)
  assert.deepEqual(did, ['exec cat A=1'])
})

test('a program that nobody waits for any more before it began is not begun', async () => {
  const { did, isMounted, exec } = rig()
  exec.start(LAUNCH, OWNER)
  exec.hangUp(OWNER)
  isMounted.resolve()
  await sleep(1)
  assert.deepEqual(did, ['status 126'])
})

test('who goes hangs its program up', async () => {
  const { did, isMounted, exec } = rig()
  isMounted.resolve()
  exec.start(LAUNCH, OWNER)
  await sleep(1)
  exec.hangUp(OWNER)
  assert.deepEqual(did, ['exec cat A=1', 'signal 1', 'close'])
})
