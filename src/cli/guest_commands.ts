// cli/guest_commands.ts: the part of the table of commands (commands.ts) that is about guests and manifests.

import type { Command, Word } from './commands.ts'
import { HELP_FLAG, HOST_FLAGS, LIST_FLAGS, type Flag } from './flags.ts'


const GUEST: Word = { label: 'GUEST', names: 'guest' }
const GUESTS: readonly Word[] = [{ ...GUEST, many: true }]
const PLAIN = { ...HOST_FLAGS, ...HELP_FLAG }
const TIMEOUT: Flag = { value: 'DURATION', help: 'Give up after this time, with exit status 124 (default: never)' }
const SELECTOR: Flag = { short: 'l', value: 'KEY[=VALUE]', many: true, help: 'Only those with this label' }
const MANIFEST: Flag = { short: 'f', value: 'MANIFEST', names: 'file', help: 'The manifest (YAML)' }
const PRUNE: Flag = { help: 'Remove guests, pools and networks of the project that the manifest does not have' }

/** Commands for guests. */
export const GUEST_COMMANDS: readonly Command[] = [
  {
    name: 'ps', aliases: ['ls'], group: 'Guests', summary: 'List guests: running ones, or all',
    examples: ['ps', 'ps -a -o wide', 'ps -l tier=web -q', 'ps --watch'],
    flags: {
      all: { short: 'a', help: 'Those that do not run, too' },
      'all-projects': { short: 'A', help: 'Guests of all projects' },
      selector: SELECTOR,
      watch: { short: 'w', help: 'Go on and show what changes' },
      ...LIST_FLAGS, ...PLAIN,
    },
    words: [], load: async () => (await import('./ps.ts')).ps,
  },
  {
    name: 'start', group: 'Guests', summary: 'Start guests', examples: ['start web'], flags: PLAIN, words: GUESTS,
    load: async () => (await import('./guest_verbs.ts')).startGuests,
  },
  {
    name: 'stop', group: 'Guests', summary: 'Stop guests gracefully (SIGTERM), and wait for their ends',
    examples: ['stop web', 'stop $(cellar ps -q)'], flags: PLAIN, words: GUESTS,
    load: async () => (await import('./guest_verbs.ts')).stopGuests,
  },
  {
    name: 'kill', group: 'Guests', summary: 'End guests at once (SIGKILL)', examples: ['kill web'], flags: PLAIN,
    words: GUESTS, load: async () => (await import('./guest_verbs.ts')).killGuests,
  },
  {
    name: 'restart', group: 'Guests', summary: 'Stop guests and start them again', examples: ['restart web'],
    flags: PLAIN, words: GUESTS, load: async () => (await import('./guest_verbs.ts')).restartGuests,
  },
  {
    name: 'pause', group: 'Guests', summary: 'Keep guests from running, until they are resumed',
    about: 'Memory, ports and connections stay. A guest that is paused can be saved, forked, moved and stopped.',
    examples: ['pause web'], flags: PLAIN, words: GUESTS,
    load: async () => (await import('./guest_verbs.ts')).pauseGuests,
  },
  {
    name: 'resume', group: 'Guests', summary: 'Let guests go on that are paused or hibernated',
    examples: ['resume web'], flags: PLAIN, words: GUESTS,
    load: async () => (await import('./guest_verbs.ts')).resumeGuests,
  },
  {
    name: 'resize', group: 'Guests', summary: 'Ask a machine to do with less memory, or give it back',
    about: "A balloon in the guest takes what it can spare, and gives it back to the host: see 'stats -o wide'.\n" +
      'Never more than the machine was started with; a restart begins with all of it.',
    examples: ['resize debian 128MiB'], flags: PLAIN, words: [GUEST, { label: 'SIZE' }],
    load: async () => (await import('./guest_verbs.ts')).resizeGuest,
  },
  {
    name: 'rm', aliases: ['delete'], group: 'Guests', summary: 'Remove guests, with their logs',
    examples: ['rm web', 'rm --force web db'],
    flags: { force: { short: 'f', help: 'Those that run, too: they are killed' }, ...PLAIN }, words: GUESTS,
    load: async () => (await import('./guest_verbs.ts')).removeGuests,
  },
  {
    name: 'wait', group: 'Guests', summary: 'Wait until guests have ended, and print their exit statuses',
    examples: ['wait job', 'wait --for running --timeout 10s web'],
    flags: {
      for: { value: 'PHASE', choices: ['created', 'starting', 'running', 'paused', 'hibernated', 'backing-off',
        'stopping', 'exited', 'failed', 'stopped'], many: true, help: 'Wait for this phase in place of an end' },
      timeout: TIMEOUT, ...PLAIN,
    },
    words: GUESTS, load: async () => (await import('./guest_verbs.ts')).waitForGuests,
  },
  {
    name: 'logs', group: 'Guests', summary: 'Print what a guest has written',
    about: "What it wrote to its stderr goes to stderr, as in the foreground.",
    examples: ['logs web', 'logs -f --tail 20 web', 'logs -t --since 10m web'],
    flags: {
      follow: { short: 'f', help: 'Go on with what it writes from now on' },
      since: { value: 'TIME', help: 'From this time on: a duration before now, such as 10m, or 2026-01-31T12:00:00Z' },
      tail: { short: 'n', value: 'N', help: 'The last N lines only' },
      timestamps: { short: 't', help: 'Write the time before each line' }, ...PLAIN,
    },
    words: [GUEST], load: async () => (await import('./logs.ts')).logs,
  },
  {
    name: 'exec', group: 'Guests', summary: "Run a program in a machine; or a guest's image, or another, beside a cell",
    about: "ARGUMENTS are all of the program's arguments, its name first. The exit status is the program's own; " +
      "125 is Cellar's\nerror. Beside a cell it is an image, with the cell's grants; in a machine a program of " +
      'it, run by its agent.',
    examples: ['exec debian uname -a', 'exec web', 'exec --image sqlite:3 -i db sqlite /data/app.db'],
    flags: {
      image: { value: 'IMAGE', names: 'image', help: "The image to run (default: the guest's)" },
      env: { short: 'e', value: 'K=V', many: true, help: "Set an environment variable; K alone passes on one's own" },
      interactive: { short: 'i', help: 'Pass stdin on; else its input is at its end' }, ...PLAIN,
    },
    words: [GUEST, { label: 'ARGUMENTS', many: true, optional: true }], wordsEndFlags: true, errors: 125,
    load: async () => (await import('./session.ts')).exec,
  },
  {
    name: 'attach', aliases: ['console'], group: 'Guests',
    summary: "See a guest's output as it comes, and write to its input",
    about: "Ctrl-C leaves the guest alone. Its input is there if it was started with -i ('stdin: true').\n" +
      'The console of a machine begins with the last that it wrote, and always takes input: on a terminal each key\n' +
      'goes to the guest, and Ctrl-] leaves it.',
    examples: ['attach web', 'console debian'], flags: PLAIN, words: [GUEST], errors: 125,
    load: async () => (await import('./session.ts')).attach,
  },
  {
    name: 'stats', group: 'Guests', summary: 'Show what running guests use',
    about: 'One that is paused has its memory; one that is hibernated has none, and no figures.',
    examples: ['stats', 'stats --watch web', 'stats -A -o json'],
    flags: {
      'all-projects': { short: 'A', help: 'Guests of all projects' },
      watch: { short: 'w', help: 'Go on, each second' }, ...LIST_FLAGS, ...PLAIN,
    },
    words: [{ ...GUEST, many: true, optional: true }], load: async () => (await import('./stats.ts')).stats,
  },
  {
    name: 'top', group: 'Guests', summary: 'Show who has the CPU, live, most first',
    about: 'Each second a table; on a terminal it stays in its place. Ctrl-C ends it.',
    examples: ['top', 'top -A'],
    flags: { 'all-projects': { short: 'A', help: 'Guests of all projects' }, ...PLAIN }, words: [],
    load: async () => (await import('./stats.ts')).topOfHost,
  },
  {
    name: 'cp', group: 'Guests', summary: 'Copy files out of a volume or a machine, or into one',
    about: 'One of the two is VOLUME:PATH, or MACHINE:PATH while it runs. A folder is copied with all in it.\n' +
      '- is a tar archive: ' +
      'from stdin, or to stdout. A target that ends in / is put into; any other is the new name.',
    examples: ['cp data:/config.json .', 'cp site/ data:/www', 'cp data:/ - | tar t', 'cp debian:/etc/hostname .'],
    flags: PLAIN,
    words: [{ label: 'SOURCE', names: 'volume path' }, { label: 'TARGET', names: 'volume path' }],
    load: async () => (await import('./copy.ts')).copy,
  },
  {
    name: 'apply', group: 'Guests', summary: 'Make a project what a manifest says',
    about: 'Programs that the manifest names by their files are sent to the host.',
    examples: ['apply -f stack.yaml', 'apply -f stack.yaml --prune --dry-run'],
    flags: { file: MANIFEST, 'dry-run': { help: 'Tell what would change, and change nothing' }, prune: PRUNE,
      ...PLAIN },
    words: [], load: async () => (await import('./apply.ts')).apply,
  },
  {
    name: 'diff', group: 'Guests', summary: 'Tell how a project differs from a manifest',
    about: 'The exit status is 0 if it does not, 1 if it does, 2 if that can not be told.',
    examples: ['diff -f stack.yaml'], flags: { file: MANIFEST, prune: PRUNE, ...PLAIN }, words: [], errors: 2,
    load: async () => (await import('./apply.ts')).diff,
  },
]
