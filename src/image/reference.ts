// image/reference.ts: the names of images, as Docker writes them.
//
//   [HOST[:PORT]/]PATH[:TAG][@sha256:HEX]        app    app:1.2    localhost:5000/team/app    ghcr.io/a/app@sha256:…
//
// The first part is a registry if it has a dot or a colon or is `localhost`. Without one the name is local: it is in
// the store or nowhere. No registry is assumed for it, as whoever has that registry would decide what runs here.
// Elsewhere: `oci:FOLDER[:TAG]`, folders in place of registries (layout.ts).

import { CellarError } from '../base/errors.ts'
import { printable } from '../base/printable.ts'

/** A reference in its parts. One of `tag` and `digest` is there. */
export type Reference = {
  /** HOST[:PORT]; undefined for a local name. */
  readonly registry: string | undefined
  /** The path in the registry, or the local name. */
  readonly path: string
  readonly tag: string | undefined
  /** `sha256:HEX`, of a manifest or an index. */
  readonly digest: string | undefined
}

const PART = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*'
const PATH = new RegExp(`^${PART}(?:/${PART})*$`)
const LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?'
const HOST = new RegExp(`^(?:${LABEL}(?:\\.${LABEL})*|\\[[0-9A-Fa-f:.]+\\])(?::\\d{1,5})?$`)
const TAG = /^\w[\w.-]{0,127}$/
const DIGEST = /^sha256:[0-9a-f]{64}$/

/** Longest name with its registry, as Docker has it. */
const NAME_LENGTH_MAX = 255
const TAG_DEFAULT = 'latest'

/** True for `sha256:` and 64 hexadecimal digits in lower case: the one kind of digest there is here. */
export function isDigest(text: string): boolean {
  return DIGEST.test(text)
}

/** True for what a tag may be. */
export function isTag(text: string): boolean {
  return TAG.test(text)
}

/** True for what the path of a reference may be: a local name without a tag. */
export function isPath(text: string): boolean {
  return PATH.test(text) && text.length <= NAME_LENGTH_MAX
}

/** Reads a reference; the tag is `latest` if it has neither tag nor digest. Throws IMAGE_REFERENCE_INVALID. */
export function parseReference(text: string): Reference {
  const invalid = (): never => {
    throw new CellarError('IMAGE_REFERENCE_INVALID', [printable(text, NAME_LENGTH_MAX)])
  }
  // Before the patterns see it: longer than a name, a tag and a digest together.
  if (text.length > 512) return invalid()
  const at = text.indexOf('@')
  const digest = at < 0 ? undefined : text.slice(at + 1)
  const named = at < 0 ? text : text.slice(0, at)
  const colon = named.lastIndexOf(':')
  const hasTag = colon > named.lastIndexOf('/')
  const name = hasTag ? named.slice(0, colon) : named
  const tag = hasTag ? named.slice(colon + 1) : digest === undefined ? TAG_DEFAULT : undefined
  const slash = name.indexOf('/')
  const first = name.slice(0, Math.max(slash, 0))
  const registry = /[.:]/.test(first) || first === 'localhost' ? first : undefined
  const path = registry === undefined ? name : name.slice(slash + 1)
  const valid = PATH.test(path) && name.length <= NAME_LENGTH_MAX && (registry === undefined || HOST.test(registry)) &&
    (tag === undefined || TAG.test(tag)) && (digest === undefined || DIGEST.test(digest))
  return valid ? { registry, path, tag, digest } : invalid()
}

/** The reference as text: what parseReference reads. */
export function formatReference(reference: Reference): string {
  const { tag, digest } = reference
  return repositoryOf(reference) + (tag === undefined ? '' : `:${tag}`) + (digest === undefined ? '' : `@${digest}`)
}

/** The name under which a store keeps what the reference stands for: by its tag, or by the digest if it has none. */
export function localName(reference: Reference): string {
  const { tag, digest } = reference
  return repositoryOf(reference) + (tag === undefined ? `@${digest}` : `:${tag}`)
}

function repositoryOf({ registry, path }: Reference): string {
  return registry === undefined ? path : `${registry}/${path}`
}
