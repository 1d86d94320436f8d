// cli/session_test.ts: exec and attach over a WebSocket of a host that isn't one, and copies of files as archives.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, symlinkSync, writeFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { WebSocketServer, type WebSocket } from 'ws'
import { volumePath } from './copy.ts'
import { FakeHost, problem, type Answers } from './test_support.ts'

const frame = (channel: number, text: string): Buffer => Buffer.concat([Buffer.of(channel), Buffer.from(text)])

/** A host whose sessions are `serve`d. */
async function withSessions(serve: (socket: WebSocket, url: string) => void): Promise<FakeHost> {
  const host = await FakeHost.start({})
  const sockets = new WebSocketServer({ noServer: true, handleProtocols: (offered) => [...offered][0] ?? false })
  host.server.on('upgrade', (request, socket, head) => {
    if (request.url!.includes('/none/')) {
      const [, body] = problem(404, 'NOT_FOUND', 'Cannot find guest "none"')
      const text = JSON.stringify(body)
      socket.end(`HTTP/1.1 404 Not Found\r\ncontent-length: ${text.length}\r\nconnection: close\r\n\r\n${text}`)
      return
    }
    sockets.handleUpgrade(request, socket, head, (one) => serve(one, request.url!))
  })
  return host
}

test('exec passes arguments, input and output, and ends as the program does', async () => {
  const seen: { url: string; input: string } = { url: '', input: '' }
  await using host = await withSessions((socket, url) => {
    seen.url = url
    assert.equal(socket.protocol, 'v1.session.cellar')
    socket.on('message', (data: Buffer) => {
      if (data[0] === 0) seen.input += data.subarray(1).toString()
      if (data[0] !== 3) return
      assert.deepEqual(JSON.parse(data.subarray(1).toString()), { eof: true })
      socket.send(frame(1, 'out\n'))
      socket.send(frame(2, 'err\n'))
      socket.send(frame(3, '{"exit":7}'))
      socket.close(1000)
    })
  })
  const argv = ['exec', '-i', '--image', 'sh:1', '-e', 'A=b', '-e', 'HOME', 'web', 'sh', '-c', 'x']
  assert.deepEqual(await host.run(argv, { stdin: 'typed' }), { status: 7, stdout: 'out\n', stderr: 'err\n' })
  assert.equal(seen.input, 'typed')
  const query = new URLSearchParams(seen.url.split('?')[1])
  assert.equal(seen.url.split('?')[0], '/v1/projects/default/guests/web/exec')
  assert.deepEqual([query.getAll('arg'), query.get('image'), query.getAll('env')],
    [['sh', '-c', 'x'], 'sh:1', ['A=b', `HOME=${host.folder}`]])
  seen.input = ''
  assert.equal((await host.run(['exec', 'web'], { stdin: 'typed' })).status, 7)
  assert.equal(seen.input, '')
})

test('exec ends with 125 when the host refuses, tells of an error, or breaks off', async () => {
  await using host = await withSessions((socket, url) => {
    if (url.includes('/a/')) socket.send(frame(3,
      JSON.stringify({ error: problem(409, 'GUEST_NOT_RUNNING', 'It is down')[1] })))
    socket.terminate()
  })
  for (const [guest, code] of [['none', 'NOT_FOUND'], ['b', 'HOST_UNREACHABLE']]) {
    const { status, stderr } = await host.run(['exec', guest!])
    assert.equal(status, 125, stderr)
    assert.match(stderr, RegExp(`\\[${code}\\]`))
  }
})

test('attach shows output until the guest ends', async () => {
  await using host = await withSessions((socket) => {
    socket.send(frame(1, 'hello\n'))
    socket.close(1000)
  })
  assert.deepEqual(await host.run(['attach', 'web']), { status: 0, stdout: 'hello\n', stderr: '' })
})

test('volumePath tells volumes from paths of this machine', () => {
  assert.deepEqual(volumePath('data:/a/../b/'), { volume: 'data', path: '/b', isFolder: true })
  assert.deepEqual(volumePath('data:'), { volume: 'data', path: '/', isFolder: true })
  assert.deepEqual(volumePath('data:a/b'), { volume: 'data', path: '/a/b', isFolder: false })
  assert.deepEqual([volumePath('./data:x'), volumePath('/data'), volumePath('-')], [undefined, undefined, undefined])
})

const FILES = '/v1/projects/default/volumes/data/files'
const VOLUME = 'GET /v1/projects/default/volumes/data'
const LONG = `${'long'.repeat(40)}.txt`

