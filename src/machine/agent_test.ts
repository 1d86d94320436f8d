// machine/agent_test.ts: the agent itself, run as an ordinary program of this machine, and the host's side of it.

import assert from 'node:assert/strict'
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { buffer, text } from 'node:stream/consumers'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { EACCES, EHOSTUNREACH, ENOENT, ESUCCESS } from '../base/errno.ts'
import { Agent, statusOf, type AgentCommand } from './agent.ts'
import type { AgentAnswer, AgentRequest } from './agent_line.ts'
import type { AgentEnd, AgentSession } from './agent_session.ts'

const PROGRAM = fileURLToPath(new URL('../../guests/agent/agent', import.meta.url))
const isHere = process.platform === 'linux' && process.arch === 'x64'

/** An agent and its host, connected. */
class Rig implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'cellar-agent-'))
  readonly agent: Agent
  readonly asked: AgentRequest[] = []
  readonly changes: (string | undefined)[] = []
  readonly lines: Socket[] = []
  answer: (asked: AgentRequest) => Promise<AgentAnswer> = async () => ({ errno: ESUCCESS })
  #server: Server | undefined
  #child: ChildProcess | undefined

  constructor() {
    this.agent = new Agent({
      name: 'box', generation: '00'.repeat(16),
      request: async (asked) => {
        this.asked.push(asked)
        return await this.answer(asked)
      },
      changed: (guest) => this.changes.push(guest?.system),
    })
  }

  static async start(): Promise<Rig> {
    const rig = new Rig()
    rig.#server = createServer((socket) => {
      rig.lines.push(socket)
      rig.agent.attach(socket)
    }).listen(join(rig.folder, 'line'))
    await once(rig.#server, 'listening')
    rig.#child = spawn(PROGRAM, ['--unix', join(rig.folder, 'line'), '--socket', rig.socket, '--hooks', rig.folder],
      { stdio: ['ignore', 'inherit', 'inherit'] })
    await rig.agent.connected(10_000)
    return rig
  }

  get socket(): string {
    return join(this.folder, 'asks')
  }

  /** A program of the guest that asks. */
  ask(...words: string[]): ChildProcess & { done: Promise<[string, string, number]> } {
    const child = spawn(PROGRAM, words, { env: { CELLAR_SOCKET: this.socket } })
    return Object.assign(child, { done: Promise.all([text(child.stdout), text(child.stderr),
      once(child, 'close').then(([status]) => status as number)]) })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.agent.close()
    this.#server?.close()
    if (this.#child !== undefined && this.#child.exitCode === null) {
      this.#child.kill('SIGKILL')
      await once(this.#child, 'close')
    }
    rmSync(this.folder, { recursive: true, force: true })
  }
}

async function outputOf(session: AgentSession): Promise<{ out: string; err: string; end: AgentEnd }> {
  const pieces: Buffer[][] = [[], [], []]
  for await (const { channel, bytes } of session.output) pieces[channel]!.push(Buffer.from(bytes))
  const [, out, err] = pieces.map((list) => Buffer.concat(list).toString())
  return { out: out!, err: err!, end: await session.ended }
}

async function run(rig: Rig, command: AgentCommand | string): ReturnType<typeof outputOf> {
  const one = typeof command === 'string' ? { argv: ['/bin/sh', '-c', command], hasInput: false } : command
  return await outputOf(rig.agent.exec(one))
}

const exited = (status: number): AgentEnd => ({ kind: 'exited', status })

