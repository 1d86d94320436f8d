// services/console/labelled_test.ts: lines with labels, over real files and pipes: whole, in order, none lost.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { EAGAIN, EPIPE } from '../../base/errno.ts'
import { LINE_BYTES_MAX } from '../../base/limits.ts'
import { isSupported } from '../../sys/libc.ts'
import { GuestMemory } from '../guest_memory.ts'
import { Iovecs } from '../iovecs.ts'
import { LabelledOutput, newStreams } from './labelled.ts'

const skip = isSupported() ? false : 'needs Linux and a Node with FFI'

const AT = 4096
const PIPE_BYTES = 65_536
const memory = new GuestMemory(new WebAssembly.Memory({ initial: 32 }))
const iovecs = new Iovecs()

/** A range of the guest's memory that holds `bytes`. */
function ranges(bytes: string | Uint8Array): Iovecs {
  const source = Buffer.from(bytes)
  memory.at(AT, source.length).set(source)
  memory.setU32(0, AT)
  memory.setU32(4, source.length)
  assert.equal(iovecs.load(memory, 0, 1), true)
  return iovecs
}

/** A folder, and descriptors that are closed with it. Streams are told apart by 1 and 2 in production only. */
class Rig {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-labelled-'))
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

  file(): { fd: number; text: () => string } {
    const fd = this.open('file', constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC)
    return { fd, text: () => readFileSync(join(this.folder, 'file'), 'latin1') }
  }

  /** Both ends of a pipe: blocking, the stream's; the other non-blocking, the test's. */
  pipe(): { stream: number; peer: number } {
    execFileSync('mkfifo', [join(this.folder, 'fifo')])
    const peer = this.open('fifo', constants.O_RDONLY | constants.O_NONBLOCK)
    return { stream: this.open('fifo', constants.O_WRONLY), peer }
  }

