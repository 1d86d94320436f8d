// api/server_test.ts: the API on real sockets: who is who on each, slow and many clients, take-over, the end.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { request as plainRequest, type IncomingMessage } from 'node:http'
import { request as secureRequest, type RequestOptions } from 'node:https'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import type { TestContext } from 'node:test'
import type { LogEntry } from './dispatch.ts'
import { serve, type ApiServer, type ServeOptions } from './server.ts'
import { bearer, FakeOperator, specOf } from './test_support.ts'

type Reply = { status: number; text: string; headers: IncomingMessage['headers'] }

function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'cellar-api-'))
  t.after(() => { rmSync(path, { recursive: true, force: true }) })
  return path
}

async function started(t: TestContext, options: ServeOptions, operator = new FakeOperator()): Promise<ApiServer> {
  const server = await serve(operator, options)
  t.after(() => server.close({ graceMs: 0 }))
  return server
}

const local = { listen: [{ host: '127.0.0.1', port: 0 }] } as const

async function fetched(options: RequestOptions, make: typeof plainRequest = plainRequest): Promise<Reply> {
  const outgoing = make({ agent: false, ...options })
  outgoing.end()
  const [response] = await once(outgoing, 'response') as [IncomingMessage]
  let text = ''
  for await (const piece of response) text += String(piece)
  return { status: response.statusCode!, text, headers: response.headers }
}

function raw(t: TestContext, url: string): Socket {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  t.after(() => socket.destroy())
  return socket
}

async function closedWith(socket: Socket): Promise<string> {
  let text = ''
  socket.on('data', (piece) => { text += String(piece) })
  await once(socket, 'close')
  return text
}

test('serve lets in who can open the Unix socket, by the name of the user; a token counts instead', async (t) => {
  const path = join(folder(t), 'host.sock')
  const operator = new FakeOperator()
  const server = await started(t, { socket: { path, peerOf: () => ({ uid: 1000, gid: 1000, pid: 1 }) } }, operator)
  assert.equal(server.socket, path)
  assert.equal(statSync(path).mode & 0o777, 0o660)
  assert.equal((await fetched({ socketPath: path, path: '/v1/audit' })).status, 200)
  assert.equal((await fetched({ socketPath: path, path: '/v1/images/collect', method: 'POST' })).status, 200)
  assert.equal(operator.recorded[0]!.actor, 'uid:1000')
  assert.equal((await fetched({ socketPath: path, path: '/v1/audit', headers: bearer('reader') })).status, 403)
  await server.close({ graceMs: 0 })
  assert.equal(existsSync(path), false)
})

test('serve takes over a socket file that nobody listens on, never one that answers, never another file', async (t) => {
  const path = join(folder(t), 'host.sock')
  const socket = { path, peerOf: () => undefined }
  const left = spawnSync(process.execPath, ['-e',
    `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`])
  assert.equal(left.signal, 'SIGKILL')
  assert.ok(statSync(path).isSocket())
  const server = await started(t, { socket })
  await assert.rejects(serve(new FakeOperator(), { socket }), { code: 'PORT_IN_USE' })
  assert.equal((await fetched({ socketPath: path, path: '/v1' })).status, 200)
  await server.close({ graceMs: 0 })
  writeFileSync(path, 'mine')
  await assert.rejects(serve(new FakeOperator(), { socket }), { code: 'LISTEN_FAILED' })
  assert.equal(readFileSync(path, 'utf8'), 'mine')
})

test('serve wants TLS beyond loopback addresses, tokens on them, and its own names', async (t) => {
  await assert.rejects(serve(new FakeOperator(), { listen: [{ host: '0.0.0.0', port: 0 }] }),
    { code: 'FLAG_VALUE_INVALID' })
  const server = await started(t, local)
  const { port } = new URL(server.urls[0]!)
  const at = { host: '127.0.0.1', port }
  assert.equal((await fetched({ ...at, path: '/v1' })).status, 401)
  assert.equal((await fetched({ ...at, path: '/v1', headers: bearer('reader') })).status, 200)
  const rebound = await fetched({ ...at, path: '/v1', headers: bearer('reader', { host: 'evil.example' }) })
  assert.equal(rebound.status, 421)
  await assert.rejects(serve(new FakeOperator(), { listen: [{ host: '127.0.0.1', port: Number(port) }] }),
    { code: 'PORT_IN_USE' })
})

