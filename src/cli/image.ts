// cli/image.ts: the command line as two files, so that it starts quickly.
//
// Node spends a third of a millisecond on each module that it loads, compile cache and all: for the 40 of `cellar run`
// that is as long as Node itself takes to start. So the first start from a checkout joins them into
// `.cache/cellar.cjs`,
// as Node's compile cache keeps what the first start has compiled; bin/cellar starts that file when it is there. It is
// a cache and nothing else: it knows the time stamps of its sources, and steps aside for src/cli/main.ts when one has
// changed. Types are stripped by Node itself.
//
// It is CommonJS, for which Node has less to set up. Each module becomes a function that runs once, when it is first
// imported:
//   const $7 = once((() => { const { a, b: c } = $3(); function f() { … }; return { f } }))
// V8 compiles a function in parentheses with the file, and so Node's compile cache has it; others it compiles anew at
// each start, which is 2 ms. What is imported dynamically and isn't OFTEN, and what only that leads to, goes into a
// second file without parentheses: a foreground run reads three quarters less. That file is begun before anything has
// happened, so that a start that finds it out of date begins anew, from the sources. What is APART isn't joined at all:
// a host starts from its sources.
// The sources keep to the forms that this needs: named and namespace imports, exports of declarations (image_test.ts).
// Worker threads load the sources.

import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { basename, dirname, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

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
  const codes = new Map<string, string>()
  const collect = (paths: string[]): string[] => {
    const later: string[] = []
    // Modules that are found on the way are appended, and so come to their turn.
    for (const path of paths) {
      if (codes.has(path)) continue
      const code = translated(path, folder)
      codes.set(path, code)
      for (const [, found, isLater] of code.matchAll(MARK)) {
        const isOften = isLater === undefined || OFTEN.some((end) => found!.endsWith(end))
        ;(isOften ? paths : later).push(found!)
      }
    }
    return later
  }
  let later = collect([entry])
  const oftenPaths = [...codes.keys()]
  while (later.length > 0) later = collect(later)
  const names = new Map([...codes.keys()].map((path, i) => [path, `$${i}`]))
  const seldomPaths = [...codes.keys()].slice(oftenPaths.length)
  const often = oftenPaths.map((path) => functionOf(path, codes.get(path)!, names, new Set(oftenPaths)))
  const seldom = seldomPaths.map((path) => functionOf(path, codes.get(path)!, names, undefined))
  const given = oftenPaths.map((path) => names.get(path)!).filter((name) => seldom.some((one) => one.includes(`${name}()`)))
  const stamps = (paths: readonly string[]): string =>
    JSON.stringify(paths.map((path) => [relative(folder, path), statSync(path).mtimeMs]))
  return {
    often: ascii(`// Generated from src/ by src/cli/image.ts; a cache: delete it at will.
const { existsSync, statSync } = require('node:fs')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')
const once = (run) => { let made; return () => made ??= run() }
const fresh = ([path, time]) => statSync(__dirname + '/' + path, { throwIfNoEntry: false })?.mtimeMs === time
const urlOf = (path) => pathToFileURL(join(__dirname, path)).href
const fromSources = () => {
  process.argv[1] = join(__dirname, ${JSON.stringify(relative(folder, entry))}) // which makes a new image
  return import(urlOf(${JSON.stringify(relative(folder, entry))}))
}
const seldom = once(async () => {
  const path = join(__dirname, ${JSON.stringify(basename(second))})
  if (${stamps(seldomPaths)}.every(fresh) && existsSync(path)) return require(path)({ once, urlOf, ${given.join(', ')} })
  await fromSources()
  return await new Promise(() => {})
})
${often.join('\n')}
if (${stamps(oftenPaths)}.every(fresh)) void $0()
else void fromSources()
`),
    seldom: ascii(`// Generated, as cellar.cjs is.
module.exports = (({ once, urlOf, ${given.join(', ')} }) => {
${seldom.join('\n')}
return { ${seldomPaths.map((path) => names.get(path)).join(', ')} } })
`),
  }
}

/** Other characters as escapes, which strings, templates and patterns know: V8 reads a file of bytes faster. */
function ascii(code: string): string {
  return code.replace(/[^\0-\x7f]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** A module that another one imports, at once or later, in the code of that one: a mark that becomes a call. */
const MARK = /\$\{(\/[^}]*\.ts)\}\$(later)?/g

/** A module's code as the body of a function, with marks in place of the modules that it imports. */
function translated(path: string, folder: string): string {
  const exported: string[] = []
  const target = (specifier: string): string => specifier.startsWith('.')
    ? `\${${resolve(dirname(path), specifier)}}$`
    : specifier.startsWith('node:') ? `process.getBuiltinModule('${specifier}')` : `require('${specifier}')`
  const code = stripTypeScriptTypes(readFileSync(path, 'utf8'))
    .replaceAll(/^import\s+\*\s+as\s+(\w+)\s+from\s+'([^']+)'$/gm,
      (_, name: string, from: string) => `const ${name} = ${target(from)}`)
    .replaceAll(/^import\s+\{([^}]*)\}\s+from\s+'([^']+)'$/gm, (_, names: string, from: string) =>
      `const {${names.replaceAll(/\bas\b/g, ':')}} = ${target(from)}`)
    .replaceAll(/^export (async function\*?|function\*?|class|const) (\w+)/gm, (_, kind: string, name: string) => {
      exported.push(name)
      return `${kind} ${name}`
    })
    .replaceAll(/^export const \{([^}:]*)\} =/gm, (_, names: string) => {
      exported.push(...names.split(',').map((name) => name.trim()).filter(Boolean))
      return `const {${names}} =`
    })
    .replaceAll(/\bimport\('(\.[^']+)'\)/g, (_, from: string) => {
      const found = resolve(dirname(path), from)
      return APART.some((end) => found.endsWith(end)) ? `import(urlOf(${JSON.stringify(relative(folder, found))}))`
        : `${target(from)}later`
    })
    .replaceAll('import.meta.url', `urlOf(${JSON.stringify(relative(folder, path))})`)
  const rest = /^(?:import|export)\b.*$/m.exec(code)
  if (rest !== null) throw new Error(`Cannot join ${path}: "${rest[0]}"`)
  return `${code}\nreturn { ${exported.join(', ')} }`
}

/** A module as a definition. `often`: the modules of its file, which is the first; left out: it is in the second. */
function functionOf(path: string, code: string, names: ReadonlyMap<string, string>, often: Set<string> | undefined):
string {
  const body = code.replaceAll(MARK, (_, found: string, isLater: string | undefined) => {
    const call = `${names.get(found)}()`
    if (isLater === undefined) return call
    return often?.has(found) === false ? `seldom().then((them) => them.${call})` : `Promise.resolve().then(() => ${call})`
  })
  const name = names.get(path)
  // Only the entry may await at its top: everything else is imported by code that doesn't wait.
  const run = `${name === '$0' ? 'async ' : ''}() => {${body} }`
  return `const ${name} = once(${often === undefined ? run : `(${run})`})`
}
