// bench/machine_vmm.ts: one machine under our VMM, in a process of its own: `node machine_vmm.cjs '{"kernel":…}'`.
//
// As the process of a guest has it (src/host/machine_process.ts): engine, network card and gateway, with the console on
// stdout in place of a line to the host, and no jail. It tells its parent when the vCPUs are told to run, and its
// figures when it is asked. With `gateway` alone it is no machine but a gateway for QEMU's network card.

import { connect, createServer, Socket } from 'node:net'
import { KvmEngine } from '../src/machine/kvm_engine.ts'
import type { NicSpec } from '../src/machine/spec.ts'
import { addressesOf } from '../src/services/gateway/addresses.ts'
import { FrameStream } from '../src/services/gateway/frame_stream.ts'
import { Gateway } from '../src/services/gateway/gateway.ts'
import { makeRam } from '../src/sys/guest_ram.ts'
import { socketPair } from '../src/sys/sockets.ts'
import { openTap } from '../src/sys/tap.ts'

/** A machine; `gateway` is a Unix socket to listen on or, with a kernel, '' for its own card. */
export type VmmRequest = {
  readonly kernel?: string; readonly initrd?: string; readonly commandLine?: string; readonly memoryBytes?: number
  readonly disk?: string; readonly tap?: { readonly name: string; readonly mac: string }; readonly gateway?: string
}

/** What it tells: when the machine began to run, in milliseconds of the epoch; exits by reason. */
export type VmmMessage = { readonly runs: number } | { readonly exits: Readonly<Record<string, number>> }

const NETWORK = 77
const MTU = 1500
const ENOENT = 44

/** Everything that the guest connects to is the host itself, by the port. */
function makeGateway(): Gateway {
  return new Gateway({ ...addressesOf(NETWORK, 1), mtu: MTU, hostname: 'bench', domain: 'bench.internal',
    peers: () => undefined, nameOf: () => undefined,
  }, {
    dial: (_host, port) => new Promise((resolve) => {
      const socket = connect({ host: '127.0.0.1', port, noDelay: true, allowHalfOpen: true })
      socket.once('connect', () => resolve(socket)).once('error', () => resolve(ENOENT))
    }),
    allows: () => true, resolve: () => Promise.resolve(ENOENT),
  })
}

function cards({ tap, gateway }: VmmRequest): NicSpec[] {
  const found: NicSpec[] = []
  if (gateway !== undefined) {
    const [ours, theirs] = socketPair()
    makeGateway().attach(new FrameStream(new Socket({ fd: ours, readable: true, writable: true })))
    found.push({ mac: addressesOf(NETWORK, 1).mac, fd: theirs, kind: 'stream', mtu: MTU })
  }
  if (tap !== undefined) found.push({ mac: tap.mac, fd: openTap(tap.name), kind: 'tap', mtu: MTU })
  return found
}

async function boot(request: VmmRequest): Promise<void> {
  const { kernel = '', initrd, commandLine = '', memoryBytes = 0, disk } = request
  const engine = new KvmEngine({
    spec: { name: 'bench', vcpus: 1, memoryBytes, boot: { kernel, initrd, commandLine }, cid: 3,
      generation: '00'.repeat(16), nics: cards(request), disks: disk === undefined ? []
        : [{ path: disk, format: 'raw', readOnly: false, serial: 'bench', backingFolders: [] }] },
    ramFd: makeRam(memoryBytes), isRamPrivate: false,
    events: {
      console: (bytes) => void process.stdout.write(bytes), agent: (stream) => void stream.destroy(),
      ended: ({ kind, reason }) => void process.stderr.write(`the machine ended: ${kind}, ${reason}\n`),
      say: (text) => void process.stderr.write(`${text}\n`),
    },
  })
  process.on('message', () => void engine.figures().then(({ exits }) => process.send!({ exits })))
  await engine.start()
  process.send!({ runs: performance.timeOrigin + performance.now() })
}

const request = JSON.parse(process.argv[2] ?? '{}') as VmmRequest
if (request.kernel !== undefined) void boot(request)
else if (request.gateway !== undefined) {
  createServer((socket) => makeGateway().attach(new FrameStream(socket))).listen(request.gateway, () => {
    process.send!({ runs: performance.timeOrigin + performance.now() })
  })
}
