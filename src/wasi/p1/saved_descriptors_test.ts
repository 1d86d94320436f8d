// wasi/p1/saved_descriptors_test.ts: descriptors that were saved, went through JSON and came back.
//
// Elsewhere: sets that somebody forged (saved_forged_test.ts).

import assert from 'node:assert/strict'
import {
  chmodSync, constants, linkSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, unlinkSync, writeFileSync,
} from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  ECONNRESET, EIO, EMFILE, ENFILE, ENOMEM, ENOTCAPABLE, ENOTSOCK, EPERM, EROFS, ESUCCESS,
} from '../../base/errno.ts'
import { COPY_AT_ONCE_BYTES_MAX, VOLUME_ENTRY_BYTES } from '../../base/limits.ts'
import { InputBuffer, nullConsole, OutputBuffer } from '../../services/console/console.ts'
import { LabelledOutput, newStreams } from '../../services/console/labelled.ts'
import { RemoteInput, RemoteOutput, type RemotePort } from '../../services/console/remote.ts'
import { StandardInput, StandardOutput } from '../../services/console/stdio.ts'
import {
  FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM, type Descriptor,
} from '../../services/descriptor.ts'
import { newQuota, quotaOf } from '../../services/file/quota.ts'
import { listen } from '../../services/net/listener.ts'
import { PortListener } from '../../services/net/port_listener.ts'
import type { SavedDescriptor, SavedIs } from '../../services/saved.ts'
import * as abi from './abi.ts'
import { Descriptors } from './descriptors.ts'
import * as fd from './fd.ts'
import { fd_filestat_set_size } from './filestat.ts'
import { restoreDescriptors, saveDescriptors } from './saved_descriptors.ts'
import { sock_recv } from './sock.ts'
import { A, B, called, Caller, Host, inodes, kindOf, LIST, LISTENER, OUT, skip, written } from './test_support.ts'

test('streams, granted folders and listening sockets are those of the new launch, under the numbers they had', { skip },
  async () => {
    using host = new Host()
    const guest = host.guest()
    const free = guest.open(A, 'file')
    guest.descriptors.renumber(1, free)
    assert.deepEqual(written(guest).map(({ fd, is, preopen }) => ({ fd, is, preopen })), [
      { fd: 0, is: { kind: 'console', stream: 0 }, preopen: undefined },
      { fd: 2, is: { kind: 'console', stream: 2 }, preopen: undefined },
      { fd: A, is: { kind: 'directory', volume: 0, path: '' }, preopen: '/a' },
      { fd: B, is: { kind: 'directory', volume: 1, path: '' }, preopen: '/b' },
      { fd: LISTENER, is: { kind: 'listener', port: 0 }, preopen: undefined },
      { fd: free, is: { kind: 'console', stream: 1 }, preopen: undefined },
    ])
    const granted = host.granted()
    const fresh = [...granted.all()].map(([, entry]) => entry)
    const restored = await restoreDescriptors(written(guest), granted)
    const [stdin, stdout, stderr, a, b, listener] = fresh
    for (const [number, entry] of [[0, stdin], [free, stdout], [2, stderr], [A, a], [B, b], [LISTENER, listener]]) {
      assert.equal(restored.get(number as number)?.descriptor, (entry as typeof stdin)!.descriptor, `number ${number}`)
    }
    assert.equal(restored.get(1), undefined)
    assert.deepEqual(saveDescriptors(restored), saveDescriptors(guest.descriptors))
    restored.closeAll()
  })

test('a stream of any console is kept as the one that it was given as, and a socket of either kind as a granted one',
  async () => {
    const port: RemotePort = { output: () => {}, taken: () => {} }
    const consoles: Descriptor[][] = [
      [nullConsole, nullConsole, nullConsole], [new InputBuffer(), new OutputBuffer(1), new OutputBuffer(1)],
      [new RemoteInput(port, 1), new RemoteOutput(port, 1, 1), new RemoteOutput(port, 1, 2)],
      [new StandardInput(0), new StandardOutput(1), new StandardOutput(2)],
      [nullConsole, new LabelledOutput(1, 'a | ', newStreams()), new LabelledOutput(2, 'a | ', newStreams())],
    ]
    for (const streams of consoles) {
      const table = new Descriptors()
      const listeners = [new PortListener([]), await listen('tcp:127.0.0.1:0')]
      for (const descriptor of [...streams, ...listeners]) {
        table.add({ descriptor, rightsBase: 0, rightsInheriting: 0, flags: 0 })
      }
      assert.deepEqual(saveDescriptors(table).map(({ is }) => is), [
        ...[0, 1, 2].map((stream) => ({ kind: 'console', stream })),
        ...[0, 1].map((port) => ({ kind: 'listener', port })),
      ])
      for (const listener of listeners) listener.close()
    }
  })

