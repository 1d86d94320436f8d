// device/uart_16550_test.ts: the serial line against what a driver expects, and against a model of it.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { UART_INPUT_BYTES, UART_OUTPUT_BYTES } from '../base/limits.ts'
import { UART_BYTES, Uart } from './uart_16550.ts'

const [DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR] = [0, 1, 2, 3, 4, 5, 6, 7] as const

type Rig = { uart: Uart; interrupts: number; outputs: number; mayWait: boolean; shared: SharedArrayBuffer }

function rig(): Rig {
  const shared = new SharedArrayBuffer(UART_BYTES)
  const made: Rig = { uart: undefined as never, interrupts: 0, outputs: 0, mayWait: false, shared }
  made.uart = new Uart(shared, {
    interrupt: () => { made.interrupts++ }, output: () => { made.outputs++ }, mayWait: () => made.mayWait,
  })
  return made
}

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text)
const textOf = (bytes: Uint8Array | undefined): string => new TextDecoder().decode(bytes ?? new Uint8Array(0))

function send(uart: Uart, text: string): void {
  for (const byte of bytesOf(text)) uart.write(DATA, byte)
}

test('bytes that the guest sends are drained in their order, and the first one alone is announced', () => {
  const line = rig()
  send(line.uart, 'hello')
  assert.equal(line.outputs, 1)
  assert.equal(textOf(line.uart.drain()), 'hello')
  send(line.uart, ' again')
  assert.equal(line.outputs, 1, 'the main thread still looks by itself')
  assert.equal(textOf(line.uart.drain()), ' again')
  assert.equal(line.uart.drain(), undefined)
  send(line.uart, '!')
  assert.equal(line.outputs, 2, 'announced again once a drain has found nothing')
})

test('a byte for the guest raises one edge, and is read once', () => {
  const line = rig()
  line.uart.write(IER, 1)
  assert.equal(line.uart.give(bytesOf('ab')), 2)
  assert.equal(line.interrupts, 1)
  assert.equal(line.uart.read(IIR) & 0xf, 4)
  assert.equal(line.uart.read(LSR) & 1, 1)
  assert.equal(line.uart.read(DATA), 0x61)
  assert.equal(line.uart.read(DATA), 0x62)
  assert.equal(line.uart.read(LSR) & 1, 0)
  assert.equal(line.uart.read(DATA), 0)
  assert.equal(line.uart.read(IIR) & 0xf, 1)
})

test('the interrupt of an empty holding register comes when it is asked for, and after each byte', () => {
  const line = rig()
  line.uart.write(IER, 2)
  assert.equal(line.interrupts, 1)
  assert.equal(line.uart.read(IIR) & 0xf, 2)
  assert.equal(line.uart.read(IIR) & 0xf, 1, 'reading it takes it back')
  line.uart.write(DATA, 0x41)
  assert.equal(line.interrupts, 2)
  line.uart.write(DATA, 0x42)
  assert.equal(line.interrupts, 3, 'an edge although the last one was not looked at')
})

test('a driver that looks what it is finds a 16550A', () => {
  const { uart } = rig()
  uart.write(SCR, 0xae)
  assert.equal(uart.read(SCR), 0xae)
  uart.write(MCR, 0x1a) // loop, RTS, OUT2
  assert.equal(uart.read(MSR) & 0xf0, 0x90)
  uart.write(DATA, 0x55)
  assert.equal(uart.read(DATA), 0x55, 'in a loop, what is sent is received')
  uart.write(MCR, 0)
  assert.equal(uart.drain(), undefined)
  uart.write(IIR, 1)
  assert.equal(uart.read(IIR) >> 6, 3)
  uart.write(LCR, 0x80)
  uart.write(DATA, 0x12)
  uart.write(IER, 0x34)
  assert.deepEqual([uart.read(DATA), uart.read(IER)], [0x12, 0x34])
  uart.write(LCR, 3)
  assert.deepEqual([uart.read(DATA), uart.read(IER)], [0, 0])
})

test('a guest that floods the line is told that there is no room, and loses nothing while it is listened to', () => {
  const line = rig()
  line.uart.write(IER, 2)
  let sent = 0
  while ((line.uart.read(LSR) & 0x20) !== 0) line.uart.write(DATA, sent++ & 0xff)
  assert.equal(sent, UART_OUTPUT_BYTES / 2)
  const before = line.interrupts
  assert.equal(line.uart.drain()?.length, sent)
  assert.equal(line.interrupts, before + 1, 'room is an interrupt')
  assert.equal(line.uart.dropped, 0)
  // One that doesn't look, and a vCPU that may not wait: the other half, and then no more.
  for (let i = 0; i < UART_OUTPUT_BYTES + 10; i++) line.uart.write(DATA, 1)
  assert.equal(line.uart.dropped, 10)
  assert.equal(line.uart.drain()?.length, UART_OUTPUT_BYTES)
})

