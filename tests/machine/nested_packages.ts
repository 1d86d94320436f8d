// tests/machine/nested_packages.ts: Debian's cloud kernel and busybox, from the distribution's packages, without root.
//
// `apt-get download` brings the packages and `dpkg-deb -x` unpacks them, into .cache/nested/; what is there is not
// brought again. Where there is no apt, or no archive within reach, packages that lie in .cache/nested/debs (or in the
// folder that CELLAR_NESTED_DEBS names) are used. Without any there is no nested host, and the tests say why.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'

/** The checkout. */
export const ROOT = resolve(import.meta.dirname, '../..')

/** Where packages and what is made of them are kept. Not in the repository. */
export const CACHE = join(ROOT, '.cache/nested')

const DEBS = process.env.CELLAR_NESTED_DEBS ?? join(CACHE, 'debs')
const COMMAND_MS_MAX = 300_000

/** A kernel with its modules, and busybox. `version` is the kernel's, as in /lib/modules. */
export type Packages = { version: string; kernel: string; modules: string; busybox: string }

/** The packages, brought if need be. `missing` says why there are none. */
export function findPackages(): Packages | { missing: string } {
  const kernel = findDeb(/^linux-image-\d.*-cloud-amd64_.*\.deb$/)
  const busybox = findDeb(/^busybox-static_.*\.deb$/)
  if (kernel === undefined || busybox === undefined) {
    const problem = download()
    if (problem !== undefined) return { missing: problem }
  }
  const debs = [/^linux-image-\d.*-cloud-amd64_.*\.deb$/, /^busybox-static_.*\.deb$/].map(findDeb)
  if (debs[0] === undefined || debs[1] === undefined) return { missing: `no packages came to ${DEBS}` }
  const folder = unpack(debs[0])
  const version = readdirSync(join(folder, 'lib/modules'))[0]
  if (version === undefined) return { missing: `${debs[0]} has no modules` }
  return {
    version, kernel: join(folder, `boot/vmlinuz-${version}`), modules: join(folder, 'lib/modules', version),
    busybox: join(unpack(debs[1]), 'bin/busybox'),
  }
}

/** The newest package whose file's name fits. */
function findDeb(pattern: RegExp): string | undefined {
  if (!existsSync(DEBS)) return undefined
  const newest = readdirSync(DEBS).filter((name) => pattern.test(name))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true })).at(-1)
  return newest === undefined ? undefined : join(DEBS, newest)
}

/** What went wrong, in words; undefined if the packages are there. */
function download(): string | undefined {
  mkdirSync(DEBS, { recursive: true })
  if (command(['apt-get', '--version']) !== undefined) {
    return `no apt-get here to bring linux-image-cloud-amd64 and busybox-static: put their .deb files in ${DEBS}`
  }
  const first = downloadWith([])
  if (first === undefined) return undefined
  // The machine's lists are missing or old: lists of our own, which need no root.
  const lists = join(CACHE, 'apt')
  for (const folder of ['state/lists/partial', 'cache/archives/partial']) {
    mkdirSync(join(lists, folder), { recursive: true })
  }
  const own = ['-o', `Dir::State=${lists}/state`, '-o', 'Dir::State::status=/var/lib/dpkg/status',
    '-o', `Dir::Cache=${lists}/cache`, '-o', 'APT::Sandbox::User=']
  const problem = command(['apt-get', ...own, 'update', '-qq']) ?? downloadWith(own)
  return problem === undefined ? undefined : `can't download linux-image-cloud-amd64: ${problem}`
}

function downloadWith(options: readonly string[]): string | undefined {
  const depends = spawnSync('apt-cache', [...options, 'depends', 'linux-image-cloud-amd64'], { encoding: 'utf8' })
  const image = /Depends: (linux-image-\d\S*-cloud-amd64)/.exec(depends.stdout ?? '')?.[1]
  if (image === undefined) return 'the package linux-image-cloud-amd64 is unknown here'
  return command(['apt-get', ...options, '-o', 'APT::Sandbox::User=', 'download', '-qq', image, 'busybox-static'], DEBS)
}

/** Unpacks a package beside itself, once. */
function unpack(deb: string): string {
  const folder = join(CACHE, deb.slice(deb.lastIndexOf('/') + 1).replace(/_amd64\.deb$/, '').replaceAll('%3a', ':'))
  if (existsSync(folder)) return folder
  const partial = `${folder}.${process.pid}`
  mkdirSync(partial, { recursive: true })
  const problem = command(['dpkg-deb', '-x', deb, partial])
  if (problem !== undefined) throw new Error(`Cannot unpack ${deb}: ${problem}`)
  try {
    renameSync(partial, folder)
  } catch {
    // Another process was first.
    rmSync(partial, { recursive: true })
  }
  return folder
}

/** Runs a command. Undefined if it went well, else its last words. */
function command([file, ...args]: readonly string[], cwd = '/'): string | undefined {
  const done = spawnSync(file!, args, { cwd, encoding: 'utf8', timeout: COMMAND_MS_MAX })
  if (done.error !== undefined) return done.error.message
  if (done.status === 0) return undefined
  return (done.stderr.trim() || `${file} ended with ${done.signal ?? done.status}`).split('\n').at(-1)
}
