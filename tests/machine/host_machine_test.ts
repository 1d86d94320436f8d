// tests/machine/host_machine_test.ts: machines as guests of a whole host: the same verbs, networks and ends as cells.
//
// One host and one booted guest for most of it. What the engines themselves can do is tested elsewhere (qemu_test.ts,
// boot_test.ts), as is what a guest can be refused (host_bad_input_test.ts).

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { createGuest, importProgram, inPhase } from '../faults/faults_support.ts'
import { eventually, startHost, type TestHost } from '../host_support.ts'
import { freePort, startCommand, CELLAR } from '../support.ts'
import { answers, boot, debianImage, giveImage, metadata, missing, sh, startedAgain } from './host_guests.ts'

/** An address of this machine that others reach, and a name that leads there. */
const address = Object.values(networkInterfaces()).flat()
  .find((one) => one?.family === 'IPv4' && !one.internal)?.address

describe('machines of a host', { skip: missing ?? false }, () => {
  let host: TestHost
  let image: Awaited<ReturnType<typeof debianImage>>
  let published: number
  let outside: number
  before(async () => {
    image = await debianImage()
    host = await startHost()
    await giveImage(host, image)
    for (const name of ['counter', 'dial']) await importProgram(host, name)
    published = await freePort()
    outside = await freePort()
    await host.ok(['volume', 'create', '--disk', '--size', '16MiB', 'data'])
    await boot(host, 'vm', ['-p', `${published}:8080`, '-v', 'data:/data', '--restart', 'on-failure',
      '--egress', `localhost:${outside}`, '--egress', `127.0.0.1/32:${outside}`,
      ...address === undefined ? [] : ['--egress', `${address}/32`]])
  })
  after(async () => {
    await host?.[Symbol.asyncDispose]()
    image?.[Symbol.dispose]()
  })

  const serve = `mkdir -p /tmp/www; echo served > /tmp/www/index.html; httpd -p 8080 -h /tmp/www`
  const fetched = async (port: number): Promise<string> => (await fetch(`http://127.0.0.1:${port}/`)).text()

  test('the Debian guest boots, is a machine in ps, and says which engine runs it and why', async () => {
    const { body } = await host.api('GET', '/v1/projects/default/guests/vm')
    const { kind, engine } = body as { kind: string; engine: { name: string; why: string } }
    assert.equal(kind, 'machine')
    assert.ok(['kvm', 'qemu'].includes(engine.name) && engine.why.length > 10, JSON.stringify(engine))
    assert.match(await host.ok(['ps', '-o', 'wide']), new RegExp(`^vm .* machine +${engine.name}: `, 'm'))
    assert.match(await host.ok(['doctor']), new RegExp(engine.name, 'i'))
    const told = await metadata(host, 'vm')
    assert.deepEqual([told.name, told.engine], ['vm', engine.name])
    assert.match(told.generation, /^[0-9a-f]{32}$/)
    assert.equal((await sh(host, 'vm', 'hostname')).trim(), 'vm')
  })

  test('from inside, a cell is reached by its name; nobody is reached that is in no network with it', async () => {
    await createGuest(host, 'web', { image: 'counter', args: ['counter'], expose: [80] })
    await host.ok(['network', 'create', 'apart'])
    await createGuest(host, 'hidden', { image: 'counter', args: ['counter'], expose: [80], networks: ['apart'] })
    for (const name of ['web', 'hidden']) await inPhase(host, name, 'running')
    assert.match(await sh(host, 'vm', 'wget -q -O - http://web/'), /1/)
    assert.match(await sh(host, 'vm', 'wget -q -O - http://WEB.cellar.internal/'), /2/)
    assert.match(await sh(host, 'vm', 'wget -q -O - http://hidden/ 2>&1 || echo refused'), /refused/)
    assert.match(await sh(host, 'vm', 'wget -q -O - http://web:81/ 2>&1 || echo refused'), /refused/)
  })

  test("a machine's published port is reached from outside, and from a cell; one that is shut is refused", async () => {
    await sh(host, 'vm', serve)
    assert.equal(await fetched(published), 'served\n')
    const args = ['dial', 'vm', '8080', 'GET / HTTP/1.0\r\n\r\n']
    await createGuest(host, 'caller', { image: 'dial', args, restart: 'no' })
    assert.equal((await inPhase(host, 'caller', 'exited')).exit!.status, 0)
    assert.match(await host.ok(['logs', 'caller']), /served/)
    await createGuest(host, 'refused', { image: 'dial', args: ['dial', 'vm', '8081', 'x'], restart: 'no' })
    await inPhase(host, 'refused', 'failed')
    assert.equal(await fetched(published), 'served\n', 'the machine goes on')
  })

  test('exec has the status, the input and the output of its program, however much that is', async () => {
    assert.equal((await host.cellar(['exec', 'vm', 'sh', '-c', 'echo out; echo err >&2; exit 7'])).status, 7)
    assert.equal((await host.cellar(['exec', 'vm', '/none'])).status, 127)
    assert.equal(await sh(host, 'vm', 'wc -c', Buffer.alloc(300_000, 'x')), '300000\n')
    const big = await sh(host, 'vm', 'seq 1 200000')
    assert.ok(big.startsWith('1\n2\n') && big.endsWith('199999\n200000\n') && big.length === 1_288_895, `${big.length}`)
    assert.equal(await host.ok(['exec', '-e', 'A=b c', 'vm', 'sh', '-c', 'echo "$A"']), 'b c\n')
  })

  test('cp brings files and folders into a machine and out of it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'cellar-cp-'))
    try {
      mkdirSync(join(folder, 'site/sub'), { recursive: true })
      writeFileSync(join(folder, 'site/sub/page'), 'x'.repeat(500_000))
      await host.ok(['cp', join(folder, 'site'), 'vm:/tmp/site'])
      assert.equal(await sh(host, 'vm', 'wc -c < /tmp/site/sub/page'), '500000\n')
      await host.ok(['cp', 'vm:/tmp/site', join(folder, 'back')])
      assert.equal(readFileSync(join(folder, 'back/sub/page'), 'utf8').length, 500_000)
      assert.match(await host.ok(['cp', 'vm:/etc/inittab', '-']), /respawn/)
      const none = await host.cellar(['cp', 'vm:/none', '-'])
      assert.equal(none.status, 1)
      assert.match(none.stderr, /\[AGENT_FAILED\]/)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test('what a machine writes to its console is logged, and replayed to who attaches; input comes back', async () => {
    await sh(host, 'vm', 'echo from-the-guest > /dev/console')
    await eventually('it is in the log', async () => /from-the-guest/.test(await host.ok(['logs', 'vm'])))
    using attached = startCommand([CELLAR, 'attach', 'vm'], { stdin: 'open',
      env: { CELLAR_HOST: join(host.state, 'host.sock') } })
    await eventually('it is replayed', () => attached.said().includes('from-the-guest'))
    attached.child.stdin!.write('echo typed-$((40 + 2))\n')
    await eventually('the shell answers', () => attached.said().includes('typed-42'))
  })

  test('a machine that is paused stands still, and goes on where it was', async () => {
    await sh(host, 'vm', '(while :; do echo x >> /tmp/ticks; sleep 0.1; done) >/dev/null 2>&1 </dev/null &')
    await host.ok(['pause', 'vm'])
    assert.equal((await inPhase(host, 'vm', 'paused')).name, 'vm')
    await host.ok(['resume', 'vm'])
    const one = Number(await sh(host, 'vm', 'wc -l < /tmp/ticks'))
    await eventually('it ticks on', async () => Number(await sh(host, 'vm', 'wc -l < /tmp/ticks')) > one)
  })

  test('resize leaves the guest less memory, then all of it', async () => {
    const free = async (): Promise<number> =>
      Number(/MemFree: +(\d+)/.exec(await sh(host, 'vm', 'cat /proc/meminfo'))![1])
    const before = await free()
    await host.ok(['resize', 'vm', '96MiB'])
    await eventually('the balloon has it', async () => await free() < before - 20_000)
    await host.ok(['resize', 'vm', '128MiB'])
    await eventually('it has it back', async () => await free() > before - 10_000)
    for (const size of ['16MiB', '1GiB']) {
      const { status, stderr } = await host.cellar(['resize', 'vm', size])
      assert.equal(status, 1, size)
      assert.match(stderr, /\[GUEST_UNSUPPORTED\]/)
    }
  })

  test('outside is denied unless a rule allows it, by address or by name', async (t) => {
    await using server = createServer((socket) => socket.on('error', () => {}).end('from outside\n'))
    server.listen(outside)
    await once(server, 'listening')
    const denied = ['nslookup example.com >/dev/null 2>&1 || echo no name',
      'nc -w 3 192.0.2.77 80 </dev/null || echo shut']
    assert.match(await sh(host, 'vm', denied.join('; ')), /no name[^]*shut/)
    // DNS gives out no address that is the guest's own; a program that asks the host by name reaches it.
    assert.match(await sh(host, 'vm', 'nslookup localhost. 2>&1 || true'), /NXDOMAIN/)
    const dial = (port: number): string => `cellar-agent connect localhost ${port} </dev/null 2>&1 || echo shut`
    assert.equal(await sh(host, 'vm', dial(outside)), 'from outside\n')
    assert.match(await sh(host, 'vm', dial(outside + 1)), /shut/)
    const events = JSON.stringify((await host.api('GET', '/v1/events?follow=false')).body)
    assert.match(events, new RegExp(`egress.allowed.*localhost:${outside}`))
    assert.match(events, /egress.denied.*192[.]0[.]2[.]77:80/)
    if (address === undefined) return t.diagnostic('a rule of an address: not tried, as this machine has none')
    assert.equal(await sh(host, 'vm', `nc -w 5 ${address} ${outside} </dev/null`), 'from outside\n')
  })

  test('a snapshot changes nothing of its guest, and is not restored beside it to write the same disk', async () => {
    await sh(host, 'vm', 'head -c 16 /dev/urandom | od -An -tx1 > /tmp/nonce')
    const nonce = await sh(host, 'vm', 'cat /tmp/nonce')
    const first = await metadata(host, 'vm')
    await host.ok(['snapshot', 'vm', 'here'])
    assert.equal((await inPhase(host, 'vm', 'running')).restarts, 0)
    // The volume is the first one's while that runs.
    const shared = await host.cellar(['restore', 'here', '--name', 'vm2', '-p', '0:8080'])
    assert.equal(shared.status, 1)
    assert.match(shared.stderr, /\[VOLUME_SHARED\]/)
    assert.equal(await sh(host, 'vm', 'cat /tmp/nonce'), nonce)
    assert.deepEqual(await metadata(host, 'vm'), first, 'a snapshot changes nothing of who was saved')
  })

  test('a disk is mounted at its folder, is refused to a second guest, and outlives its guest', async () => {
    assert.match(await sh(host, 'vm', 'grep " /data " /proc/mounts'), /ext[24]/)
    await sh(host, 'vm', 'echo kept > /data/file; sync')
    const { status, stderr } = await host.cellar(['run', '-d', '--name', 'other', '-v', 'data:/data', 'debian'])
    assert.equal(status, 125)
    assert.match(stderr, /Cannot start "other" as "vm" has the disk "data" \[VOLUME_SHARED\]/)
    await host.ok(['volume', 'create', 'folder'])
    assert.match((await host.cellar(['run', '-d', '--name', 'other', '-v', 'folder:/f', 'debian'])).stderr,
      /\[VOLUME_KIND\]/)
  })

  test('a machine that resets itself runs again; one that powers off has exited', async () => {
    await sh(host, 'vm', 'reboot')
    const again = await startedAgain(host, 'vm', 1)
    assert.equal(again.restarts, 1)
    assert.equal(await sh(host, 'vm', 'cat /data/file'), 'kept\n', 'its disk was mounted again, and not made anew')
    await sh(host, 'vm', 'poweroff')
    const { status, reason } = (await inPhase(host, 'vm', 'exited')).exit!
    assert.deepEqual([status, reason], [0, 'powered off'])
    await assert.rejects(fetched(published))
  })

  test('a machine hibernates, and is woken by exec and by who connects to its published port', async () => {
    await host.ok(['start', 'vm'])
    await answers(host, 'vm')
    await sh(host, 'vm', `${serve}; echo here > /tmp/nonce`)
    for (const wake of [async () => await sh(host, 'vm', 'cat /tmp/nonce'),
      async () => { assert.equal(await fetched(published), 'served\n'); return 'here\n' }]) {
      await host.ok(['hibernate', 'vm'])
      await inPhase(host, 'vm', 'hibernated')
      assert.equal(await wake(), 'here\n')
      await inPhase(host, 'vm', 'running')
    }
  })

  test('a host that was killed finds its machine again, which ran on; its next start is as before', async () => {
    const [line] = (await sh(host, 'vm', 'cut -d. -f1 /proc/uptime')).split('\n')
    const { process: before } = await inPhase(host, 'vm', 'running')
    await host.killAndRestart()
    const { process, restarts } = await inPhase(host, 'vm', 'running')
    assert.deepEqual([process, restarts], [before, 1])
    assert.equal(await sh(host, 'vm', 'cat /tmp/nonce'), 'here\n')
    assert.ok(Number(await sh(host, 'vm', 'cut -d. -f1 /proc/uptime')) >= Number(line))
    assert.equal(await fetched(published), 'served\n')
  })

  test('a machine whose process is killed is gone with all that it has started, and is started again', async () => {
    const { process: id } = await inPhase(host, 'vm', 'running')
    const { body } = await host.api('GET', '/v1/host')
    const { pid } = (body as { processes: { id: number; pid: number }[] }).processes.find((one) => one.id === id)!
    const group = (): number[] => groupOf(pid)
    assert.ok(group().length >= 1)
    process.kill(pid, 'SIGKILL')
    await eventually('all of it is gone', () => group().length === 0)
    await startedAgain(host, 'vm', 2)
    assert.equal(await sh(host, 'vm', 'cat /data/file'), 'kept\n')
  })

  test('stop asks the guest, which goes down in order; kill asks nobody', async () => {
    await host.ok(['stop', 'vm'])
    assert.deepEqual((await inPhase(host, 'vm', 'stopped')).exit!.reason, 'powered off')
    assert.match(await host.ok(['logs', 'vm']), /Power down/)
    await host.ok(['start', 'vm'])
    await host.ok(['kill', 'vm'])
    assert.equal((await inPhase(host, 'vm', 'stopped')).exit!.status, 137)
    await eventually('its process is gone', () => !host.cellProcesses().some(isMachine))
  })

  test('its disk survives the removal of a guest', async () => {
    await host.ok(['rm', 'vm'])
    await boot(host, 'heir', ['-v', 'data:/elsewhere'])
    assert.equal(await sh(host, 'heir', 'cat /elsewhere/file'), 'kept\n')
    await host.ok(['rm', '--force', 'heir'])
  })

  test('a fork has copies that run on, each with a name, an address and a generation of its own', async () => {
    await boot(host, 'parent')
    await sh(host, 'parent', 'echo before > /tmp/nonce')
    const names = ['parent', 'parent-1', 'parent-2']
    await host.ok(['fork', '--count', '2', 'parent'])
    for (const name of names) {
      assert.equal(await sh(host, name, 'cat /tmp/nonce'), 'before\n')
      await sh(host, name, `echo ${name} > /tmp/nonce`)
    }
    for (const name of names) assert.equal(await sh(host, name, 'cat /tmp/nonce'), `${name}\n`, 'each has its own RAM')
    const known = await Promise.all(names.map(async (name) => ({ ...await metadata(host, name),
      hostname: (await sh(host, name, 'hostname')).trim() })))
    assert.deepEqual(known.map(({ name }) => name), names)
    assert.deepEqual(known.map(({ hostname: told }) => told), names)
    assert.equal(new Set(known.map(({ generation }) => generation)).size, 3)
    await eventually('each has an address of its own', async () => {
      const all = await Promise.all(names.map((name) => sh(host, name, 'ip -4 addr show dev eth0 | grep inet')))
      return new Set(all).size === 3
    })
    for (const name of names.slice(1)) await host.ok(['rm', '--force', name])
  })

  test('a snapshot is restored as another guest, and moves to another host with what it has in RAM', async () => {
    const nonce = await sh(host, 'parent', 'head -c 8 /dev/urandom | od -An -tx1 | tee /tmp/nonce')
    const first = await metadata(host, 'parent')
    await host.ok(['snapshot', 'parent', 'whole'])
    await host.ok(['rm', '--force', 'parent'])
    await host.ok(['restore', 'whole', '--name', 'second'])
    await inPhase(host, 'second', 'running')
    assert.equal(await sh(host, 'second', 'cat /tmp/nonce'), nonce)
    const second = await metadata(host, 'second')
    assert.notEqual(second.generation, first.generation)
    await eventually('it has its name', async () => (await sh(host, 'second', 'hostname')).trim() === 'second')
    await using other = await startHost()
    await giveImage(other, image)
    await host.ok(['migrate', 'second', '--to', `unix:${join(other.state, 'host.sock')}`,
      '--downtime', '60s'], { timeoutMs: 120_000 })
    await inPhase(other, 'second', 'running')
    assert.equal(await sh(other, 'second', 'cat /tmp/nonce'), nonce)
    assert.equal((await metadata(other, 'second')).generation, second.generation, 'it is the same machine')
    assert.deepEqual((await host.ok(['ps', '-aq'])).split('\n').includes('second'), false)
  })
})

/** True for the process of a machine that is there yet. */
function isMachine(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('machine_process')
  } catch {
    return false
  }
}

/** Processes of the group that began with this one. */
function groupOf(pid: number): number[] {
  const { stdout } = spawnSync('ps', ['-o', 'pid=', '-g', String(pid)])
  return stdout.toString().trim().split(/\s+/).filter((text) => text !== '').map(Number)
}
