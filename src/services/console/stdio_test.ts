// services/console/stdio_test.ts: the process's streams, over real pipes and files.
//
// A pipe is a FIFO of which the test holds both ends. One end stays blocking, as a shell gives it: the stream has to
// get along with that, and a test that would block the event loop hangs, and so fails.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeFileSync,
  writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { EAGAIN, EBADF, EPIPE } from '../../base/errno.ts'
import { isSupported } from '../../sys/libc.ts'
import { FILETYPE_REGULAR_FILE, FILETYPE_UNKNOWN } from '../descriptor.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import { StandardInput, StandardOutput } from './stdio.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

const AT = 4096
const PIPE_BYTES = 65_536

/** A folder, a pipe in it, and a guest's memory. */
class Rig {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-stdio-'))
  readonly memory = new GuestMemory(new WebAssembly.Memory({ initial: 8 }))
  readonly #iovecs = new Iovecs()
  readonly #open = new Set<number>()

  open(name: string, flags: number): number {
    const fd = openSync(join(this.folder, name), flags, 0o600)
    this.#open.add(fd)
    return fd
  }

  close(fd: number): void {
    this.#open.delete(fd)
    closeSync(fd)
  }

  /** Both ends of a pipe: blocking, the stream's; the other non-blocking, the test's. */
  pipe(ours: 'read' | 'write'): { stream: number; peer: number } {
    execFileSync('mkfifo', [join(this.folder, 'fifo')])
    // Neither end opens without the other, but for O_RDWR: it holds the pipe meanwhile.
    const both = this.open('fifo', constants.O_RDWR)
    const reads = this.open('fifo', constants.O_RDONLY | (ours === 'read' ? 0 : constants.O_NONBLOCK))
    const writes = this.open('fifo', constants.O_WRONLY | (ours === 'write' ? 0 : constants.O_NONBLOCK))
    this.close(both)
    return ours === 'read' ? { stream: reads, peer: writes } : { stream: writes, peer: reads }
  }

  file(content: string, flags: number): number {
    writeFileSync(join(this.folder, 'file'), content)
    return this.open('file', flags)
  }

  ranges(...lengths: number[]): Iovecs {
    let at = AT
    lengths.forEach((length, i) => {
      this.memory.setU32(8 * i, at)
      this.memory.setU32(8 * i + 4, length)
      at += length
    })
    assert.equal(this.#iovecs.load(this.memory, 0, lengths.length), true)
    return this.#iovecs
  }

  text(text: string): Iovecs {
    this.memory.at(AT, text.length).set(Buffer.from(text))
    return this.ranges(text.length)
  }

  seen(length: number): string { return Buffer.from(this.memory.at(AT, length)).toString() }

  [Symbol.dispose](): void {
    for (const fd of this.#open) closeSync(fd)
    rmSync(this.folder, { recursive: true })
  }
}

const readable = (input: StandardInput) => new Promise<void>((resolve) => { input.awaitReadable(resolve) })
const writable = (output: StandardOutput) => new Promise<void>((resolve) => { output.awaitWritable(resolve) })

/** Everything that is in the pipe now. */
function drain(fd: number): Buffer {
  const chunks: Buffer[] = []
  const buffer = Buffer.alloc(PIPE_BYTES)
  try {
    for (let count = 1; count > 0;) {
      count = readSync(fd, buffer)
      chunks.push(Buffer.from(buffer.subarray(0, count)))
    }
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN')
  }
  return Buffer.concat(chunks)
}

describe('StandardInput on a pipe', { skip }, () => {
  test('it has to wait while nothing is there, and is woken when something comes', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    assert.equal(input.filetype, FILETYPE_UNKNOWN)
    assert.equal(input.pollRead(), -EAGAIN)
    assert.equal(input.read(rig.ranges(100)), -EAGAIN)
    let woken = false
    const waits = readable(input).then(() => { woken = true })
    assert.equal(input.pollRead(), -EAGAIN)
    assert.equal(input.read(rig.ranges(100)), -EAGAIN, 'still: the read is under way elsewhere')
    await new Promise((resolve) => setTimeout(resolve, 20))
    assert.equal(woken, false)
    writeSync(peer, 'late')
    await waits
    assert.equal(input.pollRead(), 4)
    assert.equal(input.read(rig.ranges(1, 100)), 4)
    assert.equal(rig.seen(4), 'late')
    assert.equal(input.read(rig.ranges(100)), -EAGAIN)
    writeSync(peer, 'x')
    assert.equal(input.pollRead(), 1)
    assert.equal(input.read(rig.ranges(100)), 1)
  })

  test('it reads only what it is asked for, whether at once or after waiting', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    writeSync(peer, '0123456789')
    assert.equal(input.read(rig.ranges(3)), 3)
    assert.equal(rig.seen(3), '012')
    const rest = Buffer.alloc(7)
    assert.equal(readSync(stream, rest), 7, 'the rest is for the next reader of the pipe')
    assert.equal(rest.toString(), '3456789')

    assert.equal(input.read(rig.ranges(2, 2)), -EAGAIN)
    const waits = readable(input)
    writeSync(peer, 'abcdefg')
    await waits
    assert.equal(input.read(rig.ranges(2, 2)), 4)
    assert.equal(rig.seen(4), 'abcd')
    assert.equal(readSync(stream, rest), 3)
    assert.equal(rest.toString('utf8', 0, 3), 'efg')
  })

  test('it doesn\'t wait for a second range when the first took all that was there', () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    writeSync(peer, 'abc')
    assert.equal(input.read(rig.ranges(3, 4)), 3)
    assert.equal(rig.seen(3), 'abc')
  })

