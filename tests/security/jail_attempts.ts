// tests/security/jail_attempts.ts: a cell process gone bad: what it tries in its jail, and what it still can do.
//
// It runs in the place of a cell process (jail_test.ts) and goes past Node, by system calls, as machine code that broke
// out of V8 would. Its answer is JSON on stdout: for each attempt 'done', or the errno's name.

import { mkdirSync, readFileSync, readlinkSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer, Server, Socket } from 'node:net'
import { Worker, isMainThread, parentPort } from 'node:worker_threads'
import { ERRNO_NAMES } from '../../src/base/errno.ts'
import { lockDown } from '../../src/host/jail_inside.ts'
import { Scratch, answer, bind, exitNow } from '../../src/sys/libc.ts'
import { AT_FDCWD, O_CREAT, O_RDONLY, O_RDWR, close, openat } from '../../src/sys/linux_files.ts'
import { openFdReceiver, socketPair } from '../../src/sys/sockets.ts'

/** What it is told in `targets.json` of its run folder. */
export type Targets = {
  readonly otherFile: string; readonly outside: string; readonly hostPid: number; readonly ticket?: number
}
/** What it tells. */
export type Told = {
  readonly walls: ReturnType<typeof lockDown>
  readonly attempts: Readonly<Record<string, string>>; readonly works: Readonly<Record<string, string>>
  readonly uid: number; readonly groups: readonly number[]; readonly status: Readonly<Record<string, string>>
  readonly namespaces: Readonly<Record<string, string>>; readonly accepted?: string; readonly env: readonly string[]
}

const native = bind({
  socket: { arguments: ['int32', 'int32', 'int32'], return: 'int32' },
  fork: { arguments: [], return: 'int32' },
  execve: { arguments: ['pointer', 'pointer', 'pointer'], return: 'int32' },
  ptrace: { arguments: ['int64', 'int32', 'pointer', 'pointer'], return: 'int64' },
  kill: { arguments: ['int32', 'int32'], return: 'int32' },
  setuid: { arguments: ['uint32'], return: 'int32' },
  unshare: { arguments: ['int32'], return: 'int32' },
  chroot: { arguments: ['pointer'], return: 'int32' },
  ioctl: { arguments: ['int32', 'uint64', 'int64'], return: 'int32' },
  syscall: { arguments: ['int64', 'int64', 'pointer', 'pointer', 'int64'], return: 'int64' },
})

const PTRACE_SEIZE = 0x4206n
const CLONE_NEWUSER = 0x10000000
const TIOCSTI = 0x5412n
const SYS_IO_URING_SETUP = 425n
const SYS_CLONE3 = 435n

function text(value: string): Scratch {
  const scratch = new Scratch(Buffer.byteLength(value) + 1)
  scratch.bytes.set(Buffer.from(value))
  return scratch
}

const outcome = (result: number): string => result < 0 ? ERRNO_NAMES[-result]! : 'done'

function opened(path: string, flags: number): string {
  const fd = openat(AT_FDCWD, Buffer.from(path), flags, 0o600)
  if (fd >= 0) close(fd)
  return outcome(fd)
}

function forked(): string {
  const pid = answer(native.fork())
  if (pid === 0) exitNow(0)
  return outcome(pid)
}

async function connected(path: string): Promise<string> {
  return await new Promise<string>((tell) => {
    connect(path).once('connect', () => tell('done')).once('error', (error: NodeJS.ErrnoException) => tell(error.code!))
  })
}

async function attempt(targets: Targets, runFolder: string): Promise<Record<string, string>> {
  const none = new Scratch(128)
  return {
    'open a file of another project': opened(targets.otherFile, O_RDONLY),
    'read a list of users': opened('/etc/passwd', O_RDONLY),
    'write outside': opened(targets.outside, O_RDWR | O_CREAT),
    'write in the folder of its project': opened(`${runFolder}/../project/new`, O_RDWR | O_CREAT),
    'write in the files of its project': opened(`${runFolder}/../project/files/new`, O_RDWR | O_CREAT),
    'write in the snapshots': opened(`${runFolder}/../project/snapshots/new`, O_RDWR | O_CREAT),
    'write in the blobs': opened(`${runFolder}/../blobs/new`, O_RDWR | O_CREAT),
    'open an Internet socket': outcome(answer(native.socket(2, 1, 0))),
    'open an IPv6 socket': outcome(answer(native.socket(10, 2, 0))),
    'open a netlink socket': outcome(answer(native.socket(16, 3, 0))),
    'connect a Unix socket': await connected(`${runFolder}/c`),
    'execute a shell': outcome(answer(native.execve(text('/bin/sh').address, 0n, 0n))),
    'fork': forked(),
    'clone3': outcome(answer(Number(native.syscall(SYS_CLONE3, none.address, 88n, 0n, 0n)))),
    'trace the host': outcome(answer(Number(native.ptrace(PTRACE_SEIZE, targets.hostPid, 0n, 0n)))),
    'signal the host': outcome(answer(native.kill(targets.hostPid, 0))),
    'read the memory of the host': opened(`/proc/${targets.hostPid}/mem`, O_RDONLY),
    'become root': outcome(answer(native.setuid(0))),
    'make a user namespace': outcome(answer(native.unshare(CLONE_NEWUSER))),
    'change the root': outcome(answer(native.chroot(text('/').address))),
    'type into a terminal': outcome(answer(native.ioctl(0, TIOCSTI, none.address))),
    'set up io_uring': outcome(answer(Number(native.syscall(SYS_IO_URING_SETUP, 8n, none.address, 0n, 0n)))),
  }
}

