// host/guest_files_test.ts: archives out of machines and into them, and what their agents may say instead.

import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import { readFiles, writeFiles } from './guest_files.ts'
import type { Lifecycle } from './lifecycle.ts'
import { STDERR, STDOUT, type GuestLaunch } from './protocol.ts'
import { GUEST_SPEC } from './spec.ts'
import type { Guest } from './state.ts'
import { guestRow } from './test_support.ts'

type Piece = readonly [channel: 1 | 2, text: string]

/** A machine whose process answers with these pieces and a status. */
function rig(pieces: readonly Piece[], status: number, more: object = {}) {
  const did = { launch: undefined as GuestLaunch | undefined, written: '', ends: 0, closed: 0 }
  const isEnded = Promise.withResolvers<void>()
  const stream = {
    id: 9, status: Promise.resolve(status),
    output: (async function* () {
      if (did.launch!.files!.way === 'put') await isEnded.promise
      for (const [channel, text] of pieces) yield { channel, bytes: Buffer.from(text) }
    })(),
    write: async (bytes: Uint8Array) => { did.written += Buffer.from(bytes).toString() },
    end: () => {
      did.ends++
      isEnded.resolve()
    },
    close: () => { did.closed++ },
  }
  const link = { openStream: () => stream, send: ({ start }: { start: GuestLaunch }) => { did.launch = start } }
  const spec = GUEST_SPEC.parse({ image: 'it', machine: {}, ...more })
  const guest = { row: guestRow('vm', { phase: 'running', spec }),
    handle: { link } } as unknown as Guest
  const lifecycle = { launchBeside: () => ({ id: 'vm', run: 4, name: 'vm', ports: [{ port: 1, tickets: [1] }],
    timeoutNs: 5, health: {} }) } as unknown as Lifecycle
  return { did, guest, lifecycle }
}

test('an archive comes as its process sends it, from the path that is asked for', async () => {
  const { did, guest, lifecycle } = rig([[STDOUT, 'one '], [STDOUT, 'two']], 0)
  assert.equal((await buffer(await readFiles(lifecycle, guest, '/etc'))).toString(), 'one two')
  const { files, stream, ports, timeoutNs, health, id } = did.launch!
  assert.deepEqual([files, stream, ports, timeoutNs, health],
    [{ way: 'get', path: '/etc' }, 9, [], undefined, undefined])
  assert.notEqual(id, 'vm', 'what the guest publishes and is timed by is its own')
})

test('what is wrong before the archive is an error with its words, and nothing else is sent', async () => {
  const { did, guest, lifecycle } = rig([[STDERR, 'cellar: no such file\u001b[2J']], 126)
  await assert.rejects(readFiles(lifecycle, guest, '/none'), { code: 'AGENT_FAILED', message: /"vm".*no such file/ })
  assert.equal(did.closed, 1)
  const silent = rig([], 0)
  await assert.rejects(readFiles(silent.lifecycle, silent.guest, '/x\u001b'), (error: Error) => {
    assert.match(error.message, /it says nothing/)
    assert.doesNotMatch(error.message, /\u001b/)
    return true
  })
})

test('an archive that is cut off is an error at its end, not a shorter archive', async () => {
  const { guest, lifecycle } = rig([[STDOUT, 'half'], [STDERR, 'cellar: it went away']], 126)
  const archive = await readFiles(lifecycle, guest, '/etc')
  await assert.rejects(buffer(archive), { code: 'AGENT_FAILED', message: /it went away/ })
})

test('an archive goes in whole, and what its unpacking says is told', async () => {
  const good = rig([], 0)
  await writeFiles(good.lifecycle, good.guest, '/srv', Readable.from([Buffer.from('a'), Buffer.from('b')]))
  assert.deepEqual([good.did.written, good.did.ends, good.did.closed], ['ab', 1, 1])
  assert.deepEqual(good.did.launch!.files, { way: 'put', path: '/srv' })
  const bad = rig([[STDERR, `cellar: ${'no space '.repeat(1000)}`]], 126)
  await assert.rejects(writeFiles(bad.lifecycle, bad.guest, '/srv', Readable.from([Buffer.from('a')])),
    (error: Error & { code: string }) => error.code === 'AGENT_FAILED' && error.message.length < 1000)
})

test('an archive that breaks off on its way in leaves nobody waiting', async () => {
  const { did, guest, lifecycle } = rig([], 0)
  const broken = Readable.from((async function* () {
    yield Buffer.from('a')
    throw new Error('the client is gone')
  })())
  await assert.rejects(writeFiles(lifecycle, guest, '/srv', broken), /the client is gone/)
  assert.equal(did.closed, 1)
})

test('files are those of machines that run', async () => {
  const cell = rig([], 0, { machine: undefined })
  await assert.rejects(readFiles(cell.lifecycle, cell.guest, '/'), { code: 'CELL_WORD' })
  const down = rig([], 0)
  down.guest.handle = undefined
  down.guest.row = { ...down.guest.row, phase: 'stopped' }
  await assert.rejects(readFiles(down.lifecycle, down.guest, '/'), { code: 'GUEST_NOT_RUNNING' })
})
