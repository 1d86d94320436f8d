// cli/thing_commands.ts: the part of the table of commands (commands.ts) that is about images, what guests use, and
// what a host tells of itself.

import type { Command, Word } from './commands.ts'
import { HELP_FLAG, HOST_FLAGS, LIST_FLAGS, type Flag } from './flags.ts'

const PLAIN = { ...HOST_FLAGS, ...HELP_FLAG }
const LISTED = { ...LIST_FLAGS, ...PLAIN }
const SHOWN = {
  output: { short: 'o', value: 'FORMAT', choices: ['json', 'yaml'], help: 'json (default) or yaml' }, ...PLAIN,
} as const
const IMAGE: Word = { label: 'IMAGE', names: 'image' }
const VOLUME: Word = { label: 'VOLUME', names: 'volume' }
const NEW: Word = { label: 'NAME' }
const SIZE = { value: 'SIZE', help: 'Most that it holds, such as 1GiB (default: 1GiB)' }
const DETACH: Flag = { short: 'd', help: "Do not wait: print the operation, for 'cellar operation wait'" }
const many = (word: Word): readonly Word[] => [{ ...word, many: true }]

const GIVEN_FLAGS: Readonly<Record<string, Flag>> = {
  layout: { value: 'FOLDER', names: 'folder', help: 'Keep it as an OCI layout in this folder: no host is given it' },
}
const IMPORT_FLAGS: Readonly<Record<string, Flag>> = {
  name: { value: 'NAME', help: 'What the image of a machine is called' },
  kernel: { value: 'FILE', names: 'file', help: 'A 64-bit Linux kernel: a bzImage, or an ELF file' },
  initrd: { value: 'FILE', names: 'file', help: 'Its first root file system, a cpio archive' },
  disk: { value: 'FILE[:ro]', many: true, names: 'file', help: 'A disk, raw or qcow2; guests write to copies of it' },
  cmdline: { value: 'TEXT', help: "The kernel's command line (default: console=ttyS0)" },
  seed: { value: 'FILE', names: 'file', help: "cloud-init's user-data: given to the guest on a disk of its own" },
  'meta-data': { value: 'FILE', names: 'file', help: "cloud-init's meta-data" },
  'network-config': { value: 'FILE', names: 'file', help: "cloud-init's network-config" },
  rootfs: { value: 'IMAGE', help: 'An image for containers, of a registry or oci:FOLDER, as root file system' },
  'kernel-from': { value: 'IMAGE', names: 'image', help: 'The image whose kernel it has (default: debian)' },
  changes: { value: 'SIZE', help: 'Changes to the root file system are kept, up to this size (default: kept in RAM)' },
  'insecure-registry': { value: 'NAME', many: true, help: 'A registry that is asked without TLS' },
  vcpus: { value: 'N', help: 'vCPUs of a guest that asks for none itself' },
  memory: { short: 'm', value: 'SIZE', help: 'Memory of a guest that asks for none itself' },
}

