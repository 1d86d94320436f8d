// host/migration_peer_test.ts: the other host of a move may be anybody: what it is told, and what is read of it.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer, type RequestListener } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import type { AddressInfo, Server } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { MOVE_ANSWER_BYTES_MAX } from '../base/limits.ts'
import { Peer, type PeerProblem } from './migration_peer.ts'
import { disposableFolder } from './test_support.ts'

type Serving = { readonly server: Server; readonly port: number } & AsyncDisposable

async function serving(server: Server, at: number | string = 0): Promise<Serving> {
  await new Promise<void>((resolve) => {
    server.listen(at as number, ...typeof at === 'number' ? ['127.0.0.1'] : [], resolve)
  })
  const port = typeof at === 'number' ? (server.address() as AddressInfo).port : 0
  return { server, port, [Symbol.asyncDispose]: () => new Promise<void>((resolve) => {
    (server as ReturnType<typeof createServer>).closeAllConnections()
    server.close(() => resolve())
  }) }
}

const echo: RequestListener = (request, response) => {
  const chunks: Buffer[] = []
  request.on('data', (chunk: Buffer) => chunks.push(chunk)).on('end', () => {
    const { method, url, headers: { authorization, 'content-type': type } } = request
    response.end(JSON.stringify({ method, url, authorization, type, body: Buffer.concat(chunks).toString() }))
  })
}

async function* pieces(): AsyncGenerator<Uint8Array> {
  yield Buffer.from('one ')
  yield Buffer.from('two')
}

test('Peer asks over a Unix socket and over TCP, with its token', async () => {
  using folder = disposableFolder()
  const path = join(folder.path, 's')
  await using _unix = await serving(createServer(echo), path)
  await using tcp = await serving(createServer(echo))
  for (const to of [`unix:${path}`, `http://127.0.0.1:${tcp.port}`]) {
    const peer = new Peer({ to, token: 'secret' })
    assert.deepEqual(await peer.ask('PUT', '/v1/x', { bytes: pieces() }), { method: 'PUT', url: '/v1/x',
      authorization: 'Bearer secret', type: 'application/octet-stream', body: 'one two' })
    assert.deepEqual(await peer.ask('POST', '/v1/y', { json: { a: 1 } }), { method: 'POST', url: '/v1/y',
      authorization: 'Bearer secret', type: 'application/json', body: '{"a":1}' })
    peer.close()
  }
})

for (const to of ['http://192.0.2.1:7070', 'http://host.example:80', 'ftp://127.0.0.1', 'not a url',
  'https://user:word@127.0.0.1']) {
  test(`Peer refuses ${to}`, () => {
    assert.throws(() => new Peer({ to }), { code: to.startsWith('http://') ? 'MOVE_INSECURE' : 'REQUEST_INVALID' })
  })
}

test('Peer tells what the other host says is wrong, and when it is not there', async () => {
  await using refusing = await serving(createServer((_, response) => {
    response.writeHead(409).end(JSON.stringify({ code: 'EXISTS', detail: 'Cannot create it\u001b[31m' }))
  }))
  const peer = new Peer({ to: `http://127.0.0.1:${refusing.port}` })
  await assert.rejects(peer.ask('GET', '/'), ({ status, code, message }: PeerProblem) =>
    status === 409 && code === 'EXISTS' && message.startsWith('Cannot create it') && !message.includes('\u001b'))
  peer.close()
  const nobody = new Peer({ to: 'http://127.0.0.1:1' })
  await assert.rejects(nobody.ask('GET', '/'), { code: 'HOST_UNREACHABLE' })
})

test('Peer tells of a refusal that comes before all was sent', async () => {
  await using refusing = await serving(createServer((request, response) => {
    response.writeHead(422).end(JSON.stringify({ code: 'SNAPSHOT_DAMAGED', detail: 'no' }), () => request.destroy())
  }))
  const peer = new Peer({ to: `http://127.0.0.1:${refusing.port}` })
  await assert.rejects(peer.ask('PUT', '/', { bytes: (async function* () {
    for (let i = 0; i < 1000; i++) yield Buffer.alloc(100_000)
  })() }), ({ code }: { code: string }) => /^SNAPSHOT_DAMAGED$|^HOST_UNREACHABLE$/.test(code))
  peer.close()
})

test('Peer reads no answer without end, and none that is no JSON', async () => {
  await using endless = await serving(createServer((_, response) => {
    response.end(Buffer.alloc(MOVE_ANSWER_BYTES_MAX + 1, ' '))
  }))
  await using odd = await serving(createServer((_, response) => response.end('<html>')))
  for (const { port } of [endless, odd]) {
    const peer = new Peer({ to: `http://127.0.0.1:${port}` })
    await assert.rejects(peer.ask('GET', '/'), { code: 'HOST_UNREACHABLE' })
    peer.close()
  }
})

test('Peer gives up when it is told to', async () => {
  await using silent = await serving(createServer(() => {}))
  const peer = new Peer({ to: `http://127.0.0.1:${silent.port}` })
  const abort = new AbortController()
  const asked = peer.ask('GET', '/', { signal: abort.signal })
  setTimeout(() => abort.abort(new Error('enough')), 20)
  await assert.rejects(asked, /enough/)
  peer.close()
})

test('Peer tells its token to who has the certificate of the fingerprint, and to nobody else', async (t) => {
  using folder = disposableFolder()
  const [key, cert] = [join(folder.path, 'key'), join(folder.path, 'cert')]
  const { status } = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
    '-nodes', '-subj', '/CN=b', '-days', '2', '-keyout', key, '-out', cert])
  if (status !== 0) return t.skip("openssl isn't installed")
  let asked = 0
  await using secure = await serving(createSecureServer({ key: readFileSync(key), cert: readFileSync(cert) },
    (request, response) => {
      asked++
      echo(request, response)
    }))
  const to = `https://127.0.0.1:${secure.port}`
  const { fingerprint256 } = new X509Certificate(readFileSync(cert))
  for (const fingerprint of [undefined, fingerprint256.replace(/^../, (two) => two === '00' ? '01' : '00')]) {
    const peer = new Peer({ to, token: 'secret', fingerprint })
    await assert.rejects(peer.ask('GET', '/'), { code: 'HOST_UNREACHABLE' })
    peer.close()
  }
  assert.equal(asked, 0)
  const peer = new Peer({ to, token: 'secret', fingerprint: fingerprint256 })
  assert.equal((await peer.ask<{ authorization: string }>('GET', '/')).authorization, 'Bearer secret')
  peer.close()
})