describe('the agent', { skip: !isHere && 'the agent is a program for Linux on x86-64', timeout: 60_000 }, () => {
  test('exec gives output, errors and the status of a program', async () => {
    await using rig = await Rig.start()
    assert.deepEqual(await run(rig, 'echo out; echo err >&2; exit 7'), { out: 'out\n', err: 'err\n', end: exited(7) })
    assert.deepEqual(rig.changes, ['Linux'])
  })

  test('exec hands over arguments, variables, folder and user as they are', async () => {
    await using rig = await Rig.start()
    const odd = ['', ' ', 'a\nb', '*', '$HOME', 'ä€😀', '-x']
    const { out } = await run(rig, { argv: ['printf', '%s|', ...odd], hasInput: false })
    assert.equal(out, odd.map((one) => `${one}|`).join(''))
    const command = { argv: ['/bin/sh', '-c', 'echo $A-$PATH; pwd; echo $HOME'], env: ['A=b', 'PATH=/x:/bin'],
      cwd: '/usr' }
    assert.equal((await run(rig, command)).out, 'b-/x:/bin\n/usr\n/root\n')
    if (process.getuid!() === 0) {
      const who = await run(rig, { argv: ['/bin/sh', '-c', 'id -u; id -g; echo $HOME'], user: 'nobody:12' })
      assert.equal(who.out, '65534\n12\n/nonexistent\n')
      assert.deepEqual((await run(rig, { argv: ['id'], user: 'nobody-at-all' })).end.kind, 'failed')
    }
  })

  test('exec tells a program that is missing from one that may not be run', async () => {
    await using rig = await Rig.start()
    const missing = await run(rig, { argv: ['/no/such/program'] })
    assert.deepEqual([missing.end, statusOf(missing.end)], [{ kind: 'failed', errno: ENOENT }, 127])
    const denied = await run(rig, { argv: ['/etc/passwd'] })
    assert.deepEqual([denied.end, statusOf(denied.end)], [{ kind: 'failed', errno: EACCES }, 126])
    assert.equal((await run(rig, { argv: ['true'], cwd: '/no/such/folder' })).end.kind, 'failed')
    assert.equal((await run(rig, { argv: [] })).end.kind, 'failed')
    assert.throws(() => rig.agent.exec({ argv: ['x'.repeat(70_000)] }), { code: 'AGENT_FAILED' })
    assert.throws(() => rig.agent.exec({ argv: ['a\0b'] }), { code: 'AGENT_FAILED' })
  })

  test('input reaches a program, and so does its end', async () => {
    await using rig = await Rig.start()
    const session = rig.agent.exec({ argv: ['sha256sum'] })
    const bytes = randomBytes(3_000_000)
    const done = outputOf(session)
    await session.write(bytes)
    session.endInput()
    const want = spawnSync('sha256sum', { input: bytes, encoding: 'utf8' }).stdout
    assert.deepEqual(await done, { out: want, err: '', end: exited(0) })
    // Input that nobody reads is taken all the same.
    const deaf = rig.agent.exec({ argv: ['/bin/sh', '-c', 'exec <&-; sleep 0.3'] })
    await deaf.write(bytes)
    assert.deepEqual((await outputOf(deaf)).end, exited(0))
  })

  test('a program is slowed to what is read of its output, and others aren\'t', async () => {
    await using rig = await Rig.start()
    const session = rig.agent.exec({ argv: ['/bin/sh', '-c', `head -c 20000000 /dev/zero; touch ${rig.folder}/done`] })
    await sleep(300)
    assert.ok(!existsSync(join(rig.folder, 'done')))
    assert.equal((await run(rig, 'echo quick')).out, 'quick\n')
    let size = 0
    for await (const { bytes } of session.output) size += bytes.length
    assert.deepEqual([size, await session.ended, existsSync(join(rig.folder, 'done'))], [20_000_000, exited(0), true])
  })

  test('many programs run at once, more than the agent has room for are refused', async () => {
    await using rig = await Rig.start()
    const sessions = Array.from({ length: 64 }, (_, i) =>
      rig.agent.exec({ argv: ['/bin/sh', '-c', `read x; echo ${i}$x`] }))
    assert.throws(() => rig.agent.exec({ argv: ['true'] }), { code: 'AGENT_FAILED' })
    const outputs = await Promise.all(sessions.map(async (session) => {
      await session.write(Buffer.from('!\n'))
      return (await outputOf(session)).out
    }))
    assert.deepEqual(outputs, sessions.map((_, i) => `${i}!\n`))
  })

  test('signals reach a program and what it has started', async () => {
    await using rig = await Rig.start()
    const session = rig.agent.exec({ argv: ['/bin/sh', '-c', 'sleep 100 & echo $!; wait'] })
    const pieces = session.output[Symbol.asyncIterator]()
    const pid = Number(Buffer.from((await pieces.next()).value!.bytes).toString())
    session.signal(15)
    assert.deepEqual(await session.ended, { kind: 'signalled', signal: 15 })
    assert.equal(statusOf(await session.ended), 143)
    await gone(pid)
  })

  test('a program whose session is closed hears of it', async () => {
    await using rig = await Rig.start()
    const session = rig.agent.exec({ argv: ['/bin/sh', '-c', 'echo $$; exec sleep 100'] })
    const pieces = session.output[Symbol.asyncIterator]()
    const pid = Number(Buffer.from((await pieces.next()).value!.bytes).toString())
    session.close()
    await gone(pid)
    assert.equal((await session.ended).kind, 'lost')
  })

  test('what a program leaves behind keeps nobody waiting', async () => {
    await using rig = await Rig.start()
    const began = performance.now()
    const { out, end } = await run(rig, 'sleep 5 & (while echo y; do :; done) & echo first; exit 3')
    assert.ok(out.includes('first') && performance.now() - began < 4000)
    assert.deepEqual(end, exited(3))
  })

  test('a terminal has a size, a line discipline and one output', async () => {
    await using rig = await Rig.start()
    const script = 'trap "stty size; exit 4" WINCH; stty size; echo $TERM >&2; while read x; do echo got $x; done'
    const session = rig.agent.exec({ argv: ['/bin/sh', '-c', script], tty: { cols: 80, rows: 25 } })
    let seen = ''
    for await (const { channel, bytes } of session.output) {
      assert.equal(channel, 1)
      const before = seen
      seen += Buffer.from(bytes).toString()
      const now = (what: string): boolean => seen.includes(what) && !before.includes(what)
      if (now('xterm')) await session.write(Buffer.from('abc\r'))
      if (now('got abc')) session.resize(100, 30)
      // The shell waits for input before it looks at its trap.
      if (now('got abc')) await session.write(Buffer.from('d\r'))
    }
    assert.match(seen, /^25 80\r\nxterm\r\nabc\r\ngot abc\r\n/)
    assert.match(seen, /30 100\r\n/)
    assert.deepEqual(await session.ended, exited(4))
    const asleep = rig.agent.exec({ argv: ['cat'], tty: { cols: 1, rows: 1 } })
    asleep.endInput()
    assert.deepEqual((await outputOf(asleep)).end, exited(0))
  })

  test('get gives an archive that tar unpacks to the same files, odd names and all', async () => {
    await using rig = await Rig.start()
    const from = join(rig.folder, 'from'), to = join(rig.folder, 'to')
    const long = 'l'.repeat(200)
    mkdirSync(join(from, long, long), { recursive: true })
    mkdirSync(to)
    const names = ['plain', 'with space', 'new\nline', 'ä€😀', '-rf', '.hidden', join(long, long, 'deep'),
      'x'.repeat(100)]
    for (const [i, name] of names.entries()) writeFileSync(join(from, name), randomBytes(i * 700))
    writeFileSync(Buffer.concat([Buffer.from(`${from}/`), Buffer.from([0xff, 0xfe])]), 'no utf-8')
    chmodSync(join(from, 'plain'), 0o640)
    symlinkSync('/nowhere/'.repeat(20), join(from, 'link'))
    spawnSync('mkfifo', [join(from, 'pipe')])
    const archive = await buffer(Readable.from(await rig.agent.get(from)))
    const { status, stderr } = spawnSync('tar', ['x', '-C', to], { input: archive })
    assert.deepEqual([status, String(stderr)], [0, ''])
    rmSync(join(from, 'pipe'))
    assert.equal(spawnSync('diff', ['-r', '--no-dereference', from, join(to, 'from')]).status, 0)
    assert.equal(statSync(join(to, 'from', 'plain')).mode & 0o777, 0o640)
    const one = await buffer(Readable.from(await rig.agent.get(`${from}/plain`)))
    assert.equal(spawnSync('tar', ['t'], { input: one, encoding: 'utf8' }).stdout, 'plain\n')
  })

  test('get says what it can\'t give before it gives anything, and reads files without a size', async () => {
    await using rig = await Rig.start()
    await assert.rejects(rig.agent.get('/no/such/file'), { code: 'NOT_FOUND' })
    await assert.rejects(rig.agent.get('relative'), { code: 'AGENT_FAILED' })
    const archive = await buffer(Readable.from(await rig.agent.get('/proc/version')))
    assert.ok(archive.includes(readFileSync('/proc/version')))
  })

  test('get of more than fits on a disk is given as it comes, and may be left', async () => {
    await using rig = await Rig.start()
    const path = join(rig.folder, 'huge')
    writeFileSync(path, '')
    truncateSync(path, 9 * 2 ** 30)
    let size = 0
    for await (const bytes of await rig.agent.get(path)) {
      size += bytes.length
      if (size > 2_000_000) break
    }
    assert.equal((await run(rig, 'echo there')).out, 'there\n')
  })

  test('put unpacks what tar packs, over what is there', async () => {
    await using rig = await Rig.start()
    const from = join(rig.folder, 'from'), to = join(rig.folder, 'to/deep')
    mkdirSync(join(from, 'd'.repeat(150)), { recursive: true })
    writeFileSync(join(from, 'big'), randomBytes(2_000_001))
    writeFileSync(join(from, 'd'.repeat(150), 'new\nline'), 'x', { mode: 0o600 })
    symlinkSync('big', join(from, 'link'))
    for (const format of ['gnu', 'pax', 'ustar', 'v7']) {
      const { stdout } = spawnSync('tar', ['c', `--format=${format}`, '-C', rig.folder, 'from'], { maxBuffer: 2 ** 26 })
      await rig.agent.put(to, Readable.from([stdout.subarray(0, 100), stdout.subarray(100)]))
      const { stdout: differs } = spawnSync('diff', ['-r', '--no-dereference', from, join(to, 'from')],
        { encoding: 'utf8' })
      // What the old formats can't say isn't in them.
      if (format !== 'v7') assert.equal(differs, '', format)
    }
  })

  test('put refuses what leads out, what is damaged and what is no archive, and says why', async () => {
    await using rig = await Rig.start()
    writeFileSync(join(rig.folder, 'file'), 'x')
    const made = spawnSync('tar', ['c', '-P', '-C', rig.folder, '--transform', 's,file,a/../../file,', 'file']).stdout
    const into = join(rig.folder, 'into/deep')
    await assert.rejects(rig.agent.put(into, Readable.from([made])), { code: 'AGENT_FAILED', message: /leads out/ })
    await assert.rejects(rig.agent.put(into, Readable.from([made.subarray(0, 700)])), { code: 'AGENT_FAILED' })
    await assert.rejects(rig.agent.put(into, Readable.from([randomBytes(1024)])), { code: 'AGENT_FAILED' })
    await assert.rejects(rig.agent.put(`${rig.folder}/file`, Readable.from([made])), { code: 'AGENT_FAILED' })
    assert.deepEqual(readdirSync(join(rig.folder, 'into')), ['deep'])
  })

  test('stop and events run what the guest has for them', async () => {
    await using rig = await Rig.start()
    // Outside of a machine nothing else is done.
    await assert.rejects(rig.agent.stop('poweroff'), { code: 'AGENT_FAILED' })
    for (const name of ['stop', 'renew']) {
      writeFileSync(join(rig.folder, name), `#!/bin/sh\necho $0 $1 $CELLAR_GENERATION > ${rig.folder}/ran.$$\n` +
        `mv ${rig.folder}/ran.$$ ${rig.folder}/ran\n`, { mode: 0o755 })
    }
    const ran = async (): Promise<string> => {
      while (!existsSync(join(rig.folder, 'ran'))) await sleep(10)
      const said = readFileSync(join(rig.folder, 'ran'), 'utf8')
      rmSync(join(rig.folder, 'ran'))
      return said
    }
    await rig.agent.stop('reboot')
    assert.equal(await ran(), `${rig.folder}/stop reboot\n`)
    const generation = randomBytes(16).toString('hex')
    assert.deepEqual(await rig.agent.event({ kind: 'restore', generation, hostname: 'other' }), { did: 8 })
    assert.equal(await ran(), `${rig.folder}/renew restore ${generation}\n`)
    await rig.agent.ping()
  })

  test('programs of the guest ask the host, and are told what it says', async () => {
    await using rig = await Rig.start()
    rig.answer = async (asked) => asked.what === 'metadata' ? { errno: ESUCCESS, text: '{"name":"box"}' }
      : asked.what === 'hibernate' ? { errno: EACCES, text: 'not permitted\n' } : { errno: ESUCCESS, value: 0 }
    assert.deepEqual(await rig.ask('metadata').done, ['{"name":"box"}', '', 0])
    assert.deepEqual(await rig.ask('snapshot', 'before').done, ['0\n', '', 0])
    assert.deepEqual(await rig.ask('snapshot').done, ['0\n', '', 0])
    assert.deepEqual(await rig.ask('fork', '3').done, ['0\n', '', 0])
    const [, err, status] = await rig.ask('hibernate').done
    assert.deepEqual([status, err], [1, 'not permitted\nagent: hibernate: Permission denied\n'])
    assert.deepEqual(rig.asked.map((one) => one.what), ['metadata', 'snapshot', 'snapshot', 'fork', 'hibernate'])
    for (const words of [['fork', '0'], ['fork', 'x'], ['fork'], ['snapshot', 'x'.repeat(41)], ['connect', 'a', '0'],
      ['metadata', 'x']]) assert.equal((await rig.ask(...words).done)[2], 1, words.join(' '))
    assert.equal((await rig.ask('what').done)[2], 2)
    assert.equal(rig.asked.length, 5)
  })

  test('a program of the guest connects through the host, both ways', async () => {
    await using rig = await Rig.start()
    const bytes = randomBytes(2_000_000)
    rig.answer = async (asked) => {
      if (asked.what !== 'connect' || asked.name !== 'db') return { errno: EHOSTUNREACH }
      // An echo, as a peer of the network would be.
      return { errno: ESUCCESS, stream: new PassThrough() }
    }
    const child = spawn(PROGRAM, ['connect', 'db', '5432'], { env: { CELLAR_SOCKET: rig.socket } })
    child.stdin.end(bytes)
    assert.ok((await buffer(child.stdout)).equals(bytes))
    assert.deepEqual(rig.asked, [{ what: 'connect', name: 'db', port: 5432 }])
    const [, err, status] = await rig.ask('connect', 'nobody', '1').done
    assert.deepEqual([status, err], [1, 'agent: connect: Host is unreachable\n'])
  })

  test('when the line is lost programs hear of it, and the agent comes again', async () => {
    await using rig = await Rig.start()
    const session = rig.agent.exec({ argv: ['/bin/sh', '-c', 'echo $$; exec sleep 100'] })
    const pid = Number(Buffer.from((await session.output[Symbol.asyncIterator]().next()).value!.bytes).toString())
    const archive = await rig.agent.get('/usr/bin')
    // The first entry never comes to its end.
    const header = spawnSync('tar', ['c', '-C', '/usr/bin', 'env']).stdout.subarray(0, 512)
    const endless = (async function* () {
      yield header
      await new Promise(() => {})
    })()
    const putting = rig.agent.put(join(rig.folder, 'x'), endless)
    rig.lines[0]!.destroy()
    assert.equal((await session.ended).kind, 'lost')
    await assert.rejects(putting, { code: 'AGENT_NOT_CONNECTED' })
    await assert.rejects(buffer(Readable.from(archive)), { code: 'AGENT_NOT_CONNECTED' })
    assert.throws(() => rig.agent.exec({ argv: ['true'] }), { code: 'AGENT_NOT_CONNECTED' })
    await gone(pid)
    await rig.agent.connected(5000)
    assert.equal((await run(rig, 'echo again')).out, 'again\n')
    assert.deepEqual(rig.changes, ['Linux', undefined, 'Linux'])
  })

  test('a request that was saved with the machine is answered by what has become of it', async () => {
    const wants = { restore: ['1\n', 0], fork: ['1\n', 0], wake: ['', 1] } as const
    for (const [kind, [out, status]] of Object.entries(wants)) {
      await using rig = await Rig.start()
      rig.answer = async () => await new Promise(() => {})
      const asks = [rig.ask('snapshot'), rig.ask('fork', '3'), rig.ask('hibernate')]
      while (rig.asked.length < 3) await sleep(10)
      // The host that goes on with it is another one, and comes with another generation.
      const generation = randomBytes(16).toString('hex')
      const other = new Agent({ name: 'copy', generation, request: async () => ({ errno: ESUCCESS }) })
      rig.lines[0]!.removeAllListeners('data')
      other.attach(rig.lines[0]!)
      await other.connected(5000)
      await other.event({ kind: kind as keyof typeof wants, number: 2, generation })
      const [snapshot, fork, hibernate] = await Promise.all(asks.map((ask) => ask.done))
      assert.deepEqual([snapshot![0], snapshot![2]], [out, status], kind)
      assert.deepEqual([fork![0], fork![2]], kind === 'fork' ? ['2\n', 0] : ['', 1], kind)
      assert.deepEqual([hibernate![0], hibernate![2]], ['0\n', 0], kind)
      other.close()
    }
  })

  test('a host that comes anew on the same line is understood, whatever the last one was saying', async () => {
    await using rig = await Rig.start()
    const line = rig.lines[0]!
    const busy = rig.agent.exec({ argv: ['yes'] })
    await busy.output[Symbol.asyncIterator]().next()
    // The first part of a frame of 60 000 bytes; then another host, which knows nothing of it.
    line.write(Buffer.from([0xc5, 5, 0, 0, 1, 0, 0, 0, 0x60, 0xea, 0, 0, 1, 2, 3]))
    line.removeAllListeners('data')
    const other = new Agent({ name: 'box', generation: '11'.repeat(16), request: async () => ({ errno: ESUCCESS }) })
    other.attach(line)
    await other.connected(5000)
    const { out } = await outputOf(other.exec({ argv: ['echo', 'anew'] }))
    assert.equal(out, 'anew\n')
    other.close()
  })
})

async function gone(pid: number): Promise<void> {
  for (;;) {
    try {
      process.kill(pid, 0)
      // Nobody may have waited for it yet.
      if (/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))) return
    } catch {
      return
    }
    await sleep(10)
  }
}