test('serve takes a client certificate of its CA whose name it knows, and no other', async (t) => {
  const made = certificates(t)
  if (made === undefined) return t.skip('openssl is not installed here')
  const { ca, host, ops, guest, stranger } = made
  const broken = { host: '127.0.0.1', port: 0, tls: { cert: 'x', key: 'y' } }
  await assert.rejects(serve(new FakeOperator(), { listen: [broken] }), { code: 'LISTEN_FAILED' })
  const operator = new FakeOperator()
  const server = await started(t, { listen: [{
    host: '127.0.0.1', port: 0, tls: { ...host, clientCa: ca, certificates: { ops: { scope: 'write', project: 'a' } } },
  }] }, operator)
  const { port } = new URL(server.urls[0]!)
  assert.match(server.urls[0]!, /^https:/)
  const at = { host: '127.0.0.1', port, method: 'PUT', ca, servername: 'cellar.test' }
  const ask = async (identity: object, path = '/v1/projects/a/networks/n'): Promise<number> =>
    (await fetched({ ...at, path, ...identity }, secureRequest)).status
  assert.equal(await ask(ops), 200)
  assert.equal(operator.recorded[0]!.actor, 'cert:CN=ops')
  assert.equal(await ask(ops, '/v1/projects/b/networks/n'), 403)
  assert.equal(await ask(guest), 401)
  assert.equal(await ask(stranger), 401)
  assert.equal(await ask({}), 401)
  assert.equal(await ask({ headers: bearer('writer') }), 200)
  assert.equal(await ask({ ...ops, headers: { origin: 'https://evil.example' } }), 403)
  await assert.rejects(fetched({ host: '127.0.0.1', port, path: '/livez' }), 'no plain HTTP')
})

test('events go on over a new connection where the last one ended', async (t) => {
  const operator = new FakeOperator()
  const { urls: [url] } = await started(t, local, operator)
  for (let i = 0; i < 5; i++) operator.happen(`kind${i}`)
  const read = async (last: string, until: RegExp): Promise<string> => {
    const gone = new AbortController()
    const response = await fetch(`${url}/v1/events`, { signal: gone.signal,
      headers: bearer('reader', last === '' ? {} : { 'last-event-id': last }) })
    let seen = ''
    for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
      seen += piece
      if (until.test(seen)) break
    }
    gone.abort()
    return seen
  }
  assert.equal((await read('', /id: 5\n/)).match(/id: /g)!.length, 5)
  const second = read('3', /id: 6\n.*\n\n/)
  operator.happen('late')
  assert.deepEqual((await second).match(/id: \d/g), ['id: 4', 'id: 5', 'id: 6'])
  while (operator.listeners > 0) await new Promise((resolve) => { setTimeout(resolve, 10) })
})

test('a stream that fails breaks its connection: nobody takes it for whole', async (t) => {
  const operator = new FakeOperator()
  await operator.createGuest('a', 'g', specOf(), true)
  operator.logs = async function* () {
    yield operator.lines[0]!
    await new Promise((resolve) => { setTimeout(resolve, 50) })
    throw new Error('the disk is gone')
  }
  const log: LogEntry[] = []
  const { urls: [url] } = await started(t, { ...local, log: (entry) => log.push(entry) }, operator)
  const response = await fetch(`${url}/v1/projects/a/guests/g/logs`, { headers: bearer('reader') })
  await assert.rejects(response.text())
  assert.ok(log.some(({ msg }) => msg === 'stream failed'))
})

test('a client that does not read its events slows them, and is cut off', async (t) => {
  const operator = new FakeOperator()
  let taken = 0
  const ended = Promise.withResolvers<void>()
  operator.events = async function* () {
    try {
      for (;;) yield { seq: ++taken, time: 0, kind: 'x', data: { text: 'x'.repeat(50_000) } }
    } finally {
      ended.resolve()
    }
  }
  const { urls } = await started(t, { ...local, limits: { stallMs: 200 } }, operator)
  const client = raw(t, urls[0]!)
  client.pause()
  client.write('GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer reader\r\n\r\n')
  await ended.promise
  assert.ok(taken < 2000, `${taken} events were taken`)
})

test('2,000 idle connections keep nobody from being served, and those beyond the limit are closed', async (t) => {
  const { urls: [url] } = await started(t, { ...local, limits: { connections: 2001 } })
  const idle = Array.from({ length: 2000 }, () => raw(t, url!))
  await Promise.all(idle.map((socket) => once(socket, 'connect')))
  const kept = raw(t, url!)
  kept.write('GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n')
  const [answer] = await once(kept, 'data') as [Buffer]
  assert.match(String(answer), /^HTTP\/1.1 200 /)
  assert.equal(await closedWith(raw(t, url!)), '')
  kept.write(`GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer reader\r\nConnection: close\r\n\r\n`)
  assert.match(await closedWith(kept), /^cellar_api_connections_refused_total [1-9]/m)
})

test('who sends a head too slowly, or one too large, is cut off', async (t) => {
  const { urls: [url] } = await started(t, { ...local, limits: { headMs: 100 } })
  const [silent, slow] = [raw(t, url!), raw(t, url!)]
  slow.write('GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: ')
  assert.match(await closedWith(slow), /^HTTP\/1.1 408 /)
  if (!silent.closed) await closedWith(silent)
  const large = raw(t, url!)
  large.write(`GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: ${'a'.repeat(20_000)}\r\n\r\n`)
  assert.match(await closedWith(large), /^HTTP\/1.1 431 /)
})

