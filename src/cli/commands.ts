// cli/commands.ts: the one table of commands.
//
// Help, did-you-mean, completion, man pages and docs/reference/cli.md come from it, and dispatch.ts runs what it says:
// a command's code is loaded when it is called. Entries are in the order of the help, group by group. Elsewhere: the
// commands for guests (guest_commands.ts), for snapshots, forks and moves (snapshot_commands.ts), for what guests use
// (thing_commands.ts), flags (flags.ts).

import type { Client } from './client.ts'
import {
  DOCTOR_FLAGS, HELP_FLAG, HOST_COMMAND_FLAGS, HOST_FLAGS, INSPECT_FLAGS, INSTALL_FLAGS, RUN_FLAGS,
  type Flag, type Named,
} from './flags.ts'
import { GUEST_COMMANDS } from './guest_commands.ts'
import { SNAPSHOT_COMMANDS } from './snapshot_commands.ts'
import { THING_COMMANDS } from './thing_commands.ts'

/** A word that a command takes. */
export type Word = { readonly label: string; readonly names?: Named; readonly choices?: readonly string[]
  readonly many?: true; readonly optional?: true }

/** What a command is called with, when its flags and words have been checked by its table. */
export type Call = {
  readonly command: Command
  /** Values by flag: [''] for a switch. */
  readonly flags: Readonly<Record<string, readonly string[] | undefined>>
  readonly words: readonly string[]
  /** The host that flags, environment and contexts name. */
  readonly client: () => Promise<Client>
}

/** A command. */
export type Command = {
  /** As it is called: `ps`, `volume ls`. */
  readonly name: string
  readonly group: 'Programs' | 'Guests' | 'Snapshots' | 'Images' | 'What guests use' | 'The host' | 'This command line'
  readonly summary: string
  /** More about it, in full sentences. */
  readonly about?: string
  /** Command lines, without `cellar`. */
  readonly examples: readonly string[]
  readonly flags: Readonly<Record<string, Flag>>
  readonly words: readonly Word[]
  /** Ways to call it, if words and flags don't tell: without `cellar`. */
  readonly usage?: readonly string[]
  readonly aliases?: readonly string[]
  /** Flags end at the first word: what follows is a program's. */
  readonly wordsEndFlags?: true
  /** Exit status of its errors, if it isn't the catalogue's. */
  readonly errors?: number
  readonly hidden?: true
} & (
  | { readonly load: () => Promise<(call: Call) => Promise<number>> }
  /** It reads its words and flags itself. */
  | { readonly own: () => Promise<(argv: readonly string[]) => number | Promise<number>> }
)

const PROGRAM_COMMANDS: readonly Command[] = [
  {
    name: 'run', group: 'Programs', summary: 'Run a program in the foreground, or, with -d, on a host',
    about: 'The program has what its flags grant and nothing else: no folder, no address, no variable.',
    usage: ['run [FLAGS] PROGRAM.wasm [ARGUMENTS]', 'run [FLAGS] -f MANIFEST [ARGUMENTS]', 'run [FLAGS] -f STACK',
      'run -d [FLAGS] PROGRAM.wasm|IMAGE [ARGUMENTS]', 'run --from SNAPSHOT [FLAGS]'],
    examples: ['run hello.wasm', 'run --dir .:/work:ro prog.wasm /work/input.txt',
      'run --listen tcp:127.0.0.1:8080 --memory 64MiB server.wasm', 'run --timeout 5s --stats prog.wasm',
      'run --cpu-limit 10% prog.wasm', 'run -f examples/noisy-neighbours.yaml',
      'run -d --name web -p 8080:80 -v data:/data server.wasm', 'run --from ready'],
    flags: RUN_FLAGS, wordsEndFlags: true,
    words: [{ label: 'PROGRAM', names: 'file' }, { label: 'ARGUMENTS', many: true, optional: true }],
    own: async () => (await import('./run.ts')).run,
  },
  {
    name: 'inspect', group: 'Programs', summary: 'Show what a program imports, exports and asks for; or all of a guest',
    about: 'A word that is a file, or ends in .wasm, is a program; any other is a guest of the host.',
    usage: ['inspect [FLAGS] PROGRAM.wasm', 'inspect [FLAGS] GUEST…'],
    examples: ['inspect prog.wasm', 'inspect -o json prog.wasm', 'inspect web', 'inspect -o yaml web'],
    flags: {
      output: { ...INSPECT_FLAGS.output, choices: ['text', 'json', 'yaml'],
        help: 'text or json for a program, json or yaml for a guest' },
      ...HOST_FLAGS, ...HELP_FLAG,
    },
    words: [{ label: 'PROGRAM|GUEST', names: 'guest', many: true }],
    own: async () => (await import('./inspect_any.ts')).inspectAny,
  },
]

const HOST_COMMANDS: readonly Command[] = [
  {
    name: 'host', group: 'The host', summary: 'Run a host: it keeps guests running',
    about: 'It serves its socket in its state folder, and more addresses if they are given.',
    examples: ['host', 'host --state /var/lib/cellar --listen tcp:127.0.0.1:7070'],
    flags: HOST_COMMAND_FLAGS, words: [], load: async () => (await import('./host.ts')).host,
  },
  {
    name: 'host install', group: 'The host', summary: 'Install the host as a service of systemd',
    examples: ['host install', 'host install --state /srv/cellar --dry-run'], flags: INSTALL_FLAGS, words: [],
    own: async () => (argv) => installing(['install', ...argv]),
  },
  {
    name: 'host uninstall', group: 'The host', summary: 'Remove the service; guests and state stay',
    examples: ['host uninstall'], flags: INSTALL_FLAGS, words: [],
    own: async () => (argv) => installing(['uninstall', ...argv]),
  },
  {
    name: 'host recover', group: 'The host', summary: "Go back to the latest backup of a host's state",
    examples: ['host recover --state /var/lib/cellar'],
    flags: { state: HOST_COMMAND_FLAGS.state, ...HELP_FLAG }, words: [],
    load: async () => (await import('./host.ts')).recover,
  },
  {
    name: 'doctor', group: 'The host', summary: 'Check what this machine can do for a host, and what is missing',
    examples: ['doctor', 'doctor -o json'], flags: DOCTOR_FLAGS, words: [], own: async () =>
      (await import('./doctor.ts')).doctor,
  },
]