const IMAGE_COMMANDS: readonly Command[] = [
  {
    name: 'pull', aliases: ['image pull'], group: 'Images', summary: 'Fetch images from registries',
    examples: ['pull registry.example.com/team/app:1.2'], flags: { detach: DETACH, ...PLAIN }, words: many(IMAGE),
    load: async () => (await import('./images.ts')).pull,
  },
  {
    name: 'push', aliases: ['image push'], group: 'Images', summary: 'Send an image to a registry',
    examples: ['push app registry.example.com/team/app:1.2'], flags: { detach: DETACH, ...PLAIN },
    words: [IMAGE, { label: 'REFERENCE', optional: true }], load: async () => (await import('./images.ts')).push,
  },
  {
    name: 'image ls', aliases: ['images'], group: 'Images', summary: 'List images', examples: ['image ls'],
    flags: LISTED, words: [], load: async () => (await import('./images.ts')).listImages,
  },
  {
    name: 'image import', group: 'Images', summary: 'Make an image of a program, or of what a machine is made of',
    about: 'A machine is a kernel with an initrd and disks, a disk that boots by itself (a cloud image), or the ' +
      'files of an image for containers under a kernel that there is. It is made here, and given to the host on this ' +
      'machine.',
    usage: ['image import PROGRAM.wasm [NAME]', 'image import --kernel FILE [--initrd FILE] [--disk FILE…] --name NAME',
      'image import --disk FILE [--seed USER-DATA] --name NAME', 'image import --rootfs IMAGE --name NAME'],
    examples: ['image import app.wasm app:1.2',
      'image import --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --name linux',
      'image import --disk debian-12-genericcloud-amd64.qcow2 --seed user-data --name cloud',
      'image import --rootfs registry.example.com/library/nginx --kernel-from debian --changes 2GiB --name nginx'],
    flags: { ...IMPORT_FLAGS, ...GIVEN_FLAGS, ...PLAIN },
    words: [{ label: 'PROGRAM.wasm', names: 'file', optional: true }, { ...NEW, optional: true }],
    load: async () => (await import('./image_import.ts')).importAny,
  },
  {
    name: 'image debian', group: 'Images', summary: 'Make an image of a small Debian guest, with a kernel',
    about: "The distribution's packages are fetched by apt and unpacked here, with no root. The guest lives in its " +
      'RAM and starts in a second or two; with --disk what --packages names lies on a disk, and changes are kept.',
    examples: ['image debian', 'image debian --packages curl,python3-minimal --name tools',
      'image debian --release trixie --name trixie'],
    flags: {
      name: { value: 'NAME', help: 'What the image is called (default: debian)' },
      packages: { value: 'NAME,…', many: true,
        help: 'Packages of Debian that the guest has, too, with what they need' },
      disk: { value: 'SIZE', help: 'Packages lie on a disk, and changes to it, up to this size, are kept' },
      release: { value: 'RELEASE', help: "Of Debian, such as bookworm (default: this machine's)" },
      mirror: { value: 'URL', help: "Where Debian is fetched from (default: this machine's mirror)" },
      ...GIVEN_FLAGS, ...PLAIN,
    },
    words: [], load: async () => (await import('./image_debian.ts')).imageDebian,
  },
  {
    name: 'image tag', group: 'Images', summary: 'Give an image one more name',
      examples: ['image tag app:1.2 app:latest'],
    flags: PLAIN, words: [IMAGE, NEW], load: async () => (await import('./images.ts')).tagImage,
  },
  {
    name: 'image inspect', group: 'Images', summary: 'Show all of images', examples: ['image inspect app:1.2'],
    flags: SHOWN, words: many(IMAGE), load: async () => (await import('./images.ts')).inspectImages,
  },
  {
    name: 'image rm', group: 'Images', summary: 'Remove names of images', examples: ['image rm app:1.2'],
    flags: PLAIN, words: many(IMAGE), load: async () => (await import('./images.ts')).removeImages,
  },
  {
    name: 'image gc', group: 'Images', summary: 'Remove what no name and no guest refers to', examples: ['image gc'],
    flags: PLAIN, words: [], load: async () => (await import('./images.ts')).collectImages,
  },
]

