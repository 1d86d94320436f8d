// cli/version.ts: `cellar version`.

import { readFileSync } from 'node:fs'
import { print } from './print.ts'

/** Prints the versions of Cellar, Node and V8. */
export function version(): number {
  const { version: own } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url),
    'utf8')) as { version: string }
  print(`cellar ${own} (Node ${process.versions.node}, V8 ${process.versions.v8}, ${
    process.platform}-${process.arch})\n`)
  return 0
}
