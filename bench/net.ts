// bench/net.ts: connections between cells: on one thread, between two, and, to compare, TCP over the loopback interface
// between two threads of plain Node.
//
//   node bench/net.ts
//
// Ends are driven as hypercalls drive them, without guests: a round trip is one byte there and back, a transfer is
// pieces of 64 KiB to one who reads as they come.

import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { isMainThread, MessageChannel, parentPort, Worker, workerData, type MessagePort } from 'node:worker_threads'
import { EAGAIN } from '../src/base/errno.ts'
import { GuestMemory } from '../src/services/guest_memory.ts'
import { Iovecs } from '../src/services/iovecs.ts'
import { linkedEnds, PipeEnd } from '../src/services/net/pipe_end.ts'
import type { StreamSocket } from '../src/services/net/stream_socket.ts'
import { Trunk } from '../src/services/net/trunk.ts'

const ROUNDS = 20_000
const PIECE = 65_536
const BYTES = 2 * 1024 * 1024 * 1024

const memory = new GuestMemory(new WebAssembly.Memory({ initial: 4 }))
const iovecs = new Iovecs()
const mail = { control: undefined, read: () => {}, announce: () => {} }

function range(length: number): Iovecs {
  memory.setU32(0, PIECE)
  memory.setU32(4, length)
  iovecs.load(memory, 0, 1)
  return iovecs
}

async function send(socket: StreamSocket, length: number): Promise<void> {
  for (let left = length; left > 0;) {
    const count = socket.send(range(left))
    if (count > 0) left -= count
    else await new Promise<void>((resolve) => { socket.awaitWritable(resolve) })
  }
}

async function recv(socket: StreamSocket, length: number): Promise<number> {
  for (;;) {
    const count = socket.recv(range(length))
    if (count !== -EAGAIN) return count
    await new Promise<void>((resolve) => { socket.awaitReadable(resolve) })
  }
}

/** Answers each byte, then takes all that comes, and ends. */
async function serve(socket: StreamSocket): Promise<void> {
  socket.start()
  for (let i = 0; i < ROUNDS; i++) {
    await recv(socket, 1)
    await send(socket, 1)
  }
  while (await recv(socket, PIECE) > 0);
  socket.close()
}

async function measure(name: string, socket: StreamSocket): Promise<void> {
  const began = performance.now()
  for (let i = 0; i < ROUNDS; i++) {
    await send(socket, 1)
    await recv(socket, 1)
  }
  const turned = performance.now()
  for (let sent = 0; sent < BYTES; sent += PIECE) await send(socket, PIECE)
  socket.shutdown({ read: false, write: true })
  await recv(socket, 1)
  say(name, turned - began, performance.now() - turned)
}

function say(name: string, roundsMs: number, bytesMs: number): void {
  const [us, rate] = [roundsMs * 1000 / ROUNDS, BYTES / 1e9 / (bytesMs / 1000)]
  process.stdout.write(`${name.padEnd(24)}${us.toFixed(1).padStart(8)} µs${rate.toFixed(2).padStart(8)} GB/s\n`)
}

async function measureTcp(port: number): Promise<void> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  const byte = Buffer.alloc(1)
  const began = performance.now()
  for (let i = 0; i < ROUNDS; i++) {
    socket.write(byte)
    await once(socket, 'data')
  }
  const turned = performance.now()
  const piece = Buffer.alloc(PIECE)
  for (let sent = 0; sent < BYTES; sent += PIECE) if (!socket.write(piece)) await once(socket, 'drain')
  socket.end()
  await once(socket, 'close')
  say('TCP, two threads', turned - began, performance.now() - turned)
}

async function main(): Promise<void> {
  const [dialing, accepting] = linkedEnds()
  await Promise.all([serve(accepting), measure('one thread', dialing)])
  const { port1, port2 } = new MessageChannel()
  const worker = new Worker(new URL(import.meta.url), { workerData: { port: port2 }, transferList: [port2] })
  const [port] = await once(worker, 'message') as [number]
  const trunk = new Trunk(port1, { parity: 0, mail, accept: async () => {} })
  const end = await trunk.open('', 1, (far) => {
    const made = new PipeEnd('dials')
    made.link(far)
    return made
  })
  if (typeof end !== 'number') await measure('two threads', end)
  await measureTcp(port)
  await worker.terminate()
}

if (isMainThread) await main()
else {
  const { port } = workerData as { port: MessagePort }
  const trunk = new Trunk(port, { parity: 1, mail, accept: async (_, __, take) => { void serve(take()) } })
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (socket: Socket) => {
    let rounds = 0
    socket.on('data', (data) => { if (rounds++ < ROUNDS) socket.write(data) })
    socket.on('end', () => socket.end())
  }).listen(0, '127.0.0.1', () => parentPort!.postMessage((server.address() as AddressInfo).port))
  parentPort!.on('message', () => trunk.close())
}
