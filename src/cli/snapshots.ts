// cli/snapshots.ts: `cellar snapshot …`, `cellar restore`, `cellar fork`.
//
// A snapshot is called what people call it by: its name, or its digest if it has none.

import { CellarError } from '../base/errors.ts'
import { formatSize } from '../base/units.ts'
import type { GuestView, OperationView, SnapshotView } from '../host/operator.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { BEGIN_WAIT } from './guest_verbs.ts'
import { finish } from './operations.ts'
import { ago, each, printData, printList, printWhole, shortDigest } from './output.ts'
import { print } from './print.ts'
import { startOf } from './run_detached.ts'

const nameOf = ({ name, digest }: SnapshotView): string => name ?? digest

/** `cellar snapshot GUEST [NAME]`. */
export async function snapshot(call: Call): Promise<number> {
  const { words: [guest, name], flags } = call
  const host = await call.client()
  const made = await host.ask<SnapshotView>('POST', host.path('guests', guest!, 'snapshot'),
    { body: { name, stop: flags.stop === undefined ? undefined : true } })
  await printMade(call, made, nameOf(made))
  return 0
}

/** `cellar restore`: waits a moment, and says so if the guest doesn't come to run. */
export async function restore(call: Call): Promise<number> {
  const { words: [reference], flags } = call
  const body = { name: flags.name?.[0], ports: flags.publish }
  const guest = await restored(await call.client(), reference!, body, BEGIN_WAIT)
  await printMade(call, guest, guest.name)
  return startOf(guest) === 0 ? 0 : 1
}

/** A guest that goes on from a snapshot. `wait`: how long it may take to run. */
export async function restored(host: Client, reference: string, body: { readonly name: string | undefined
  readonly ports: readonly string[] | undefined }, wait: string | undefined): Promise<GuestView> {
  return await host.ask<GuestView>('POST', host.path('snapshots', reference, 'restore'), { query: { wait }, body })
}

/** `cellar fork`. */
export async function fork({ client, words, flags }: Call): Promise<number> {
  const [guest] = words
  const host = await client()
  const { items } = await host.ask<{ items: readonly GuestView[] }>('POST', host.path('guests', guest!, 'fork'),
    { body: { count: countOf(flags.count?.[0], flags.name), names: flags.name } })
  const format = flags.output?.[0]
  if (format === 'json' || format === 'yaml') await printData(format, items)
  else print(items.map(({ name }) => `${name}\n`).join(''))
  return 0
}

/** `cellar snapshot ls`. */
export async function listSnapshots(call: Call): Promise<number> {
  const host = await call.client()
  const items = await host.list<SnapshotView>(host.path('snapshots'))
  await printList(call, items.toSorted((a, b) => a.createdAt - b.createdAt), {
    name: nameOf,
    columns: [
      { head: 'NAME', of: ({ name }) => name ?? '-' }, { head: 'DIGEST', of: ({ digest }) => shortDigest(digest) },
      { head: 'GUEST', of: ({ guest }) => guest },
      { head: 'MEMORY', of: ({ memoryBytes }) => formatSize(memoryBytes), number: true },
      { head: 'STORED', of: ({ storedBytes }) => formatSize(storedBytes), number: true },
      { head: 'NEW', of: ({ newBytes }) => formatSize(newBytes), number: true },
      { head: 'GUESTS', of: ({ guests }) => String(guests), number: true },
      { head: 'CREATED', of: ({ createdAt }) => ago(createdAt) },
      { head: 'IMAGE', of: ({ spec }) => spec.image, wide: true },
      { head: 'MODULE', of: ({ module }) => shortDigest(module), wide: true },
    ],
  })
  return 0
}

/** `cellar snapshot inspect`. */
export async function inspectSnapshots(call: Call): Promise<number> {
  const host = await call.client()
  await printWhole(call, await Promise.all(call.words.map((one) => host.ask('GET', host.path('snapshots', one)))))
  return 0
}

/** `cellar snapshot rm`. */
export async function removeSnapshots({ client, words }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (reference) => {
    await host.ask('DELETE', host.path('snapshots', reference))
    return reference
  })
}

/** `cellar snapshot push`. */
export async function pushSnapshot(call: Call): Promise<number> {
  const [reference, to] = call.words
  return await operation(call, ['snapshots', reference!, 'push'], { to }, to!)
}

/** `cellar snapshot pull`. */
export async function pullSnapshot(call: Call): Promise<number> {
  const [reference, name] = call.words
  return await operation(call, ['snapshots', 'pull'], { reference, name }, name ?? reference!)
}

/** Begins long work, and follows it unless --detach says otherwise. */
async function operation({ client, flags }: Call, path: readonly string[], body: object, answer: string):
Promise<number> {
  const host = await client()
  const begun = await host.ask<OperationView>('POST', host.path(...path), { body })
  if (flags.detach === undefined) return await finish(host, [begun], { cancels: true, answer: () => answer })
  print(`${begun.id}\n`)
  return 0
}

async function printMade({ flags }: Call, made: unknown, name: string): Promise<void> {
  const format = flags.output?.[0]
  if (format === 'json' || format === 'yaml') return await printData(format, made)
  print(`${name}\n`)
}

/** How many forks are wanted; undefined: the host counts the names. Throws FLAG_VALUE_INVALID. */
function countOf(text: string | undefined, names: readonly string[] | undefined): number | undefined {
  if (text === undefined) return undefined
  const refuse = (want: string): never => { throw new CellarError('FLAG_VALUE_INVALID', ['--count', text, want]) }
  if (!/^[1-9]\d{0,8}$/.test(text)) return refuse('a whole number from 1 on')
  const count = Number(text)
  return names === undefined || names.length === count ? count
    : refuse(`left out, or ${names.length}: as many as there are names`)
}