test('a number that the guest has closed is free again, and what was granted for it is closed', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  const file = guest.open(B, 'kept', { oflags: abi.OFLAGS_CREAT })
  for (const number of [1, B, LISTENER]) guest.descriptors.close(number)
  const granted = host.granted()
  const [volume, listener] = [B, LISTENER].map((number) => granted.get(number)!.descriptor)
  const restored = new Caller(await restoreDescriptors(written(guest), granted))
  assert.deepEqual([...restored.descriptors.all()].map(([number]) => number), [0, 2, A, file])
  assert.equal((listener as PortListener).takes, false)
  assert.equal(typeof volume!.stat!(), 'object', 'its file holds the folder open')
  assert.equal(kindOf(restored, file).kind, 'file', 'and can be saved again')
  assert.equal(restored.open(A, 'file'), 1, 'the lowest free number comes next')
  restored.descriptors.closeAll()
  assert.equal(typeof volume!.stat!(), 'number')
})

test('paths are where things are now: after links, `..` and renames', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  writeFileSync(host.path('a/sub/one'), 'one')
  const [linked, up, folder, nested, itself] = [guest.open(A, 'link/one'), guest.open(A, 'sub/../file'),
    guest.openDirectory(A, 'link'), 0, guest.openDirectory(A, '.')]
  const beneath = guest.open(folder, 'one')
  assert.equal(nested, 0)
  assert.deepEqual([linked, up, folder, itself, beneath].map((one) => (kindOf(guest, one) as { path: string }).path),
    ['sub/one', 'file', 'sub', '', 'sub/one'])
  assert.equal(guest.rename(A, 'sub', 'else'), 0)
  assert.equal(guest.rename(A, 'file', 'else/moved'), 0)
  const restored = await host.restored(guest)
  assert.deepEqual([linked, up, folder, itself].map((one) => (kindOf(restored, one) as { path: string }).path),
    ['else/one', 'else/moved', 'else', ''])
  assert.equal(await restored.read(linked), 'one')
  assert.equal(restored.open(itself, '../b'), -EPERM, 'a folder is a root of its own still')
  assert.equal(restored.open(folder, '../file'), -EPERM)
})

test('a file that has no name any more, or a name that is another file\'s, is lost and nothing else is', { skip },
  async () => {
    using host = new Host()
    const guest = host.guest()
    const files = ['removed', 'replaced', 'kept', 'odd (deleted)'].map((name) => {
      const file = guest.open(A, name, { oflags: abi.OFLAGS_CREAT })
      guest.write(file, `of ${name}`)
      return file
    })
    const folder = (guest.mkdir(A, 'gone'), guest.openDirectory(A, 'gone'))
    guest.unlink(A, 'removed')
    guest.rename(A, 'kept', 'replaced')
    rmSync(host.path('a/gone'), { recursive: true })
    // What the kernel calls a removed file is a name that another may have.
    writeFileSync(host.path('a/removed (deleted)'), 'an impostor')
    const restored = await host.restored(guest)
    const why = 'the file was removed'
    assert.deepEqual(files.map((one) => kindOf(restored, one)), [
      { kind: 'lost', filetype: FILETYPE_REGULAR_FILE, errno: EIO, why },
      { kind: 'lost', filetype: FILETYPE_REGULAR_FILE, errno: EIO, why },
      { kind: 'file', volume: 0, path: 'replaced', offset: 7, read: true, write: true, append: false },
      { kind: 'file', volume: 0, path: 'odd (deleted)', offset: 16, read: true, write: true, append: false },
    ])
    assert.deepEqual(kindOf(restored, folder), { kind: 'lost', filetype: FILETYPE_DIRECTORY, errno: EIO, why })
  })

