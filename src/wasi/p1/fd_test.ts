// wasi/p1/fd_test.ts: the calls on descriptors, over descriptors that answer as they are told and note what they hear.

import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import * as errno from '../../base/errno.ts'
import { IOVECS_MAX } from '../../base/limits.ts'
import {
  FILETYPE_DIRECTORY, FILETYPE_REGULAR_FILE, FILETYPE_SOCKET_STREAM, FILETYPE_UNKNOWN, type Descriptor,
} from '../../services/descriptor.ts'
import type { Iovecs } from '../../services/iovecs.ts'
import * as abi from './abi.ts'
import { STOP, WAIT, type Context, type Hypercall } from './context.ts'
import type { Entry } from './descriptors.ts'
import * as fd from './fd.ts'
import { answered, BUFFER, called, contextOf, MEMORY_BYTES, OUT } from './test_support.ts'

const { EAGAIN, EBADF, EFAULT, EINVAL, EIO, ENAMETOOLONG, ENOSPC, ENOTCAPABLE, ENOTDIR, ENOTSUP, EOVERFLOW, EPIPE,
  ESPIPE, ESUCCESS } = errno

const LIST = 1024
const STREAM = 0
const FILE = 1
const FOLDER = 2
const SOCKET = 3
/** A descriptor that can do nothing, with every right. */
const BARE = 4
const CLOSED = 5

/** A cell with one descriptor of each kind, all of which answer `result`. */
class Rig {
  readonly context: Context = contextOf()
  readonly heard: unknown[][] = []
  result = 0
  /** What pollWrite of the stream answers. */
  room = 1
  readonly #wakers = new Set<() => void>()

