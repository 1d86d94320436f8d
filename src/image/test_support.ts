// image/test_support.ts: stores, registries and archives made for one test.

import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BlobStore } from './blob_store.ts'
import { digestOf, makeImage, MANIFEST_TYPE } from './image.ts'
import { Images } from './images.ts'
import type { RegistryOptions } from './registry.ts'

/** The smallest module. */
export const MODULE = Buffer.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0])

/** A folder that goes with `using`. */
export function folder(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'cellar-image-'))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

/** A store with names in memory. */
export function imagesFor(options: RegistryOptions = {}):
{ images: Images; store: BlobStore; names: Map<string, string>; path: string } & Disposable {
  const { path, [Symbol.dispose]: dispose } = folder()
  const names = new Map<string, string>()
  const store = new BlobStore(path)
  const kept = {
    get: (name: string) => names.get(name),
    set: (name: string, digest: string) => void names.set(name, digest),
    delete: (name: string) => void names.delete(name),
    all: () => names,
  }
  const images = new Images(store, kept, { env: { HOME: path }, backoffMs: 1, stallMs: 10_000, ...options })
  return { images, store, names, path, [Symbol.dispose]: dispose }
}

/** A stream of these pieces. */
export async function* streamOf(...pieces: Uint8Array[]): AsyncGenerator<Uint8Array> {
  for (const piece of pieces) yield piece
}

/** What a fake registry does with a request; `true`: it was answered. */
export type Trick = (request: IncomingMessage, response: ServerResponse, body: Buffer) =>
boolean | undefined | Promise<boolean | undefined>

/** A registry of one process that answers as it should, except where a trick answers first. */
export type Fake = {
  readonly host: string
  readonly blobs: Map<string, Buffer>
  readonly manifests: Map<string, { bytes: Buffer; type: string }>
  /** `METHOD URL`, and headers, of all that was asked. */
  readonly asked: { line: string; headers: IncomingMessage['headers'] }[]
  trick: Trick
  /** Puts an image of `module` under the tag; answers its manifest's digest. */
  add(tag: string, module: Buffer): string
} & AsyncDisposable

/** Starts a fake registry. */
export async function fakeRegistry(): Promise<Fake> {
  const server = createServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('error', () => {})
    request.on('end', () => void answer(fake, request, response, Buffer.concat(chunks)))
  })
  await new Promise<void>((resolve) => { server.listen(0, '127.0.0.1', resolve) })
  const fake: Fake = {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    blobs: new Map(), manifests: new Map(), asked: [], trick: () => undefined,
    add(tag, module) {
      const { config, manifest } = makeImage({ digest: digestOf(module), size: module.length }, { os: 'wasip1' })
      for (const bytes of [config, module]) fake.blobs.set(digestOf(bytes), bytes)
      for (const name of [tag, digestOf(manifest)]) fake.manifests.set(name, { bytes: manifest, type: MANIFEST_TYPE })
      return digestOf(manifest)
    },
    [Symbol.asyncDispose]: () => new Promise((resolve) => {
      server.close(() => resolve())
      server.closeAllConnections()
    }),
  }
  return fake
}

async function answer(fake: Fake, request: IncomingMessage, response: ServerResponse, body: Buffer): Promise<void> {
  fake.asked.push({ line: `${request.method} ${request.url}`, headers: request.headers })
  if (await fake.trick(request, response, body) === true) return
  const [, kind, name] = /^\/v2\/.+\/(manifests|blobs)\/([^/]+)$/.exec(request.url!) ?? []
  const manifest = kind === 'manifests' ? fake.manifests.get(name!) : undefined
  const found = manifest?.bytes ?? fake.blobs.get(name ?? '')
  if (kind === 'manifests' && request.method === 'PUT') {
    fake.manifests.set(name!, { bytes: body, type: request.headers['content-type']! })
    response.writeHead(201).end()
  } else if (request.url === '/v2/') {
    response.end('{}')
  } else if (found === undefined) {
    response.writeHead(404).end('{"errors":[{"code":"UNKNOWN","message":"what is\\u001b[31m this"}]}')
  } else {
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    if (manifest !== undefined) response.setHeader('content-type', manifest.type)
    if (from > 0) response.setHeader('content-range', `bytes ${from}-${found.length - 1}/${found.length}`)
    response.writeHead(from > 0 ? 206 : 200, { 'content-length': found.length - from })
    response.end(request.method === 'HEAD' ? undefined : found.subarray(from))
  }
}

/** One header and content of a tar archive, as wrong as the test wants it. */
export type TarPart = { readonly name: string; readonly flag?: string; readonly content?: Uint8Array
  readonly size?: number | string; readonly link?: string; readonly checksum?: boolean }

/** A tar archive, made by hand. */
export function tar(...parts: readonly TarPart[]): Buffer {
  const blocks = parts.flatMap(({ name, flag = '0', content = Buffer.alloc(0), size, link = '', checksum = true }) => {
    const header = Buffer.alloc(512)
    header.write(name, 0, 100)
    header.write('0000644\0', 100)
    header.write(typeof size === 'string' ? size : `${(size ?? content.length).toString(8).padStart(11, '0')}\0`, 124,
      12, 'latin1')
    header.write('        ', 148)
    header.write(flag, 156, 'latin1')
    header.write(link, 157, 100)
    header.write('ustar\x0000', 257, 'latin1')
    const sum = header.reduce((total, byte) => total + byte, checksum ? 0 : 1)
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
    return [header, content, Buffer.alloc((512 - content.length % 512) % 512)]
  })
  return Buffer.concat([...blocks, Buffer.alloc(1024)])
}

/** A record of a pax header. */
export function pax(key: string, value: string): Buffer {
  const rest = ` ${key}=${value}\n`
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length++
  return Buffer.from(`${length}${rest}`)
}