test('what was lost keeps its number, and each use of it is answered with the reason', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  const lost: SavedDescriptor[] = [
    { filetype: FILETYPE_REGULAR_FILE, errno: EIO }, { filetype: FILETYPE_DIRECTORY, errno: EIO },
    { filetype: FILETYPE_SOCKET_STREAM, errno: ECONNRESET },
  ].map((is, i) => ({ fd: 10 + i, rightsBase: abi.RIGHTS_ALL, rightsInheriting: 0, flags: 0,
    is: { kind: 'lost', why: 'a test', ...is } }))
  const restored = new Caller(await restoreDescriptors([...written(guest), ...lost], host.granted()))
  const context = restored.context()
  assert.equal(await restored.read(10), -EIO)
  assert.equal(restored.write(10, 'text'), -EIO)
  assert.equal(restored.seek(10, 0), -EIO)
  assert.equal(restored.ino(10), -EIO)
  assert.equal(fd_filestat_set_size(context, 10, 0, 0), EIO)
  assert.equal(await called(context, fd.fd_sync, 10), EIO)
  assert.equal(restored.open(11, 'file'), -EIO)
  assert.equal(restored.readdir(11), -EIO)
  assert.equal(sock_recv(context, 10, LIST, 1, 0, OUT, OUT), ENOTSOCK)
  assert.equal(sock_recv(context, 12, LIST, 1, 0, OUT, OUT), ECONNRESET)
  assert.equal(restored.write(12, 'text'), -ECONNRESET)
  const [file, , socket] = [10, 11, 12].map((number) => restored.descriptors.get(number)!.descriptor)
  assert.deepEqual([file!.pollRead!(), file!.pollWrite!(), file!.hangup!(), socket!.hangup!()], [0, 1, false, true])
  assert.deepEqual(written(restored).slice(-3), lost, 'and it stays so')
  assert.equal(fd.fd_close(context, 10), ESUCCESS)
})

test('a connection and whatever can\'t be saved is lost: a socket as one that was reset', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  const [socket, other] = [FILETYPE_SOCKET_STREAM, 0].map((filetype) => guest.descriptors.add({
    descriptor: { filetype, close: () => {} }, rightsBase: abi.RIGHTS_SOCKET, rightsInheriting: 0, flags: 0 }))
  const restored = await host.restored(guest)
  assert.equal(await restored.read(socket!), -ECONNRESET)
  assert.equal(await restored.read(other!), -EIO)
})

test('a file that was open for writing is lost on a volume that may only be read now', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  const [both, read] = [guest.open(A, 'file'), guest.open(A, 'file', { rights: abi.RIGHTS_FD_READ })]
  guest.seek(both, 4)
  const restored = await host.restored(guest, { readOnly: true })
  assert.equal(await restored.read(both), -EROFS)
  assert.equal(await restored.read(read), 'the first volume')
  assert.equal(restored.write(read, 'x'), -ENOTCAPABLE)
})

for (const keep of ['small', 'large'] as const) {
  test(`a ${keep} file that the volume shares with a clone by now is copied before a write`, { skip }, async () => {
    using host = new Host()
    const quota = newQuota(64 * 1024 * 1024, VOLUME_ENTRY_BYTES * 8)
    const guest = host.guest({ quota })
    const file = guest.open(A, 'data', { oflags: abi.OFLAGS_CREAT })
    guest.write(file, 'shared')
    if (keep === 'large') assert.equal(fd_filestat_set_size(guest.context(), file, COPY_AT_ONCE_BYTES_MAX + 1, 0), 0)
    guest.seek(file, 2)
    const saved = written(guest)
    guest.descriptors.closeAll()
    // As host/volume_clone.ts does.
    chmodSync(host.path('a/data'), 0o1600)
    linkSync(host.path('a/data'), host.path('b/clone'))
    const restored = new Caller(await restoreDescriptors(saved, host.granted({ quota })))
    assert.equal(restored.write(file, 'XX'), 2)
    assert.equal(readFileSync(host.path('b/clone'), 'utf8').slice(0, 6), 'shared')
    assert.equal(readFileSync(host.path('a/data'), 'utf8').slice(0, 6), 'shXXed')
    restored.descriptors.closeAll()
  })
}

test('what is open is charged to the quota once more while it is restored, and given back', { skip }, async () => {
  using host = new Host()
  const quota = newQuota(1024 * 1024, VOLUME_ENTRY_BYTES * 8)
  const guest = host.guest({ quota })
  const file = guest.open(A, 'data', { oflags: abi.OFLAGS_CREAT })
  guest.write(file, 'x'.repeat(10_000))
  const used = quotaOf(quota).usedBytes
  const restored = await host.restored(guest, { quota })
  assert.equal(quotaOf(quota).usedBytes, used)
  assert.equal(restored.write(file, 'y'.repeat(8000)), 8000)
  assert.equal(quotaOf(quota).usedBytes, used + 8000)
  restored.unlink(A, 'data')
  guest.descriptors.closeAll()
  assert.ok(quotaOf(quota).usedBytes > used, 'the restored one has it open')
  restored.descriptors.closeAll()
  assert.ok(quotaOf(quota).usedBytes < 10_000 + VOLUME_ENTRY_BYTES * 8)
})

