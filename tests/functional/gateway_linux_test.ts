// tests/functional/gateway_linux_test.ts: the gateway with a real kernel as its guest: Linux in a network namespace.
//
// The namespace has a TAP device and nothing else; its frames go to a gateway in this process. So our TCP meets
// Linux's, in both directions, with and without loss, by programs that know nothing of it. Needs root and
// /dev/net/tun; skipped with the reason elsewhere.

import assert from 'node:assert/strict'
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { accessSync, constants } from 'node:fs'
import { connect, createServer, type AddressInfo, type Server } from 'node:net'
import { duplexPair, type Duplex } from 'node:stream'
import { after, before, describe, test } from 'node:test'
import { ECONNREFUSED, EACCES, EHOSTUNREACH } from '../../src/base/errno.ts'
import { FrameStream } from '../../src/services/gateway/frame_stream.ts'
import { Gateway } from '../../src/services/gateway/gateway.ts'
import { configOf } from '../../src/services/gateway/test_support.ts'
import { Random } from '../fuzz/random.ts'

const NAMESPACE = `cellar-gateway-${process.pid}`
const DEVICE = 'tap0'
const BYTES = 100 * 1024 * 1024
const SOME = 4 * 1024 * 1024

function reasonToSkip(): string | false {
  if (process.getuid?.() !== 0) return 'needs root'
  try {
    accessSync('/dev/net/tun', constants.R_OK | constants.W_OK)
    execFileSync('ip', ['netns', 'add', NAMESPACE], { stdio: 'pipe' })
    return false
  } catch (error) {
    return `no network namespace with a TAP device: ${(error as Error).message}`
  }
}

