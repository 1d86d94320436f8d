// cli/host.ts: `cellar host`: the host in the foreground, until somebody ends it.
//
// What a service manager says to it: SIGTERM and SIGINT end it in order (what is being answered is answered; guests go
// on), a second one ends it at once; SIGHUP takes new certificates and opens its log anew. It tells systemd when it is
// ready, and that it lives. Elsewhere: the host (host/host.ts), its API (api/server.ts), its service (host_install.ts).

import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Socket } from 'node:net'
import { serve, type ApiServer, type ServeOptions } from '../api/server.ts'
import { CellarError } from '../base/errors.ts'
import { signals } from '../base/signals.ts'
import { recover as recoverState } from '../host/backup.ts'
import { Host } from '../host/host.ts'
import { Notifier } from '../host/notify.ts'
import type { Scope } from '../host/operator.ts'
import { parseListen } from '../services/net/listener.ts'
import { peerCredentials } from '../sys/sockets.ts'
import { defaultState } from './address.ts'
import type { Call } from './commands.ts'
import { openLog } from './host_log.ts'
import { print } from './print.ts'
import { ownVersion } from './version.ts'

/** How long requests have to be answered once the host is to end. */
const DRAIN_MS_MAX = 10_000

/** How often it looks whether its state folder is still there. */
const LOOK_MS = 3000

type Flags = Call['flags']

/** Runs a host until it is told to end: the exit status. */
export async function host({ flags }: Call): Promise<number> {
  const state = flags.state?.[0] ?? defaultState()
  const log = openLog(flags.log?.[0])
  const begun = Host.start({ state, version: ownVersion(), log, insecureRegistries: flags['insecure-registry'] ?? [] })
  const operator = await begun
  const over = Promise.race([waitForEnd(), stateGone(join(state, 'host.lock'))])
  let isGone = false
  let api: ApiServer | undefined
  try {
    api = await serve(operator, serving(flags, join(state, 'host.sock'), log))
    const notifier = new Notifier(process.env)
    process.on('SIGHUP', () => {
      notifier.reloading()
      try {
        log.reopen()
      } catch (error) {
        log.error('cannot open the log anew: the old one stays', { why: (error as Error).message })
      }
      try {
        api!.renew(serving(flags, '', log).listen ?? [])
      } catch (error) {
        log.error('cannot take new certificates: the old ones stay', { why: (error as Error).message })
      }
      notifier.ready(`pid ${process.pid}`)
    })
    notifier.ready(`serving ${[api.socket, ...api.urls].join(', ')}`)
    log.info('host is ready', { state, socket: api.socket, urls: api.urls, pid: process.pid })
    const signal = await over
    notifier.stopping()
    isGone = signal === 'gone'
    if (signal === 'gone') {
      log.error('the state folder was removed: host and guests end', { state })
      return 1
    }
    log.info('host ends', { signal })
    // A second one: at once. What is committed is committed.
    process.once(signal, () => process.exit(128 + signals[signal]))
    return 0
  } finally {
    await api?.close({ graceMs: DRAIN_MS_MAX })
    // Guests that no host could ever find again would hold their ports.
    await operator.close({ endGuests: isGone || flags['end-guests'] !== undefined })
  }
}

/** `cellar host recover`: back to the latest backup. */
export async function recover({ flags }: Call): Promise<number> {
  const recovered = recoverState(flags.state?.[0] ?? defaultState())
  if (recovered === undefined) {
    print('Nothing to recover: the state is whole\n')
    return 0
  }
  const { from, skipped, kept } = recovered
  print([`The state is that of ${from} now`, ...skipped.map((path) => `Skipped ${path}: it is damaged, too`),
    ...kept.map((path) => `Kept ${path}`), ''].join('\n'))
  return 0
}

async function waitForEnd(): Promise<'SIGTERM' | 'SIGINT'> {
  return await new Promise((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => resolve(name))
  })
}

// Resolves when the file is no longer the one that it was.
async function stateGone(path: string): Promise<'gone'> {
  const { ino } = statSync(path)
  return await new Promise((resolve) => {
    setInterval(() => {
      if (statSync(path, { throwIfNoEntry: false })?.ino !== ino) resolve('gone')
    }, LOOK_MS).unref()
  })
}

function serving(flags: Flags, path: string, log: ReturnType<typeof openLog>): ServeOptions {
  const tls = tlsOf(flags)
  return {
    socket: { path, peerOf,
      ...(flags.group === undefined ? {} : { gid: groupId(flags.group[0]!) }) },
    listen: (flags['listen'] ?? []).map((text) => ({ ...parseListen(text), tls })),
    log: ({ level, msg, ...fields }) => log[level](msg, fields),
  }
}

function tlsOf(flags: Flags): NonNullable<ServeOptions['listen']>[number]['tls'] {
  const [cert, key, ca] = [flags['tls-cert']?.[0], flags['tls-key']?.[0], flags['client-ca']?.[0]]
  if (cert === undefined && key === undefined && ca === undefined) return undefined
  if (cert === undefined || key === undefined) {
    throw new CellarError('FLAG_VALUE_INVALID', ['--tls-cert', cert ?? '', 'given together with --tls-key'])
  }
  const certificates = Object.fromEntries((flags.client ?? []).map((text) => {
    const match = /^([^=]+)=(read|write|admin)(?::([A-Za-z0-9][\w.-]{0,39}))?$/.exec(text)
    if (match === null) {
      throw new CellarError('FLAG_VALUE_INVALID', ['--client', text, 'NAME=read|write|admin[:PROJECT]'])
    }
    const [, name, scope, project] = match
    return [name!, { scope: scope as Scope, ...(project === undefined ? {} : { project }) }]
  }))
  return { cert: readPem('--tls-cert', cert), key: readPem('--tls-key', key),
    ...(ca === undefined ? {} : { clientCa: readPem('--client-ca', ca), certificates }) }
}

function readPem(flag: string, path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    throw new CellarError('FLAG_VALUE_INVALID', [flag, path, `a file that can be read: ${(cause as Error).message}`],
      { cause })
  }
}

// Names of groups are in /etc/group; a number is one.
function groupId(text: string): number {
  if (/^\d+$/.test(text)) return Number(text)
  const line = readFileSync('/etc/group', 'utf8').split('\n').find((one) => one.startsWith(`${text}:`))
  if (line === undefined) throw new CellarError('FLAG_VALUE_INVALID', ['--group', text, 'a group of this machine'])
  return Number(line.split(':')[2])
}

// Node tells a socket's descriptor only so.
function peerOf(socket: Socket): ReturnType<typeof peerCredentials> | undefined {
  const { fd } = (socket as unknown as { _handle: { fd: number } | null })._handle ?? { fd: -1 }
  return fd < 0 ? undefined : peerCredentials(fd)
}