test('a file that is gone by the time of the restore is lost, and one that became a folder', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  const [gone, folder] = ['gone', 'folder'].map((name) => guest.open(A, name, { oflags: abi.OFLAGS_CREAT }))
  const saved = written(guest)
  for (const name of ['gone', 'folder']) unlinkSync(host.path('a', name))
  mkdirSync(host.path('a/folder'))
  const restored = new Caller(await restoreDescriptors(saved, host.granted()))
  assert.equal(await restored.read(gone!), -EIO)
  assert.equal(await restored.read(folder!), -EIO)
  restored.descriptors.closeAll()
})

test('flags are what they were, for the system too: each write is on the disk before it is answered', { skip },
  async () => {
    using host = new Host()
    const guest = host.guest()
    const all = [0, abi.FDFLAGS_SYNC, abi.FDFLAGS_DSYNC, abi.FDFLAGS_RSYNC, abi.FDFLAGS_APPEND, abi.FDFLAGS_NONBLOCK]
    const numbers = all.map((flags) => guest.open(A, 'file', { flags }))
    const opened = (): number[] => readdirSync('/proc/self/fd').flatMap((number) => {
      try {
        const isOurs = readlinkSync(`/proc/self/fd/${number}`) === host.path('a/file')
        const info = isOurs ? readFileSync(`/proc/self/fdinfo/${number}`, 'utf8') : ''
        return isOurs ? [Number(`0o${/flags:\t(\d+)/.exec(info)![1]}`) & ~constants.O_NOFOLLOW] : []
      } catch {
        return []
      }
    })
    const before = opened()
    assert.equal(new Set(before).size, 4)
    const restored = await host.restored(guest)
    assert.deepEqual(opened(), [...before, ...before])
    assert.deepEqual(numbers.map((one) => restored.fdstat(one)), numbers.map((one) => guest.fdstat(one)))
  })

test('a process that can\'t open so much restores nothing, and says so', { skip }, async () => {
  using host = new Host()
  const guest = host.guest()
  guest.open(A, 'file')
  for (const errno of [EMFILE, ENFILE, ENOMEM]) {
    const granted = host.granted()
    Object.assign(granted.get(A)!.descriptor, { open: () => -errno })
    await assert.rejects(restoreDescriptors(written(guest), granted), { code: 'VOLUME_UNREADABLE' })
    assert.deepEqual([...granted.all()], [])
  }
})

const NAMES = ['one', 'two', 'sub/one', 'sub/deep', 'link/two', './one', 'sub/../two'] as const
const name = fc.constantFrom(...NAMES)
const volume = fc.constantFrom(A, B)
const text = fc.string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 40 })
const rights = fc.constantFrom(abi.RIGHTS_FILE, abi.RIGHTS_FD_READ | abi.RIGHTS_FD_SEEK | abi.RIGHTS_FD_TELL,
  abi.RIGHTS_FD_WRITE | abi.RIGHTS_FD_SEEK | abi.RIGHTS_FD_TELL)
const action = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('open'), volume, name, rights, append: fc.boolean(),
    create: fc.boolean(), truncate: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('folder'), volume, name: fc.constantFrom('sub', 'link', '.') }) },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('write'), nth: fc.nat(20), text }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('read'), nth: fc.nat(20), length: fc.nat(20) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('seek'), nth: fc.nat(20), offset: fc.nat(5000) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('close'), nth: fc.nat(20) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('unlink'), volume, name }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('rename'), volume, name, to: name }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('append'), nth: fc.nat(20), append: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('renumber'), nth: fc.nat(20), other: fc.nat(20) }) },
)
type Action = typeof action extends fc.Arbitrary<infer T> ? T : never

/** Does it, and doesn't mind being refused. */
async function act(guest: Caller, action: Action): Promise<void> {
  const numbers = [...guest.descriptors.all()].map(([number]) => number).filter((number) => number > LISTENER)
  const one = numbers[('nth' in action ? action.nth : 0) % numbers.length] ?? -1
  switch (action.do) {
    case 'open': {
      const { volume, name, rights, append, create, truncate } = action as Extract<Action, { rights: number }>
      guest.open(volume, name, { rights, flags: append ? abi.FDFLAGS_APPEND : 0,
        oflags: (create ? abi.OFLAGS_CREAT : 0) | (truncate ? abi.OFLAGS_TRUNC : 0) })
      return
    }
    case 'folder': {
      const { volume, name } = action as Extract<Action, { volume: number; name: string }>
      guest.openDirectory(volume, name)
      return
    }
    case 'write': guest.write(one, (action as Extract<Action, { text: string }>).text); return
    case 'read': await guest.read(one, (action as Extract<Action, { length: number }>).length); return
    case 'seek': guest.seek(one, (action as Extract<Action, { offset: number }>).offset); return
    case 'close': guest.descriptors.close(one); return
    case 'unlink': {
      const { volume, name } = action as Extract<Action, { volume: number; name: string }>
      guest.unlink(volume, name)
      return
    }
    case 'rename': {
      const { volume, name, to } = action as Extract<Action, { to: string }>
      guest.rename(volume, name, to)
      return
    }
    case 'append': {
      const { append } = action as { append: boolean }
      fd.fd_fdstat_set_flags(guest.context(), one, append ? abi.FDFLAGS_APPEND : 0)
      return
    }
    default: {
      const { other } = action as Extract<Action, { other: number }>
      guest.descriptors.renumber(one, numbers[other % numbers.length] ?? -1)
    }
  }
}