  [Symbol.dispose](): void {
    for (const fd of this.#open) closeSync(fd)
    rmSync(this.folder, { recursive: true })
  }
}

/** Room for a word at any descriptor that a test may have. */
const streams = (): SharedArrayBuffer => new SharedArrayBuffer(4 * 1024)

/** Writes all of `text`, waiting as the gate does. */
async function writeAll(output: LabelledOutput, text: string): Promise<void> {
  for (let left = Buffer.from(text, 'latin1'); left.length > 0;) {
    const count = output.write(ranges(left))
    if (count === -EAGAIN) await new Promise<void>((resolve) => { output.awaitWritable(resolve) })
    else {
      assert.ok(count > 0, `${count}`)
      left = left.subarray(count)
    }
  }
}

/** What is in the pipe now. */
function readNow(fd: number): string {
  const buffer = Buffer.alloc(2 * PIPE_BYTES)
  try {
    return buffer.toString('latin1', 0, readSync(fd, buffer))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return ''
    throw error
  }
}

/** Reads the pipe, a little at a time, until nobody writes to it. */
async function drain(fd: number, isOver: () => boolean): Promise<string> {
  let text = ''
  for (;;) {
    const over = isOver()
    const got = readNow(fd)
    text += got
    if (over && got === '') return text
    await new Promise((resolve) => { setImmediate(resolve) })
  }
}

describe('to a file', () => {
  test('a line is written when it has its end, with the label before it', () => {
    using rig = new Rig()
    const { fd, text } = rig.file()
    const output = new LabelledOutput(fd, 'web | ', streams())
    assert.equal(output.write(ranges('no end')), 6)
    assert.equal(text(), '')
    assert.equal(output.write(ranges(' yet\nnext')), 9)
    assert.equal(text(), 'web | no end yet\n')
    assert.equal(output.write(ranges('\n\n')), 2)
    assert.equal(text(), 'web | no end yet\nweb | next\nweb | \n')
    assert.equal(output.write(ranges('')), 0)
  })

  test('what has no end when the guest ends is a line, and closing twice adds nothing', async () => {
    using rig = new Rig()
    const { fd, text } = rig.file()
    const output = new LabelledOutput(fd, 'web | ', streams())
    output.write(ranges('last words'))
    output.close()
    output.close()
    await output.settled(1000)
    assert.equal(text(), 'web | last words\n')
  })

  test('a guest that writes nothing leaves nothing', () => {
    using rig = new Rig()
    const { fd, text } = rig.file()
    new LabelledOutput(fd, 'web | ', streams()).close()
    assert.equal(text(), '')
  })

  test('a line beyond the limit is cut there, and one of just that length is not', () => {
    for (const [length, lines] of [[LINE_BYTES_MAX, 1], [LINE_BYTES_MAX + 1, 2], [3 * LINE_BYTES_MAX, 3]] as const) {
      for (const step of [1000, LINE_BYTES_MAX, LINE_BYTES_MAX - 1]) {
        using rig = new Rig()
        const { fd, text } = rig.file()
        const output = new LabelledOutput(fd, 'a | ', streams())
        const line = `${'x'.repeat(length)}\n`
        for (let done = 0; done < line.length;) done += output.write(ranges(line.slice(done, done + step)))
        const written = text().split('\n')
        assert.equal(written.pop(), '')
        assert.equal(written.length, lines, `${length} bytes in steps of ${step}`)
        assert.equal(written.map((one) => one.slice(4)).join(''), 'x'.repeat(length))
        assert.ok(written.every((one) => one.startsWith('a | ') && one.length <= LINE_BYTES_MAX + 4))
      }
    }
  })

  test('a write is taken up to a limit, whatever the guest gives', () => {
    using rig = new Rig()
    const { fd } = rig.file()
    const output = new LabelledOutput(fd, 'a | ', streams())
    assert.equal(output.write(ranges(Buffer.alloc(1_000_000, 'x\n'))), LINE_BYTES_MAX)
  })

  test('lines without their labels are what was written, whoever else writes', async () => {
    const piece = fc.oneof(fc.string({ unit: 'binary-ascii', maxLength: 30 }), fc.constantFrom('\n', 'a\nb', '\n\n'),
      fc.integer({ min: 1, max: 190 }).map((thousands) => 'y'.repeat(thousands * 1000)))
    const step = fc.tuple(fc.nat(2), piece)
    await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 20 }), async (steps) => {
      using rig = new Rig()
      const { fd, text } = rig.file()
      const shared = streams()
      const outputs = ['one | ', 'two | ', 'three '].map((label) => new LabelledOutput(fd, label, shared))
      const written = ['', '', '']
      for (const [who, what] of steps) {
        await writeAll(outputs[who]!, what)
        written[who] += what
      }
      for (const output of outputs) output.close()
      const lines = text().split('\n').slice(0, -1)
      written.forEach((expected, who) => {
        const label = ['one | ', 'two | ', 'three '][who]!
        assert.equal(joined(lines, label), expected === '' || expected.endsWith('\n') ? expected : `${expected}\n`)
      })
    }), { numRuns: 60 })
  })
})

/** What was written, of its lines. Only a line that was cut is so long: hardly any guest here ends one just there. */
function joined(lines: readonly string[], label: string): string {
  return lines.filter((line) => line.startsWith(label)).map((line) => line.slice(label.length))
    .map((line) => line.length === LINE_BYTES_MAX ? line : `${line}\n`).join('')
}

