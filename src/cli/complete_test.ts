// cli/complete_test.ts: completion: what Tab offers, by itself and through the shells' own scripts.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chmodSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { FakeHost, guestView, runCellar, type Answers } from './test_support.ts'

const ANSWERS: Answers = {
  'GET /v1/projects/default/guests': [200, { items: [guestView('web'), guestView('worker'), guestView('db')] }],
  'GET /v1/projects/shop/guests': [200, { items: [guestView('till')] }],
  'GET /v1/projects/default/volumes': [200, { items: [{ name: 'data' }] }],
  'GET /v1/projects/default/snapshots': [200, { items: [{ name: 'ready', digest: 'sha256:1', guest: 'web' },
    { digest: `sha256:${'e'.repeat(64)}`, guest: 'db' }] }],
  'GET /v1/images': [200, { items: [{ names: ['app:1', 'app:2'] }] }],
  'GET /v1/operations': [200, { items: [{ id: '7', target: 'app', status: 'running' }] }],
}

test('complete offers commands, flags, values, and names that the host knows', async () => {
  await using host = await FakeHost.start(ANSWERS)
  const offered = async (...words: string[]): Promise<string[]> => {
    const { status, stdout, stderr } = await host.run(['__complete', '--', ...words])
    assert.deepEqual([status, stderr], [0, ''])
    return stdout.split('\n').slice(0, -1).map((line) => line.split('\t')[0]!)
  }
  const cases: [string[], string[]][] = [
    [['st'], ['start', 'stop', 'stats', ':none']], [['volume', 're'], ['resize', ':none']],
    [['stop', ''], ['web', 'worker', 'db', ':none']], [['stop', 'w'], ['web', 'worker', ':none']],
    [['stop', 'web', 'w'], ['worker', ':none']], [['-P'], [':none']], [['stop', '-P', 'shop', ''], ['till', ':none']],
    [['stop', '--project=shop', ''], ['till', ':none']], [['rm', '--fo'], ['--force', ':none']],
    [['ps', '-o', 'w'], ['wide', ':none']], [['run', '--restart', ''], ['no', 'on-failure', 'always', ':none']],
    [['run', ''], [':file']], [['run', '--dir', ''], [':folder']], [['run', '-d', '--publish', ''], [':none']],
    [['run', 'x.wasm', '--'], [':file']], [['inspect', 'd'], ['db', ':file']], [['cp', 'd'], ['data:', ':file']],
    [['push', ''], ['app:1', 'app:2', ':none']], [['operation', 'wait', ''], ['7', ':none']],
    [['completion', ''], ['bash', 'zsh', 'fish', ':none']], [['logs', 'web', ''], [':none']],
    [['host', 'in'], ['install', ':none']], [['nonsense', ''], [':none']], [['exec', 'web', '--im'], [':file']],
    [['ps', '--', '-'], [':none']],
    [['restore', ''], ['ready', `sha256:${'e'.repeat(64)}`, ':none']], [['run', '--from', 'r'], ['ready', ':none']],
    [['snapshot', 'in'], ['inspect', ':none']], [['snapshot', 'd'], ['db', ':none']],
    [['fork', '--c'], ['--count', '--context', ':none']], [['snapshot', 'rm', 'ready', 'r'], [':none']],
  ]
  for (const [words, expected] of cases) assert.deepEqual(await offered(...words), expected, words.join(' '))
})

test('complete knows nothing of a host that is not there, or that does not answer', async () => {
  await using host = await FakeHost.start({})
  const silent = createServer((socket) => void socket.on('error', () => {}).resume())
  const path = join(host.folder, 'silent.sock')
  await new Promise<void>((done) => { silent.listen(path, done) })
  for (const address of [path, join(host.folder, 'none.sock')]) {
    const { status, stdout, stderr } = await host.run(['__complete', '--', 'stop', ''],
      { env: { CELLAR_HOST: address } })
    assert.deepEqual([status, stdout, stderr], [0, ':none\n', ''])
  }
  await new Promise((done) => { silent.close(done) })
})

test('complete offers contexts of the file', async () => {
  await using host = await FakeHost.start({})
  await host.run(['context', 'create', 'lab', '--host', 'unix:/x.sock'])
  assert.equal((await host.run(['__complete', '--', 'context', 'use', ''])).stdout, 'lab\tunix:/x.sock\n:none\n')
})

const MAIN = join(import.meta.dirname, 'main.ts')

/** A folder with `cellar` in it, for shells. */
async function withCommand(host: FakeHost): Promise<Record<string, string>> {
  const command = join(host.folder, 'cellar')
  writeFileSync(command, `#!/bin/sh\nexec '${process.execPath}' --disable-warning=ExperimentalWarning '${MAIN}' "$@"\n`)
  chmodSync(command, 0o755)
  for (const shell of ['bash', 'zsh', 'fish']) {
    const { stdout } = await runCellar(['completion', shell], { cwd: host.folder })
    writeFileSync(join(host.folder, `completion.${shell}`), stdout)
  }
  return { PATH: `${host.folder}:${process.env.PATH}`, HOME: host.folder, CELLAR_HOST: host.socket }
}

test('the script for bash completes in bash: commands, names, values after = and :, files', async () => {
  await using host = await FakeHost.start(ANSWERS)
  const env = await withCommand(host)
  writeFileSync(join(host.folder, 'prog.wasm'), '')
  const cases: [string, string][] = [
    ['cellar sto', 'stop'], ['cellar stop w', 'web worker'], ['cellar ps --output=w', 'wide'],
      ['cellar push app:', '1 2'],
    ['cellar run pro', 'prog.wasm'], ['cellar stop -P shop ', 'till'], ['cellar volume cl', 'clone'],
      ['cellar cp da', 'data:'],
    ['cellar stop --project=shop t', 'till'],
  ]
  // Bash splits a line at blanks, = and : before it calls a completion.
  const script = `source ./completion.bash
try() {
  COMP_LINE="$1" COMP_POINT=\${#1}
  COMP_WORDS=()
  local rest="$1" word
  while [[ "$rest" =~ ^[[:space:]]*([^[:space:]=:]+|[=:]+)(.*)$ ]]; do
    COMP_WORDS+=("\${BASH_REMATCH[1]}")
    rest="\${BASH_REMATCH[2]}"
  done
  [[ "$1" == *' ' ]] && COMP_WORDS+=("")
  COMP_CWORD=$((\${#COMP_WORDS[@]} - 1))
  _cellar
  echo "\${COMPREPLY[*]}"
}
for line in "$@"; do try "$line"; done`
  const { execFile } = await import('node:child_process')
  const run = await new Promise<{ stdout: string; stderr: string }>((done) => {
    execFile('bash', ['-c', script, 'bash', ...cases.map(([line]) => line)],
      { env, cwd: host.folder, timeout: 60_000 }, (_, stdout, stderr) => done({ stdout, stderr }))
  })
  assert.deepEqual(run.stdout.split('\n').slice(0, -1), cases.map(([, expected]) => expected), run.stderr)
})

for (const [shell, check] of [['zsh', ['-n']], ['fish', ['--no-execute']]] as const) {
  const has = spawnSync(shell, ['--version']).error === undefined
  test(`the script for ${shell} is one that ${shell} reads`, { skip: has ? false : `${shell} isn't installed` },
    async () => {
    await using host = await FakeHost.start({})
    const env = await withCommand(host)
    const { status, stderr } = spawnSync(shell, [...check, join(host.folder, `completion.${shell}`)], { env })
    assert.equal(status, 0, stderr.toString())
  })
}
