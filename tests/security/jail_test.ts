// tests/security/jail_test.ts: a cell process gone bad stays in its jail (docs/jail.md), and a good one works in it.
//
// jail_attempts.ts runs in the place of a cell process, started as the host starts one, and tells how its
// attempts went. A wall that this machine doesn't have is passed over with its reason.

import assert from 'node:assert/strict'
import { chmodSync, existsSync, mkdirSync, readlinkSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { confinement } from '../../src/host/confinement.ts'
import { jailCommand, ownFolder, uidOf, type Layer } from '../../src/host/jail.ts'
import { closeFd, listenTcp, sendFd } from '../../src/sys/sockets.ts'
import { Folder, ROOT, isRoot, startCommand, until } from '../support.ts'
import type { Targets, Told } from './jail_attempts.ts'

const linux = process.platform === 'linux' ? false : 'needs Linux'
const standing = linux === false ? confinement() : { walls: [], failure: linux }
const skip = standing.failure ?? false
const PROJECT = 12
const ATTEMPTS = join(ROOT, 'tests/security/jail_attempts.ts')
const TICKET = 2 ** 52 + 1

/** Why a test of these walls can't run here; false if all stand. */
function without(...layers: Layer[]): string | false {
  const missing = standing.walls.find(({ layer, on }) => layers.includes(layer) && !on)
  return missing === undefined ? skip : `no wall "${missing.layer}" here: ${missing.why}`
}

/** How the attempts went, and what a client of the port that was sent to them was answered. */
async function attempts(folder: Folder, before: readonly string[] = []): Promise<{ told: Told; answered: string }> {
  const uid = isRoot ? uidOf(PROJECT) : undefined
  chmodSync(folder.path, 0o711)
  const [runFolder, projectFolder, blobFolder] = [folder.at('run'), folder.at('project'), folder.at('blobs')]
  const own = [join(projectFolder, 'cache'), join(projectFolder, 'snapshots'), join(projectFolder, 'files')]
  for (const path of [runFolder, projectFolder, ...own]) ownFolder(path, uid)
  mkdirSync(blobFolder, { mode: 0o711 })
  ownFolder(folder.at('other'), isRoot ? uidOf(PROJECT + 1) : undefined)
  const targets: Targets = { otherFile: folder.write('other/secret', 'x'), outside: folder.at('new'),
    hostPid: process.pid, ticket: TICKET }
  writeFileSync(join(runFolder, 'targets.json'), JSON.stringify(targets), { mode: 0o644 })
  const { file, args, env } = jailCommand({ runFolder, projectFolder, blobFolder, uid, program: ATTEMPTS })
  using running = startCommand([...before, file, ...args], { env: { ...env, SECRET_OF_THE_HOST: '1' } })
  const { fd, port } = listenTcp('127.0.0.1', 0, 8) as { fd: number; port: number }
  let answered = ''
  try {
    await until('it waits for a socket', () => existsSync(join(runFolder, 'ready')) || running.child.exitCode !== null)
    if (running.child.exitCode === null) {
      sendFd(join(runFolder, 'f'), fd, TICKET)
      answered = await new Promise<string>((done, fail) => {
        const socket = connect(port, '127.0.0.1', () => socket.write('from outside'))
        socket.once('data', (data) => done(String(data))).once('error', fail)
      })
    }
  } finally {
    closeFd(fd)
  }
  const { status, stdout, stderr } = await running.ended
  assert.deepEqual([status, stderr], [0, ''])
  return { told: JSON.parse(String(stdout)) as Told, answered }
}

describe('the jail of a cell process', { skip }, () => {
  const folder = new Folder()
  let told: Told
  let answered: string

  before(async () => { ({ told, answered } = await attempts(folder)) })
  after(() => folder[Symbol.dispose]())

  test('lockDown tells the walls that confinement finds', () => {
    assert.deepEqual(told.walls, standing.walls)
  })

  test('a worker, files, sockets and promise integration work inside', () => {
    assert.deepEqual([...new Set(Object.values(told.works))], ['done'], JSON.stringify(told.works))
  })

  test('a listening socket that is sent with sendFd is accepted from inside, across network namespaces', () => {
    assert.deepEqual([told.accepted, answered], ['from outside', 'from the jail'])
  })

  test('snapshots are written, moved, read and removed in the folder that the project has for them', () => {
    assert.equal(told.works['snapshots'], 'done')
    assert.equal(told.attempts['write in the snapshots'], 'done')
  })

  test('nothing of the environment of the host is known inside', () => {
    assert.deepEqual(told.env.filter((name) => /SECRET|PATH|HOME|CELLAR/.test(name)), [])
  })

  const seccomp = without('seccomp')
  for (const [attempt, errno] of Object.entries({
    'open an Internet socket': 'EPERM', 'open an IPv6 socket': 'EPERM', 'open a netlink socket': 'EPERM',
    'connect a Unix socket': 'EPERM', 'execute a shell': 'EPERM', 'fork': 'EPERM', 'clone3': 'ENOSYS',
    'trace the host': 'EPERM', 'signal the host': 'EPERM', 'become root': 'EPERM', 'make a user namespace': 'EPERM',
    'change the root': 'EPERM', 'type into a terminal': 'EPERM', 'set up io_uring': 'EPERM',
  })) {
    test(`seccomp answers the attempt to ${attempt} with ${errno}`, { skip: seccomp }, () => {
      assert.equal(told.attempts[attempt], errno)
    })
  }

  test('Landlock keeps it from files that are not its own, whoever it is', { skip: without('landlock') }, () => {
    for (const attempt of ['open a file of another project', 'read a list of users', 'write outside',
      'write in the blobs', 'write in the folder of its project', 'write in the files of its project',
      'read the memory of the host']) {
      assert.equal(told.attempts[attempt], 'EACCES', attempt)
    }
  })

  test('it has no capability and can get none', { skip: without('uid') }, () => {
    for (const name of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) {
      assert.match(told.status[name]!, /^0+$/, name)
    }
    assert.equal(told.status['NoNewPrivs'], '1')
  })

  test('its network, IPC and host name are its own', { skip: without('network', 'ipc', 'uts') }, () => {
    for (const name of ['net', 'ipc', 'uts']) {
      assert.notEqual(told.namespaces[name], readlinkSync(`/proc/self/ns/${name}`), name)
    }
  })
})

test('the uid alone keeps it from another project, where there is no Landlock', { skip: without('uid') }, async () => {
  using folder = new Folder()
  // Under a filter that answers landlock_create_ruleset as a kernel without it does: ENOSYS.
  const script = `import { installFilter } from ${JSON.stringify(join(ROOT, 'src/sys/seccomp.ts'))}
    installFilter([[0x20, 0, 0, 0], [0x15, 0, 1, 444], [6, 0, 0, 0x50026], [6, 0, 0, 0x7fff0000]])
    process.execve(process.argv[1], process.argv.slice(1), process.env)`
  const { told } = await attempts(folder, [process.execPath, '--disable-warning=ExperimentalWarning',
    '--input-type=module', '-e', script])
  const landlock = told.walls.find(({ layer }) => layer === 'landlock')
  assert.deepEqual(landlock, { layer: 'landlock', on: false, why: 'this kernel was built without it' })
  assert.deepEqual([told.uid, told.groups], [uidOf(PROJECT), [uidOf(PROJECT)]])
  for (const attempt of ['open a file of another project', 'write outside', 'write in the blobs',
    'read the memory of the host']) {
    assert.equal(told.attempts[attempt], 'EACCES', attempt)
  }
  assert.equal(told.attempts['read a list of users'], 'done')
})

test('the launcher says which folder its user can\'t use', { skip: isRoot ? skip : 'needs root' }, async () => {
  using folder = new Folder()
  const [runFolder, projectFolder, blobFolder] = ['run', 'project', 'blobs'].map((name) => folder.folder(name))
  const { file, args } = jailCommand({ runFolder: runFolder!, projectFolder: projectFolder!, blobFolder: blobFolder!,
    uid: uidOf(0), program: ATTEMPTS })
  using running = startCommand([file, ...args])
  const { status, stderr } = await running.ended
  assert.equal(status, 126)
  assert.match(stderr, /^cellar: Cannot start a cell process: EACCES: .*blobs'\n$/)
})

test('uidOf gives ids in the range that systemd leaves unused, and refuses what is beyond', () => {
  assert.equal(uidOf(0), 0x70000000)
  assert.throws(() => uidOf(-1), RangeError)
  assert.throws(() => uidOf(0x0ffe0000), RangeError)
})

test('ownFolder gives a folder to the project, and refuses a link in its place', { skip: linux }, () => {
  using folder = new Folder()
  const uid = isRoot ? uidOf(1) : undefined
  ownFolder(folder.at('own'), uid)
  ownFolder(folder.at('own'), uid)
  assert.deepEqual([statSync(folder.at('own')).mode & 0o777, statSync(folder.at('own')).uid],
    [0o700, uid ?? process.getuid!()])
  mkdirSync(folder.at('target'), { mode: 0o755 })
  symlinkSync('target', folder.at('link'))
  assert.throws(() => ownFolder(folder.at('link'), uid), { code: 'ENOTDIR' })
  assert.deepEqual([statSync(folder.at('target')).mode & 0o777, statSync(folder.at('target')).uid],
    [0o755, process.getuid!()])
})
