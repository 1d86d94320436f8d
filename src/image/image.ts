// image/image.ts: what an image is: a manifest, a configuration and one module, or something that becomes that; or a
// machine's kernel and disks (machine_image.ts).
//
//   manifest  application/vnd.oci.image.manifest.v1+json
//     config  application/vnd.wasm.config.v0+json     { created, architecture: wasm, os: wasip1, layerDigests }
//     layer   application/wasm                        the module
//
// This is the layout of the CNCF's TAG Runtime. Two others are read: the older media types of the same, and images for
// containers with platform wasi/wasm or wasip1/wasm, whose module is a file in a tar layer (unpack.ts). An index lists
// manifests by platform. Everything here comes from strangers: what we use of it is checked, the rest ignored.

import { createHash } from 'node:crypto'
import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import {
  IMAGE_BYTES_MAX, IMAGE_LAYERS_MAX, IMAGE_MANIFEST_BYTES_MAX, MACHINE_IMAGE_BYTES_MAX, MODULE_BYTES_MAX,
} from '../base/limits.ts'
import { printable } from '../base/printable.ts'
import { isDigest } from './reference.ts'

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json'
export const INDEX_TYPE = 'application/vnd.oci.image.index.v1+json'
const DOCKER_MANIFEST_TYPE = 'application/vnd.docker.distribution.manifest.v2+json'
const DOCKER_INDEX_TYPE = 'application/vnd.docker.distribution.manifest.list.v2+json'
/** What a registry is asked for. */
export const MANIFEST_TYPES: readonly string[] = [MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST_TYPE, DOCKER_INDEX_TYPE]

const WASM_CONFIG_TYPE = 'application/vnd.wasm.config.v0+json'
const WASM_TYPE = 'application/wasm'
const WASM_TYPES: readonly string[] = [WASM_TYPE, 'application/vnd.wasm.content.layer.v1+wasm']
/** Of machines' images, and of their configurations. */
export const MACHINE_TYPE = 'application/vnd.cellar.machine.v1+json'
const TAR_TYPE =
  /^application\/vnd\.(?:oci\.image\.layer\.v1|docker\.image\.rootfs\.diff)\.tar(?:[.+](?:gzip|zstd))?$/

/** Systems whose modules run here, the best first. */
const SYSTEMS: readonly string[] = ['wasip1', 'wasi']

/** The annotation of an image that was made of another: the digest of that one's manifest. */
export const MADE_OF = 'org.cellar.image.made-of'

const digest = z.string().refine(isDigest, 'must be sha256:HEX')
const annotations = z.record(z.string(), z.string())
const descriptor = z.object({
  mediaType: z.string(), digest, size: z.int().min(0), annotations: annotations.nullish(),
})
const manifest = z.object({
  schemaVersion: z.literal(2), mediaType: z.string().optional(),
  config: descriptor, layers: z.array(descriptor).min(1).max(IMAGE_LAYERS_MAX), annotations: annotations.nullish(),
})
const platform = z.object({ architecture: z.string(), os: z.string() })
const index = z.object({
  schemaVersion: z.literal(2), mediaType: z.string().optional(),
  manifests: z.array(descriptor.extend({ platform: platform.nullish() })).max(10_000),
})
const config = z.object({
  architecture: z.string(), os: z.string(),
  config: z.object({ Entrypoint: z.array(z.string()).nullish(), Cmd: z.array(z.string()).nullish() }).nullish(),
})

/** A blob as a manifest names it. */
export type Descriptor = z.infer<typeof descriptor>
export type Manifest = z.infer<typeof manifest>
export type Index = z.infer<typeof index>

/**
 * What there is to an image: its manifest, and where its module is. For a machine that is its configuration, which
 * names the kernel and the disks by their digests.
 */
export type Layout =
  | { readonly kind: 'cell' | 'machine'; readonly manifest: Manifest; readonly module: Descriptor }
  | { readonly kind: 'container'; readonly manifest: Manifest; readonly module: undefined
    readonly layers: readonly Descriptor[] }

/** `sha256:HEX` of bytes. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/** Reads a manifest or an index. Throws IMAGE_INVALID; `image` is its name in messages. */
export function readManifest(image: string, bytes: Uint8Array): Manifest | Index {
  if (bytes.length > IMAGE_MANIFEST_BYTES_MAX) throw invalid(image, 'its manifest is too large')
  const value = parseJson(image, bytes, 'its manifest')
  const isIndex = typeof value === 'object' && value !== null && 'manifests' in value
  const parsed = isIndex ? index.safeParse(value) : manifest.safeParse(value)
  if (parsed.success) return parsed.data
  throw invalid(image, `its ${isIndex ? 'index' : 'manifest'} is wrong at ${reasonOf(parsed.error)}`)
}