const OWN_COMMANDS: readonly Command[] = [
  {
    name: 'version', group: 'This command line', summary: 'Show the version of Cellar and of its engine',
    about: "The host's version follows, if a host answers.", examples: ['version', 'version -o json'],
    flags: { output: { short: 'o', value: 'FORMAT', choices: ['text', 'json'], help: 'text (default) or json' },
      ...HOST_FLAGS, ...HELP_FLAG },
    words: [], load: async () => (await import('./version.ts')).version,
  },
  {
    name: 'context ls', group: 'This command line', summary: 'List contexts: hosts by name',
    examples: ['context ls'], flags: HELP_FLAG, words: [],
    load: async () => (await import('./context_verbs.ts')).listContexts,
  },
  {
    name: 'context use', group: 'This command line', summary: 'Make a context the current one',
    examples: ['context use lab'], flags: HELP_FLAG, words: [{ label: 'NAME', names: 'context' }],
    load: async () => (await import('./context_verbs.ts')).useContext,
  },
  {
    name: 'context create', group: 'This command line', summary: 'Note a host under a name',
    about: 'It is kept in ~/.config/cellar/config.yaml, which only you may read. The first context becomes current.',
    examples: ['context create lab --host https://lab.example.com:7070 --ca lab.pem --token-file token'],
    flags: {
      host: { value: 'ADDRESS', help: 'A socket, unix:PATH, http://… or https://…' },
      project: { short: 'P', value: 'PROJECT', help: 'The project that is meant if none is named' },
      'token-file': { value: 'FILE', names: 'file', help: 'A file with the token; - reads it from stdin' },
      ca: { value: 'FILE', names: 'file', help: "Certificates that the host's is checked by" },
      cert: { value: 'FILE', names: 'file', help: "The client's certificate" },
      key: { value: 'FILE', names: 'file', help: "The client's key" },
      ...HELP_FLAG,
    },
    words: [{ label: 'NAME' }], load: async () => (await import('./context_verbs.ts')).createContext,
  },
  {
    name: 'context rm', group: 'This command line', summary: 'Forget contexts', examples: ['context rm lab'],
    flags: HELP_FLAG, words: [{ label: 'NAME', names: 'context', many: true }],
    load: async () => (await import('./context_verbs.ts')).removeContexts,
  },
  {
    name: 'completion', group: 'This command line', summary: 'Print what makes a shell complete commands and names',
    examples: ['completion bash > /etc/bash_completion.d/cellar',
      'completion fish > ~/.config/fish/completions/cellar.fish'],
    flags: HELP_FLAG, words: [{ label: 'SHELL', choices: ['bash', 'zsh', 'fish'] }],
    load: async () => (await import('./completion.ts')).completion,
  },
  {
    name: 'man', group: 'This command line', summary: 'Write the manual pages into a folder (default: the current one)',
    examples: ['man /usr/local/share/man/man1'], flags: HELP_FLAG,
    words: [{ label: 'DIR', names: 'folder', optional: true }], load: async () => (await import('./man.ts')).man,
  },
  {
    name: 'help', group: 'This command line', summary: "Show help; 'cellar COMMAND --help' for one command",
    examples: ['help', 'help run', 'help volume create'], flags: HELP_FLAG,
    words: [{ label: 'COMMAND', names: 'command', many: true, optional: true }],
    own: async () => (await import('./help.ts')).help,
  },
  {
    name: '__complete', group: 'This command line', summary: 'Answer a shell', hidden: true, examples: [], flags: {},
    words: [], own: async () => (await import('./complete.ts')).complete,
  },
]

/** All commands. */
export const COMMANDS: readonly Command[] = [
  ...PROGRAM_COMMANDS, ...GUEST_COMMANDS, ...SNAPSHOT_COMMANDS, ...THING_COMMANDS, ...HOST_COMMANDS, ...OWN_COMMANDS,
]

/** The command that `argv` begins with, the longest that fits, and what follows it; undefined if there is none. */
export function findCommand(argv: readonly string[]): { command: Command; rest: readonly string[] } | undefined {
  for (const length of [2, 1]) {
    if (argv.length < length) continue
    const name = argv.slice(0, length).join(' ')
    const command = COMMANDS.find((one) => one.name === name || one.aliases?.includes(name))
    if (command !== undefined) return { command, rest: argv.slice(length) }
  }
  return undefined
}

/** The commands of a noun such as `volume`. */
export function commandsOf(noun: string): Command[] {
  return COMMANDS.filter(({ name, hidden }) => name.startsWith(`${noun} `) && hidden !== true)
}

/** Ways to call a command, without `cellar`. */
export function usageOf({ name, usage, words, flags }: Command): readonly string[] {
  if (usage !== undefined) return usage
  const parts = words.map(({ label, many, optional, choices }) => {
    const text = `${choices?.join('|') ?? label}${many === true ? '…' : ''}`
    return optional === true ? `[${text}]` : text
  })
  return [[name, ...(Object.keys(flags).length > 1 ? ['[FLAGS]'] : []), ...parts].join(' ')]
}

async function installing(argv: readonly string[]): Promise<number> {
  return await (await import('./host_install.ts')).hostInstall(argv)
}