  test('what comes while a read is under way is given in order', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    assert.equal(input.read(rig.ranges(4)), -EAGAIN)
    const waits = readable(input)
    writeSync(peer, '0123456789')
    // By now the first four may have been read elsewhere, and the others are there.
    await new Promise((resolve) => setImmediate(resolve))
    const first = input.read(rig.ranges(100))
    if (first === -EAGAIN) await waits
    assert.equal(first === -EAGAIN ? input.read(rig.ranges(100)) : first, 4)
    assert.equal(rig.seen(4), '0123')
    assert.equal(input.read(rig.ranges(100)), 6)
    assert.equal(rig.seen(6), '456789')
  })

  test('what was waited for may be taken in parts', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    assert.equal(input.read(rig.ranges(4)), -EAGAIN)
    const waits = readable(input)
    writeSync(peer, 'abcdef')
    await waits
    assert.deepEqual([input.read(rig.ranges(3)), rig.seen(3)], [3, 'abc'])
    assert.deepEqual([input.read(rig.ranges(3)), rig.seen(1)], [1, 'd'])
    assert.deepEqual([input.read(rig.ranges(3)), rig.seen(2)], [2, 'ef'])
  })

  test('the end is 0, also for one who waits for it', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    assert.equal(input.read(rig.ranges(4)), -EAGAIN)
    const waits = readable(input)
    rig.close(peer)
    await waits
    assert.equal(input.pollRead(), 0)
    assert.deepEqual([1, 2, 3].map(() => input.read(rig.ranges(4))), [0, 0, 0])
  })

  test('one who no longer waits is not woken', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    const input = new StandardInput(stream)
    let woken = 0
    const gaveUp = () => { woken++ }
    input.awaitReadable(gaveUp)
    input.forget(gaveUp)
    const waits = readable(input)
    writeSync(peer, 'x')
    await waits
    assert.equal(woken, 0)
  })

  test('a stream that somebody made non-blocking is waited for all the same', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('read')
    rig.close(stream)
    const input = new StandardInput(rig.open('fifo', constants.O_RDONLY | constants.O_NONBLOCK))
    setTimeout(() => writeSync(peer, 'late'), 20)
    let tries = 0
    while (input.read(rig.ranges(10)) === -EAGAIN) {
      assert.ok(++tries < 1000)
      await readable(input)
    }
    assert.equal(rig.seen(4), 'late')
  })
})

describe('StandardInput on a file', { skip }, () => {
  test('it is read at once, scattered, to its end', () => {
    using rig = new Rig()
    const input = new StandardInput(rig.file('0123456789', constants.O_RDONLY))
    assert.equal(input.filetype, FILETYPE_REGULAR_FILE)
    assert.equal(input.pollRead(), 1)
    assert.equal(input.read(rig.ranges(1, 0, 4, 2)), 7)
    assert.equal(rig.seen(7), '0123456')
    assert.equal(input.read(rig.ranges(2, 5)), 3)
    assert.equal(rig.seen(3), '789')
    assert.equal(input.read(rig.ranges(5)), 0)
  })

  test('an error of the host is the guest\'s answer', () => {
    using rig = new Rig()
    const input = new StandardInput(rig.file('x', constants.O_WRONLY))
    assert.equal(input.read(rig.ranges(5)), -EBADF)
  })

  test('/dev/null ends and /dev/zero doesn\'t, without waiting', () => {
    using rig = new Rig()
    const zero = openSync('/dev/zero', 'r')
    const empty = openSync('/dev/null', 'r')
    assert.equal(new StandardInput(zero).read(rig.ranges(1000, 500)), 1500)
    assert.equal(new StandardInput(empty).read(rig.ranges(1000)), 0)
    closeSync(zero)
    closeSync(empty)
  })
})

