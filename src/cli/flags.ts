// cli/flags.ts: flags as data, and what reads them.
//
// Help, parsing, did-you-mean, completion, man pages and docs/reference/cli.md come from these tables; the other
// commands' are in commands.ts, these two are here since a foreground run loads nothing else. Flags of Cellar end at
// the first word that isn't one: the program. What follows belongs to the program. Commands that name guests or
// volumes take flags after them, too, up to `--`.

import * as util from 'node:util'
import { CellarError } from '../base/errors.ts'

/** What a word on the command line names, for completion. */
export type Named = 'guest' | 'image' | 'snapshot' | 'volume' | 'network' | 'pool' | 'secret' | 'project' |
  'operation' | 'token' | 'context' | 'command' | 'file' | 'folder' | 'volume path'

/** One flag. `value` is the placeholder in help; without it the flag is a switch. */
export type Flag = {
  readonly short?: string; readonly value?: string; readonly many?: boolean; readonly help: string
  /** What its value is one of, or names. */
  readonly choices?: readonly string[]; readonly names?: Named
}

/** Which host, and whose things on it. */
export const HOST_FLAGS = {
  host: { value: 'ADDRESS', help: 'The host: a socket, unix:PATH, http://… or https://… (default: ' +
    'CELLAR_HOST, or the context, or this machine)' },
  context: { value: 'NAME', names: 'context',
    help: 'The context to use (default: CELLAR_CONTEXT, or the current one)' },
  project: { short: 'P', value: 'PROJECT', names: 'project',
    help: 'The project (default: CELLAR_PROJECT, or the context\'s, or "default")' },
} as const satisfies Record<string, Flag>

/** `--help`, which every command has. */
export const HELP_FLAG = { help: { short: 'h', help: 'Show this help' } } as const satisfies Record<string, Flag>

/** How a list is printed. */
export const LIST_FLAGS = {
  output: { short: 'o', value: 'FORMAT', choices: ['table', 'wide', 'json', 'yaml', 'name'],
    help: 'table (default), wide, json, yaml or name' },
  quiet: { short: 'q', help: 'Print names only, as -o name' },
  'no-headers': { help: 'Print a table without its heads' },
} as const satisfies Record<string, Flag>

/** Flags of `cellar host`. */
export const HOST_COMMAND_FLAGS = {
  state: { value: 'DIR', names: 'folder',
    help: 'The folder of its state (default: /var/lib/cellar for root, else ~/.local/state/cellar)' },
  listen: { value: 'tcp:ADDRESS:PORT', many: true, help: 'Serve the API on this address, too' },
  'tls-cert': { value: 'FILE', names: 'file', help: 'The certificate of those addresses (PEM)' },
  'tls-key': { value: 'FILE', names: 'file', help: 'Its key (PEM)' },
  'client-ca': { value: 'FILE', names: 'file', help: "Certificates that clients' are checked by (PEM)" },
  client: { value: 'NAME=SCOPE[:PROJECT]', many: true,
    help: 'What a client whose certificate is for NAME may do: read, write or admin; of one project only' },
  group: { value: 'GROUP', help: 'The group that may use the socket' },
  'insecure-registry': { value: 'NAME', many: true, help: 'A registry that is asked without TLS' },
  log: { value: 'FILE', names: 'file', help: 'Where it logs (default: stderr)' },
  'end-guests': { help: 'End the guests with the host; else they go on' },
  ...HELP_FLAG,
} as const satisfies Record<string, Flag>

