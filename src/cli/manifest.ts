// cli/manifest.ts: a cell, or a stack of them, described by a file (YAML), for `cellar run -f`.
//
//   program: ruby.wasm              # beside the manifest
//   args: [ruby]                    # before those of the command line
//   env: { LANG: C.UTF-8 }
//   volumes: ["data:/data:ro"]      # as --dir; relative to the manifest
//   listen: ["tcp:127.0.0.1:8080"]
//   memory: 512MiB
//   stubs: [rb-js-abi-host]         # as --stub
//   calls:                          # for a program that is a library: in place of _start
//     - call: _initialize
//     - call: "eval: func(code: string)"
//       with: ["load ${args}"]      # ${args}: the arguments as a JSON array
//   shares: 200                     # and cpu-limit, cpu-reservation: as the flags
//
// A stack has such cells by name under `cells`, and says what they share:
//
//   quantum: 1ms
//   for: 10s
//   pools: { batch: { cpu-limit: 50% } }
//   cells:
//     web: { program: server.wasm, listen: ["tcp:127.0.0.1:8080"], cpu-reservation: 25% }
//     job: { program: job.wasm, pool: batch, copies: 4 }
//
// Flags add to what the manifest grants. Paths in it are relative to it, so that it works from any folder. The same
// manifest may be a host's (`cellar apply -f`) if it asks for nothing that only one of the two can give; what a
// manifest may say at all is in host/spec.ts.

import { dirname, resolve } from 'node:path'
import type { z } from 'zod'
import { QUANTUM_NS_DEFAULT, WASM_PAGE_BYTES, WASM_PAGES_MAX } from '../base/limits.ts'
import { parseDuration, parseSize } from '../base/units.ts'
import type { Grants } from '../cell/pcpu.ts'
import { ManifestFile } from '../host/manifest_file.ts'
import { CELL_MANIFEST, cpuPart, MANIFEST, parsePort, type MANIFEST_CELL, type POOL_SPEC } from '../host/spec.ts'
import { DEFAULT_TERMS, type Terms } from '../sched/node.ts'
import { volume, type Launch } from './run.ts'
import type { StackPlan } from './stack.ts'

type Cell = z.infer<typeof CELL_MANIFEST>
type StackCell = z.infer<typeof MANIFEST_CELL>
type Stack = z.infer<typeof MANIFEST>

/** What only a host can give to a cell, to a stack, and to a pool. */
const HOST_ONLY = {
  cell: ['image', 'memory-reservation', 'expose', 'connect', 'networks', 'egress', 'files', 'secrets', 'restart',
    'health', 'stdin', 'labels'],
  stack: ['project', 'volumes', 'networks'],
  pool: ['memory'],
} as const

/** What the command line adds to a manifest. */
type Added = { readonly args: readonly string[]; readonly granted: Grants; readonly stubs: readonly string[] }

/** Reads the manifest at `path`: a cell, or a stack. Throws CellarError. */
export function readManifest(path: string, added: Added): { launch: Launch } | { stack: StackPlan } {
  const file = new ManifestFile(path)
  if (!file.hasCells) return { launch: launchOf(path, file.check(CELL_MANIFEST), added) }
  const stack = file.check(MANIFEST)
  if (added.args.length > 0) file.refuse('a stack takes no arguments: write them in its cells', [])
  refuseHosted(file)
  const wrong = contradiction(stack)
  if (wrong !== undefined) file.refuse(wrong.what, wrong.path)
  return { stack: stackOf(path, stack, added) }
}

/** Refuses what a stack in the foreground can't have, rather than run it without. */
function refuseHosted(file: ManifestFile): void {
  type Said = Readonly<Record<string, object | undefined>>
  const stack = file.value as { cells: Said; pools?: Said }
  const refuse = (said: object | undefined, keys: readonly string[], where: readonly string[]): void => {
    const key = keys.find((one) => said !== undefined && Object.hasOwn(said, one))
    if (key !== undefined) file.refuse("only a host has this: use 'cellar apply -f'", [...where, key])
  }
  refuse(stack, HOST_ONLY.stack, [])
  for (const [name, pool] of Object.entries(stack.pools ?? {})) refuse(pool, HOST_ONLY.pool, ['pools', name])
  for (const [name, cell] of Object.entries(stack.cells)) refuse(cell, HOST_ONLY.cell, ['cells', name])
}

/** Where a cell of a stack listens: `listen`, then `ports`, whose number in the guest has no meaning here. */
function listening(cell: StackCell): string[] {
  return [...cell.listen, ...cell.ports.map((text) => {
    const { address, port } = parsePort(text)!
    return `tcp:${address.includes(':') ? `[${address}]` : address}:${port}`
  })]
}

