// image/machine_packages.ts: packages of Debian, fetched and unpacked without being root.
//
// apt fetches and checks them: its signatures and hashes are what the guest's first files rest on. It works in a folder
// of ours, with lists of its own where the machine's don't have what is wanted, and installs nothing: packages are
// unpacked (dpkg-deb), and none of their scripts run.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import { lastLine, runTool } from './machine_tools.ts'

const DEFAULT_MIRROR = 'http://deb.debian.org/debian'
const SECURITY = 'http://deb.debian.org/debian-security'
const DEFAULT_RELEASE = 'bookworm'
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
/** In sources.list, or in a file of sources.list.d. */
const MIRROR = /^(?:deb (?:\[[^\]]*\] *)?|URIs: *)(https?:\/\/\S+\/debian)\/?(?:\s|$)/m
const PACKAGE = /^[a-z0-9][a-z0-9+.-]{1,127}$/

/** Where packages come from and go to. */
export type PackageSource = {
  /** Of ours; what is in it from an earlier time is used again. */
  readonly folder: string
  /** Such as 'bookworm'. Undefined: this machine's, if it is Debian. */
  readonly release?: string | undefined
  readonly mirror?: string | undefined
  /** Told what is being done. */
  readonly say: (text: string) => void
}

/** Packages, as files. Made by `openPackages`. */
export class Packages {
  readonly #folder: string
  readonly #options: readonly string[]
  readonly #say: (text: string) => void

  constructor(folder: string, options: readonly string[], say: (text: string) => void) {
    this.#folder = folder
    this.#options = options
    this.#say = say
  }

