// bench/gateway.ts: a machine's way out: TCP through the gateway in user space, against the loopback interface.
//
// The guest's side runs in a thread of its own, as a guest has processors of its own: by the gateway's own code from
// the other side, over a Unix socket as an engine's network card has it. The baseline is two threads of plain Node.
// Both directions, with frames of an ordinary Ethernet and with large ones; a round trip is one byte there and back.

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { duplexPair, type Duplex } from 'node:stream'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { processClock } from '../src/services/gateway/clock.ts'
import { FrameStream } from '../src/services/gateway/frame_stream.ts'
import { Gateway } from '../src/services/gateway/gateway.ts'
import { configOf, TestGuest } from '../src/services/gateway/test_support.ts'
import type { Figure } from './main.ts'

const BYTES = 256 * 1024 * 1024
const PIECE = Buffer.alloc(65_536, 7)
const ROUNDS = 3000
const MTUS = [1500, 16_384]

/** Does what the first byte says: takes all, sends all, or answers each byte. */
function serve(stream: Duplex): void {
  stream.on('error', () => {})
  stream.once('data', (first: Buffer) => {
    const does = String.fromCharCode(first[0]!)
    if (does === 'd') void send(stream)
    else if (does === 'e') stream.on('data', (bytes) => stream.write(bytes)).write(first)
    else stream.on('data', () => {}).on('end', () => stream.end())
  })
}

async function send(stream: Duplex): Promise<void> {
  for (let sent = 0; sent < BYTES; sent += PIECE.length) if (!stream.write(PIECE)) await once(stream, 'drain')
  stream.end()
}

type Measured = { up: number; down: number; round: number }

/** MB/s and µs over connections that `dial` makes. */
async function measureOver(dial: () => Promise<Duplex>): Promise<Measured> {
  const timed = async (does: string, what: (stream: Duplex) => Promise<void>): Promise<number> => {
    const stream = await dial()
    stream.write(does)
    if (does === 'e') await once(stream, 'data')
    const began = performance.now()
    await what(stream)
    const ms = performance.now() - began
    stream.destroy()
    return ms
  }
  const finish = async (stream: Duplex): Promise<void> => { await once(stream.resume(), 'end') }
  const up = await timed('u', async (stream) => {
    await send(stream)
    await finish(stream)
  })
  const down = await timed('d', finish)
  const round = await timed('e', async (stream) => {
    for (let i = 0; i < ROUNDS; i++) {
      stream.write('x')
      await once(stream, 'data')
    }
  })
  return { up: BYTES / 1e6 / (up / 1000), down: BYTES / 1e6 / (down / 1000), round: round * 1000 / ROUNDS }
}

async function inThread(what: { mtu: number; path?: string; port?: number }): Promise<Measured> {
  const worker = new Worker(new URL(import.meta.url), { workerData: what })
  const [measured] = await once(worker, 'message') as [Measured]
  await worker.terminate()
  return measured
}

async function throughGateway(mtu: number, folder: string): Promise<Measured> {
  const path = join(folder, `nic${mtu}`)
  const server = createServer((socket: Socket) => {
    const gateway = new Gateway(configOf('guest', mtu), {
      dial: () => {
        const [theirs, ours] = duplexPair()
        serve(ours)
        return Promise.resolve(theirs)
      },
      allows: () => false, resolve: () => Promise.resolve(44),
    })
    gateway.attach(new FrameStream(socket))
  })
  await listening(server, path)
  try {
    return await inThread({ mtu, path })
  } finally {
    server.close()
  }
}

async function throughLoopback(): Promise<Measured> {
  const server = createServer({ noDelay: true, allowHalfOpen: true }, serve)
  await listening(server, 0)
  try {
    return await inThread({ mtu: 0, port: (server.address() as AddressInfo).port })
  } finally {
    server.close()
  }
}

async function listening(server: Server, where: string | number): Promise<void> {
  if (typeof where === 'string') server.listen(where)
  else server.listen(where, '127.0.0.1')
  await once(server, 'listening')
}

/** The figures: MB/s, in which more is better, and µs, in which less is. */
export async function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  try {
    const plain = await throughLoopback()
    const figures: Figure[] = []
    for (const mtu of MTUS) {
      const ours = await throughGateway(mtu, folder)
      const baselineOf = 'TCP over the loopback interface, two threads'
      figures.push(
        { name: `gateway.up.mtu${mtu}`, value: ours.up, unit: 'MB/s', baseline: plain.up, baselineOf },
        { name: `gateway.down.mtu${mtu}`, value: ours.down, unit: 'MB/s', baseline: plain.down, baselineOf },
        { name: `gateway.round.mtu${mtu}`, value: ours.round, unit: 'µs', baseline: plain.round, baselineOf },
      )
    }
    return figures
  } finally {
    rmSync(folder, { recursive: true })
  }
}

async function actAsGuest({ mtu, path, port }: { mtu: number; path?: string; port?: number }): Promise<void> {
  if (path === undefined) {
    parentPort!.postMessage(await measureOver(async () => {
      const socket = connect({ port: port!, host: '127.0.0.1', noDelay: true, allowHalfOpen: true })
      await once(socket, 'connect')
      return socket
    }))
    return
  }
  const socket = connect(path)
  await once(socket, 'connect')
  const config = configOf('guest', mtu)
  const guest = new TestGuest(config, new FrameStream(socket), processClock)
  parentPort!.postMessage(await measureOver(async () => {
    const stream = await guest.connect('10.1.0.3', 80)
    if (typeof stream === 'number') throw new Error(`Cannot connect through the gateway: errno ${stream}`)
    return stream
  }))
}

if (!isMainThread && (workerData as { mtu?: number } | null)?.mtu !== undefined) {
  await actAsGuest(workerData as { mtu: number })
} else if (import.meta.main) {
  for (const figure of await measure()) process.stdout.write(`${JSON.stringify(figure)}\n`)
}
