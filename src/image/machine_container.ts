// image/machine_container.ts: images for containers as what a machine runs: their layers, and the program in them.
//
// They come from registries or OCI layouts, for linux/amd64. What they say to run (Entrypoint, Cmd, Env, WorkingDir,
// User) becomes a script in the machine's initramfs, with every word quoted: a user's name is looked up in the image's
// own /etc/passwd when the script is made, as the guest starts the program by numbers.

import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'
import type { BlobStore } from './blob_store.ts'
import { layoutOf, readConfig, readManifest, type Descriptor } from './image.ts'
import { withRegistry } from './images.ts'
import { LayoutFolder, parseLayout } from './layout.ts'
import type { MachineConfig } from './machine_image.ts'
import type { Layers } from './machine_layers.ts'
import { Registry, type RegistryOptions } from './registry.ts'
import { fetchBlob, type Remote } from './remote.ts'

/** Of /etc/passwd and /etc/group: thousands of users. */
const ACCOUNTS_BYTES_MAX = 1024 * 1024
const ID_MAX = 2 ** 32 - 2
const PATH_DEFAULT = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

const words = z.array(z.string().max(128 * 1024).regex(/^[^\0]*$/)).max(1024).nullish()
const container = z.object({
  architecture: z.string(), os: z.string(),
  config: z.object({
    Entrypoint: words, Cmd: words, Env: words,
    WorkingDir: z.string().max(4096).regex(/^[^\0]*$/).nullish(), User: z.string().max(256).nullish(),
  }).nullish(),
})

type Entry = NonNullable<MachineConfig['entry']>

/** Where an image for containers is, and how it is fetched. */
export type ContainerSource = {
  readonly reference: string
  readonly options: RegistryOptions
  readonly say: (text: string) => void
  readonly signal?: AbortSignal | undefined
}

/**
 * Fetches an image's layers into the store: their files, the lowest first, and what the image says to run, if anything.
 * Throws what Remote does, IMAGE_INVALID, IMAGE_TOO_LARGE.
 */
export async function fetchContainer(store: BlobStore, { reference, options, say, signal }: ContainerSource):
Promise<{ readonly layers: readonly string[]; readonly entry: Entry | undefined }> {
  const what = printable(reference, 200)
  const { remote, tagOrDigest } = await remoteOf(reference, options, signal)
  let read = readManifest(what, await remote.readManifest(tagOrDigest, signal))
  if ('manifests' in read) {
    const found = read.manifests.find(({ platform }) => platform?.os === 'linux' && platform.architecture === 'amd64')
    if (found === undefined) throw invalid(what, 'it isn\'t for linux/amd64')
    read = readManifest(what, await remote.readManifest(found.digest, signal))
  }
  if ('manifests' in read) throw invalid(what, 'it is an index in an index')
  const layout = layoutOf(what, read)
  if (layout.kind !== 'container') throw invalid(what, `it is a ${layout.kind}'s, not a container's`)
  const fetched = async (blob: Descriptor): Promise<void> => {
    await fetchBlob(remote, blob, store, { signal })
  }
  await fetched(read.config)
  const parsed = container.safeParse(readConfig(store.read(read.config.digest)))
  if (!parsed.success) throw invalid(what, `its configuration is wrong at ${parsed.error.issues[0]?.path.join('.')}`)
  const { os, architecture, config } = parsed.data
  if (os !== 'linux' || architecture !== 'amd64') {
    throw invalid(what, `it is for ${printable(`${os}/${architecture}`, 60)}, not for linux/amd64`)
  }
  for (const [i, blob] of layout.layers.entries()) {
    say(`fetching layer ${i + 1} of ${layout.layers.length}`)
    await fetched(blob)
  }
  const argv = [...config?.Entrypoint ?? [], ...config?.Cmd ?? []]
  const entry = argv.length === 0 ? undefined
    : { argv, env: config?.Env ?? [], cwd: config?.WorkingDir || '/', user: config?.User ?? '' }
  return { layers: layout.layers.map(({ digest }) => store.path(digest)), entry }
}

/** The script that runs the image's program, in the guest. Throws IMAGE_INVALID if its user isn't in the image. */
export async function entryScript(image: string, entry: Entry, layers: Layers): Promise<string> {
  const { uid, gid, home } = await userOf(image, entry.user, layers)
  const names = new Set(entry.env.map((one) => one.split('=', 1)[0]!))
  const env = [...entry.env.filter((one) => /^[^=]+=/.test(one)), ...names.has('PATH') ? [] : [PATH_DEFAULT],
    ...names.has('HOME') ? [] : [`HOME=${home}`], ...names.has('TERM') ? [] : ['TERM=linux']]
  const busybox = '/run/cellar/busybox'
  // By a pid file that isn't there, as it would look for the program among others that run.
  const [program, ...rest] = entry.argv
  const start = uid === 0 && gid === 0 ? entry.argv
    : [busybox, 'start-stop-daemon', '-S', '-q', '-p', '/run/cellar/none', '-c', `${uid}:${gid}`, '-a', program!, '-x',
      program!, '--', ...rest]
  const cwd = quoted(entry.cwd)
  return `# What the image says to run.\n${busybox} mkdir -p ${cwd}\ncd ${cwd} || exit 126\n` +
    `exec ${[busybox, 'env', '-i', ...env, ...start].map(quoted).join(' ')}\n`
}

async function remoteOf(text: string, options: RegistryOptions, signal: AbortSignal | undefined):
Promise<{ remote: Remote; tagOrDigest: string }> {
  const layout = parseLayout(text)
  if (layout !== undefined) return { remote: new LayoutFolder(layout.folder), tagOrDigest: layout.tag ?? '' }
  const reference = withRegistry(text)
  const remote = new Registry(reference, false, undefined, options)
  await remote.ping(signal)
  return { remote, tagOrDigest: reference.digest ?? reference.tag! }
}

// USER, USER:GROUP, of names or numbers, as the image's files have them.
async function userOf(image: string, text: string, layers: Layers):
Promise<{ uid: number; gid: number; home: string }> {
  const [user = '', group] = text.split(':')
  const rows = async (path: string): Promise<string[][]> =>
    ((await layers.file(path, ACCOUNTS_BYTES_MAX))?.toString('utf8') ?? '').split('\n').map((line) => line.split(':'))
  const users = await rows('etc/passwd')
  const idOf = (digits: string | undefined): number => {
    const id = /^\d{1,10}$/.test(digits ?? '') ? Number(digits) : NaN
    if (id <= ID_MAX) return id
    throw invalid(image, `its user "${printable(text, 100)}" isn't one that it has`)
  }
  const name = user || '0'
  const row = users.find(([one]) => one === name) ?? users.find(([, , id]) => id === name)
  const uid = idOf(row?.[2] ?? name)
  const gid = group === undefined || group === '' ? idOf(row?.[3] ?? '0')
    : idOf((await rows('etc/group')).find(([one]) => one === group)?.[2] ?? group)
  return { uid, gid, home: row?.[5] || (uid === 0 ? '/root' : '/') }
}

function quoted(word: string): string { return `'${word.replaceAll("'", "'\\''")}'` }

function invalid(image: string, what: string): CellarError {
  return new CellarError('IMAGE_INVALID', [image, printable(what, 300)])
}