/** Compares what both do with number `one`, of which `after` is a descriptor of its own: nothing may be written. */
async function compared(before: Caller, after: Caller, one: number): Promise<void> {
  assert.equal(after.fdstat(one), before.fdstat(one))
  assert.equal(after.ino(one), before.ino(one))
  assert.equal(after.seek(one, 0, abi.WHENCE_CUR), before.seek(one, 0, abi.WHENCE_CUR), 'the same offset')
  for (const length of [0, 3, 1000]) assert.deepEqual(await after.read(one, length), await before.read(one, length))
  assert.equal(after.seek(one, 0, abi.WHENCE_CUR), before.seek(one, 0, abi.WHENCE_CUR))
  const listing = before.readdir(one)
  assert.equal(after.readdir(one), listing)
  if (typeof listing !== 'string') return
  // From the middle on, too.
  const second = Buffer.from(listing, 'latin1').readBigUInt64LE(0)
  assert.equal(after.readdir(one, second), before.readdir(one, second))
}

/** Each writes a word of its own at its offset: where it went must be the same. */
function wroteAlike(host: Host, before: Caller, after: Caller, one: number): void {
  const { volume, path } = kindOf(after, one) as Extract<SavedIs, { kind: 'file' }>
  const file = host.path(volume === 0 ? 'a' : 'b', path)
  const content = readFileSync(file)
  const [first, second] = [before, after].map((guest, i) => {
    const offset = guest.seek(one, 0, abi.WHENCE_CUR)
    writeFileSync(file, content)
    const count = guest.write(one, 'word')
    const result = { count, content: readFileSync(file, 'latin1'), offset: guest.seek(one, 0, abi.WHENCE_CUR) }
    if (i === 0) guest.seek(one, Math.max(0, offset))
    return result
  })
  assert.deepEqual(second, first)
}

test('whatever a guest has open, restored it reads, writes, appends and lists the same', { skip }, async () => {
  let files = 0
  await fc.assert(fc.asyncProperty(fc.array(action, { maxLength: 60 }), fc.boolean(), async (actions, charged) => {
    using host = new Host()
    const quota = charged ? newQuota(64 * 1024 * 1024, 16 * VOLUME_ENTRY_BYTES) : undefined
    const launch = quota === undefined ? {} : { quota }
    const guest = host.guest(launch)
    for (const name of ['one', 'sub/deep']) {
      for (const volume of [A, B]) guest.write(guest.open(volume, name, { oflags: abi.OFLAGS_CREAT }), 'what is there')
    }
    for (const action of actions) await act(guest, action)
    const restored = await host.restored(guest, launch)
    const numbers = [...guest.descriptors.all()].map(([number]) => number)
    assert.deepEqual([...restored.descriptors.all()].map(([number]) => number), numbers)
    const present = new Set([...inodes(host.path('a')), ...inodes(host.path('b'))])
    for (const one of numbers.filter((number) => number > LISTENER)) {
      if (kindOf(guest, one).kind === 'lost') {
        assert.ok(!present.has(guest.ino(one) as bigint), 'only what has no name is lost')
        assert.equal(await restored.read(one), answerOf(restored, one))
        continue
      }
      await compared(guest, restored, one)
      if (kindOf(restored, one).kind !== 'file') continue
      files++
      wroteAlike(host, guest, restored, one)
    }
  }), { numRuns: 150 })
  assert.ok(files > 500, `${files} files were compared`)
})

/** What a lost one answers to a reader: its reason, unless the guest may not read it at all. */
function answerOf(guest: Caller, one: number): number {
  const { rightsBase } = guest.descriptors.get(one)!
  return (rightsBase & abi.RIGHTS_FD_READ) === 0 ? -ENOTCAPABLE : -EIO
}