/** A module that exports its import m.f as g. */
const PASSES_ON = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 2, 7, 1, 1, 109, 1, 102, 0, 0,
  7, 5, 1, 1, 103, 0, 0])

/** What a cell process needs: 'done', or why it failed. */
async function work(runFolder: string): Promise<Record<string, string>> {
  const filesIn = (folder: string): void => {
    mkdirSync(`${folder}/a`)
    writeFileSync(`${folder}/a/x`, 'text')
    renameSync(`${folder}/a/x`, `${folder}/y`)
    rmSync(`${folder}/a`, { recursive: true })
    readFileSync(`${folder}/y`, 'utf8')
    rmSync(`${folder}/y`)
  }
  const tasks: Record<string, () => unknown> = {
    'files': () => filesIn(`${runFolder}/../project/cache`),
    'snapshots': () => filesIn(`${runFolder}/../project/snapshots`),
    'a worker': () => new Promise((done, fail) => {
      const worker = new Worker(new URL(import.meta.url))
      worker.once('message', (message) => message === 'EPERM' ? done(message) : fail(new Error(`socket: ${message}`)))
      worker.once('error', fail)
    }),
    'a listening Unix socket': () => new Promise((done, fail) => {
      const server = createServer().listen(`${runFolder}/c`, () => server.close(done)).once('error', fail)
    }),
    'a socket pair': () => new Promise((done, fail) => {
      const [a, b] = socketPair().map((fd) => new Socket({ fd }))
      a!.once('data', done).once('error', fail)
      b!.end('x')
    }),
    'promise integration': async () => {
      const f = new WebAssembly.Suspending(async () => {}) as unknown as WebAssembly.ImportValue
      const { exports } = new WebAssembly.Instance(new WebAssembly.Module(PASSES_ON), { m: { f } })
      await WebAssembly.promising(exports['g'] as () => void)()
    },
    'its own figures': () => [process.memoryUsage(), process.cpuUsage(), readFileSync('/dev/null')],
  }
  const told: Record<string, string> = {}
  for (const [name, task] of Object.entries(tasks)) {
    told[name] = await Promise.resolve().then(task).then(() => 'done', (error: Error) => error.message)
  }
  return told
}

/** Takes the listening socket that was sent with `ticket` and answers one connection to it: what came. */
async function accept(runFolder: string, ticket: number): Promise<string> {
  const receiver = openFdReceiver(`${runFolder}/f`)
  writeFileSync(`${runFolder}/ready`, '')
  let fd
  while ((fd = receiver.take(ticket)) === undefined) await new Promise((done) => { setTimeout(done, 5) })
  const server = new Server()
  const socket = await new Promise<Socket>((done) => { server.once('connection', done).listen({ fd }) })
  const came = await new Promise<Buffer>((done) => { socket.once('data', done) })
  await new Promise<void>((done) => { socket.end('from the jail', done) })
  server.close()
  receiver.close()
  return String(came)
}

async function main(runFolder: string): Promise<void> {
  const walls = lockDown()
  const targets = JSON.parse(readFileSync(`${runFolder}/targets.json`, 'utf8')) as Targets
  const status = Object.fromEntries(readFileSync('/proc/self/status', 'utf8').split('\n')
    .map((line) => line.split(':\t') as [string, string]))
  const told: Told = {
    walls, works: await work(runFolder), attempts: await attempt(targets, runFolder), uid: process.getuid!(),
    groups: process.getgroups!(), status, env: Object.keys(process.env),
    namespaces: Object.fromEntries(['net', 'ipc', 'uts'].map((name) => [name, readlinkSync(`/proc/self/ns/${name}`)])),
    ...(targets.ticket === undefined ? {} : { accepted: await accept(runFolder, targets.ticket) }),
  }
  writeFileSync(1, JSON.stringify(told))
}

if (isMainThread) await main(process.argv[2]!)
else parentPort!.postMessage(outcome(answer(native.socket(2, 1, 0))))
