// host/manifest_file.ts: a manifest as a file: YAML, checked by a schema, mistakes told with their line and column.
//
// What a manifest may say is the schema's matter (spec.ts), what it means is its reader's: `cellar run -f` makes
// launches of it (cli/manifest.ts), `cellar apply -f` sends it to a host (cli/apply.ts).

import { readFileSync } from 'node:fs'
import { isMap, isNode, isScalar, LineCounter, parseDocument, type Document } from 'yaml'
import type { z } from 'zod'
import { CellarError } from '../base/errors.ts'
import { MANIFEST_CHARS_MAX } from '../base/limits.ts'
import { formatSize } from '../base/units.ts'

/**
 * Maps whose keys an operator chooses: JavaScript takes one key for something else, and what it names
 * would be lost.
 */
const NAMED = ['cells', 'pools', 'volumes', 'networks'] as const

/** A manifest that was read. */
export class ManifestFile {
  readonly path: string
  /** What it says, as plain data: not checked yet. */
  readonly value: unknown
  readonly #document: Document.Parsed
  readonly #lines: LineCounter

  /**
   * Reads the file. Throws MANIFEST_INVALID if it isn't there, is no YAML, or has an alias of nothing
   * or without end.
   */
  constructor(path: string) {
    this.path = path
    let text: string
    try {
      text = readFileSync(path, 'utf8')
    } catch (cause) {
      throw new CellarError('MANIFEST_INVALID', [path, (cause as Error).message], { cause })
    }
    if (text.length > MANIFEST_CHARS_MAX) {
      throw new CellarError('MANIFEST_INVALID', [path, `it is larger than ${formatSize(MANIFEST_CHARS_MAX)}`])
    }
    this.#lines = new LineCounter()
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false })
    const [error] = this.#document.errors
    if (error !== undefined) this.#refuseAt(error.pos[0], wordsOf(error), error)
    this.value = this.#plain()
    for (const list of NAMED) this.#refuseProto(list)
  }

  /** True if it describes several cells. */
  get hasCells(): boolean {
    return typeof this.value === 'object' && this.value !== null && 'cells' in this.value
  }

  /** What it says, by a schema. Throws MANIFEST_INVALID at the first thing that the schema refuses. */
  check<T>(schema: z.ZodType<T>): T {
    const result = schema.safeParse(this.value)
    if (result.success) return result.data
    const issue = result.error.issues[0]!
    const where = issue.path.join('.') || 'the whole'
    return this.#refuseAt(this.#offsetOf(issue), `${where}: ${issue.message}`, result.error)
  }

  /** Throws MANIFEST_INVALID that names the value at these keys, with its line and column. */
  refuse(what: string, keys: readonly (string | number)[]): never {
    const node = this.#document.getIn(keys, true)
    return this.#refuseAt(isNode(node) ? node.range?.[0] ?? 0 : 0, keys.length === 0 ? what
      : `${keys.join('.')}: ${what}`)
  }

  #refuseAt(offset: number, what: string, cause?: unknown): never {
    const { line, col } = this.#lines.linePos(offset)
    throw new CellarError('MANIFEST_INVALID', [this.path, `${what} (line ${line}, column ${col})`], { cause })
  }

  #plain(): unknown {
    try {
      return this.#document.toJS()
    } catch (cause) {
      if (!(cause instanceof ReferenceError || cause instanceof RangeError)) throw cause
      throw new CellarError('MANIFEST_INVALID', [this.path, wordsOf(cause)], { cause })
    }
  }

  #refuseProto(list: string): void {
    const map = this.#document.contents !== null && isMap(this.#document.contents) ? this.#document.get(list)
      : undefined
    const keys = isMap(map) ? map.items.map((item) => item.key) : []
    const key = keys.find((one) => isScalar(one) && one.value === '__proto__')
    if (isNode(key)) this.#refuseAt(key.range?.[0] ?? 0, `${list}: nothing can be called "__proto__"`)
  }

  /** Where in the text an issue is: at the key if nobody knows it, else at the value. */
  #offsetOf(issue: z.core.$ZodIssue): number {
    const at = this.#document.getIn(issue.path, true)
    const key = issue.code === 'unrecognized_keys' && isMap(at)
      ? at.items.map((item) => item.key).find((one) => isScalar(one) && one.value === issue.keys[0]) : undefined
    const node = key ?? at
    return isNode(node) ? node.range?.[0] ?? 0 : 0
  }
}

// Who reads YAML goes as deep as it nests, and has no words of its own for an end of that.
function wordsOf({ message }: Error): string {
  return message.includes('call stack') ? 'it nests too deep' : message
}
