// tests/faults/host_signals_test.ts: what a service manager says to a host: SIGTERM, SIGHUP.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { test } from 'node:test'
import { connect } from 'node:tls'
import { eventually, startHost } from '../host_support.ts'
import { CELLAR, Folder, freePort, startCommand, until } from '../support.ts'
import { createGuest, importProgram, inPhase, nothingUnowned, smallDisk } from './faults_support.ts'

test('SIGTERM lets requests in flight be answered, ends streams, and leaves guests running', async () => {
  await using host = await startHost()
  await importProgram(host, 'nap')
  await createGuest(host, 'a', { image: 'nap', args: ['nap', '100000000'] })
  const { startedAt } = await inPhase(host, 'a', 'running')
  // A request that is half sent: a secret's value.
  const sending = request({ socketPath: join(host.state, 'host.sock'), method: 'PUT',
    path: '/v1/projects/default/secrets/key', headers: { 'content-type': 'application/octet-stream',
      'content-length': 6 } })
  const answered = new Promise<number>((resolve, reject) => {
    sending.on('response', (answer) => resolve(answer.resume().statusCode!)).on('error', reject)
  })
  sending.write('abc')
  using follower = startCommand([CELLAR, 'events', '-f'], { env: { CELLAR_HOST: join(host.state, 'host.sock') } })
  await until('events come', () => follower.said().length > 0)
  const waiting = host.api('GET', '/v1/projects/default/guests/a/wait?timeout=60s').catch((error: Error) => error)
  await host.api('GET', '/v1')
  host.running.child.kill('SIGTERM')
  await eventually('it takes no more', async () =>
    await host.api('GET', '/v1').then(({ status }) => status === 503, () => true))
  sending.end('def')
  assert.equal(await answered, 200)
  const waited = await waiting
  assert.ok(!(waited instanceof Error) && [200, 503].includes(waited.status), String(waited))
  assert.equal((await host.running.ended).status, 0)
  assert.equal(host.cellProcesses().length, 1)
  await host.restart()
  assert.equal((await inPhase(host, 'a', 'running')).startedAt, startedAt)
  assert.match(await host.ok(['secret', 'ls']), /key/)
  await nothingUnowned(host)
})

function certificate(folder: Folder, name: string): void {
  const made = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
    '-nodes', '-days', '2', '-subj', `/CN=${name}`, '-keyout', folder.at('new.key'), '-out', folder.at('new.crt')])
  assert.equal(made.status, 0, made.stderr?.toString())
  for (const kind of ['key', 'crt']) renameSync(folder.at(`new.${kind}`), folder.at(`host.${kind}`))
}

async function subjectOf(port: number): Promise<string> {
  return await new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', rejectUnauthorized: false }, () => {
      resolve(String(socket.getPeerCertificate().subject.CN))
      socket.destroy()
    }).on('error', reject)
  })
}

const noOpenssl = spawnSync('openssl', ['version']).status === 0 ? false : 'openssl is not installed'

test('SIGHUP opens the log anew and takes a new certificate, and keeps the old one if the new is no good',
  { skip: noOpenssl }, async () => {
    using folder = new Folder()
    certificate(folder, 'first')
    const port = await freePort()
    const log = folder.at('logs', 'host.log')
    mkdirSync(folder.at('logs'))
    await using host = await startHost(['--listen', `tcp:127.0.0.1:${port}`, '--tls-cert', folder.at('host.crt'),
      '--tls-key', folder.at('host.key'), '--log', log])
    const { pid } = (await host.api('GET', '/v1/host')).body as { pid: number }
    assert.equal(await subjectOf(port), 'first')
    renameSync(log, `${log}.old`)
    certificate(folder, 'second')
    process.kill(pid, 'SIGHUP')
    await eventually('the new one is shown', async () => await subjectOf(port) === 'second')
    await host.api('GET', '/v1/projects')
    await until('the new log is written', () => readFileSync(log, 'utf8').includes('/v1/projects'))

    // Neither a certificate that is none nor a log that can't be opened ends it.
    folder.write('host.crt', 'no certificate')
    process.kill(pid, 'SIGHUP')
    await until('that is told', () => readFileSync(log, 'utf8').includes('cannot take new certificates'))
    assert.equal(await subjectOf(port), 'second')
    rmSync(folder.at('logs'), { recursive: true })
    folder.write('logs', 'in the way')
    certificate(folder, 'third')
    process.kill(pid, 'SIGHUP')
    await eventually('the third one is shown', async () => await subjectOf(port) === 'third')
    assert.equal((await host.api('GET', '/v1')).status, 200)
  })

test('a host whose stderr is on a full disk goes on without its log', async (t) => {
  const disk = smallDisk(1)
  if (typeof disk === 'string') return t.skip(disk)
  using _ = disk
  using folder = new Folder()
  const log = join(disk.path, 'log')
  const fd = openSync(log, 'a')
  closeSync(fd)
  const filled = spawnSync('sh', ['-c', 'cat /dev/zero > "$0"/filler; exit 0', disk.path])
  assert.equal(filled.status, 0)
  using running = startCommand(['sh', '-c', 'exec "$0" host --state "$1" 2>"$2"', CELLAR, folder.at('s'), log])
  const answers = async (): Promise<boolean> => await new Promise((resolve) => {
    request({ socketPath: folder.at('s', 'host.sock'), path: '/readyz' }, (answer) => {
      resolve(answer.resume().statusCode === 200)
    }).on('error', () => resolve(false)).end()
  })
  await eventually('it is ready', answers)
  assert.ok(await answers())
  assert.equal(statSync(log).size, 0)
  running.child.kill('SIGTERM')
  assert.equal((await running.ended).status, 0)
})
