// cli/image.ts: the command line as one file, so that it starts quickly.
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
// each start, which is 2 ms. What only SELDOM leads to has no parentheses: a foreground run needn't read its code. What
// is APART isn't joined at all: a host starts from its sources.
// The sources keep to the forms that this needs: named and namespace imports, exports of declarations (image_test.ts).
// Worker threads load the sources.

import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { dirname, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const ENTRY = fileURLToPath(new URL('./main.ts', import.meta.url))
/** Modules that a foreground run does without, by their ends: all commands but that, and runs on a host. */
const SELDOM: readonly string[] = ['/cli/dispatch.ts', '/cli/run_detached.ts', '/cli/help.ts']
/** Modules that are loaded from their sources, dynamically. */
const APART: readonly string[] = ['/cli/host.ts']
const IMAGE = fileURLToPath(new URL('../../.cache/cellar.cjs', import.meta.url))

/** Writes the image of the sources as they are now. Does nothing where the checkout can't be written. */
export function writeImage(): void {
  const partial = `${IMAGE}.${process.pid}`
  try {
    mkdirSync(dirname(IMAGE), { recursive: true })
    writeFileSync(partial, joinModules(ENTRY, dirname(IMAGE)))
    renameSync(partial, IMAGE)
  } catch (error) {
    // A read-only checkout starts from its sources, a little slower.
    if (!(error instanceof Error && 'syscall' in error)) throw error
  }
}

/**
 * The file that does what the module at the path `entry` and all that it imports do. It is for the folder `folder`, and
 * knows its sources by their paths from there: a checkout may be moved.
 */
export function joinModules(entry: string, folder: string): string {
  const paths: string[] = []
  const codes = new Map<string, string>()
  const join = (from: string): string[] => {
    const begun = paths.length
    paths.push(from)
    const seldom: string[] = []
    for (let i = begun; i < paths.length; i++) {
      const { code, imported } = translated(paths[i]!, folder)
      codes.set(paths[i]!, code)
      for (const path of imported) {
        const list = SELDOM.some((end) => path.endsWith(end)) ? seldom : paths
        if (!paths.includes(path) && !list.includes(path)) list.push(path)
      }
    }
    return seldom
  }
  const later = join(entry)
  const oftenCount = paths.length
  while (later.length > 0) {
    const next = later.shift()!
    if (!paths.includes(next)) later.push(...join(next))
  }
  const functions = paths.map((path, i) => functionOf(codes.get(path)!, i, i < oftenCount, (one) => paths.indexOf(one)))
  const stamps = paths.map((path) => [relative(folder, path), statSync(path).mtimeMs])
  return ascii(`// Generated from src/ by src/cli/image.ts; a cache: delete it at will.
const { statSync } = require('node:fs')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')
const once = (run) => { let made; return () => made ??= run() }
const fresh = ([path, time]) => statSync(__dirname + '/' + path, { throwIfNoEntry: false })?.mtimeMs === time
const urlOf = (path) => pathToFileURL(join(__dirname, path)).href
${functions.join('\n')}
if (${JSON.stringify(stamps)}.every(fresh)) void $0()
else {
  process.argv[1] = join(__dirname, ${JSON.stringify(relative(folder, entry))}) // which makes a new image
  void import(urlOf(${JSON.stringify(relative(folder, entry))}))
}
`)
}

/** Other characters as escapes, which strings, templates and patterns know: V8 reads a file of bytes faster. */
function ascii(code: string): string {
  return code.replace(/[^\0-\x7f]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** A module that another one imports, in the code of that one: a mark that becomes the number of its function. */
const MARK = /\$\{(\/[^}]*\.ts)\}\$/g

/** A module's code as the body of a function, and the modules that it imports. */
function translated(path: string, folder: string): { code: string; imported: string[] } {
  const exported: string[] = []
  const target = (specifier: string): string => specifier.startsWith('.')
    ? `\${${resolve(dirname(path), specifier)}}$()`
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
        : `Promise.resolve().then(() => ${target(from)})`
    })
    .replaceAll('import.meta.url', `urlOf(${JSON.stringify(relative(folder, path))})`)
  const rest = /^(?:import|export)\b.*$/m.exec(code)
  if (rest !== null) throw new Error(`Cannot join ${path}: "${rest[0]}"`)
  return { code: `${code}\nreturn { ${exported.join(', ')} }`,
    imported: [...code.matchAll(MARK)].map((match) => match[1]!) }
}

function functionOf(code: string, number: number, isOften: boolean, numberOf: (path: string) => number): string {
  const body = code.replaceAll(MARK, (_, path: string) => `$${numberOf(path)}`)
  // Only the entry may await at its top: everything else is imported by code that doesn't wait.
  const run = `${number === 0 ? 'async ' : ''}() => {${body} }`
  return `const $${number} = once(${isOften ? `(${run})` : run})`
}
