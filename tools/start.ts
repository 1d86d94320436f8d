// tools/start.ts: `npm start`: a host with defaults of its own, the welcome example on it, and what to try next.
//
// The host keeps its state in the checkout (.cache/host) and needs no rights. It runs until Ctrl-C; its guests end with
// it here, as this is for trying: a host of its own (`cellar host`) leaves them running. A second start finds the state
// of the first.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { styleText } from 'node:util'
import { ROOT } from './ok.ts'

const CELLAR = join(ROOT, 'bin/cellar')
/** Paths of sockets are short: a checkout that lies deep gets a folder elsewhere by CELLAR_STATE. */
const STATE = process.env['CELLAR_STATE'] ?? join(ROOT, '.cache/host')
const SOCKET = join(STATE, 'host.sock')
const START_MS_MAX = 30_000

function cellar(args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(CELLAR, args, { encoding: 'utf8', cwd: ROOT,
    env: { ...process.env, CELLAR_HOST: SOCKET } })
  if (status !== 0) throw new Error(`cellar ${args.join(' ')}: ${stderr.trim()}`)
  return stdout.trimEnd()
}

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

function startHost(): ChildProcess {
  mkdirSync(STATE, { recursive: true })
  // In a session of its own: Ctrl-C is for us, and we let it end in order.
  return spawn(CELLAR, ['host', '--state', STATE, '--log', join(STATE, 'host.log'), '--end-guests'],
    { stdio: ['ignore', 'inherit', 'inherit'], detached: true })
}

async function ready(host: ChildProcess): Promise<void> {
  const until = Date.now() + START_MS_MAX
  while (Date.now() < until && host.exitCode === null) {
    if (existsSync(SOCKET) && spawnSync(CELLAR, ['ps', '-q'], { env: { ...process.env, CELLAR_HOST: SOCKET } })
      .status === 0) return
    await sleep(50)
  }
  throw new Error('The host did not start: see above')
}

async function welcome(): Promise<void> {
  say(styleText('bold', '\ncellar apply -f examples/welcome.yaml'))
  say(cellar(['apply', '-f', 'examples/welcome.yaml']))
  for (const name of ['web', 'counter', 'hog']) {
    cellar(['wait', '-P', 'welcome', '--for', 'running', '--timeout', '20s', name])
  }
  const page = await fetch('http://127.0.0.1:8080/')
  say(`\nhttp://127.0.0.1:8080/ answers ${page.status}, ${(await page.text()).length} bytes; ` +
    `/api/count: ${await (await fetch('http://127.0.0.1:8080/api/count')).text()}`)
  await sleep(1000)
  say(styleText('bold', '\ncellar ps -P welcome'))
  say(cellar(['ps', '-P', 'welcome']))
  say(styleText('bold', '\ncellar stats -P welcome'))
  say(cellar(['stats', '-P', 'welcome']))
}

const NEXT = `
${styleText('bold', 'It runs until Ctrl-C. Try, in another terminal:')}
  open http://127.0.0.1:8080/                              the site: a cell, and behind it another
  export CELLAR_HOST=${SOCKET}
  bin/cellar ps -A                                         what runs
  bin/cellar top -A                                        who gets how much, live
  bin/cellar logs -P welcome -f web                        what a guest says
  bin/cellar kill -P welcome counter                       end one: 'start' brings it back
  bin/cellar run -d --name hello guests/hello.wasm && bin/cellar logs hello
  bin/cellar events                                        what happened
  bin/cellar doctor                                        what this machine can do
  npm run demo                                             programs in the foreground: a compiler, Ruby, JavaScript
  bin/cellar help
`

const host = startHost()
const ended = new Promise<void>((resolve) => { host.once('exit', () => resolve()) })
let isStopping = false
function stop(): void {
  if (isStopping) return
  isStopping = true
  say('\nStopping the guests and the host')
  host.kill('SIGTERM')
}
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop)
try {
  await ready(host)
  await welcome()
  say(NEXT)
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`)
  process.exitCode = 1
  stop()
}
await ended
