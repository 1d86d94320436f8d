// base/assert.ts: our own mistakes. A guest's mistake is an errno, an operator's a CellarError; this is for bugs.

/** Throws when `condition` is false: a bug of ours. `name` and `value` go into the report. */
export function assert(condition: boolean, name: string, value?: unknown): asserts condition {
  if (!condition) throw new Error(`Bug in Cellar: assertion "${name}" failed, value is ${String(value)}`)
}