/** The manifest of an index that runs here. Throws IMAGE_INVALID. */
export function choosePlatform(image: string, { manifests }: Index): Descriptor {
  for (const os of SYSTEMS) {
    const found = manifests.find(({ platform }) => platform?.architecture === 'wasm' && platform.os === os)
    if (found !== undefined) return found
  }
  const [only, more] = manifests
  if (only !== undefined && more === undefined && !only.platform) return only
  const names = manifests.slice(0, 10).map(({ platform: one }) => one ? `${one.os}/${one.architecture}` : 'unknown')
  throw invalid(image, `it is for ${printable(names.join(', '), 200) || 'nothing'}, not for wasip1/wasm`)
}

/** What the manifest is of. Throws IMAGE_INVALID, IMAGE_TOO_LARGE. */
export function layoutOf(image: string, manifest: Manifest): Layout {
  const { config, layers } = manifest
  const total = layers.reduce((sum, { size }) => sum + size, config.size)
  const isMachine = config.mediaType === MACHINE_TYPE
  const most = isMachine ? MACHINE_IMAGE_BYTES_MAX : IMAGE_BYTES_MAX
  if (total > most) throw new CellarError('IMAGE_TOO_LARGE', [image, total, most])
  if (config.size > IMAGE_MANIFEST_BYTES_MAX) throw invalid(image, 'its configuration is too large')
  if (isMachine) return { kind: 'machine', manifest, module: config }
  const modules = layers.filter(({ mediaType }) => WASM_TYPES.includes(mediaType))
  if (modules.length > 1) throw invalid(image, `it has ${modules.length} modules`)
  const [module] = modules
  if (module !== undefined) {
    if (module.size <= MODULE_BYTES_MAX) return { kind: 'cell', manifest, module }
    throw new CellarError('IMAGE_TOO_LARGE', [image, module.size, MODULE_BYTES_MAX])
  }
  const other = layers.find(({ mediaType }) => !TAR_TYPE.test(mediaType))
  if (other === undefined) return { kind: 'container', manifest, module: undefined, layers }
  throw invalid(image, `it has no module, but ${printable(other.mediaType)}`)
}

/** The entrypoint of an image for containers, if it has one. Throws IMAGE_INVALID if it isn't for wasm. */
export function entrypointOf(image: string, bytes: Uint8Array): string | undefined {
  const parsed = config.safeParse(parseJson(image, bytes, 'its configuration'))
  if (!parsed.success) throw invalid(image, `its configuration is wrong at ${reasonOf(parsed.error)}`)
  const { architecture, os, config: process } = parsed.data
  if (architecture !== 'wasm' || !SYSTEMS.includes(os)) {
    throw invalid(image, `it is for ${printable(`${os}/${architecture}`)}, not for wasip1/wasm`)
  }
  return process?.Entrypoint?.[0] ?? process?.Cmd?.[0]
}

/** Configuration and manifest of an image of one module: always the same bytes for the same module. */
export function makeImage(
  module: { readonly digest: string; readonly size: number },
  { os, madeOf }: { readonly os: 'wasip1'; readonly madeOf?: string | undefined },
): { readonly config: Buffer; readonly manifest: Buffer } {
  // A time is required; the module's own isn't known.
  const config = Buffer.from(JSON.stringify({
    created: '1970-01-01T00:00:00Z', architecture: 'wasm', os, layerDigests: [module.digest],
  }))
  const manifest = Buffer.from(JSON.stringify({
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: { mediaType: WASM_CONFIG_TYPE, digest: digestOf(config), size: config.length },
    layers: [{ mediaType: WASM_TYPE, digest: module.digest, size: module.size }],
    ...(madeOf === undefined ? {} : { annotations: { [MADE_OF]: madeOf } }),
  }))
  return { config, manifest }
}

/** A configuration as `inspect` shows it: what the JSON says, or undefined if it is none. */
export function readConfig(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch {
    return undefined
  }
}

function parseJson(image: string, bytes: Uint8Array, what: string): unknown {
  const value = readConfig(bytes)
  if (value === undefined) throw invalid(image, `${what} isn't JSON`)
  return value
}

function reasonOf(error: z.ZodError): string {
  const [issue] = error.issues
  return printable(`${issue?.path.join('.') || 'its top'}: ${issue?.message ?? ''}`, 200)
}

function invalid(image: string, what: string): CellarError {
  return new CellarError('IMAGE_INVALID', [image, what])
}