const skip = reasonToSkip()
const inside = (...args: string[]): ChildProcess =>
  spawn('ip', ['netns', 'exec', NAMESPACE, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
const node = (code: string): ChildProcess => inside(process.execPath, '--input-type=module', '-e', code)

async function output(child: ChildProcess): Promise<string> {
  let text = ''
  child.stdout!.setEncoding('utf8').on('data', (piece: string) => { text += piece })
  await once(child, 'close')
  return text.trim()
}

const content = Buffer.alloc(BYTES)
new Uint32Array(content.buffer).forEach((_, i, words) => { words[i] = Math.imul(i, 0x9e37_79b1) })
const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

describe('the gateway with Linux as its guest', { skip, timeout: 180_000 }, () => {
  let bridge: ChildProcess
  let gateway: Gateway
  let server: Server
  let received = ''
  const dialled: string[] = []

  // Sends what is asked for by a number, or takes what comes and answers with its digest.
  function serve(stream: Duplex): void {
    stream.on('error', () => {})
    stream.once('data', (first: Buffer) => {
      const [, bytes] = /^get (\d+)\n/.exec(first.toString('latin1')) ?? []
      if (bytes !== undefined) return void stream.end(content.subarray(0, Number(bytes)))
      const hash = createHash('sha256').update(first.subarray(4))
      stream.on('data', (piece: Buffer) => hash.update(piece))
      stream.on('end', () => {
        received = hash.digest('hex')
        stream.end(received)
      })
    })
  }

  before(async () => {
    const config = configOf()
    const ip = (...args: string[]): void => { execFileSync('ip', ['-n', NAMESPACE, ...args]) }
    ip('tuntap', 'add', 'dev', DEVICE, 'mode', 'tap')
    ip('link', 'set', DEVICE, 'address', config.mac, 'mtu', String(config.mtu))
    ip('addr', 'add', `${config.address}/16`, 'dev', DEVICE)
    ip('link', 'set', 'lo', 'up')
    ip('link', 'set', DEVICE, 'up')
    ip('route', 'add', 'default', 'via', config.gateway)
    server = createServer({ allowHalfOpen: true }, serve).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const path = new URL('tap_bridge.ts', import.meta.url).pathname
    bridge = spawn('ip', ['netns', 'exec', NAMESPACE, process.execPath, '--disable-warning=ExperimentalWarning', path,
      DEVICE], { stdio: ['ignore', 'inherit', 'inherit', 'pipe'] })
    gateway = new Gateway(config, {
      async dial(host, port) {
        dialled.push(`${host}:${port}`)
        if (port === 81) return ECONNREFUSED
        if (port === 82) return EACCES
        if (port === 83) return EHOSTUNREACH
        const socket = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true })
        await once(socket, 'connect')
        return socket
      },
      allows: (name) => name === 'outside.example',
      resolve: () => Promise.resolve(['192.0.2.80']),
    })
    gateway.attach(new FrameStream(bridge.stdio[3] as unknown as Duplex))
  })

  after(() => {
    gateway?.close()
    server?.close()
    ;(bridge?.stdio[3] as unknown as Duplex | undefined)?.destroy()
    execFileSync('ip', ['netns', 'del', NAMESPACE])
  })

  const CLIENT = (host: string, port: number): string =>
    `import { connect } from 'node:net'; import { createHash } from 'node:crypto'; import { once } from 'node:events'
     const s = connect({ host: '${host}', port: ${port}, allowHalfOpen: true })
     s.on('error', (e) => { console.log(e.code); process.exit() }); `
  const DOWNLOAD = (bytes: number): string => `s.write('get ${bytes}\\n'); const h = createHash('sha256')
     s.on('data', (d) => h.update(d)).on('end', () => { s.end(); console.log(h.digest('hex')) })`
  const UPLOAD = (bytes: number): string => `const c = Buffer.alloc(${bytes})
     new Uint32Array(c.buffer).forEach((_, i, w) => { w[i] = Math.imul(i, 0x9e3779b1) })
     s.write('put '); s.end(c); let t = ''; s.on('data', (d) => { t += d }).on('end', () => console.log(t))`

  test('echo requests to the gateway are answered', { skip: !hasPing() && 'no ping here' }, async () => {
    assert.match(await output(inside('ping', '-c', '2', '-i', '0.2', '-W', '2', '10.1.0.1')), / 0% packet loss/)
  })

  test('Linux receives 100 MiB from a peer, byte for byte', async () => {
    assert.equal(await output(node(CLIENT('10.1.0.3', 80) + DOWNLOAD(BYTES))), digest(content))
    assert.ok(dialled.includes('db:80'))
  })

  test('Linux sends 100 MiB to a peer, byte for byte', async () => {
    assert.equal(await output(node(CLIENT('10.1.0.3', 80) + UPLOAD(BYTES))), digest(content))
    assert.equal(received, digest(content))
  })

  test('curl fetches 100 MB from a name outside that the gateway answers for', { skip: !hasCurl() && 'no curl here' },
    async () => {
      const name = await output(node(`import { promises } from 'node:dns'
        const r = new promises.Resolver(); r.setServers(['10.1.0.1'])
        console.log(...await r.resolve4('outside.example'))`))
      assert.equal(name, '192.0.2.80')
      const fetched = await output(inside('curl', '-s', '--http0.9', '-X', `get ${BYTES}\n`, '--resolve',
        'outside.example:80:192.0.2.80', '-o', '/dev/null', '-w', '%{size_download}', 'http://outside.example/'))
      assert.equal(fetched, String(BYTES))
      assert.ok(dialled.includes('outside.example:80'), 'dialled by its name')
    })

  for (const [port, code] of [[81, 'ECONNREFUSED'], [82, 'EHOSTUNREACH'], [83, 'EHOSTUNREACH']] as const) {
    test(`Linux is told that a connection is refused: ${code} on port ${port}`, async () => {
      assert.equal(await output(node(CLIENT('192.0.2.9', port))), code)
    })
  }

  test('a port that Linux listens on is opened, both ways carry bytes, and ends are told', async () => {
    const child = node(`import { createServer } from 'node:net'
      createServer({ allowHalfOpen: true }, (s) => {
        console.log(s.remoteAddress); s.on('data', (d) => s.write(d)); s.on('end', () => s.end())
      }).listen(8080, () => console.log('up')).once('connection', function () { this.close() })`)
    const said = output(child)
    await once(child.stdout!, 'data')
    const stream = await gateway.open(8080, { name: 'web' })
    assert.ok(typeof stream !== 'number')
    stream.end(content.subarray(0, SOME))
    const pieces: Buffer[] = []
    for await (const piece of stream) pieces.push(piece as Buffer)
    assert.equal(digest(Buffer.concat(pieces)), digest(content.subarray(0, SOME)))
    assert.equal(await said, 'up\n::ffff:10.1.0.4')
  })

  test('a port that nobody listens on is refused', async () => {
    assert.equal(await gateway.open(9999), ECONNREFUSED)
  })

  test('Linux that reads nothing closes its window, and gets all of it when it reads', async () => {
    const child = node(`${CLIENT('10.1.0.3', 80)} s.write('get ${SOME * 4}\\n'); s.pause()
      await new Promise((r) => setTimeout(r, 3000)); const h = createHash('sha256')
      s.on('data', (d) => h.update(d)).on('end', () => { s.end(); console.log(h.digest('hex')) }).resume()`)
    assert.equal(await output(child), digest(content.subarray(0, SOME * 4)))
  })

  test('a connection that Linux resets ends with an error on our side', async () => {
    const child = node(`import { createServer } from 'node:net'
      createServer((s) => { s.resetAndDestroy() }).listen(8081, () => console.log('up'))
      setTimeout(() => process.exit(), 500)`)
    await once(child.stdout!, 'data')
    const stream = await gateway.open(8081)
    assert.ok(typeof stream !== 'number')
    const [error] = await once(stream.resume(), 'error').catch((failure: unknown) => [failure])
    assert.equal((error as NodeJS.ErrnoException).code, 'ECONNRESET')
    await once(child, 'close')
  })

  test('200 connections of Linux at once each get what is theirs', async () => {
    const child = node(`import { connect } from 'node:net'
      const one = (i) => new Promise((resolve, reject) => { let n = 0
        const s = connect({ host: '10.1.0.3', port: 80 }, () => s.write('get ' + (1000 * i) + '\\n'))
        s.on('data', (d) => { n += d.length }).on('error', reject).on('close', () => resolve(n === 1000 * i)) })
      console.log((await Promise.all(Array.from({ length: 200 }, (_, i) => one(i + 1)))).every(Boolean))`)
    assert.equal(await output(child), 'true')
  })

  test('bytes survive frames that are lost, doubled and late, both ways', async () => {
    const [wire, far] = duplexPair()
    // In place of the bridge's stream: one that loses frames on the way.
    const socket = bridge.stdio[3] as unknown as Duplex
    assert.ok(!socket.destroyed)
    gateway.attach(new FrameStream(wire))
    // The old stream was closed by that: a bridge of its own for this test.
    bridge = spawn('ip', ['netns', 'exec', NAMESPACE, process.execPath, '--disable-warning=ExperimentalWarning',
      new URL('tap_bridge.ts', import.meta.url).pathname, DEVICE], { stdio: ['ignore', 'inherit', 'inherit', 'pipe'] })
    const link = bridge.stdio[3] as unknown as Duplex
    const random = new Random(42)
    lossy(link, far, random)
    lossy(far, link, random)
    assert.equal(await output(node(CLIENT('10.1.0.3', 80) + DOWNLOAD(SOME))), digest(content.subarray(0, SOME)))
    assert.equal(await output(node(CLIENT('10.1.0.3', 80) + UPLOAD(SOME))), digest(content.subarray(0, SOME)))
  })
})

/** Carries frames from one stream to another, and loses 1%, doubles 1%, and lets 1% come after the next ones. */
function lossy(from: Duplex, to: Duplex, random: Random): void {
  let held = Buffer.alloc(0)
  let late: Buffer | undefined
  from.on('error', () => {}).on('data', (piece: Buffer) => {
    held = Buffer.concat([held, piece])
    while (held.length >= 4 && held.length >= 4 + held.readUInt32BE(0)) {
      const frame = held.subarray(0, 4 + held.readUInt32BE(0))
      held = held.subarray(frame.length)
      if (random.chance(1)) continue
      if (late === undefined && random.chance(1)) {
        late = Buffer.from(frame)
        continue
      }
      to.write(Buffer.from(frame))
      if (random.chance(1)) to.write(Buffer.from(frame))
      if (late !== undefined && random.chance(30)) {
        to.write(late)
        late = undefined
      }
    }
  })
}

function hasPing(): boolean { return isHere('ping') }
function hasCurl(): boolean { return isHere('curl') }

function isHere(program: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${program}`], { stdio: 'pipe' })
    return true
  } catch {
    return false
  }
}