/** What `run -d` gives a guest beyond what a foreground run has. */
const DETACHED_FLAGS = {
  detach: { short: 'd', help: 'Run it on a host, which keeps it running, and print its name; PROGRAM may be an image' },
  restart: { value: 'WHEN', choices: ['no', 'on-failure', 'always'],
    help: 'When the host starts it again after its end: no, on-failure or always (default: on-failure)' },
  publish: { short: 'p', value: '[ADDRESS:]PORT:GUESTPORT', many: true,
    help: 'Publish a port of it on the host (default address: 127.0.0.1)' },
  expose: { value: 'PORT', many: true, help: 'A port that only guests of its networks reach' },
  volume: { short: 'v', value: 'NAME:FOLDER[:ro]', many: true, names: 'volume',
    help: 'A volume of the project as a folder of it' },
  network: { value: 'NAME', many: true, names: 'network', help: 'A network that it is in (default: default)' },
  egress: { value: 'NAME|CIDR[:PORT]', many: true, help: 'What it may reach outside (default: nothing)' },
  connect: { value: 'NAME:PORT', many: true, help: 'A connection that it has from the start, as a descriptor' },
  secret: { value: 'VARIABLE=NAME', many: true, help: 'Set an environment variable to a secret of the project' },
  label: { short: 'l', value: 'KEY=VALUE', many: true, help: 'A label, for selections' },
  pool: { value: 'NAME', names: 'pool', help: 'The pool that it is in' },
  'memory-reservation': { value: 'SIZE', help: 'Memory that the host keeps for it' },
  'health-tcp': { value: 'PORT', help: 'It is well if it takes connections on this port of its own' },
  'health-http': { value: 'PORT/PATH', help: 'It is well if GET of this is answered with a status from 200 to 399' },
  'health-interval': { value: 'DURATION', help: 'How often it is asked (default: 10s)' },
  'health-timeout': { value: 'DURATION', help: 'How long it has to answer (default: 1s)' },
  'health-retries': { value: 'N', help: 'It is unhealthy after so many failures in a row (default: 3)' },
  'health-start-period': { value: 'DURATION', help: 'Failures do not count for so long after its start (default: 5s)' },
  interactive: { short: 'i', help: "Keep its input open for 'cellar attach'" },
  hibernate: { value: 'DURATION|pressure',
    help: 'It may be saved and freed: when it has used no CPU for so long, or when the host is short of memory' },
  vcpus: { value: 'N', help: 'vCPUs of a machine (default: 1)' },
  engine: { value: 'ENGINE', choices: ['auto', 'kvm', 'qemu'],
    help: 'What runs a machine: KVM under our own monitor, or QEMU (default: auto, KVM where it works)' },
  'kernel-args': { value: 'WORDS', help: "Words added to a machine's kernel command line" },
  tap: { value: 'DEVICE', help: 'A TAP device of the host as the network card of a machine, in place of networks' },
  may: { value: 'VERB', many: true, choices: ['snapshot', 'fork', 'hibernate'],
    help: 'What it may have done to itself by a hypercall: snapshot, fork or hibernate' },
} as const satisfies Record<string, Flag>

/** Flags of `cellar run` that only a guest of a host can have. */
export const DETACHED_ONLY: readonly string[] = Object.keys({ ...DETACHED_FLAGS, ...HOST_FLAGS })

/** Flags of `cellar run`. */
export const RUN_FLAGS = {
  dir: { value: 'HOST[:GUEST][:ro]', many: true, names: 'folder',
    help: 'Grant a folder of the host; GUEST is the name that the program sees (default: HOST); ' +
      'ro: nothing in it can be changed' },
  env: { short: 'e', value: 'K=V', many: true, help: "Set an environment variable; K alone passes on the host's" },
  listen: { value: 'tcp:HOST:PORT', many: true,
    help: 'Give the program a listening socket: descriptors from 3, after the folders; port 0 takes a free one' },
  memory: { short: 'm', value: 'SIZE',
    help: 'Most memory that the program may have, such as 64MiB (default: 4GiB, all that a 32-bit memory can have)' },
  timeout: { value: 'DURATION', help: 'Stop the program after this time, such as 5s; exit status 124' },
  shares: { value: 'N', help: 'Weight against other cells that want the CPU, 1 to 10000 (default: 100)' },
  'cpu-limit': { value: 'CPU', help: 'CPU that the program never has more of, such as 10% or 0.5' },
  'cpu-reservation': { value: 'CPU', help: 'CPU that it has whenever it wants it, such as 25%' },
  quantum: { value: 'DURATION', help: 'The longest that a cell runs while others want to (default: 1ms)' },
  deterministic: { help: 'Count what the program executes; others then run at the same places in every run' },
  unbounded: { help: 'Let even a program share the CPU that could hold others up, such as by garbage collection' },
  stub: { value: 'MODULE[.NAME]', many: true,
    help: 'Bind unknown imports of MODULE to stubs; a stub ends the program when called' },
  'clock-resolution': { value: 'DURATION', help: "Round the program's clocks down, such as 1ms (default: 1ns)" },
  name: { value: 'NAME', help: 'Call the program NAME in messages (default: its path), or, with -d, on the host' },
  file: { short: 'f', value: 'MANIFEST', names: 'file',
    help: 'Run what a manifest (YAML) describes: a stack, or a cell, whose arguments follow' },
  stats: { help: 'Print to stderr at the end what the program used' },
  trace: { help: 'Print each hypercall to stderr with its answer' },
  from: { value: 'SNAPSHOT', names: 'snapshot',
    help: 'Go on from a snapshot of a host, in place of a program: there, and until its end; with -d it stays' },
  ...DETACHED_FLAGS, ...HOST_FLAGS, ...HELP_FLAG,
} as const satisfies Record<string, Flag>

/** What `run --from` takes: all else is the snapshot's. */
export const FROM_FLAGS: readonly string[] = ['from', 'detach', 'name', 'publish', ...Object.keys(HOST_FLAGS)]