test('a vCPU that sends to a full line waits until it is drained', async () => {
  const line = rig()
  const worker = new Worker(`
    const { workerData, parentPort } = require('node:worker_threads')
    import(workerData.module).then(({ Uart }) => {
      const uart = new Uart(workerData.shared, { interrupt() {}, output() {}, mayWait: () => true })
      for (let i = 0; i < ${UART_OUTPUT_BYTES}; i++) uart.write(0, i & 0xff)
      parentPort.postMessage('sent')
    })`, { eval: true, workerData: { module: new URL('./uart_16550.ts', import.meta.url).href, shared: line.shared } })
  const sent = new Promise((resolve) => worker.once('message', resolve))
  let isSent = false
  void sent.then(() => { isSent = true })
  const drained: number[] = []
  while (drained.length < UART_OUTPUT_BYTES) {
    await new Promise((resolve) => setTimeout(resolve, 30))
    if (drained.length === 0) assert.equal(isSent, false)
    drained.push(...line.uart.drain() ?? [])
  }
  await sent
  await worker.terminate()
  assert.equal(drained.every((byte, i) => byte === (i & 0xff)), true)
  assert.equal(line.uart.dropped, 0)
})

test('a line that is restored from what was saved is the same line', () => {
  const line = rig()
  line.uart.write(IER, 3)
  line.uart.write(LCR, 3)
  line.uart.write(SCR, 9)
  line.uart.give(bytesOf('pending'))
  const saved = line.uart.save()
  const other = rig()
  assert.equal(other.uart.restore(saved), true)
  assert.deepEqual(other.uart.save(), saved)
  assert.equal(String.fromCharCode(other.uart.read(DATA)), 'p')
  for (const size of [0, 3, saved.length + UART_INPUT_BYTES]) {
    assert.equal(rig().uart.restore(new Uint8Array(size)), false, `${size} bytes`)
  }
})

// What the data sheet says, as simply as it can be said: no rings, no words, no lock.
class Model {
  ier = 0; lcr = 0; mcr = 0; scr = 0; dll = 0; dlm = 0; fifo = false; thre = false
  input: number[] = []
  output: number[] = []

  reason(): number {
    if ((this.ier & 1) !== 0 && this.input.length > 0) return 4
    return (this.ier & 2) !== 0 && this.thre ? 2 : 1
  }

  read(offset: number): number {
    const hasDivisor = (this.lcr & 0x80) !== 0
    const { mcr } = this
    switch (offset) {
      case DATA: return hasDivisor ? this.dll : this.input.shift() ?? 0
      case IER: return hasDivisor ? this.dlm : this.ier
      case IIR: {
        const reason = this.reason()
        if (reason === 2) this.thre = false
        return reason | (this.fifo ? 0xc0 : 0)
      }
      case LCR: return this.lcr
      case MCR: return mcr
      case LSR: return 0x60 | (this.input.length > 0 ? 1 : 0)
      case MSR: return (mcr & 0x10) === 0 ? 0xb0 :
        (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4
      default: return this.scr
    }
  }

  write(offset: number, value: number): void {
    const hasDivisor = (this.lcr & 0x80) !== 0
    if (offset === DATA && hasDivisor) this.dll = value
    else if (offset === DATA) {
      if ((this.mcr & 0x10) === 0) this.output.push(value)
      else if (this.input.length < UART_INPUT_BYTES) this.input.push(value)
      this.thre = true
    } else if (offset === IER && hasDivisor) this.dlm = value
    else if (offset === IER) {
      if ((value & ~this.ier & 2) !== 0) this.thre = true
      this.ier = value & 0xf
    } else if (offset === IIR) {
      this.fifo = (value & 1) !== 0
      if ((value & 2) !== 0) this.input = []
    } else if (offset === LCR) this.lcr = value
    else if (offset === MCR) this.mcr = value & 0x1f
    else if (offset === SCR) this.scr = value
  }
}

test('any sequence of accesses answers as the model does, and a reason that appears is an edge', () => {
  const byte = fc.integer({ min: 0, max: 255 })
  const step = fc.oneof(
    fc.record({ kind: fc.constant('read' as const), offset: fc.integer({ min: 0, max: 7 }) }),
    fc.record({ kind: fc.constant('write' as const), offset: fc.integer({ min: 0, max: 7 }), value: byte }),
    fc.record({ kind: fc.constant('give' as const), bytes: fc.uint8Array({ maxLength: 5 }) }),
    fc.record({ kind: fc.constant('drain' as const) }),
  )
  fc.assert(fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
    const line = rig()
    const model = new Model()
    for (const each of steps) {
      const hadReason = model.reason() !== 1
      const before = line.interrupts
      if (each.kind === 'read') {
        assert.equal(line.uart.read(each.offset), model.read(each.offset), `read ${each.offset}`)
      } else if (each.kind === 'write') {
        line.uart.write(each.offset, each.value)
        model.write(each.offset, each.value)
      } else if (each.kind === 'give') {
        assert.equal(line.uart.give(each.bytes), each.bytes.length)
        model.input.push(...each.bytes)
      } else {
        assert.deepEqual([...line.uart.drain() ?? []], model.output.splice(0))
      }
      if (!hadReason && model.reason() !== 1) assert.ok(line.interrupts > before, `an edge at ${each.kind}`)
    }
  }), { numRuns: 500 })
})