describe('to a pipe', { skip }, () => {
  test('a write that finds the pipe full waits, and is answered once when all is written', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe()
    const output = new LabelledOutput(stream, 'a | ', streams())
    const line = `${'x'.repeat(999)}\n`
    let written = 0
    while (output.write(ranges(line)) === 1000) written++
    assert.ok(written >= 50 && written < 66, `${written}`)
    assert.equal(output.pollWrite(), -EAGAIN)
    assert.equal(output.write(ranges(line)), -EAGAIN)
    const waited = new Promise<void>((resolve) => { output.awaitWritable(resolve) })
    let got = readNow(peer)
    await waited
    // The answer is to the write that waited: nothing is taken twice.
    while (output.write(ranges(line)) === -EAGAIN) {
      got += readNow(peer)
      await new Promise<void>((resolve) => { output.awaitWritable(resolve) })
    }
    got += readNow(peer)
    assert.equal(got, `a | ${line}`.repeat(written + 1))
    assert.equal(output.pollWrite(), 1)
  })

  test('lines of several guests stay whole in a pipe that is full, short or long', { timeout: 30_000 }, async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe()
    const shared = streams()
    let left = 3
    const all = Promise.all(['a', 'b', 'c'].map(async (name) => {
      const output = new LabelledOutput(stream, `${name} | `, shared)
      for (const length of [10, 5000, 60_000, 1, 4096, 30_000, 100]) {
        await writeAll(output, `${name.repeat(length)}\n`)
      }
      await writeAll(output, `${name} ends`)
      output.close()
      await output.settled(20_000)
      left--
    }))
    const text = await drain(peer, () => left === 0)
    await all
    const lines = text.split('\n')
    assert.equal(lines.pop(), '')
    for (const line of lines) assert.match(line, /^([abc]) \| (\1+|\1 ends)$/)
    for (const name of ['a', 'b', 'c']) {
      const own = lines.filter((line) => line.startsWith(name)).map((line) => line.length - 4)
      assert.deepEqual(own, [10, 5000, 60_000, 1, 4096, 30_000, 100, 6])
    }
  })

  test('the last line of a guest that has ended is written when there is room', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe()
    const fills = new LabelledOutput(stream, 'a | ', streams())
    const ends = new LabelledOutput(stream, 'a | ', streams())
    while (fills.write(ranges(`${'x'.repeat(4091)}\n`)) > 0);
    assert.equal(ends.write(ranges('last')), 4)
    ends.close()
    let isSettled = false
    const settled = ends.settled(20_000).then(() => { isSettled = true })
    const text = await drain(peer, () => isSettled)
    await settled
    assert.ok(text.endsWith('a | last\n'), text.slice(-20))
  })

  test('who waits for a reader that never comes is let go after its time', async () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe()
    const output = new LabelledOutput(stream, 'a | ', streams())
    while (output.write(ranges(`${'x'.repeat(4091)}\n`)) > 0);
    output.close()
    await output.settled(20)
    // The write that is under way ends with the test.
    await drain(peer, () => output.pollWrite() > 0)
  })

  test('a stream that another guest has is waited for, unless one gives up', async () => {
    using rig = new Rig()
    const { fd, text } = rig.file()
    const shared = streams()
    const words = new Int32Array(shared)
    const output = new LabelledOutput(fd, 'a | ', shared)
    Atomics.store(words, fd, 1)
    assert.equal(output.write(ranges('line\n')), -EAGAIN)
    assert.equal(output.pollWrite(), -EAGAIN)
    let gaveUp = 0
    const forgets = (): void => { gaveUp++ }
    output.awaitWritable(forgets)
    output.forget(forgets)
    const waited = new Promise<void>((resolve) => { output.awaitWritable(resolve) })
    assert.equal(text(), '')
    Atomics.store(words, fd, 0)
    Atomics.notify(words, fd)
    await waited
    assert.equal(output.write(ranges('line\n')), 5)
    assert.deepEqual([text(), gaveUp, Atomics.load(words, fd)], ['a | line\n', 0, 0])
  })

  test('a reader that is gone is an error each time, and frees the stream', () => {
    using rig = new Rig()
    const { stream, peer } = rig.pipe()
    const shared = streams()
    const output = new LabelledOutput(stream, 'a | ', shared)
    rig.close(peer)
    assert.equal(output.write(ranges('line\n')), -EPIPE)
    assert.equal(output.write(ranges('line\n')), -EPIPE)
    assert.equal(output.write(ranges('no end')), 6)
    output.close()
    assert.equal(Atomics.load(new Int32Array(shared), stream), 0)
  })
})

test('the process has a word for each of its streams', () => {
  assert.equal(newStreams().byteLength, 12)
})