/** What of a stack doesn't fit together, though each part of it could stand. */
function contradiction({ cells, pools }: Stack): { path: string[]; what: string } | undefined {
  const left = new Map(Object.entries(pools).map(([name, pool]) => [name, cpuPart(pool['cpu-reservation'], 0)]))
  for (const [name, cell] of Object.entries(cells)) {
    const wrong = (key: string, what: string) => ({ path: ['cells', name, key], what })
    const copied = Array.from({ length: cell.copies === 1 ? 0 : cell.copies }, (_, i) => `${name}-${i + 1}`)
    const taken = copied.find((copy) => Object.hasOwn(cells, copy))
    if (taken !== undefined) return wrong('copies', `another cell is called "${taken}"`)
    const port = cell.ports.find((one) => parsePort(one) === undefined)
    if (port !== undefined) return wrong('ports', `${port} is no port: 1 to 65535, or 0 outside for a free one`)
    const fixed = cell.copies === 1 ? undefined : listening(cell).find((address) => !address.endsWith(':0'))
    if (fixed !== undefined) return wrong(cell.listen.includes(fixed) ? 'listen' : 'ports',
      `copies can't all listen on ${fixed}: port 0 gives each its own`)
    if (cell.pool === undefined) continue
    if (!left.has(cell.pool)) return wrong('pool', `no pool is called "${cell.pool}"`)
    const rest = left.get(cell.pool)! - cpuPart(cell['cpu-reservation'], 0) * cell.copies
    // Sums of reservations such as 0.1 are off by their last bits.
    if (rest < -1e-9) return wrong('cpu-reservation', `pool "${cell.pool}" reserves less than its cells`)
    left.set(cell.pool, rest)
  }
  return undefined
}

function launchOf(path: string, manifest: Cell, { args, granted, stubs }: Added): Launch {
  const folder = dirname(resolve(path))
  const limit = manifest.memory === undefined ? WASM_PAGES_MAX
    : Math.floor(parseSize(manifest.memory)! / WASM_PAGE_BYTES)
  return {
    program: resolve(folder, manifest.program),
    grants: {
      ...granted,
      args: [...(manifest.args.length > 0 ? manifest.args : [manifest.program]), ...args],
      env: [...Object.entries(manifest.env), ...granted.env],
      volumes: [...manifest.volumes.map(volume).map((one) => ({ ...one, host: resolve(folder, one.host) })),
        ...granted.volumes ?? []],
      listen: [...manifest.listen, ...granted.listen ?? []],
      memoryPagesMax: Math.min(limit, granted.memoryPagesMax ?? WASM_PAGES_MAX),
    },
    stubs: [...manifest.stubs, ...stubs],
    ...(manifest.calls === undefined ? {} : { calls: manifest.calls.map((one) =>
      ({ ...one, with: one.with.map(fill(args)) })) }),
    ...scheduling(manifest),
  }
}

type Scheduled = z.infer<typeof POOL_SPEC> &
  { deterministic?: boolean | undefined; unbounded?: boolean | undefined }

/** undefined if it says nothing of it: then it needn't be translated. */
function scheduling(manifest: Scheduled): Pick<Launch, 'schedule'> {
  const { deterministic, unbounded } = manifest
  const says = [manifest.shares, manifest['cpu-limit'], manifest['cpu-reservation'], deterministic, unbounded]
  if (says.every((one) => one === undefined)) return {}
  const terms = termsOf(manifest)
  return { schedule: { terms, deterministic: deterministic ?? false, unbounded: unbounded ?? false } }
}

function termsOf(manifest: z.infer<typeof POOL_SPEC>): Terms {
  return {
    shares: manifest.shares ?? DEFAULT_TERMS.shares,
    reservation: cpuPart(manifest['cpu-reservation'], 0),
    limit: cpuPart(manifest['cpu-limit'], Infinity),
  }
}

function stackOf(path: string, manifest: Stack, added: Added): StackPlan {
  const time = (text: string | undefined): number | undefined => text === undefined ? undefined : parseDuration(text)
  return {
    quantumNs: time(manifest.quantum) ?? QUANTUM_NS_DEFAULT,
    pcpus: manifest.pcpus,
    forNs: time(manifest.for),
    pools: new Map(Object.entries(manifest.pools).map(([name, pool]) => [name, termsOf(pool)])),
    cells: Object.entries(manifest.cells).flatMap(([name, cell]) => {
      const launch = launchOf(path, { ...cell, program: cell.program!, listen: listening(cell) }, added)
      const one = { launch, terms: termsOf(cell), pool: cell.pool, timeoutNs: time(cell.timeout),
        deterministic: cell.deterministic ?? false, unbounded: cell.unbounded ?? false }
      return cell.copies === 1 ? [{ name, ...one }]
        : Array.from({ length: cell.copies }, (_, i) => ({ name: `${name}-${i + 1}`, ...one }))
    }),
  }
}

/** Puts the command line's arguments where an argument says ${args}. */
function fill(args: readonly string[]): (value: number | string | string[]) => number | string | string[] {
  const list = JSON.stringify(args)
  return (value) => typeof value === 'string' ? value.replaceAll('${args}', list)
    : Array.isArray(value) ? value.flatMap((item) => item === '${args}' ? args : [item]) : value
}