test('cp sends files and folders as an archive that tar reads', async () => {
  await using host = await FakeHost.start({ [VOLUME]: [200, {}], [`PUT ${FILES}`]: [204] })
  mkdirSync(join(host.folder, 'site/sub'), { recursive: true })
  writeFileSync(join(host.folder, 'site/index.html'), 'hello\n')
  writeFileSync(join(host.folder, 'site/sub', LONG), 'x'.repeat(1000))
  symlinkSync('index.html', join(host.folder, 'site/link'))
  const listed = async (from: string, to: string): Promise<string[]> => {
    const { status, stderr } = await host.run(['cp', from, to])
    assert.equal(status, 0, stderr)
    assert.equal(host.lines().at(-1), `PUT ${FILES}?path=%2F`)
    const archive = join(host.folder, 'archive.tar')
    writeFileSync(archive, host.asked.at(-1)!.body)
    return execFileSync('tar', ['tf', archive], { encoding: 'utf8' }).split('\n').slice(0, -1)
  }
  const inside = ['index.html', 'link', 'sub/', `sub/${LONG}`]
  assert.deepEqual(await listed('site', 'data:/www'), ['www/', ...inside.map((name) => `www/${name}`)])
  assert.deepEqual(await listed('site', 'data:/www/'), ['www/site/', ...inside.map((name) => `www/site/${name}`)])
  assert.deepEqual(await listed('site/.', 'data:'), inside)
  assert.deepEqual(await listed('site/index.html', 'data:/a/b.html'), ['a/b.html'])
  assert.deepEqual(await listed('site/index.html', 'data:'), ['index.html'])
  assert.equal((await host.run(['cp', 'none', 'data:'])).status, 1)
  assert.equal((await host.run(['cp', 'a', 'b'])).status, 125)
  assert.equal((await host.run(['cp', '-', 'data:/x'], { stdin: 'raw' })).status, 0)
  assert.deepEqual([host.lines().at(-1), host.asked.at(-1)!.body.toString()], [`PUT ${FILES}?path=%2Fx`, 'raw'])
})

test('cp of a name that no volume has is of a guest', async () => {
  const [read, written] = ['GET', 'PUT'].map((method) => `${method} /v1/projects/default/guests/vm/files`)
  await using host = await FakeHost.start({ [written!]: [204],
    [read!]: (_, response) => response.end('what it has') })
  assert.deepEqual(await host.run(['cp', 'vm:/etc/inittab', '-']), { status: 0, stdout: 'what it has', stderr: '' })
  assert.equal((await host.run(['cp', '-', 'vm:/tmp'], { stdin: 'an archive' })).status, 0)
  assert.deepEqual(host.lines(), ['GET /v1/projects/default/volumes/vm',
    'GET /v1/projects/default/guests/vm/files?path=%2Fetc%2Finittab', 'GET /v1/projects/default/volumes/vm',
    'PUT /v1/projects/default/guests/vm/files?path=%2Ftmp'])
})

test('cp unpacks what a volume holds, leaves links out, and refuses names that lead elsewhere', async () => {
  const answers: Answers = { [VOLUME]: [200, {}] }
  await using host = await FakeHost.start(answers)
  mkdirSync(join(host.folder, 'v/www/sub'), { recursive: true })
  writeFileSync(join(host.folder, 'v/www/sub', LONG), 'text')
  symlinkSync('/etc', join(host.folder, 'v/www/link'))
  const tar = (...args: string[]): Buffer => execFileSync('tar', ['cf', '-', ...args], { cwd: join(host.folder, 'v') })
  const answer = (archive: Buffer): void => {
    answers[`GET ${FILES}`] = (_, response) => response.end(archive)
  }
  answer(tar('www'))
  const copied = await host.run(['cp', 'data:/www', 'copy'])
  assert.deepEqual([copied.status, copied.stderr], [0, 'cellar: left out 1 link\n'])
  assert.equal(readFileSync(join(host.folder, 'copy/sub', LONG), 'utf8'), 'text')
  assert.equal((await host.run(['cp', 'data:/www', '.'])).status, 0)
  assert.ok(existsSync(join(host.folder, 'www/sub', LONG)))
  answer(tar('-C', 'www/sub', LONG))
  assert.equal((await host.run(['cp', `data:/www/sub/${LONG}`, 'renamed'])).status, 0)
  assert.equal(readFileSync(join(host.folder, 'renamed'), 'utf8'), 'text')
  answer(tar('--transform', 's,^www,www/../../../out,', 'www'))
  const refused = await host.run(['cp', 'data:/www', 'other'])
  assert.equal(refused.status, 1)
  assert.match(refused.stderr, /\[PATH_UNSAFE\]/)
  answer(tar('www').subarray(0, 700))
  assert.match((await host.run(['cp', 'data:/www', 'third'])).stderr, /\[ARCHIVE_INVALID\]/)
  answer(Buffer.from('as it is'))
  assert.equal((await host.run(['cp', 'data:/www', '-'])).stdout, 'as it is')
})
