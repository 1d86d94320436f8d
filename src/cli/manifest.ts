// cli/manifest.ts: a cell described by a file (YAML), for `cellar run -f`.
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
//
// Flags add to what the manifest grants. Paths in it are relative to it, so that it works from any folder.

import { readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { isMap, isNode, isScalar, LineCounter, parseDocument, type Document } from 'yaml'
import { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { WASM_PAGE_BYTES, WASM_PAGES_MAX } from '../base/limits.ts'
import { parseSize } from '../base/units.ts'
import type { Grants } from '../cell/pcpu.ts'
import { volume, type Launch } from './run.ts'

const argument = z.union([z.number(), z.string(), z.array(z.string())])

/** What a manifest may say. Unknown keys are errors: a typing mistake must not take a limit away. */
export const CELL_MANIFEST = z.strictObject({
  program: z.string().min(1).describe('The .wasm file, relative to the manifest'),
  args: z.array(z.string()).default([]).describe(
    "The program's arguments, its name first; those of the command line follow"),
  env: z.record(z.string().regex(/^[^=\0]+$/), z.string()).default({}).describe('Environment variables'),
  volumes: z.array(z.string()).default([]).describe('Folders: HOST[:GUEST][:ro], HOST relative to the manifest'),
  listen: z.array(z.string()).default([]).describe('Listening sockets: tcp:HOST:PORT'),
  memory: z.string().refine((text) => (parseSize(text) ?? 0) >= WASM_PAGE_BYTES,
    'must be a size of at least 64KiB').optional()
    .describe('Most memory that the program may have, such as 64MiB'),
  stubs: z.array(z.string()).default([]).describe('Unknown imports to bind to stubs: MODULE or MODULE.NAME'),
  calls: z.array(z.strictObject({ call: z.string().min(1), with: z.array(argument).default([]) })).min(1).optional()
    .describe('Exports to call in order, in place of _start; strings are passed as the component ABI does'),
})

/** What the command line adds to a manifest. */
type Added = { readonly args: readonly string[]; readonly granted: Grants; readonly stubs: readonly string[] }

/** Reads the manifest at `path`. Throws CellarError. */
export function readLaunch(path: string, { args, granted, stubs }: Added): Launch {
  const manifest = parseManifest(path)
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
  }
}

function parseManifest(path: string): z.infer<typeof CELL_MANIFEST> {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw new CellarError('MANIFEST_INVALID', [path, (cause as Error).message], { cause })
  }
  const lines = new LineCounter()
  const refuse = (what: string, offset: number, cause: unknown): never => {
    const { line, col } = lines.linePos(offset)
    throw new CellarError('MANIFEST_INVALID', [path, `${what} (line ${line}, column ${col})`], { cause })
  }
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false })
  const [error] = document.errors
  if (error !== undefined) return refuse(error.message, error.pos[0], error)
  const result = CELL_MANIFEST.safeParse(plain(path, document))
  if (result.success) return result.data
  const [issue] = result.error.issues
  const where = issue!.path as string[]
  return refuse(`${where.join('.') || 'the whole'}: ${issue!.message}`, offsetOf(document, issue!), result.error)
}

/** The document as plain data. An alias of nothing, or aliases of aliases without end, are found only here. */
function plain(path: string, document: Document.Parsed): unknown {
  try {
    return document.toJS()
  } catch (cause) {
    if (!(cause instanceof ReferenceError)) throw cause
    throw new CellarError('MANIFEST_INVALID', [path, cause.message], { cause })
  }
}

/** Where in the text an issue is: at the key if nobody knows it, else at the value. */
function offsetOf(document: Document.Parsed, issue: z.core.$ZodIssue): number {
  const at = document.getIn(issue.path, true)
  const key = issue.code === 'unrecognized_keys' && isMap(at)
    ? at.items.map((item) => item.key).find((one) => isScalar(one) && one.value === issue.keys[0]) : undefined
  const node = key ?? at
  return isNode(node) ? node.range?.[0] ?? 0 : 0
}

/** Puts the command line's arguments where an argument says ${args}. */
function fill(args: readonly string[]): (value: number | string | string[]) => number | string | string[] {
  const list = JSON.stringify(args)
  return (value) => typeof value === 'string' ? value.replaceAll('${args}', list)
    : Array.isArray(value) ? value.flatMap((item) => item === '${args}' ? args : [item]) : value
}
