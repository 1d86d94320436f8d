// cli/host_install.ts: `cellar host install` and `cellar host uninstall`: the host as a service of systemd.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CellarError } from '../base/errors.ts'
import { SERVICE, SERVICE_STATE, serviceFiles, type ServiceFile } from '../host/service_files.ts'
import { INSTALL_FLAGS, parseFlags } from './flags.ts'
import { print } from './print.ts'

const PROGRAM = fileURLToPath(new URL('../../bin/cellar', import.meta.url))
/** Characters that units and tmpfiles.d have a meaning for that no quoting takes away everywhere. */
const UNUSABLE = /[\s"\\]/

/** `cellar host install|uninstall FLAGS`, with the verb in `argv`: 0. Throws CellarError. */
export function hostInstall([verb, ...argv]: readonly string[]): number {
  const { flags, rest } = parseFlags(argv, INSTALL_FLAGS)
  if (rest.length > 0) throw new CellarError('USAGE', [`Cannot ${verb} "${rest[0]}": it takes flags only`])
  const state = resolve(flags.state?.[0] ?? SERVICE_STATE)
  for (const path of [PROGRAM, state]) {
    if (UNUSABLE.test(path)) throw failed(path, 'systemd has no use for paths with blanks, quotes or backslashes')
  }
  const files = serviceFiles(PROGRAM, state)
  const prefix = flags.prefix?.[0]
  const isForReal = flags['dry-run'] === undefined
  if (isForReal && prefix === undefined && process.getuid?.() !== 0) throw failed('the service', 'you are not root')
  const placed = files.map(({ path, text }) =>
    ({ path: prefix === undefined ? path : join(resolve(prefix), path), text }))
  const activates = isForReal && prefix === undefined && existsSync('/run/systemd/system')
  if (verb === 'uninstall') uninstall(placed, isForReal, activates)
  else install(placed, isForReal, activates)
  return 0
}

function install(files: readonly ServiceFile[], isForReal: boolean, activates: boolean): void {
  if (!isForReal) return print(files.map(({ path, text }) => `# ${path}\n${text}`).join('\n'))
  for (const { path, text } of files) attempt(path, () => {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, text, { mode: 0o644 })
  })
  print(files.map(({ path }) => `Wrote ${path}\n`).join(''))
  if (!activates) return print(`Not started: that is for the systemd of a running machine ('systemctl enable --now ${
    SERVICE}')\n`)
  run('systemd-sysusers', 'cellar.conf')
  run('systemd-tmpfiles', '--create', 'cellar.conf')
  run('systemctl', 'daemon-reload')
  run('systemctl', 'enable', '--now', SERVICE)
  print(`Started ${SERVICE}: see 'systemctl status ${SERVICE}'\n`)
}

function uninstall(files: readonly ServiceFile[], isForReal: boolean, activates: boolean): void {
  const there = files.filter(({ path }) => existsSync(path))
  if (!isForReal) return print(there.map(({ path }) => `Would remove ${path}\n`).join(''))
  if (activates && there.length > 0) run('systemctl', 'disable', '--now', SERVICE)
  for (const { path } of there) attempt(path, () => rmSync(path))
  if (activates) run('systemctl', 'daemon-reload')
  print(there.map(({ path }) => `Removed ${path}\n`).join('') || 'Nothing was installed\n')
}

function run(command: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'ignore', 'pipe'] })
  if (status === 0) return
  throw failed(SERVICE, `${[command, ...args].join(' ')}: ${error?.message ?? stderr.trim()}`)
}

function attempt(what: string, action: () => void): void {
  try {
    action()
  } catch (cause) {
    throw new CellarError('HOST_INSTALL_FAILED', [what, (cause as Error).message], { cause })
  }
}

function failed(what: string, why: string): CellarError {
  return new CellarError('HOST_INSTALL_FAILED', [what, why])
}