/** Flags of `cellar inspect PROGRAM.wasm`. */
export const INSPECT_FLAGS = {
  output: { short: 'o', value: 'FORMAT', choices: ['text', 'json'], help: 'text (default) or json' },
  ...HELP_FLAG,
} as const satisfies Record<string, Flag>

/** Flags of `cellar doctor`. */
export const DOCTOR_FLAGS = {
  state: { value: 'DIR', names: 'folder', help: 'The folder of the host\'s state (default: /var/lib/cellar for root)' },
  output: { short: 'o', value: 'FORMAT', choices: ['text', 'json'], help: 'text (default) or json' },
  ...HELP_FLAG,
} as const satisfies Record<string, Flag>

/** Flags of `cellar host install` and `cellar host uninstall`. */
export const INSTALL_FLAGS = {
  state: { value: 'DIR', names: 'folder', help: 'The folder of the host\'s state (default: /var/lib/cellar)' },
  prefix: { value: 'DIR', names: 'folder', help: 'Write the files under this folder and start nothing: for packages' },
  'dry-run': { help: 'Print the files and change nothing' },
  ...HELP_FLAG,
} as const satisfies Record<string, Flag>

/** What was given: a list of values for each flag (a switch has ['']), and the words from the first that is no flag. */
export type Parsed<T> = {
  readonly flags: { readonly [K in keyof T]?: readonly string[] }
  readonly rest: readonly string[]
}

/**
 * Reads `argv` by `table`. `anywhere`: flags may follow words, up to `--`. Throws CellarError on an unknown flag, a
 * missing value, or a second value where one fits.
 */
export function parseFlags<T extends Record<string, Flag>>(argv: readonly string[], table: T, anywhere = false):
Parsed<T> {
  // No flags: the parser needn't be loaded, which is half a millisecond of a guest's start.
  if (!anywhere && argv[0]?.startsWith('-') !== true) return { flags: {}, rest: argv }
  const options = Object.fromEntries(Object.entries(table).map(([name, { short, value, many }]) =>
    [name, { type: value === undefined ? 'boolean' : 'string', multiple: many ?? false,
      ...(short === undefined ? {} : { short }) }] as const))
  const { tokens } = util.parseArgs({ args: [...argv], options, strict: false, allowPositionals: true, tokens: true })
  const flags: Record<string, string[]> = {}
  const words: string[] = []
  const parsed = (rest: readonly string[]): Parsed<T> => ({ flags: flags as Parsed<T>['flags'], rest })
  for (const token of tokens) {
    if (token.kind === 'option-terminator') return parsed([...words, ...argv.slice(token.index + 1)])
    if (token.kind === 'positional') {
      if (!anywhere) return parsed(argv.slice(token.index))
      words.push(token.value)
      continue
    }
    const flag = Object.hasOwn(table, token.name) ? table[token.name] : undefined
    if (flag === undefined) throw new CellarError('FLAG_UNKNOWN',
      [token.rawName, didYouMean(token.name, Object.keys(table), '--')])
    if (flag.value === undefined && token.value !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
      [token.rawName, token.value, 'given alone: it is a switch'])
    // The next word is no value if it looks like a flag: --env=-X says so if it is one.
    const swallowed = token.inlineValue === false && /^-./.test(token.value)
    if (flag.value !== undefined && (token.value === undefined || swallowed)) {
      throw new CellarError('FLAG_VALUE_MISSING', [token.rawName])
    }
    if (flag.many !== true && flags[token.name] !== undefined) throw new CellarError('FLAG_VALUE_INVALID',
      [token.rawName, token.value ?? '', 'given once'])
    ;(flags[token.name] ??= []).push(token.value ?? '')
  }
  return parsed(words)
}

/** The flags part of a command's help. */
export function helpOf(table: Record<string, Flag>): string {
  const rows = Object.entries(table).map(([name, { short, value, help }]) =>
    [`  ${short === undefined ? '    ' : `-${short}, `}--${name}${value === undefined ? '' : ` ${value}`}`,
      help] as const)
  const width = Math.max(...rows.map(([left]) => left.length)) + 3
  return rows.map(([left, help]) => left.padEnd(width) + help).join('\n')
}

/**
 * `; did you mean --dir?` for a name that is close to one of `names`, else nothing. `before`: what
 * stands before it.
 */
export function didYouMean(name: string, names: readonly string[], before: string): string {
  const best = names.map((candidate) => [distance(name, candidate), candidate] as const).sort(([a], [b]) => a - b)[0]
  return best !== undefined && best[0] <= 2 ? `; did you mean ${before}${best[1]}?` : ''
}

/** Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}
