// host/spec.ts: what guests, pools, volumes and networks may say of themselves: the one schema.
//
// `cellar run -f`, `cellar apply -f` and the API take the same cells; docs/reference/manifest.md and /openapi.json are
// generated from here. A manifest that a person writes has a few liberties (a program's path, copies, a pool's cells by
// name); what a host keeps of a cell is its GUEST_SPEC, in the same words. Unknown keys are errors everywhere: a typing
// mistake must not take a limit away. Elsewhere: files with lines and columns (manifest_file.ts), what the fields mean
// to the engine (launch.ts).

import { z } from 'zod'
import {
  COPIES_MAX, PCPUS_MAX, QUANTUM_NS_MAX, QUANTUM_NS_MIN, SHARES_MAX, WASM_PAGE_BYTES,
} from '../base/limits.ts'
import { parseCpu, parseDuration, parseSize } from '../base/units.ts'
import { VCPUS_MAX } from '../machine/spec.ts'
import { DEFAULT_TERMS } from '../sched/node.ts'

/** Names of everything that an operator names. */
export const NAME = z.string().regex(/^[A-Za-z0-9][\w.-]{0,39}$/,
  'names are of letters, digits, ".", "_" and "-", begin with a letter or digit, and have 40 characters at most')

const argument = z.union([z.number(), z.string(), z.array(z.string())])

const cpu = (what: string, most = Infinity) =>
  z.union([z.number(), z.string()])
    .refine((value) => parseCpu(String(value)) !== undefined, 'must be a part of a pCPU above 0, such as 10% or 0.5')
    .refine((value) => (parseCpu(String(value)) ?? 0) <= most, `must be ${most} at most: a cell runs on one pCPU`)
    .optional().describe(what)

const duration = (what: string): z.ZodOptional<z.ZodString> =>
  z.string().refine((text) => (parseDuration(text) ?? 0) > 0, 'must be a duration above 0, such as 5s').optional()
    .describe(what)

const size = (what: string): z.ZodOptional<z.ZodString> =>
  z.string().refine((text) => (parseSize(text) ?? 0) >= WASM_PAGE_BYTES,
    'must be a size of at least 64KiB, such as 64MiB').optional()
    .describe(what)

const port = z.int().min(1).max(65_535)
const variable = z.string().regex(/^[^=\0]+$/, 'a variable has a name without "="')
/** A path in a guest: its parts are checked where it is used. */
const guestPath = z.string().regex(/^\/[^\0:]*$/, 'must be a path from the root, such as /data')

const RESERVATION = 'CPU that it has whenever it wants it: a part of a pCPU, such as 25% or 0.25'

/** What a cell or a pool is given of the CPU. */
const TERMS = {
  shares: z.int().min(1).max(SHARES_MAX).optional()
    .describe(`Weight against others, 1 to ${SHARES_MAX} (default: ${DEFAULT_TERMS.shares})`),
  'cpu-reservation': cpu(RESERVATION),
  'cpu-limit': cpu('CPU that it never has more of: pCPUs, such as 10% or 1.5'),
}

type Part = Partial<Record<'cpu-limit' | 'cpu-reservation', number | string | undefined>>

/** Terms that contradict each other, as a refinement: the check, and what is said where. */
const NO_CONTRADICTION: [(terms: Part) => boolean, { path: string[]; message: string }] = [
  (terms) => cpuPart(terms['cpu-limit'], Infinity) >= cpuPart(terms['cpu-reservation'], 0),
  { path: ['cpu-limit'], message: 'must be no less than cpu-reservation' },
]

/** A part of a pCPU as people write it, in pCPUs. */
export function cpuPart(value: number | string | undefined, otherwise: number): number {
  return value === undefined ? otherwise : parseCpu(String(value))!
}

/** What a cell may say wherever it runs. */
const CELL_FIELDS = {
  args: z.array(z.string()).default([]).describe(
    "The program's arguments, its name first; those of the command line follow"),
  env: z.record(variable, z.string()).default({}).describe('Environment variables'),
  memory: size('Most memory that the program may have, such as 64MiB'),
  stubs: z.array(z.string()).default([]).describe('Unknown imports to bind to stubs: MODULE or MODULE.NAME'),
  calls: z.array(z.strictObject({ call: z.string().min(1), with: z.array(argument).default([]) })).min(1).optional()
    .describe('Exports to call in order, in place of _start; strings are passed as the component ABI does'),
  ...TERMS,
  'cpu-reservation': cpu(RESERVATION, 1),
  deterministic: z.boolean().optional().describe(
    'Let it leave its pCPU by a count of what it has executed: at the same places in every run'),
  unbounded: z.boolean().optional().describe(
    'Let it share a pCPU though it uses what cannot be kept within bounds, such as garbage-collected objects'),
}

