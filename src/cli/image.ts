// cli/image.ts: the command line as two files, so that it starts quickly.
//
// Loading its 40 modules would take `cellar run` as long as Node itself takes to start. So the first start from a
// checkout joins them (base/joined.ts) into `.cache/cellar.cjs`, as Node's compile cache keeps what the first start has
// compiled; bin/cellar starts that file when it is there. It is a cache and nothing else: it knows the time stamps of
// its sources, and steps aside for src/cli/main.ts when one has changed. It is CommonJS, for which Node has less to set
// up.
//
// V8 compiles a function in parentheses with the file, and so Node's compile cache has it; others it compiles anew at
// each start, which is 2 ms. What is imported dynamically and isn't OFTEN, and what only that leads to, goes into a
// second file without parentheses: a foreground run reads three quarters less. That file is begun before anything has
// happened, so that a start that finds it out of date begins anew, from the sources. What is APART isn't joined at all:
// a host starts from its sources. Worker threads load the sources.

import { mkdirSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { basename, dirname, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ascii, collect, definitionOf, JOINED_PRELUDE, namesOf } from '../base/joined.ts'

const ENTRY = fileURLToPath(new URL('./main.ts', import.meta.url))
/** Modules that are imported dynamically, by their ends, and that most foreground runs need. */
const OFTEN: readonly string[] = ['/cli/run.ts', ...['args', 'clock', 'fd', 'poll', 'proc', 'random'].map((name) =>
  `/wasi/p1/${name}.ts`)]
/** Modules that are loaded from their sources, dynamically. */
const APART: readonly string[] = ['/cli/host.ts']
const IMAGE = fileURLToPath(new URL('../../.cache/cellar.cjs', import.meta.url))
const SELDOM = fileURLToPath(new URL('../../.cache/cellar_seldom.cjs', import.meta.url))

/** Writes the image of the sources as they are now. Does nothing where the checkout can't be written. */
export function writeImage(): void {
  try {
    mkdirSync(dirname(IMAGE), { recursive: true })
    const { often, seldom } = joinModules(ENTRY, SELDOM)
    // In this order: the file that knows whether both are fresh comes last.
    replace(SELDOM, seldom)
    replace(IMAGE, often)
  } catch (error) {
    // A read-only checkout starts from its sources, a little slower.
    if (!(error instanceof Error && 'syscall' in error)) throw error
  }
}

function replace(path: string, text: string): void {
  const partial = `${path}.${process.pid}`
  writeFileSync(partial, text)
  renameSync(partial, path)
}

/**
 * Two files that do what the module at the path `entry` and all that it imports do: `often` is started, and loads
 * `seldom` from the path `second` when it needs it. Both are for the folder of `second`, and know their sources by
 * their paths from there: a checkout may be moved.
 */
export function joinModules(entry: string, second: string): { readonly often: string; readonly seldom: string } {
  const folder = dirname(second)
  const sourceOf = (path: string): string => JSON.stringify(relative(folder, path))
  const rules = { urlOf: (path: string) => `urlOf(${sourceOf(path)})`,
    isApart: (path: string) => APART.some((end) => path.endsWith(end)) }
  const codes = new Map<string, string>()
  const isOften = (path: string): boolean => OFTEN.some((end) => path.endsWith(end))
  let later = collect([entry], codes, rules, isOften)
  const oftenPaths = [...codes.keys()]
  while (later.length > 0) later = collect(later, codes, rules, isOften)
  const seldomPaths = [...codes.keys()].slice(oftenPaths.length)
  const names = namesOf(codes)
  const often = oftenPaths.map((path) => definitionOf(path, codes.get(path)!, names, true, (found, name) =>
    oftenPaths.includes(found) ? `Promise.resolve().then(() => ${name}())` : `seldom().then((them) => them.${name}())`))
  const seldom = seldomPaths.map((path) => definitionOf(path, codes.get(path)!, names, false))
  const given = oftenPaths.map((path) => names.get(path)!)
    .filter((name) => seldom.some((one) => one.includes(`${name}()`))).join(', ')
  const stamps = (paths: readonly string[]): string =>
    JSON.stringify(paths.map((path) => [relative(folder, path), statSync(path).mtimeMs]))
  return {
    often: ascii(`// Generated from src/ by src/cli/image.ts; a cache: delete it at will.
const { existsSync, statSync } = require('node:fs')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')
${JOINED_PRELUDE}
const fresh = ([path, time]) => statSync(__dirname + '/' + path, { throwIfNoEntry: false })?.mtimeMs === time
const urlOf = (path) => pathToFileURL(join(__dirname, path)).href
const fromSources = () => {
  process.argv[1] = join(__dirname, ${sourceOf(entry)}) // which makes a new image
  return import(urlOf(${sourceOf(entry)}))
}
const seldom = once(async () => {
  const path = join(__dirname, ${JSON.stringify(basename(second))})
  if (${stamps(seldomPaths)}.every(fresh) && existsSync(path)) return require(path)({ once, urlOf, ${given} })
  await fromSources()
  return await new Promise(() => {})
})
${often.join('\n')}
if (${stamps(oftenPaths)}.every(fresh)) void $0()
else void fromSources()
`),
    seldom: ascii(`// Generated, as cellar.cjs is.
module.exports = (({ once, urlOf, ${given} }) => {
${seldom.join('\n')}
return { ${seldomPaths.map((path) => names.get(path)).join(', ')} } })
`),
  }
}
