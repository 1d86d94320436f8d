// cli/volumes.ts: `cellar volume …`.

import { CellarError } from '../base/errors.ts'
import { formatSize, parseSize } from '../base/units.ts'
import type { OperationView, VolumeView } from '../host/operator.ts'
import type { Call } from './commands.ts'
import { finish } from './operations.ts'
import { ago, each, printList, printWhole } from './output.ts'
import { print } from './print.ts'

/** `cellar volume ls`. */
export async function listVolumes(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<VolumeView>(host.path('volumes')), {
    name: ({ name }) => name,
    columns: [
      { head: 'NAME', of: ({ name }) => name },
      { head: 'SIZE', of: ({ sizeBytes }) => formatSize(sizeBytes), number: true },
      { head: 'GUESTS', of: ({ guests }) => guests.join(', ') || '-' },
      { head: 'CREATED', of: ({ createdAt }) => ago(createdAt) },
      { head: 'CLONED FROM', of: ({ clonedFrom }) => clonedFrom ?? '', wide: true },
    ],
  })
  return 0
}

/** `cellar volume create`. */
export async function createVolume({ client, words, flags }: Call): Promise<number> {
  if (flags.size !== undefined) checkSize('--size', flags.size[0]!)
  const host = await client()
  const spec = { size: flags.size?.[0], clone: flags.clone?.[0],
    kind: flags.disk === undefined ? undefined : 'disk' }
  await host.ask('POST', host.path('volumes'), { body: { name: words[0], spec } })
  print(`${words[0]}\n`)
  return 0
}

/** `cellar volume clone`. */
export async function cloneVolume({ client, words, flags }: Call): Promise<number> {
  const host = await client()
  const [from, name] = words
  const begun = await host.ask<OperationView>('POST', host.path('volumes', from!, 'clone'), { body: { name } })
  if (flags.detach !== undefined) {
    print(`${begun.id}\n`)
    return 0
  }
  return await finish(host, [begun], { cancels: true, answer: () => name! })
}

/** `cellar volume resize`. */
export async function resizeVolume({ client, words }: Call): Promise<number> {
  const [name, size] = words
  checkSize('SIZE', size!)
  const host = await client()
  await host.ask('PATCH', host.path('volumes', name!), { body: { size } })
  print(`${name}\n`)
  return 0
}

/** `cellar volume inspect`. */
export async function inspectVolumes(call: Call): Promise<number> {
  const host = await call.client()
  await printWhole(call, await Promise.all(call.words.map((name) => host.ask('GET', host.path('volumes', name)))))
  return 0
}

/** `cellar volume rm`: waits until they are gone. */
export async function removeVolumes({ client, words }: Call): Promise<number> {
  const host = await client()
  const begun: { name: string; operation: OperationView }[] = []
  const status = await each(words, async (name) => {
    const operation = await host.ask<OperationView>('DELETE', host.path('volumes', name))
    begun.push({ name, operation })
    return undefined
  })
  const names = new Map(begun.map(({ name, operation }) => [operation.id, name]))
  const removed = await finish(host, begun.map(({ operation }) => operation),
    { cancels: false, answer: ({ id }) => names.get(id)! })
  return removed === 0 ? status : removed
}

function checkSize(flag: string, text: string): void {
  if ((parseSize(text) ?? 0) <= 0) throw new CellarError('FLAG_VALUE_INVALID', [flag, text, 'a size, such as 1GiB'])
}