const PORT_SPEC = /^(?:(\d+\.\d+\.\d+\.\d+|\[[0-9A-Fa-f:.]+\]):)?(\d{1,5}):(\d{1,5})$/
const CONNECT_SPEC = /^[A-Za-z0-9][\w.-]*:\d{1,5}$/
const EGRESS_NAME = /^(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?(?::\d{1,5})?$/
const EGRESS_ADDRESS = /^(?:\d+\.\d+\.\d+\.\d+|\[[0-9A-Fa-f:.]+\])(?:\/\d{1,3})?(?::\d{1,5})?$/
const EGRESS_SPEC = new RegExp(`${EGRESS_NAME.source}|${EGRESS_ADDRESS.source}`)

/** A path below a folder, none of whose parts leads elsewhere. */
const filePath = z.string().max(255).regex(/^(?!\.{1,2}(?:\/|$))[^/\0]+(?:\/(?!\.{1,2}(?:\/|$))[^/\0]+)*$/,
  'must be a path below the folder, such as site/index.html')

const content = z.union([
  z.string(), z.strictObject({ secret: NAME }), z.strictObject({ base64: z.base64() }),
])

/** How a host asks a guest whether it is well. */
export const HEALTH = z.strictObject({
  tcp: port.optional().describe('It is well if it takes a connection on this port of its own'),
  http: z.string().regex(/^\d{1,5}\/.*$/, 'must be PORT/PATH, such as 80/healthz').optional()
    .describe('It is well if GET of PORT/PATH is answered with a status from 200 to 399'),
  interval: duration('How often it is asked (default: 10s)'),
  timeout: duration('How long it has to answer (default: 1s)'),
  retries: z.int().min(1).max(100).default(3).describe('It is unhealthy after so many failures in a row'),
  'start-period': duration('Failures do not count for so long after its start (default: 5s)'),
}).refine((one) => (one.tcp === undefined) !== (one.http === undefined), 'say one of tcp and http')

/** What a machine may say: a guest with an operating system of its own. */
export const MACHINE = z.strictObject({
  vcpus: z.int().min(1).max(VCPUS_MAX).default(1).describe(`vCPUs, 1 to ${VCPUS_MAX}`),
  engine: z.enum(['auto', 'kvm', 'qemu']).default('auto')
    .describe('What runs it: our own monitor over KVM, or QEMU (default: KVM where it runs ordinary guests)'),
  'kernel-args': z.string().max(2048).regex(/^[\x20-\x7e]*$/, 'must be of printable ASCII characters').optional()
    .describe("Words added to the kernel's command line"),
  tap: z.string().regex(/^[\w.-]{1,15}$/, 'must be the name of a TAP device').optional()
    .describe('A TAP device of the host that is its network card, in place of `networks`'),
})

/** What a cell of a host may say beyond that. */
const HOSTED_FIELDS = {
  'memory-reservation': size('Memory that the host keeps for it (default: none): more than there is, is refused'),
  pool: NAME.optional().describe('The pool that it is in'),
  volumes: z.array(z.string().regex(/^[A-Za-z0-9][\w.-]{0,39}:\/[^:\0]*(?::ro)?$/,
    'must be VOLUME:FOLDER[:ro], such as data:/data')).max(32).default([])
    .describe('Volumes of the project, as folders of the guest: VOLUME:FOLDER[:ro]'),
  ports: z.array(z.string().regex(PORT_SPEC, 'must be [ADDRESS:]PORT:GUESTPORT, such as 8080:80')).max(64).default([])
    .describe('Ports published on the host: [ADDRESS:]PORT:GUESTPORT (default address: 127.0.0.1). Each guest port ' +
      'is a listening socket, descriptors from 3 on, after the folders'),
  expose: z.array(port).max(64).default([])
    .describe('Ports that only cells of its networks reach; listening sockets after those of `ports`'),
  connect: z.array(z.string().regex(CONNECT_SPEC, 'must be NAME:PORT, such as db:5432')).max(64).default([])
    .describe('Connections to have from the start, for programs that know inherited descriptors only: NAME:PORT'),
  networks: z.array(NAME).max(32).default(['default']).describe('Networks whose cells it reaches by name'),
  egress: z.array(z.string().regex(EGRESS_SPEC,
    'must be a name, *.NAME or a CIDR, with :PORT if only that one, such as *.example.com:443')).max(256).default([])
    .describe('What it may reach outside: NAME[:PORT], *.NAME[:PORT] or CIDR[:PORT] (default: nothing)'),
  files: z.record(guestPath, z.record(filePath, content)).default({})
    .describe('Read-only folders of small files: { FOLDER: { PATH: text, or { secret: NAME }, or { base64: … } } }'),
  secrets: z.record(variable, NAME).default({}).describe('Variables whose values are secrets of the project'),
  restart: z.enum(['no', 'on-failure', 'always']).default('on-failure')
    .describe('When it is started again after its end, with growing pauses (default: on-failure)'),
  health: HEALTH.optional().describe('How it is asked whether it is well; unhealthy is a failure'),
  stdin: z.boolean().default(false).describe('Keep its input open for `attach`; else it is at its end'),
  labels: z.record(z.string().min(1).max(63), z.string().max(255)).default({}).describe('Labels, for selections'),
  timeout: duration('Stop it after this time; its status is 124'),
  hibernate: z.strictObject({
    idle: duration('When it has used no CPU for so long (default: only when the host is short of memory)'),
  }).optional().describe('It may be saved to disk and freed from memory, until something comes for it'),
  may: z.array(z.enum(['snapshot', 'fork', 'hibernate'])).default([])
    .describe('What it may ask of the host by a hypercall: to save it, copy it, hibernate it (default: nothing)'),
  machine: MACHINE.optional().describe('What it has as a machine; only if its image is one'),
}

/** A guest as a host keeps it. */
export const GUEST_SPEC = z.strictObject({
  image: z.string().min(1).describe('The image that it runs: NAME[:TAG] or a digest'),
  ...CELL_FIELDS, ...HOSTED_FIELDS,
}).refine(...NO_CONTRADICTION)

/** A pool: what its cells have together. */
export const POOL_SPEC = z.strictObject({
  ...TERMS,
  memory: size('Most memory that its cells may have together: the sum of their own limits'),
}).refine(...NO_CONTRADICTION)

/** A volume. */
export const VOLUME_SPEC = z.strictObject({
  size: size('Most that it holds, such as 1GiB (default: 1GiB)').default('1GiB'),
  clone: NAME.optional().describe('The volume whose content it begins with'),
  kind: z.enum(['folder', 'disk']).default('folder')
    .describe('A folder of files, for cells; or a disk, for a machine: cells see it as one file (default: folder)'),
})

/** A network: cells in it reach each other by name. */
export const NETWORK_SPEC = z.strictObject({})

/** One cell, for `cellar run -f`. */
export const CELL_MANIFEST = z.strictObject({
  program: z.string().min(1).describe('The .wasm file, relative to the manifest'),
  ...CELL_FIELDS,
  volumes: z.array(z.string()).default([]).describe('Folders: HOST[:GUEST][:ro], HOST relative to the manifest'),
  listen: z.array(z.string()).default([]).describe('Listening sockets: tcp:HOST:PORT'),
}).refine(...NO_CONTRADICTION)

/** A cell of a manifest with several. What only a host can give is refused by `cellar run -f`. */
export const MANIFEST_CELL = z.strictObject({
  program: z.string().min(1).optional().describe('The .wasm file, relative to the manifest'),
  image: z.string().min(1).optional().describe('Or the image that it runs, on a host'),
  ...CELL_FIELDS, ...HOSTED_FIELDS,
  volumes: z.array(z.string()).max(32).default([]).describe(
    'With `run`: folders, HOST[:GUEST][:ro], HOST relative to the manifest. On a host: VOLUME:FOLDER[:ro]'),
  listen: z.array(z.string()).default([]).describe('Listening sockets: tcp:HOST:PORT (with `run`; on a host: ports)'),
  copies: z.int().min(1).max(COPIES_MAX).default(1).describe('How many of it there are: NAME-1, NAME-2, …'),
}).refine((one) => (one.program === undefined) !== (one.image === undefined), 'say one of program and image')
  .refine(...NO_CONTRADICTION)

/** A manifest with several cells: a stack for `cellar run -f`, the desired state of a project for `cellar apply -f`. */
export const MANIFEST = z.strictObject({
  project: NAME.optional().describe('The project that it describes, on a host (default: default)'),
  quantum: z.string().refine((text) => {
    const ns = parseDuration(text) ?? 0
    return ns >= QUANTUM_NS_MIN && ns <= QUANTUM_NS_MAX
  }, 'must be a duration from 100us to 1s').optional()
    .describe('The longest that a cell runs while others want to (default: 1ms); with `run` only'),
  pcpus: z.int().min(1).max(PCPUS_MAX).optional()
    .describe('pCPUs (default: as many as there are processors); with `run` only'),
  for: duration('Stop all cells after this time, and tell what each got; with `run` only'),
  pools: z.record(NAME, POOL_SPEC).default({}).describe('Pools by name: what their cells have together'),
  volumes: z.record(NAME, VOLUME_SPEC).default({}).describe('Volumes by name, on a host'),
  networks: z.record(NAME, NETWORK_SPEC).default({}).describe('Networks by name, on a host; "default" is always there'),
  cells: z.record(NAME, MANIFEST_CELL).refine((cells) => Object.keys(cells).length > 0, 'must have a cell at least')
    .describe('Cells by name'),
})

export type GuestSpec = z.infer<typeof GUEST_SPEC>
export type MachineTerms = z.infer<typeof MACHINE>
export type PoolSpec = z.infer<typeof POOL_SPEC>
export type VolumeSpec = z.infer<typeof VOLUME_SPEC>
export type Manifest = z.infer<typeof MANIFEST>
export type Health = z.infer<typeof HEALTH>

/** One entry of `ports`. The address has no brackets. */
export function parsePort(text: string): { address: string; port: number; guest: number } | undefined {
  const match = PORT_SPEC.exec(text)
  if (match === null) return undefined
  const [, address = '127.0.0.1', port, guest] = match
  const [outer, inner] = [Number(port), Number(guest)]
  if (outer > 65_535 || inner < 1 || inner > 65_535) return undefined
  return { address: address.replace(/^\[|\]$/g, ''), port: outer, guest: inner }
}