  /** The names that a package depends on that begin with `prefix`. Throws MACHINE_PACKAGES_FAILED. */
  async dependency(name: string, prefix: string): Promise<string> {
    const text = await run(`look up ${name}`, 'apt-cache', [...this.#options, 'show', '--no-all-versions', name])
    const depends = /^Depends: (.*)$/m.exec(text)?.[1]?.split(/[,|]/).map((one) => one.trim().split(' ')[0]!) ?? []
    const found = depends.find((one) => one.startsWith(prefix))
    if (found !== undefined) return found
    throw new CellarError('MACHINE_PACKAGES_FAILED', [`look up ${name}`, `it depends on no ${prefix}…`])
  }

  /** Fetches a package; answers its file. */
  async fetch(name: string): Promise<string> {
    const folder = join(this.#folder, 'packages', name)
    mkdirSync(folder, { recursive: true })
    const known = new Set(readdirSync(folder))
    this.#say(`fetching ${name}`)
    await run(`fetch ${name}`, 'apt-get', [...this.#options, '-q', 'download', name], { cwd: folder })
    const files = readdirSync(folder).filter((one) => one.endsWith('.deb'))
    // apt leaves alone what it has already, so that the newest is the one it wants, if there is no new one.
    const file = files.find((one) => !known.has(one)) ??
      (files.length === 1 ? files[0] : await this.#newest(name, files))
    if (file === undefined) throw new CellarError('MACHINE_PACKAGES_FAILED', [`fetch ${name}`, 'apt left no file'])
    return join(folder, file)
  }

  /**
   * Fetches packages and all that they depend on, as far as they aren't here from an earlier time; answers their files,
   * in an order in which they can be unpacked.
   */
  async fetchAll(names: readonly string[]): Promise<string[]> {
    for (const name of names) {
      if (!PACKAGE.test(name)) throw new CellarError('MACHINE_PACKAGES_FAILED', [
        `fetch "${printable(name, 60)}"`, 'that is no name of a package'])
    }
    const status = join(this.#folder, 'empty-status')
    writeFileSync(status, '')
    const cache = join(this.#folder, 'cache')
    const nothing = join(this.#folder, 'no-archives')
    for (const one of [join(cache, 'archives'), nothing]) mkdirSync(join(one, 'partial'), { recursive: true })
    const options = [...this.#options, '-o', `Dir::State::status=${status}`, '-o', `Dir::Cache=${cache}`, '-o',
      'Debug::NoLocking=1', '-o', 'APT::Install-Recommends=0', '-q', '-y']
    // apt leaves out of the list what it has already: hence it is asked where it has nothing.
    const list = await run('look up packages', 'apt-get', [...options, '-o', `Dir::Cache::archives=${nothing}`, '-o',
      'Acquire::ForceHash=SHA256', '--print-uris', 'install', ...names])
    const files = [...list.matchAll(/^'\S+' ([\w.+~%-]+\.deb) (\d+) SHA256:([0-9a-f]{64})$/gm)]
      .map(([, name, size, hash]) => ({ path: join(cache, 'archives', name!), size: Number(size), hash: hash! }))
    if (files.length === 0) throw new CellarError('MACHINE_PACKAGES_FAILED', ['look up packages', 'apt names no files'])
    // Of what it has, apt looks at the size alone.
    const missing = files.filter((file) => !isWhole(file))
    for (const { path } of missing) rmSync(path, { force: true })
    if (missing.length > 0) {
      this.#say(`fetching ${names.join(', ')} and what they need`)
      await run('fetch packages', 'apt-get', [...options, '--download-only', 'install', ...names])
    }
    const lost = missing.find((file) => !isWhole(file))
    if (lost === undefined) return files.map(({ path }) => path)
    throw new CellarError('MACHINE_PACKAGES_FAILED', ['fetch packages', `apt left no ${basename(lost.path)}`])
  }

  // Of files of one package: the version that apt would fetch.
  async #newest(name: string, files: readonly string[]): Promise<string | undefined> {
    const text = await run(`look up ${name}`, 'apt-cache', [...this.#options, 'show', '--no-all-versions', name])
    const version = /^Version: (.*)$/m.exec(text)?.[1]?.replaceAll(':', '%3a') ?? ''
    return files.find((one) => one.startsWith(`${name}_${version}_`))
  }
}

/**
 * Packages of Debian: those that this machine's apt knows, if it knows `wanted` and nothing else is asked for; else of
 * lists that are fetched anew. Throws MACHINE_TOOL_MISSING, MACHINE_PACKAGES_FAILED.
 */
export async function openPackages(source: PackageSource, wanted: string): Promise<Packages> {
  const { folder, release, mirror, say } = source
  mkdirSync(folder, { recursive: true })
  const plain = ['-o', 'APT::Architecture=amd64', '-o', 'APT::Architectures=amd64']
  if (release === undefined && mirror === undefined && await knows(plain, wanted)) {
    return new Packages(folder, plain, say)
  }
  const state = join(folder, 'state')
  for (const part of ['state/lists/partial', 'cache/archives/partial']) {
    mkdirSync(join(folder, part), { recursive: true })
  }
  const [sources, status] = [join(folder, 'sources.list'), join(folder, 'empty-status')]
  writeFileSync(sources, sourcesOf(release ?? ownRelease(), mirror))
  writeFileSync(status, '')
  const own = [...plain, '-o', `Dir::State=${state}`, '-o', `Dir::State::status=${status}`, '-o',
    `Dir::Cache=${join(folder, 'cache')}`, '-o', `Dir::Etc::sourcelist=${sources}`, '-o',
    'Dir::Etc::sourceparts=/dev/null', '-o', 'Debug::NoLocking=1']
  say('fetching the lists of packages')
  await run('fetch the lists of packages', 'apt-get', [...own, '-q', '-o', 'APT::Update::Error-Mode=any', 'update'])
  return new Packages(folder, own, say)
}

/** Unpacks a package below `folder`. */
export async function unpackPackage(file: string, folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true })
  await run(`unpack "${file}"`, 'dpkg-deb', ['-x', file, folder])
}

/** The files of a package as a tar archive, the new file `archive`. */
export async function unpackArchive(file: string, archive: string): Promise<void> {
  await run(`unpack "${file}"`, 'dpkg-deb', ['--fsys-tarfile', file], { output: archive })
}

// Whether a package is there as the lists have it.
function isWhole({ path, size, hash }: { readonly path: string; readonly size: number; readonly hash: string }):
boolean {
  return statSync(path, { throwIfNoEntry: false })?.size === size &&
    createHash('sha256').update(readFileSync(path)).digest('hex') === hash
}

async function knows(options: readonly string[], name: string): Promise<boolean> {
  try {
    return /^Package: /m.test(await run(`look up ${name}`, 'apt-cache', [...options, 'show', name]))
  } catch (error) {
    if (error instanceof CellarError && error.code === 'MACHINE_PACKAGES_FAILED') return false
    throw error
  }
}

function sourcesOf(release: string, mirror: string | undefined): string {
  const from = mirror ?? ownMirror() ?? DEFAULT_MIRROR
  for (const text of [release, from]) {
    if (!/^[\w.:/~%@-]+$/.test(text)) {
      throw new CellarError('MACHINE_PACKAGES_FAILED', ['fetch packages', `"${printable(text, 100)}" is no such place`])
    }
  }
  const options = existsSync(KEYRING) ? ` [arch=amd64 signed-by=${KEYRING}]` : ' [arch=amd64]'
  // A mirror of the operator's may have nothing else.
  const isComplete = mirror !== undefined || release === 'sid'
  const security = isComplete ? '' : `deb${options} ${SECURITY} ${release}-security main\n`
  return `deb${options} ${from} ${release} main\n${security}`
}

// The mirror that this machine uses for Debian.
function ownMirror(): string | undefined {
  const parts = '/etc/apt/sources.list.d'
  const files = ['/etc/apt/sources.list', ...existsSync(parts) ? readdirSync(parts).map((one) => join(parts, one)) : []]
  for (const file of files.filter((one) => existsSync(one))) {
    const found = MIRROR.exec(readFileSync(file, 'utf8'))
    if (found !== null) return found[1]
  }
  return undefined
}

function ownRelease(): string {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : ''
  return /^ID=debian$/m.test(text) ? /^VERSION_CODENAME=(\w+)$/m.exec(text)?.[1] ?? DEFAULT_RELEASE : DEFAULT_RELEASE
}

// Tools of the packages that apt and dpkg are in.
async function run(what: string, tool: string, words: readonly string[],
  more: { readonly cwd?: string; readonly output?: string } = {}): Promise<string> {
  const result = await runTool(what, { tool, from: tool === 'dpkg-deb' ? 'dpkg' : 'apt', words, ...more })
  if (result.status === 0) return result.out
  const errors = result.told.split('\n').filter((line) => line.startsWith('E: ') || line.startsWith('dpkg-deb: error'))
  const why = printable(errors[0] ?? lastLine(result.told), 300)
  throw new CellarError('MACHINE_PACKAGES_FAILED', [what, why || `${tool} ended with status ${result.status}`])
}