test('a body too large or too slow is answered though it was never sent', async (t) => {
  const { urls: [url] } = await started(t, { ...local, limits: { bodyMs: 100 } })
  const head = (length: number): string => [
    'POST /v1/projects HTTP/1.1', 'Host: localhost', 'Authorization: Bearer writer', 'Content-Type: application/json',
    `Content-Length: ${length}`, '', '',
  ].join('\r\n')
  const [giant, slow] = [raw(t, url!), raw(t, url!)]
  giant.write(head(2 ** 40))
  slow.write(`${head(100)}{"name":`)
  const [one, two] = await Promise.all([closedWith(giant), closedWith(slow)])
  assert.match(one, /^HTTP\/1.1 413 [^]*REQUEST_TOO_LARGE/)
  assert.match(two, /^HTTP\/1.1 408 [^]*REQUEST_SLOW/)
})

test('a module is read as it comes, and no faster than it is taken', async (t) => {
  const operator = new FakeOperator()
  let give: () => void = () => {}
  const gate = new Promise<void>((resolve) => { give = resolve })
  const { importImage } = operator
  operator.importImage = async (name, module) => {
    await gate
    return await importImage.call(operator, name, module)
  }
  const { urls } = await started(t, local, operator)
  let sent = 0
  const body = new ReadableStream({
    pull: (controller) => {
      sent++
      if (sent > 500) return controller.close()
      controller.enqueue(new Uint8Array(65_536))
    },
  })
  const answer = fetch(`${urls[0]}/v1/images`, { method: 'POST', body, duplex: 'half',
    headers: bearer('writer', { 'content-type': 'application/wasm' }) } as RequestInit)
  await new Promise((resolve) => { setTimeout(resolve, 200) })
  assert.ok(sent < 300, `${sent} pieces were taken`)
  give()
  assert.equal((await answer).status, 201)
  assert.equal(operator.received, 500 * 65_536)
})

test('targets and names that are no URL are problems, not faults', async (t) => {
  const { urls: [url] } = await started(t, local)
  for (const [target, host] of [['/\\evil', 'localhost'], ['/livez', 'local host'], ['//x', '[::1']] as const) {
    const socket = raw(t, url!)
    socket.write(`GET ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)
    assert.match(await closedWith(socket), /^HTTP\/1.1 4\d\d /, target)
  }
})

test('close tells streams to come again, cuts waits short, lets answers finish, and ends what does not', async (t) => {
  const operator = new FakeOperator()
  await operator.createGuest('a', 'g', specOf(), true)
  let finish: () => void = () => {}
  const finished = new Promise<void>((resolve) => { finish = resolve })
  operator.collectImages = async () => {
    await finished
    return 1
  }
  const server = await started(t, local, operator)
  const url = server.urls[0]!
  const events = await fetch(`${url}/v1/events`, { headers: bearer('reader') })
  const wait = fetch(`${url}/v1/projects/a/guests/g/wait?timeout=5m`, { headers: bearer('reader') })
  const work = fetch(`${url}/v1/images/collect`, { method: 'POST', headers: bearer('writer') })
  const silent = raw(t, url)
  await once(silent, 'connect')
  await new Promise((resolve) => { setTimeout(resolve, 50) })
  const closing = server.close({ graceMs: 300 })
  assert.match(await events.text(), /retry: 2000\n: the host is shutting down\n\n$/)
  const cut = await wait
  assert.deepEqual([cut.status, cut.headers.get('retry-after')], [503, '2'])
  finish()
  assert.equal((await work).status, 200)
  await closing
  await assert.rejects(fetch(`${url}/livez`))
})

type Identity = { readonly cert: string; readonly key: string }

/** A CA, a host's certificate, two of clients, and one of a client of another CA; undefined without openssl. */
function certificates(t: TestContext):
{ ca: string; host: Identity; ops: Identity; guest: Identity; stranger: Identity } | undefined {
  const path = folder(t)
  const at = (name: string): string => join(path, name)
  const openssl = (...args: string[]): boolean => spawnSync('openssl', args, { stdio: 'ignore' }).status === 0
  if (!openssl('version')) return undefined
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  const issue = (name: string, subject: string, ca?: string): Identity => {
    const extra = name === 'host' ? ['-addext', 'subjectAltName=DNS:cellar.test'] : []
    const by = ca === undefined ? [] : ['-CA', at(`${ca}.pem`), '-CAkey', at(`${ca}.key`)]
    assert.ok(openssl('req', '-x509', ...key, '-keyout', at(`${name}.key`), '-out', at(`${name}.pem`), '-days', '2',
      '-subj', `/CN=${subject}`, ...extra, ...by), `a certificate for ${name}`)
    return { cert: readFileSync(at(`${name}.pem`), 'utf8'), key: readFileSync(at(`${name}.key`), 'utf8') }
  }
  const { cert: ca } = issue('ca', 'ca')
  issue('other', 'other')
  return {
    ca, host: issue('host', 'cellar.test', 'ca'), ops: issue('ops', 'ops', 'ca'),
    guest: issue('guest', 'guest', 'ca'), stranger: issue('stranger', 'ops', 'other'),
  }
}
