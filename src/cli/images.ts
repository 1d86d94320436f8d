// cli/images.ts: `cellar pull`, `cellar push`, `cellar image …`.

import { formatSize } from '../base/units.ts'
import type { ImageView, OperationView } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { finish } from './operations.ts'
import { ago, each, printList, printWhole, shortDigest } from './output.ts'
import { print } from './print.ts'
import { imagePath, importProgram } from './upload.ts'

/** `cellar pull`: all at once, a line of progress each. */
export async function pull({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const begun = await Promise.all(words.map((reference) =>
    host.ask<OperationView>('POST', '/v1/images/pull', { body: { reference } })))
  if (flags.detach !== undefined) {
    print(begun.map(({ id }) => `${id}\n`).join(''))
    return 0
  }
  return await finish(host, begun, { cancels: true, answer: ({ target }) => target })
}

/** `cellar push`. */
export async function push({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const [reference, to = reference] = words
  const begun = await host.ask<OperationView>('POST', '/v1/images/push', { body: { reference, to } })
  if (flags.detach !== undefined) {
    print(`${begun.id}\n`)
    return 0
  }
  return await finish(host, [begun], { cancels: true, answer: ({ target }) => target })
}

/** `cellar image ls`: a row for each name. */
export async function listImages(call: Call): Promise<number> {
  const host = await call.client()
  const images = await host.list<ImageView>('/v1/images')
  if (['json', 'yaml'].includes(call.flags.output?.[0] ?? '') && call.flags.quiet === undefined) {
    await printList(call, images, { columns: [], name: () => '' })
    return 0
  }
  const rows = images.flatMap((image) => (image.names.length === 0 ? [''] : image.names).map((name) =>
    ({ name, image })))
    .sort((a, b) => a.name.localeCompare(b.name))
  await printList(call, rows, {
    name: ({ name, image }) => name || image.digest,
    columns: [
      { head: 'NAME', of: ({ name }) => name || '-' }, { head: 'DIGEST', of: ({ image }) => shortDigest(image.digest) },
      { head: 'SIZE', of: ({ image }) => formatSize(image.sizeBytes), number: true },
      { head: 'GUESTS', of: ({ image }) => String(image.guests), number: true },
      { head: 'CREATED', of: ({ image }) => ago(image.createdAt) },
      { head: 'MODULE', of: ({ image }) => image.module, wide: true },
    ],
  })
  return 0
}

/** `cellar image import`. */
export async function importImage({ client, words }: Call): Promise<number> {
  const image = await importProgram(await client(), words[0]!, words[1])
  print(`${words[1] ?? image.digest}\n`)
  return 0
}

/** `cellar image tag`. */
export async function tagImage({ client, words }: Call): Promise<number> {
  const host = await client()
  await host.ask('POST', '/v1/images/tag', { body: { reference: words[0], name: words[1] } })
  print(`${words[1]}\n`)
  return 0
}

/** `cellar image inspect`. */
export async function inspectImages(call: Call): Promise<number> {
  const host = await call.client()
  await printWhole(call, await Promise.all(call.words.map((reference) => host.ask('GET', imagePath(reference)))))
  return 0
}

/** `cellar image rm`. */
export async function removeImages({ client, words }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (reference) => {
    await host.ask('DELETE', imagePath(reference))
    return reference
  })
}

/** `cellar image gc`. */
export async function collectImages({ client }: Call): Promise<number> {
  const host = await client()
  const { freedBytes } = await host.ask<{ freedBytes: number }>('POST', '/v1/images/collect')
  print(`${formatSize(freedBytes)} freed\n`)
  return 0
}
