// tools/start.ts: `npm start`: a host with defaults of its own, the welcome example on it, and what to try next.
//
// The host keeps its state in the checkout (.cache/host) and needs no rights. It runs until Ctrl-C; its guests end with
// it here, as this is for trying: a host of its own (`cellar host`) leaves them running. A second start finds the state
// of the first. CELLAR_STATE names another folder for it, PORT another port for the site.

import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify, styleText } from 'node:util'
import { ROOT } from './ok.ts'

const CELLAR = join(ROOT, 'bin/cellar')
const STATE = process.env['CELLAR_STATE'] ?? join(ROOT, '.cache/host')
const SOCKET = join(STATE, 'host.sock')
const PORT_DEFAULT = 8080
const PORT = Number(process.env['PORT'] || PORT_DEFAULT)
const SITE = `http://127.0.0.1:${PORT}/`
const START_MS_MAX = 30_000
const MANIFEST = 'examples/welcome.yaml'

async function cellar(...args: readonly string[]): Promise<string> {
  const env = { ...process.env, CELLAR_HOST: SOCKET }
  return (await promisify(execFile)(CELLAR, args, { cwd: ROOT, env })).stdout.trimEnd()
}

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

/** Somebody listens on a socket. */
async function isLive(path: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const connection = connect(path, () => resolve(true)).once('error', () => resolve(false))
    connection.once('connect', () => connection.destroy())
  })
}

/** Guests of a host that was killed go on, and have our port. */
async function hasOrphans(): Promise<boolean> {
  const runs = existsSync(join(STATE, 'run')) ? readdirSync(join(STATE, 'run')) : []
  return (await Promise.all(runs.map((run) => isLive(join(STATE, 'run', run, 'c'))))).includes(true)
}

/** What is in the way of a start, in words; nothing if all is well. */
async function hindrance(): Promise<string | undefined> {
  if (!(Number.isInteger(PORT) && PORT > 0 && PORT < 65536)) return `PORT=${process.env['PORT']} is no port`
  if (await isLive(SOCKET)) {
    const pid = readFileSync(join(STATE, 'host.lock'), 'utf8').trim()
    return `A host runs here already, as process ${pid}. To use it: export CELLAR_HOST=${SOCKET}\n` +
      `To end it and its guests: Ctrl-C where it was started, or kill ${pid}`
  }
  if (await hasOrphans()) return undefined
  const taken = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
    const server = createServer().once('error', resolve)
    server.listen(PORT, '127.0.0.1', () => server.close(() => resolve(undefined)))
  })
  return taken === undefined ? undefined : taken.code !== 'EADDRINUSE' ? `Cannot serve ${SITE}: ${taken.message}`
    : `Port ${PORT} is in use by another program (ss -ltnp 'sport = :${PORT}' tells which).\n` +
      `End that one, or take another port: PORT=${PORT === PORT_DEFAULT ? 8090 : PORT_DEFAULT} npm start`
}

function startHost(): ChildProcess {
  // In a session of its own: Ctrl-C is for us, and we let it end in order.
  return spawn(CELLAR, ['host', '--state', STATE, '--log', join(STATE, 'host.log'), '--end-guests'],
    { stdio: ['ignore', 'inherit', 'inherit'], detached: true })
}

async function ready(host: ChildProcess): Promise<void> {
  for (const until = Date.now() + START_MS_MAX; Date.now() < until; await sleep(50)) {
    if (host.exitCode !== null || host.signalCode !== null || isStopping) break
    if (await cellar('ps', '-q').then(() => true, () => false)) return
  }
  throw new Error(`The host did not start. Its log: ${join(STATE, 'host.log')}\n` +
    'To keep its state in another folder, such as one with a short path: CELLAR_STATE=DIR npm start')
}

/** The manifest, or a copy of it with another port. */
function manifest(): string {
  if (PORT === PORT_DEFAULT) return MANIFEST
  const copy = join(STATE, 'welcome.yaml')
  writeFileSync(copy, readFileSync(join(ROOT, MANIFEST), 'utf8').replace(`"${PORT_DEFAULT}:80"`, `"${PORT}:80"`)
    .replaceAll('../guests/', join(ROOT, 'guests/')))
  return copy
}

async function show(...args: readonly string[]): Promise<void> {
  say(styleText('bold', `\n$ cellar ${args.join(' ')}`))
  say(await cellar(...args))
}

async function welcome(): Promise<void> {
  await show('apply', '-f', manifest())
  for (const name of ['web', 'counter', 'hog']) {
    const wait = cellar('wait', '-P', 'welcome', '--for', 'running', '--timeout', '20s', name)
    await wait.catch(async (error: unknown) => {
      await show('ps', '-a', '-P', 'welcome', '-o', 'wide')
      throw error
    })
  }
  const page = await (await fetch(SITE)).bytes()
  const count = await (await fetch(`${SITE}api/count`)).text()
  say(`\n${SITE} answers with a page of ${page.length} bytes, ${SITE}api/count with ${count.trim()}`)
  await sleep(1000)
  await show('ps', '-P', 'welcome')
  await show('stats', '-P', 'welcome')
}

const NEXT = `
${styleText('bold', `It serves ${SITE} until Ctrl-C. Try, in another terminal:`)}
  cd ${ROOT}
  export CELLAR_HOST=${SOCKET}
  bin/cellar ps -A                           what runs, in all projects
  bin/cellar top -A                          who gets how much, live
  bin/cellar logs -P welcome -f web          what a guest says
  bin/cellar kill -P welcome counter         end one: 'start' brings it back
  bin/cellar run -d --name hello guests/hello.wasm && bin/cellar logs hello
  bin/cellar events                          what happened
  bin/cellar doctor                          what this machine can do, and what it lacks
  npm run demo                               programs in the foreground: a compiler, Ruby, JavaScript
  bin/cellar help`

let isStopping = false
let host: ChildProcess | undefined

function stop(): void {
  if (isStopping) return
  isStopping = true
  say('\nEnding the guests and the host')
  host?.kill('SIGTERM')
}

function fail(text: string): void {
  process.stderr.write(`${text}\n`)
  process.exitCode = 1
}

async function main(): Promise<void> {
  const why = await hindrance()
  if (why !== undefined) return fail(why)
  try {
    mkdirSync(STATE, { recursive: true })
  } catch (error) {
    return fail(`Cannot keep the state of the host here: ${(error as Error).message}\n` +
      'To keep it in another folder: CELLAR_STATE=DIR npm start')
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop)
  const own = host = startHost()
  const ended = new Promise<void>((resolve) => { own.once('exit', () => resolve()) })
  try {
    await ready(own)
    await welcome()
    say(NEXT)
  } catch (error) {
    // Ctrl-C ends the commands that run just now, too.
    if (!isStopping) {
      fail((error as { stderr?: string }).stderr?.trimEnd() || (error as Error).message)
      if (own.exitCode === null) stop()
    }
  }
  await ended
  if (!isStopping && own.exitCode !== 0 && process.exitCode === undefined) {
    return fail(`The host ended by itself (${own.signalCode ?? own.exitCode}); its guests may go on. ` +
      `'npm start' takes them up again`)
  }
  if (process.exitCode === undefined) say(`All has ended. 'npm start' goes on with the same state, from ${STATE}`)
}

await main()
