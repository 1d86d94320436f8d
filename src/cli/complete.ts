// cli/complete.ts: `cellar __complete WORD…`: what the last word, as far as it is typed, may become.
//
// The scripts of completion.ts ask it. It answers with a candidate a line, `WORD\tWHAT IT IS`, then one line that says
// what else fits: `:file`, `:folder` or `:none`. Names of guests, volumes and so on are asked of the host, which has a
// moment to answer: a shell that waits is worse than one that knows nothing. Nothing here is an error.

import { printable } from '../base/printable.ts'
import type { Client } from './client.ts'
import { COMMANDS, commandsOf, findCommand, type Command } from './commands.ts'
import type { Flag, Named } from './flags.ts'
import { print } from './print.ts'

/** How long the host has. */
const HOST_MS_MAX = 300

type Candidate = readonly [word: string, what: string]
type Found = { readonly candidates: readonly Candidate[]; readonly files?: 'file' | 'folder' }
type Flags = Record<string, string[]>

/** `cellar __complete [--] WORD…`: the words after `cellar`, the last one unfinished. */
export async function complete(argv: readonly string[]): Promise<number> {
  const words = argv[0] === '--' ? argv.slice(1) : argv
  const { candidates, files } = await found(words.slice(0, -1), words.at(-1) ?? '')
  const fitting = candidates.filter(([word]) => word.startsWith(words.at(-1) ?? ''))
  print(`${fitting.map(([word, what]) => `${printable(word)}\t${printable(what)}\n`).join('')}:${files ?? 'none'}\n`)
  return 0
}

async function found(before: readonly string[], typed: string): Promise<Found> {
  const command = findCommand(before)
  // `volume` alone, or `host`, which is a command itself and has others.
  const nouns = before.length === 1 ? commandsOf(before[0]!) : []
  const verbs: Candidate[] = nouns.map(({ name, summary }) => [name.slice(before[0]!.length + 1), summary])
  if (command === undefined) return { candidates: before.length === 0 ? topWords() : verbs }
  const inside = await inCommand(command.command, command.rest, typed)
  return { ...inside, candidates: [...verbs, ...inside.candidates] }
}

/** The first words of all commands, each once. */
function topWords(): Candidate[] {
  const words = new Map<string, string>()
  for (const { name, summary, hidden, usage } of COMMANDS) {
    const [word] = name.split(' ')
    if (hidden !== true && !words.has(word!)) words.set(word!, name === word || usage !== undefined ? summary
      : commandsOf(word!).map((one) => one.name.slice(word!.length + 1)).join(', '))
  }
  return [...words]
}

async function inCommand(command: Command, before: readonly string[], typed: string): Promise<Found> {
  const { flags, words, pending } = read(command, before)
  if (pending !== undefined) return await valuesOf(pending, flags, typed)
  const isProgram = command.wordsEndFlags === true && words.length > 0
  const [, name, value] = /^--([^=]+)=(.*)$/s.exec(typed) ?? []
  if (name !== undefined && !isProgram && Object.hasOwn(command.flags, name)) {
    const { candidates } = await valuesOf(command.flags[name]!, flags, value!)
    return { candidates: candidates.map(([one, what]) => [`--${name}=${one}`, what]) }
  }
  if (typed.startsWith('-') && !isProgram && !before.includes('--')) {
    return { candidates: Object.entries(command.flags).filter(([name, { many }]) => many === true ||
      flags[name] === undefined)
      .map(([name, { help }]) => [`--${name}`, help] as const) }
  }
  const last = command.words.at(-1)
  const word = command.words[words.length] ?? (last?.many === true ? last : undefined)
  if (word === undefined) return { candidates: [] }
  if (word.choices !== undefined) return { candidates: word.choices.map((one) => [one, '']) }
  if (word.names === undefined) return isProgram ? { candidates: [], files: 'file' } : { candidates: [] }
  const answer = await named(word.names, flags, typed)
  // A program may be an image, and what is inspected a program.
  if (command.name === 'inspect') return { ...answer, files: 'file' }
  return word.many === true ? { ...answer, candidates: answer.candidates.filter(([one]) => !words.includes(one)) }
    : answer
}

/** Flags and words before the unfinished one, mistakes and all; `pending`: the flag whose value comes now. */
function read(command: Command, before: readonly string[]): { flags: Flags; words: string[]; pending?: Flag } {
  const flags: Flags = {}
  const words: string[] = []
  for (let i = 0; i < before.length; i++) {
    const text = before[i]!
    if (text === '--') {
      words.push(...before.slice(i + 1))
      break
    }
    if (!/^-./.test(text)) {
      words.push(text)
      if (command.wordsEndFlags !== true) continue
      words.push(...before.slice(i + 1))
      break
    }
    const [, long, inline] = /^--([^=]+)(?:=(.*))?$/s.exec(text) ?? []
    const name = long ?? Object.entries(command.flags).find(([, { short }]) => short === text.at(-1))?.[0]
    const flag = name !== undefined && Object.hasOwn(command.flags, name) ? command.flags[name] : undefined
    if (name === undefined || flag === undefined) continue
    if (flag.value !== undefined && inline === undefined && i + 1 === before.length) return { flags, words,
      pending: flag }
    ;(flags[name] ??= []).push(flag.value === undefined ? '' : inline ?? before[++i]!)
  }
  return { flags, words }
}

async function valuesOf({ choices, names }: Flag, flags: Flags, typed: string): Promise<Found> {
  if (choices !== undefined) return { candidates: choices.map((one) => [one, '']) }
  return names === undefined ? { candidates: [] } : await named(names, flags, typed)
}

type Thing = { readonly name?: string; readonly id?: string; readonly names?: readonly string[]; readonly phase?: string
  readonly status?: string; readonly target?: string; readonly digest?: string; readonly guest?: string }

/** Names of one kind. */
async function named(kind: Named, flags: Flags, typed: string): Promise<Found> {
  if (kind === 'file' || kind === 'folder') return { candidates: [], files: kind }
  if (kind === 'command') return { candidates: topWords() }
  try {
    if (kind === 'context') {
      const { readContexts } = await import('./contexts.ts')
      const { contexts } = await readContexts(process.env)
      return { candidates: Object.entries(contexts).map(([name, { host }]) => [name, host]) }
    }
    if (kind === 'volume path' && typed.includes(':')) return { candidates: [] }
    const { clientFor } = await import('./client.ts')
    const things = await thingsOf(await clientFor(flags), kind)
    const candidates = things.flatMap((one): Candidate[] => kind === 'image'
      ? (one.names ?? []).map((name) => [name, ''])
      : kind === 'operation' || kind === 'token' ? [[one.id!, one.name ?? `${one.target} ${one.status}`]]
        : kind === 'snapshot' ? [[one.name ?? one.digest!, `of ${one.guest}`]]
        : [[kind === 'volume path' ? `${one.name}:` : one.name!, one.phase ?? '']])
    return { candidates, ...(kind === 'volume path' ? { files: 'file' } : {}) }
  } catch {
    // No host, or a slow one, or contexts that are broken: then there are no names.
    return { candidates: [], ...(kind === 'volume path' ? { files: 'file' } : {}) }
  }
}

async function thingsOf(host: Client, kind: Named): Promise<Thing[]> {
  const global = ['image', 'project', 'operation', 'token']
  const plural = `${kind === 'volume path' ? 'volume' : kind}s`
  const path = global.includes(kind) ? `/v1/${plural}` : host.path(plural)
  return (await host.ask<{ items: Thing[] }>('GET', path, { signal: AbortSignal.timeout(HOST_MS_MAX) })).items
}