const VOLUME_COMMANDS: readonly Command[] = [
  {
    name: 'volume ls', group: 'What guests use', summary: 'List volumes', examples: ['volume ls'], flags: LISTED,
    words: [], load: async () => (await import('./volumes.ts')).listVolumes,
  },
  {
    name: 'volume create', group: 'What guests use', summary: 'Create a volume',
    examples: ['volume create data', 'volume create data --size 10GiB', 'volume create copy --clone data',
      'volume create root --disk --size 4GiB'],
    flags: { disk: { help: 'A disk for a machine, in place of a folder for cells' }, size: SIZE,
      clone: { value: 'VOLUME', names: 'volume', help: 'The volume whose content it begins with' },
      ...PLAIN },
    words: [NEW], load: async () => (await import('./volumes.ts')).createVolume,
  },
  {
    name: 'volume clone', group: 'What guests use', summary: 'Copy a volume, as far as possible without using space',
    examples: ['volume clone data data-test'], flags: { detach: DETACH, ...PLAIN }, words: [VOLUME, NEW],
    load: async () => (await import('./volumes.ts')).cloneVolume,
  },
  {
    name: 'volume resize', group: 'What guests use', summary: 'Change how much a volume holds',
    examples: ['volume resize data 20GiB'], flags: PLAIN, words: [VOLUME, { label: 'SIZE' }],
    load: async () => (await import('./volumes.ts')).resizeVolume,
  },
  {
    name: 'volume inspect', group: 'What guests use', summary: 'Show all of volumes', examples: ['volume inspect data'],
    flags: SHOWN, words: many(VOLUME), load: async () => (await import('./volumes.ts')).inspectVolumes,
  },
  {
    name: 'volume rm', group: 'What guests use', summary: 'Remove volumes and all that they hold',
    examples: ['volume rm data'], flags: PLAIN, words: many(VOLUME),
    load: async () => (await import('./volumes.ts')).removeVolumes,
  },
]

const SET_COMMANDS: readonly Command[] = [
  {
    name: 'network ls', group: 'What guests use', summary: 'List networks', examples: ['network ls'], flags: LISTED,
    words: [], load: async () => (await import('./things.ts')).listNetworks,
  },
  {
    name: 'network create', group: 'What guests use',
      summary: 'Create networks: guests in one reach each other by name',
    examples: ['network create back'], flags: PLAIN, words: many(NEW),
    load: async () => (await import('./things.ts')).createNetworks,
  },
  {
    name: 'network rm', group: 'What guests use', summary: 'Remove networks', examples: ['network rm back'],
    flags: PLAIN, words: many({ label: 'NETWORK', names: 'network' }),
    load: async () => (await import('./things.ts')).removeNetworks,
  },
  {
    name: 'pool ls', group: 'What guests use', summary: 'List pools', examples: ['pool ls'], flags: LISTED, words: [],
    load: async () => (await import('./things.ts')).listPools,
  },
  {
    name: 'pool set', group: 'What guests use', summary: 'Say what the guests of a pool have together',
    about: 'What is not said has its default, also where the pool said something else before.',
    examples: ['pool set batch --cpu-limit 50% --memory 1GiB'],
    flags: {
      shares: { value: 'N', help: 'Weight against others, 1 to 10000 (default: 100)' },
      'cpu-limit': { value: 'CPU', help: 'CPU that they never have more of, such as 50% or 1.5' },
      'cpu-reservation': { value: 'CPU', help: 'CPU that they have whenever they want it' },
      memory: { short: 'm', value: 'SIZE', help: 'Most memory that they may have: the sum of their limits' }, ...PLAIN,
    },
    words: [{ label: 'POOL', names: 'pool' }], load: async () => (await import('./things.ts')).setPool,
  },
  {
    name: 'pool rm', group: 'What guests use', summary: 'Remove pools', examples: ['pool rm batch'], flags: PLAIN,
    words: many({ label: 'POOL', names: 'pool' }), load: async () => (await import('./things.ts')).removePools,
  },
  {
    name: 'secret ls', group: 'What guests use', summary: 'List secrets, not their values', examples: ['secret ls'],
    flags: LISTED, words: [], load: async () => (await import('./things.ts')).listSecrets,
  },
  {
    name: 'secret set', group: 'What guests use', summary: 'Set a secret to what a file holds, or stdin',
    about: 'The value is kept as it is, to the byte. On a terminal it is asked for and not shown.',
    examples: ['secret set db-password password.txt', 'pwgen -1 32 | tr -d "\\n" | cellar secret set db-password'],
    flags: PLAIN, words: [{ label: 'SECRET', names: 'secret' }, { label: 'FILE', names: 'file', optional: true }],
    load: async () => (await import('./things.ts')).setSecret,
  },
  {
    name: 'secret rm', group: 'What guests use', summary: 'Remove secrets', examples: ['secret rm db-password'],
    flags: PLAIN, words: many({ label: 'SECRET', names: 'secret' }),
    load: async () => (await import('./things.ts')).removeSecrets,
  },
  {
    name: 'project ls', group: 'What guests use', summary: 'List projects', examples: ['project ls'], flags: LISTED,
    words: [], load: async () => (await import('./things.ts')).listProjects,
  },
  {
    name: 'project create', group: 'What guests use', summary: 'Create projects', examples: ['project create shop'],
    flags: PLAIN, words: many(NEW), load: async () => (await import('./things.ts')).createProjects,
  },
  {
    name: 'project rm', group: 'What guests use', summary: 'Remove projects', examples: ['project rm --force shop'],
    flags: { force: { short: 'f', help: 'With all that is in them: guests, volumes, secrets' }, ...PLAIN },
    words: many({ label: 'PROJECT', names: 'project' }), load: async () => (await import('./things.ts')).removeProjects,
  },
]

