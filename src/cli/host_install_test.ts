// cli/host_install_test.ts: the files of the service, in a folder that stands for a machine's root.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { cellar, CELLAR, Folder, isRoot, NOBODY } from '../../tests/support.ts'

const UNIT = 'etc/systemd/system/cellar.service'
const FILES = [UNIT, 'etc/sysusers.d/cellar.conf', 'etc/tmpfiles.d/cellar.conf']
const hasVerify = spawnSync('systemd-analyze', ['--version']).status === 0

test('host install --prefix writes the files of the service, and host uninstall removes them', async () => {
  using folder = new Folder()
  const installed = await cellar(['host', 'install', '--prefix', folder.path, '--state', '/srv/cellar'])
  assert.deepEqual([installed.status, installed.stderr], [0, ''])
  for (const file of FILES) assert.match(String(installed.stdout), new RegExp(`Wrote ${folder.at(file)}\n`))
  const unit = readFileSync(folder.at(UNIT), 'utf8')
  assert.ok(unit.includes(`ExecStart="${CELLAR}" host --state "/srv/cellar" --group cellar\n`), unit)
  for (const line of ['Type=notify', 'WatchdogSec=30', 'KillMode=process', 'Restart=always', 'Delegate=yes',
    'LimitNOFILE=1048576', 'TasksMax=infinity', 'OOMScoreAdjust=-900', 'ReadWritePaths="/srv/cellar"']) {
    assert.ok(unit.includes(`\n${line}\n`), line)
  }
  assert.ok(!unit.includes('StateDirectory='))
  const removed = await cellar(['host', 'uninstall', '--prefix', folder.path])
  assert.deepEqual([removed.status, removed.stderr], [0, ''])
  assert.deepEqual(folder.list().filter((name) => FILES.includes(name)), [])
  assert.equal(String((await cellar(['host', 'uninstall', '--prefix', folder.path])).stdout), 'Nothing was installed\n')
})

test('host install --dry-run prints the files and writes none', async () => {
  using folder = new Folder()
  const { status, stdout } = await cellar(['host', 'install', '--dry-run', '--prefix', folder.path])
  assert.equal(status, 0)
  for (const file of FILES) assert.ok(String(stdout).includes(`# ${folder.at(file)}\n`), file)
  assert.match(String(stdout), /\nStateDirectory=cellar\nStateDirectoryMode=0711\n/)
  assert.deepEqual(folder.list(), [])
})

const noVerify = hasVerify ? false : 'systemd-analyze is not installed'

test('the unit is one that systemd takes', { skip: noVerify }, async () => {
  using folder = new Folder()
  for (const state of ['/var/lib/cellar', '/srv/a%b$c']) {
    await cellar(['host', 'install', '--prefix', folder.path, '--state', state])
    const { status, stdout, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', folder.at(UNIT)],
      { encoding: 'utf8', timeout: 60_000 })
    const about = (stdout + stderr).split('\n').filter((line) => line.includes('cellar'))
    assert.deepEqual([status, about], [0, []], stdout + stderr)
  }
})

const noRoot = isRoot ? noVerify : 'needs root'

test('sysusers and tmpfiles take their files', { skip: noRoot }, async () => {
  using folder = new Folder()
  await cellar(['host', 'install', '--prefix', folder.path, '--state', '/srv/cellar'])
  for (const [command, ...args] of [['systemd-sysusers'], ['systemd-tmpfiles', '--create']] as const) {
    const { status, stderr, error } = spawnSync(command, [...args, `--root=${folder.path}`], { encoding: 'utf8' })
    assert.deepEqual([error, status], [undefined, 0], stderr)
  }
  assert.match(readFileSync(folder.at('etc/group'), 'utf8'), /^cellar:/m)
  assert.ok(folder.list().includes('srv/cellar'))
})

test('host install says why it can\'t', async () => {
  using folder = new Folder()
  const blank = await cellar(['host', 'install', '--prefix', folder.path, '--state', '/srv/my cellar'])
  assert.match(blank.stderr, /\[HOST_INSTALL_FAILED\]/)
  folder.write('file')
  const file = await cellar(['host', 'install', '--prefix', folder.at('file')])
  assert.match(file.stderr, /ENOTDIR.*\[HOST_INSTALL_FAILED\]/s)
  if (isRoot) assert.match((await cellar(['host', 'install'], { uid: NOBODY })).stderr, /you are not root/)
})