  constructor() {
    const note = (name: string) => (...args: unknown[]): number => {
      this.heard.push([name, ...args.map((arg) => typeof arg === 'object' ? (arg as Iovecs).total : arg)])
      return this.result
    }
    const waits = {
      awaitReadable: (waker: () => void) => { this.#wakers.add(waker) },
      awaitWritable: (waker: () => void) => { this.#wakers.add(waker) },
      forget: (waker: () => void) => { this.#wakers.delete(waker) },
    }
    const streams = { read: note('read'), write: note('write'), pollWrite: () => this.room, ...waits,
      close: note('close') }
    const sync = async (dataOnly: boolean): Promise<number> => note('sync')(dataOnly)
    const seeks = { pread: note('pread'), pwrite: note('pwrite'), seek: note('seek'), advise: note('advise'),
      allocate: note('allocate'), setAppend: note('setAppend'), sync }
    this.#add({ filetype: FILETYPE_UNKNOWN, ...streams }, abi.RIGHTS_STREAM)
    this.#add({ filetype: FILETYPE_REGULAR_FILE, ...streams, ...seeks }, abi.RIGHTS_FILE)
    this.#add({ filetype: FILETYPE_DIRECTORY, sync, close: note('close') }, abi.RIGHTS_DIRECTORY, Buffer.from('/data'))
    this.#add({ filetype: FILETYPE_SOCKET_STREAM, ...streams }, abi.RIGHTS_SOCKET)
    this.#add({ filetype: FILETYPE_REGULAR_FILE, close: note('close') }, abi.RIGHTS_ALL)
    this.list(3, 4)
  }

  #add(descriptor: Descriptor, rightsBase: number, preopen?: Uint8Array): void {
    const entry = { descriptor, rightsBase, rightsInheriting: 0, flags: 0 }
    this.context.descriptors.add(preopen === undefined ? entry : { ...entry, preopen })
  }

  entry(number: number): Entry { return this.context.descriptors.get(number)! }

  /** Writes a list of ranges, from BUFFER on. */
  list(...lengths: number[]): void {
    let at = BUFFER
    lengths.forEach((length, i) => {
      this.context.memory.setU32(LIST + 8 * i, at)
      this.context.memory.setU32(LIST + 8 * i + 4, length)
      at += length
    })
  }

  call(hypercall: Hypercall, ...args: number[]): number { return answered(() => hypercall(this.context, ...args)) }

  wakeAll(): void { for (const waker of this.#wakers) waker() }
  get waiting(): number { return this.#wakers.size }
}

type Transfer = { name: string; right: number; kinds: readonly number[]
  call: (rig: Rig, number: number, at?: Partial<{ list: number; count: number; out: number }>) => number }

const transfers: readonly Transfer[] = [
  { name: 'read', right: abi.RIGHTS_FD_READ, kinds: [STREAM, FILE, SOCKET],
    call: (rig, number, at) => rig.call(fd.fd_read, number, at?.list ?? LIST, at?.count ?? 2, at?.out ?? OUT) },
  { name: 'write', right: abi.RIGHTS_FD_WRITE, kinds: [STREAM, FILE, SOCKET],
    call: (rig, number, at) => rig.call(fd.fd_write, number, at?.list ?? LIST, at?.count ?? 2, at?.out ?? OUT) },
  { name: 'pread', right: abi.RIGHTS_FD_READ, kinds: [FILE],
    call: (rig, number, at) => rig.call(fd.fd_pread, number, at?.list ?? LIST, at?.count ?? 2, 9, 1, at?.out ?? OUT) },
  { name: 'pwrite', right: abi.RIGHTS_FD_WRITE, kinds: [FILE],
    call: (rig, number, at) => rig.call(fd.fd_pwrite, number, at?.list ?? LIST, at?.count ?? 2, 9, 1, at?.out ?? OUT) },
]

for (const { name, right, kinds, call } of transfers) {
  const positioned = name.startsWith('p')
  describe(`fd_${name}`, () => {
    test('it hands on the ranges, and tells the count', () => {
      for (const kind of kinds) {
        const rig = new Rig()
        rig.result = 5
        rig.context.memory.setU32(OUT, 99)
        assert.equal(call(rig, kind), ESUCCESS)
        assert.equal(rig.context.memory.u32(OUT), 5)
        assert.deepEqual(rig.heard, [positioned ? [name, 7, 2 ** 32 + 9] : [name, 7]])
      }
    })

    test('an errno of the service is the answer, and no count is written', () => {
      const rig = new Rig()
      rig.result = -ENOSPC
      rig.context.memory.setU32(OUT, 99)
      assert.equal(call(rig, FILE), ENOSPC)
      assert.equal(rig.context.memory.u32(OUT), 99)
    })

    test('nothing to move is 0, and the service isn\'t asked', () => {
      const rig = new Rig()
      rig.list(0, 0)
      rig.context.memory.setU32(OUT, 99)
      assert.equal(call(rig, FILE), ESUCCESS)
      assert.equal(rig.context.memory.u32(OUT), 0)
      assert.equal(call(rig, FILE, { count: 0 }), ESUCCESS)
      assert.deepEqual(rig.heard, [])
    })

    test('bad pointers are EFAULT and too many ranges EINVAL, before anything moves', () => {
      const rig = new Rig()
      assert.equal(call(rig, FILE, { out: MEMORY_BYTES - 3 }), EFAULT)
      assert.equal(call(rig, FILE, { out: -1 }), EFAULT)
      assert.equal(call(rig, FILE, { list: MEMORY_BYTES - 15 }), EFAULT)
      assert.equal(call(rig, FILE, { list: -8 }), EFAULT)
      assert.equal(call(rig, FILE, { count: IOVECS_MAX + 1 }), EINVAL)
      assert.equal(call(rig, FILE, { count: -1 }), EINVAL)
      rig.list(1, MEMORY_BYTES)
      assert.equal(call(rig, FILE), EFAULT)
      assert.deepEqual(rig.heard, [])
    })

    test('no descriptor is EBADF; without the right it is ENOTCAPABLE', () => {
      const rig = new Rig()
      for (const number of [CLOSED, -1, 2 ** 31 - 1]) assert.equal(call(rig, number), EBADF)
      rig.entry(FILE).rightsBase &= ~right
      assert.equal(call(rig, FILE), ENOTCAPABLE)
      assert.deepEqual(rig.heard, [])
    })

    test('what can\'t do it says so, whatever its rights', () => {
      const rig = new Rig()
      const refusals = positioned ? { [STREAM]: ESPIPE, [SOCKET]: ESPIPE, [FOLDER]: ENOTCAPABLE, [BARE]: ESPIPE }
        : { [FOLDER]: EBADF, [BARE]: EBADF }
      for (const [kind, refusal] of Object.entries(refusals)) assert.equal(call(rig, Number(kind)), refusal, kind)
      rig.entry(STREAM).rightsBase = abi.RIGHTS_ALL
      if (positioned) assert.equal(call(rig, STREAM), ESPIPE)
    })

    test('what has to wait parks the vCPU, and is tried again when woken', async () => {
      for (const kind of kinds) {
        const rig = new Rig()
        rig.result = -EAGAIN
        assert.equal(call(rig, kind), WAIT)
        assert.equal(rig.waiting, 1)
        const parked = rig.context.parked()
        rig.wakeAll()
        await parked
        assert.equal(rig.waiting, 0, 'the waker was taken back')
        rig.result = 2
        assert.equal(call(rig, kind), ESUCCESS)
        assert.equal(rig.heard.length, 2)
      }
    })

    test('NONBLOCK is EAGAIN for streams; a file is waited for all the same', () => {
      for (const kind of kinds) {
        const rig = new Rig()
        rig.result = -EAGAIN
        rig.entry(kind).flags = abi.FDFLAGS_NONBLOCK
        assert.equal(call(rig, kind), kind === FILE ? WAIT : EAGAIN)
        assert.equal(rig.waiting, kind === FILE ? 1 : 0)
      }
    })
  })
}

test('fd_write to a full stream with NONBLOCK doesn\'t begin what it would have to wait for', () => {
  const rig = new Rig()
  rig.entry(STREAM).flags = abi.FDFLAGS_NONBLOCK
  rig.room = -EAGAIN
  assert.equal(rig.call(fd.fd_write, STREAM, LIST, 2, OUT), EAGAIN)
  assert.deepEqual(rig.heard, [])
})

test('fd_write to a console that nobody reads ends the guest by SIGPIPE; a connection reports it', () => {
  const rig = new Rig()
  rig.result = -EPIPE
  assert.equal(rig.call(fd.fd_write, SOCKET, LIST, 2, OUT), EPIPE)
  assert.equal(rig.context.end, undefined)
  assert.equal(rig.call(fd.fd_write, STREAM, LIST, 2, OUT), STOP)
  assert.deepEqual(rig.context.end, { kind: 'signal', signal: 13 })
})

test('fd_pread and fd_pwrite need the right to seek, and an offset that a number can hold', () => {
  for (const call of [fd.fd_pread, fd.fd_pwrite]) {
    const rig = new Rig()
    assert.equal(rig.call(call, FILE, LIST, 2, 0, 0x20_0000, OUT), EINVAL)
    assert.equal(rig.call(call, FILE, LIST, 2, -1, -1, OUT), EINVAL)
    assert.deepEqual(rig.heard, [])
    assert.equal(rig.call(call, FILE, LIST, 2, -1, 0x1f_ffff, OUT), ESUCCESS)
    assert.equal(rig.heard[0]![2], Number.MAX_SAFE_INTEGER)
    rig.entry(FILE).rightsBase &= ~abi.RIGHTS_FD_SEEK
    assert.equal(rig.call(call, FILE, LIST, 2, 0, 0, OUT), ENOTCAPABLE)
  }
})

describe('fd_seek and fd_tell', () => {
  test('the offset goes both ways in 64 bits', () => {
    const rig = new Rig()
    rig.result = 2 ** 40 + 7
    assert.equal(rig.call(fd.fd_seek, FILE, 5, 3, abi.WHENCE_SET, OUT), ESUCCESS)
    assert.equal(rig.context.memory.u64(OUT), 2n ** 40n + 7n)
    assert.equal(rig.call(fd.fd_seek, FILE, -5, -1, abi.WHENCE_END, OUT), ESUCCESS)
    assert.equal(rig.call(fd.fd_seek, FILE, -(2 ** 31), 0, abi.WHENCE_CUR, OUT), ESUCCESS)
    assert.equal(rig.call(fd.fd_tell, FILE, OUT), ESUCCESS)
    assert.deepEqual(rig.heard, [['seek', 3 * 2 ** 32 + 5, 0], ['seek', -5, 2], ['seek', 2 ** 31, 1], ['seek', 0, 1]])
  })

  test('an offset beyond 2^53 is EOVERFLOW, one before -2^53 EINVAL', () => {
    const rig = new Rig()
    assert.equal(rig.call(fd.fd_seek, FILE, 0, 0x20_0000, abi.WHENCE_SET, OUT), EOVERFLOW)
    assert.equal(rig.call(fd.fd_seek, FILE, -1, 0x7fff_ffff, abi.WHENCE_CUR, OUT), EOVERFLOW)
    assert.equal(rig.call(fd.fd_seek, FILE, 0, -(2 ** 31), abi.WHENCE_END, OUT), EINVAL)
    assert.deepEqual(rig.heard, [])
  })

  test('a bad whence is EINVAL, a bad pointer EFAULT before anything moves, the service\'s errno its own', () => {
    const rig = new Rig()
    for (const whence of [3, -1, 256]) assert.equal(rig.call(fd.fd_seek, FILE, 1, 0, whence, OUT), EINVAL)
    assert.equal(rig.call(fd.fd_seek, FILE, 1, 0, abi.WHENCE_SET, MEMORY_BYTES - 7), EFAULT)
    assert.equal(rig.call(fd.fd_tell, FILE, -1), EFAULT)
    assert.deepEqual(rig.heard, [])
    rig.result = -EINVAL
    assert.equal(rig.call(fd.fd_seek, FILE, -1, -1, abi.WHENCE_SET, OUT), EINVAL)
  })

  test('what has no position is ESPIPE, a folder EBADF, a closed number EBADF', () => {
    const rig = new Rig()
    for (const kind of [STREAM, SOCKET, BARE]) {
      assert.equal(rig.call(fd.fd_seek, kind, 1, 0, abi.WHENCE_SET, OUT), ESPIPE)
      assert.equal(rig.call(fd.fd_tell, kind, OUT), ESPIPE)
    }
    assert.equal(rig.call(fd.fd_seek, FOLDER, 1, 0, abi.WHENCE_SET, OUT), ENOTCAPABLE)
    rig.entry(FOLDER).rightsBase |= abi.RIGHTS_FD_SEEK
    assert.equal(rig.call(fd.fd_seek, FOLDER, 1, 0, abi.WHENCE_SET, OUT), EBADF)
    assert.equal(rig.call(fd.fd_tell, CLOSED, OUT), EBADF)
  })

  test('to tell needs one of the two rights, to move the one to seek', () => {
    const rig = new Rig()
    rig.entry(FILE).rightsBase = abi.RIGHTS_FD_TELL
    assert.equal(rig.call(fd.fd_tell, FILE, OUT), ESUCCESS)
    assert.equal(rig.call(fd.fd_seek, FILE, 0, 0, abi.WHENCE_CUR, OUT), ESUCCESS)
    for (const [lo, hi, whence] of [[1, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 2]] as const) {
      assert.equal(rig.call(fd.fd_seek, FILE, lo, hi, whence, OUT), ENOTCAPABLE)
    }
    rig.entry(FILE).rightsBase = abi.RIGHTS_FD_SEEK
    assert.equal(rig.call(fd.fd_tell, FILE, OUT), ESUCCESS)
    rig.entry(FILE).rightsBase = 0
    assert.equal(rig.call(fd.fd_tell, FILE, OUT), ENOTCAPABLE)
  })
})

describe('fd_advise and fd_allocate', () => {
  test('they hand on offset and length in 64 bits, and the errno', () => {
    const rig = new Rig()
    assert.equal(rig.call(fd.fd_advise, FILE, 1, 2, -1, 3, 5), ESUCCESS)
    assert.equal(rig.call(fd.fd_allocate, FILE, -1, 0, 4, 5), ESUCCESS)
    assert.deepEqual(rig.heard, [['advise', 2 * 2 ** 32 + 1, 4 * 2 ** 32 - 1, 5], ['allocate', 2 ** 32 - 1,
      5 * 2 ** 32 + 4]])
    rig.result = -ENOSPC
    assert.equal(rig.call(fd.fd_advise, FILE, 0, 0, 0, 0, 0), ENOSPC)
    assert.equal(rig.call(fd.fd_allocate, FILE, 0, 0, 1, 0), ENOSPC)
  })

  test('unknown advice, nothing to allocate, and ends beyond 2^53 are EINVAL', () => {
    const rig = new Rig()
    for (const advice of [6, -1]) assert.equal(rig.call(fd.fd_advise, FILE, 0, 0, 0, 0, advice), EINVAL)
    assert.equal(rig.call(fd.fd_advise, FILE, -1, 0x1f_ffff, 1, 0, 0), EINVAL)
    assert.equal(rig.call(fd.fd_allocate, FILE, 0, 0, 0, 0), EINVAL)
    assert.equal(rig.call(fd.fd_allocate, FILE, -1, 0x1f_ffff, 1, 0), EINVAL)
    assert.equal(rig.call(fd.fd_allocate, FILE, 0, 0, 0, -1), EINVAL)
    assert.deepEqual(rig.heard, [])
  })

  test('a stream has no places, a folder no right to them, a closed number is EBADF', () => {
    const calls: [Hypercall, number][] = [
      [fd.fd_advise, abi.RIGHTS_FD_ADVISE], [fd.fd_allocate, abi.RIGHTS_FD_ALLOCATE],
    ]
    for (const [call, right] of calls) {
      const rig = new Rig()
      for (const kind of [STREAM, SOCKET, BARE]) assert.equal(rig.call(call, kind, 0, 0, 1, 0, 0), ESPIPE)
      assert.equal(rig.call(call, FOLDER, 0, 0, 1, 0, 0), ENOTCAPABLE)
      assert.equal(rig.call(call, CLOSED, 0, 0, 1, 0, 0), EBADF)
      rig.entry(FILE).rightsBase &= ~right
      assert.equal(rig.call(call, FILE, 0, 0, 1, 0, 0), ENOTCAPABLE)
    }
  })
})

describe('fd_sync and fd_datasync', () => {
  test('they wait for the service, and answer what it says', async () => {
    const rig = new Rig()
    assert.equal(rig.call(fd.fd_sync, FILE), WAIT)
    await rig.context.parked()
    assert.equal(rig.call(fd.fd_sync, FILE), ESUCCESS)
    assert.equal(await called(rig.context, fd.fd_datasync, FOLDER), ESUCCESS)
    assert.deepEqual(rig.heard, [['sync', false], ['sync', true]])
    rig.result = -EIO
    assert.equal(await called(rig.context, fd.fd_datasync, FILE), EIO)
  })

  test('what can\'t be flushed is EINVAL; each needs its right, and the one to sync is for both', async () => {
    const rig = new Rig()
    for (const call of [fd.fd_sync, fd.fd_datasync]) {
      assert.equal(rig.call(call, BARE), EINVAL)
      assert.equal(rig.call(call, STREAM), ENOTCAPABLE)
      assert.equal(rig.call(call, CLOSED), EBADF)
    }
    rig.entry(FILE).rightsBase = abi.RIGHTS_FD_DATASYNC
    assert.equal(rig.call(fd.fd_sync, FILE), ENOTCAPABLE)
    assert.equal(await called(rig.context, fd.fd_datasync, FILE), ESUCCESS)
    rig.entry(FILE).rightsBase = abi.RIGHTS_FD_SYNC
    assert.equal(await called(rig.context, fd.fd_sync, FILE), ESUCCESS)
    assert.equal(await called(rig.context, fd.fd_datasync, FILE), ESUCCESS)
    rig.entry(FILE).rightsBase = 0
    assert.equal(rig.call(fd.fd_datasync, FILE), ENOTCAPABLE)
  })
})

describe('fd_close and fd_renumber', () => {
  test('a number is closed once, and then EBADF to all', () => {
    const rig = new Rig()
    assert.equal(rig.call(fd.fd_close, FILE), ESUCCESS)
    assert.deepEqual(rig.heard, [['close']])
    assert.equal(rig.call(fd.fd_close, FILE), EBADF)
    assert.equal(rig.call(fd.fd_fdstat_get, FILE, OUT), EBADF)
    assert.deepEqual(rig.heard, [['close']])
  })

  test('renumber moves, closes what was there, and needs both to be open', () => {
    const rig = new Rig()
    const file = rig.entry(FILE)
    assert.equal(rig.call(fd.fd_renumber, FILE, STREAM), ESUCCESS)
    assert.equal(rig.entry(STREAM), file)
    assert.deepEqual(rig.heard, [['close']])
    assert.equal(rig.call(fd.fd_renumber, FILE, STREAM), EBADF)
    assert.equal(rig.call(fd.fd_renumber, STREAM, FILE), EBADF)
    assert.equal(rig.call(fd.fd_renumber, STREAM, -1), EBADF)
    assert.equal(rig.call(fd.fd_renumber, STREAM, STREAM), ESUCCESS)
    assert.equal(rig.entry(STREAM), file)
  })
})

describe('fdstat', () => {
  test('it has 24 bytes: filetype, flags, rights', () => {
    const rig = new Rig()
    const { memory } = rig.context
    Object.assign(rig.entry(FILE), { flags: 0x1f, rightsBase: 0x3fff_fffe, rightsInheriting: 0x1234_5678 })
    memory.bytes.fill(0xee, OUT - 1, OUT + 25)
    assert.equal(rig.call(fd.fd_fdstat_get, FILE, OUT), ESUCCESS)
    assert.deepEqual([...memory.at(OUT - 1, 26)], [0xee, FILETYPE_REGULAR_FILE, 0, 0x1f, 0, 0, 0, 0, 0,
      0xfe, 0xff, 0xff, 0x3f, 0, 0, 0, 0, 0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0xee])
    assert.equal(rig.call(fd.fd_fdstat_get, CLOSED, OUT), EBADF)
    assert.equal(rig.call(fd.fd_fdstat_get, FILE, MEMORY_BYTES - 23), EFAULT)
  })

  test('APPEND and NONBLOCK can be changed, the service is told of APPEND', () => {
    const rig = new Rig()
    const both = abi.FDFLAGS_APPEND | abi.FDFLAGS_NONBLOCK
    for (const flags of [both, abi.FDFLAGS_APPEND, 0]) {
      assert.equal(rig.call(fd.fd_fdstat_set_flags, FILE, flags), ESUCCESS)
      assert.equal(rig.entry(FILE).flags, flags)
    }
    assert.deepEqual(rig.heard, [['setAppend', true], ['setAppend', false]])
    assert.equal(rig.call(fd.fd_fdstat_set_flags, STREAM, both), ESUCCESS)
    assert.equal(rig.entry(STREAM).flags, both)
  })

  test('flags that can\'t be changed are ENOTSUP, may stay as they are, and unknown ones are EINVAL', () => {
    const rig = new Rig()
    const set = (flags: number) => rig.call(fd.fd_fdstat_set_flags, FILE, flags)
    for (const flag of [abi.FDFLAGS_DSYNC, abi.FDFLAGS_RSYNC, abi.FDFLAGS_SYNC]) {
      rig.entry(FILE).flags = 0
      assert.equal(set(flag), ENOTSUP)
      rig.entry(FILE).flags = flag
      assert.equal(set(0), ENOTSUP)
      assert.equal(set(flag | abi.FDFLAGS_NONBLOCK), ESUCCESS)
    }
    rig.entry(FILE).flags = abi.FDFLAGS_NONBLOCK
    for (const flags of [0x20, -1]) assert.equal(set(flags), EINVAL)
    rig.result = -EIO
    assert.equal(set(abi.FDFLAGS_APPEND), EIO)
    assert.equal(rig.entry(FILE).flags, abi.FDFLAGS_NONBLOCK)
    rig.entry(FILE).rightsBase = 0
    assert.equal(set(0), ENOTCAPABLE)
    assert.equal(rig.call(fd.fd_fdstat_set_flags, CLOSED, 0), EBADF)
  })

  test('rights that are given up can\'t be taken back', () => {
    const rig = new Rig()
    const entry = rig.entry(FILE)
    entry.rightsInheriting = abi.RIGHTS_FD_READ | abi.RIGHTS_FD_WRITE
    const set = (base: number, inheriting: number, baseHi = 0, inheritingHi = 0) =>
      rig.call(fd.fd_fdstat_set_rights, FILE, base, baseHi, inheriting, inheritingHi)
    const less = abi.RIGHTS_FD_READ | abi.RIGHTS_FD_SEEK
    assert.equal(set(less, abi.RIGHTS_FD_READ), ESUCCESS)
    const refused: [number, number, number?, number?][] = [
      [less | abi.RIGHTS_FD_WRITE, 0], [0, abi.RIGHTS_FD_WRITE], [-1, 0], [0, -1], [0, 0, 1], [0, 0, 0, 1],
      [less, abi.RIGHTS_FD_READ, -1, -1],
    ]
    for (const rights of refused) {
      assert.equal(set(...rights), ENOTCAPABLE)
      assert.deepEqual([entry.rightsBase, entry.rightsInheriting], [less, abi.RIGHTS_FD_READ])
    }
    assert.equal(rig.call(fd.fd_write, FILE, LIST, 2, OUT), ENOTCAPABLE)
    assert.equal(set(0, 0), ESUCCESS)
    assert.equal(set(abi.RIGHTS_FD_READ, 0), ENOTCAPABLE)
    assert.equal(rig.call(fd.fd_fdstat_set_rights, CLOSED, 0, 0, 0, 0), EBADF)
  })
})

describe('prestat', () => {
  test('it names a granted folder, and nothing else', () => {
    const rig = new Rig()
    const { memory } = rig.context
    memory.bytes.fill(0xee, OUT, OUT + 9)
    assert.equal(rig.call(fd.fd_prestat_get, FOLDER, OUT), ESUCCESS)
    assert.deepEqual([...memory.at(OUT, 9)], [abi.PREOPENTYPE_DIR, 0, 0, 0, 5, 0, 0, 0, 0xee])
    for (const number of [FILE, STREAM, CLOSED, -1]) assert.equal(rig.call(fd.fd_prestat_get, number, OUT), EBADF)
    assert.equal(rig.call(fd.fd_prestat_get, FOLDER, MEMORY_BYTES - 7), EFAULT)
  })

  test('the name is written without a final NUL, into a buffer that holds it', () => {
    const rig = new Rig()
    const { memory } = rig.context
    for (const length of [5, 100, -1]) {
      memory.bytes.fill(0xee, OUT, OUT + 6)
      assert.equal(rig.call(fd.fd_prestat_dir_name, FOLDER, OUT, length), ESUCCESS)
      assert.deepEqual([...memory.at(OUT, 6)], [...Buffer.from('/data'), 0xee])
    }
    assert.equal(rig.call(fd.fd_prestat_dir_name, FOLDER, OUT, 4), ENAMETOOLONG)
    assert.equal(rig.call(fd.fd_prestat_dir_name, FOLDER, MEMORY_BYTES - 4, 5), EFAULT)
    assert.equal(rig.call(fd.fd_prestat_dir_name, FILE, OUT, 5), ENOTDIR)
    assert.equal(rig.call(fd.fd_prestat_dir_name, CLOSED, OUT, 5), EBADF)
  })
})