const TOLD_COMMANDS: readonly Command[] = [
  {
    name: 'events', group: 'The host', summary: 'Show what happened, and what happens',
    about: 'Those of all projects, unless --project names one. On a terminal it goes on with what is to come.',
      examples: ['events', 'events --follow -o json'],
    flags: {
      since: { value: 'SEQ', help: 'Only those after the event with this number' },
      follow: { short: 'f', help: 'Go on with what is to come (default on a terminal)' },
      'no-follow': { help: 'End with what has happened (default elsewhere)' },
      output: { short: 'o', value: 'FORMAT', choices: ['text', 'json'], help: 'text (default), or json: one a line' },
      ...PLAIN,
    },
    words: [], load: async () => (await import('./events.ts')).events,
  },
  {
    name: 'operation ls', group: 'The host', summary: 'List long work: pulls, clones, removals',
    examples: ['operation ls'], flags: LISTED, words: [], load: async () =>
      (await import('./operations.ts')).listOperations,
  },
  {
    name: 'operation wait', group: 'The host', summary: 'Wait for operations', examples: ['operation wait 7'],
    flags: PLAIN, words: many({ label: 'OPERATION', names: 'operation' }),
    load: async () => (await import('./operations.ts')).waitForOperations,
  },
  {
    name: 'operation cancel', group: 'The host', summary: 'Cancel operations', examples: ['operation cancel 7'],
    flags: PLAIN, words: many({ label: 'OPERATION', names: 'operation' }),
    load: async () => (await import('./operations.ts')).cancelOperations,
  },
  {
    name: 'token ls', group: 'The host', summary: 'List tokens, not what they are', examples: ['token ls'],
    flags: LISTED, words: [], load: async () => (await import('./things.ts')).listTokens,
  },
  {
    name: 'token create', group: 'The host', summary: 'Make a token for the API, and print it: once',
    examples: ['token create ci --scope write --expires 720h', 'token create viewer --scope read --only shop'],
    flags: {
      scope: { value: 'SCOPE', choices: ['read', 'write', 'admin'],
        help: 'read (default), write: change guests and what they use, or admin: everything' },
      only: { value: 'PROJECT', names: 'project', help: 'It is good for this project only' },
      expires: { value: 'DURATION', help: 'It is good for this time (default: for ever)' }, ...PLAIN,
    },
    words: [NEW], load: async () => (await import('./things.ts')).createToken,
  },
  {
    name: 'token rm', group: 'The host', summary: 'Make tokens worthless', examples: ['token rm 4f2a'], flags: PLAIN,
    words: many({ label: 'TOKEN', names: 'token' }), load: async () => (await import('./things.ts')).removeTokens,
  },
]

/** Commands for all but guests. */
export const THING_COMMANDS: readonly Command[] = [
  ...IMAGE_COMMANDS, ...VOLUME_COMMANDS, ...SET_COMMANDS, ...TOLD_COMMANDS,
]