describe('StandardOutput on a pipe', { skip }, () => {
  test('it writes at once what the pipe takes, in order over several ranges', () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('write')
    const output = new StandardOutput(stream)
    assert.equal(output.pollWrite(), 1)
    rig.text('hello, world')
    assert.equal(output.write(rig.ranges(5, 0, 7)), 12)
    assert.equal(drain(peer).toString(), 'hello, world')
  })

  test('a full pipe takes a part, then nothing; the count comes when there is room', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('write')
    const output = new StandardOutput(stream)
    rig.memory.at(AT, 200_000).fill(0x61)
    assert.equal(output.write(rig.ranges(200_000)), PIPE_BYTES, 'short, and not waiting')
    assert.equal(output.pollWrite(), -EAGAIN)
    rig.memory.at(AT, 3000).fill(0x62)
    assert.equal(output.write(rig.ranges(1000, 2000)), -EAGAIN)
    rig.memory.at(AT, 3000).fill(0x63)
    assert.equal(output.write(rig.ranges(1000, 2000)), -EAGAIN, 'the first is under way elsewhere')
    const waits = writable(output)
    const received = [drain(peer)]
    await waits
    assert.equal(output.pollWrite(), 1)
    assert.equal(output.write(rig.ranges(1000, 2000)), 3000)
    received.push(drain(peer))
    const all = Buffer.concat(received)
    assert.ok(all.equals(Buffer.from('a'.repeat(PIPE_BYTES) + 'b'.repeat(3000))), 'as first tried, and once')
  })

  test('an answer that is ready polls as such, though the pipe is full again', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('write')
    const output = new StandardOutput(stream)
    assert.equal(output.write(rig.ranges(100_000)), PIPE_BYTES)
    assert.equal(output.write(rig.ranges(100_000)), -EAGAIN)
    const waits = writable(output)
    assert.equal(readSync(peer, Buffer.alloc(PIPE_BYTES)), PIPE_BYTES)
    await waits
    assert.equal(output.pollWrite(), 1)
    assert.equal(output.write(rig.ranges(100_000)), PIPE_BYTES)
    assert.equal(output.pollWrite(), -EAGAIN)
  })

  test('nothing is lost or doubled with a reader that is slow', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('write')
    const output = new StandardOutput(stream)
    const sent = Buffer.from(Array.from({ length: 1_000_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff))
    const received: Buffer[] = []
    const reader = setInterval(() => received.push(drain(peer)), 1)
    for (let at = 0; at < sent.length;) {
      const part = sent.subarray(at, at + 150_000)
      rig.memory.at(AT, part.length).set(part)
      const count = output.write(rig.ranges(part.length))
      if (count === -EAGAIN) await writable(output)
      else at += count
      assert.ok(count > 0 || count === -EAGAIN, `${count}`)
    }
    clearInterval(reader)
    received.push(drain(peer))
    assert.ok(Buffer.concat(received).equals(sent))
  })

  test('EPIPE when the reader is gone, also for one who waits', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('write')
    const output = new StandardOutput(stream)
    rig.memory.at(AT, 100_000).fill(0x61)
    assert.equal(output.write(rig.ranges(100_000)), PIPE_BYTES)
    assert.equal(output.write(rig.ranges(10)), -EAGAIN)
    const waits = writable(output)
    rig.close(peer)
    await waits
    assert.equal(output.write(rig.ranges(10)), -EPIPE)
    assert.equal(output.pollWrite(), 1)
    assert.equal(output.write(rig.ranges(10)), -EPIPE)
  })

  test('one who waits with nothing to write is woken to look again', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe('write')
    const output = new StandardOutput(stream)
    assert.equal(output.write(rig.ranges(100_000)), PIPE_BYTES)
    await writable(output)
    assert.equal(output.pollWrite(), -EAGAIN)
    drain(peer)
    await writable(output)
    assert.equal(output.pollWrite(), 1)
  })
})

describe('StandardOutput on a file', { skip }, () => {
  test('it is written at once, whole, and binary safe', () => {
    using rig = new Rig()
    const output = new StandardOutput(rig.file('', constants.O_WRONLY))
    assert.equal(output.filetype, FILETYPE_REGULAR_FILE)
    assert.equal(output.pollWrite(), 1)
    const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251))
    rig.memory.at(AT, bytes.length).set(bytes)
    assert.equal(output.write(rig.ranges(100_000, 0, 200_000)), 300_000)
    assert.ok(readFileSync(join(rig.folder, 'file')).equals(bytes))
  })

  test('an error of the host is the guest\'s answer', () => {
    using rig = new Rig()
    const output = new StandardOutput(rig.file('x', constants.O_RDONLY))
    assert.equal(output.write(rig.text('y')), -EBADF)
  })

  test('the process\'s own stream outlives the guest', () => {
    using rig = new Rig()
    const output = new StandardOutput(rig.file('', constants.O_WRONLY))
    output.close()
    assert.equal(output.write(rig.text('y')), 1)
  })
})
