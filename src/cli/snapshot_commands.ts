// cli/snapshot_commands.ts: the part of the table of commands (commands.ts) that is about snapshots, forks and moves.

import type { Command, Word } from './commands.ts'
import { HELP_FLAG, HOST_FLAGS, LIST_FLAGS, type Flag } from './flags.ts'

const PLAIN = { ...HOST_FLAGS, ...HELP_FLAG }
const GUEST: Word = { label: 'GUEST', names: 'guest' }
const GUESTS: readonly Word[] = [{ ...GUEST, many: true }]
const SNAPSHOT: Word = { label: 'SNAPSHOT', names: 'snapshot' }
const SNAPSHOTS: readonly Word[] = [{ ...SNAPSHOT, many: true }]
const DETACH: Flag = { short: 'd', help: "Do not wait: print the operation, for 'cellar operation wait'" }
const MADE: Flag = { short: 'o', value: 'FORMAT', choices: ['name', 'json', 'yaml'],
  help: 'name (default), or json or yaml: all of it' }
const IN_WORDS = 'It is known by its name, its digest or the begin of its digest.'

const VERBS: readonly Command[] = [
  {
    name: 'snapshot', aliases: ['snapshot create'], group: 'Snapshots',
    summary: 'Save a guest while it runs, under a name or its digest',
    about: 'Memory, stack and what it has open are saved; what did not change since its last snapshot is not written ' +
      'again. A snapshot that has the name already loses it. The digest is printed if there is no name.',
    examples: ['snapshot web', 'snapshot web ready', 'snapshot web before-upgrade --stop'],
    flags: { stop: { help: 'Stop the guest there; else it goes on' }, output: MADE, ...PLAIN },
    words: [GUEST, { label: 'NAME', optional: true }], load: async () => (await import('./snapshots.ts')).snapshot,
  },
  {
    name: 'restore', group: 'Snapshots', summary: 'Make a guest that goes on from a snapshot, and print its name',
    about: `${IN_WORDS} What the snapshot's guest published is published on ports that the host chooses, unless -p ` +
      'says otherwise. The new guest has an identity and random numbers of its own.',
    examples: ['restore ready', 'restore ready --name web-2 -p 8081:80'],
    flags: {
      name: { value: 'NAME', help: 'Its name (default: one is made up)' },
      publish: { short: 'p', value: '[ADDRESS:]PORT:GUESTPORT', many: true,
        help: 'Where a port that it publishes is published (default: a port that the host chooses)' },
      output: MADE, ...PLAIN,
    },
    words: [SNAPSHOT], load: async () => (await import('./snapshots.ts')).restore,
  },
  {
    name: 'fork', group: 'Snapshots',
    summary: 'Make guests that go on from where a guest is now, and print their names',
    about: 'The guest goes on, too. Each fork has an identity, random numbers and ports of its own.',
    examples: ['fork web', 'fork worker --count 10', 'fork web --name blue --name green'],
    flags: {
      count: { value: 'N', help: 'How many (default: as many as there are names, or 1)' },
      name: { value: 'NAME', many: true, help: 'The name of one (default: GUEST-1, GUEST-2, …)' },
      output: MADE, ...PLAIN,
    },
    words: [GUEST], load: async () => (await import('./snapshots.ts')).fork,
  },
  {
    name: 'hibernate', group: 'Snapshots', summary: 'Save guests and free their memory, until something comes for them',
    about: 'A connection to a port of it, a time that it waits for, attach, start or resume wakes it, and it goes on ' +
      'where it was. Stop drops what was saved.',
    examples: ['hibernate web', 'hibernate $(cellar ps -q -l tier=batch)'], flags: PLAIN, words: GUESTS,
    load: async () => (await import('./guest_verbs.ts')).hibernateGuests,
  },
  {
    name: 'migrate', group: 'Snapshots', summary: 'Move guests to another host while they run',
    about: 'They are copied while they run, and stop for the rest only. If anything fails they go on where they are: ' +
      'there is never more than one, and never none. Ctrl-C cancels it.',
    examples: ['migrate web --to lab', 'migrate web --to https://b.example.com:7070 --token-file token',
      'migrate web --to unix:/srv/b/host.sock'],
    flags: {
      to: { value: 'CONTEXT|ADDRESS', names: 'context',
        help: 'The other host: a context, https://…, or unix:PATH and http://… on the machine of this one' },
      'token-file': { value: 'FILE', names: 'file',
        help: "A file with a token of that host (default: the context's); - reads it from stdin" },
      fingerprint: { value: 'SHA256', help: "The SHA-256 of that host's certificate (default: what the context's ca " +
        'has signed)' },
      downtime: { value: 'DURATION', help: 'How long it may stand still until the other host has all of it; else it ' +
        'goes on here (default: 10s)' },
      detach: DETACH, ...PLAIN,
    },
    words: GUESTS, load: async () => (await import('./migrate.ts')).migrate,
  },
]

const NOUNS: readonly Command[] = [
  {
    name: 'snapshot ls', aliases: ['snapshots'], group: 'Snapshots', summary: 'List snapshots',
    examples: ['snapshot ls', 'snapshot ls -o json'], flags: { ...LIST_FLAGS, ...PLAIN }, words: [],
    load: async () => (await import('./snapshots.ts')).listSnapshots,
  },
  {
    name: 'snapshot inspect', group: 'Snapshots', summary: 'Show all of snapshots',
    examples: ['snapshot inspect ready'], words: SNAPSHOTS,
    flags: {
      output: { short: 'o', value: 'FORMAT', choices: ['json', 'yaml'], help: 'json (default) or yaml' }, ...PLAIN,
    },
    load: async () => (await import('./snapshots.ts')).inspectSnapshots,
  },
  {
    name: 'snapshot rm', group: 'Snapshots', summary: 'Remove snapshots',
    about: 'What other snapshots have too stays. One that a hibernated guest needs can not be removed.',
    examples: ['snapshot rm ready', 'snapshot rm $(cellar snapshot ls -q)'], flags: PLAIN, words: SNAPSHOTS,
    load: async () => (await import('./snapshots.ts')).removeSnapshots,
  },
  {
    name: 'snapshot push', group: 'Snapshots', summary: 'Send a snapshot to a registry, as an OCI artifact',
    about: "It holds all of the guest's memory, secrets too. Who can read it can read those.",
    examples: ['snapshot push ready registry.example.com/team/app:ready'], flags: { detach: DETACH, ...PLAIN },
    words: [SNAPSHOT, { label: 'REFERENCE' }], load: async () => (await import('./snapshots.ts')).pushSnapshot,
  },
  {
    name: 'snapshot pull', group: 'Snapshots', summary: 'Fetch a snapshot from a registry',
    examples: ['snapshot pull registry.example.com/team/app:ready ready'], flags: { detach: DETACH, ...PLAIN },
    words: [{ label: 'REFERENCE' }, { label: 'NAME', optional: true }],
    load: async () => (await import('./snapshots.ts')).pullSnapshot,
  },
]

/** Commands for snapshots, forks and moves. */
export const SNAPSHOT_COMMANDS: readonly Command[] = [...VERBS, ...NOUNS]
