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
// each start, which is 2 ms.
// The sources keep to the forms that this needs: named and namespace imports, exports of declarations (image_test.ts).
// Worker threads load the sources.

import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { dirname, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const ENTRY = fileURLToPath(new URL('./main.ts', import.meta.url))
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
  const paths = [entry]
  const numberOf = (path: string): number => paths.includes(path) ? paths.indexOf(path) : paths.push(path) - 1
  const functions: string[] = []
  for (let i = 0; i < paths.length; i++) functions.push(functionOf(paths[i]!, i, folder, numberOf))
  const stamps = paths.map((path) => [relative(folder, path), statSync(path).mtimeMs])
  return `// Generated from src/ by src/cli/image.ts; a cache: delete it at will.
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
`
}

function functionOf(path: string, number: number, folder: string, numberOf: (path: string) => number): string {
  const exported: string[] = []
  const target = (specifier: string): string => specifier.startsWith('.')
    ? `$${numberOf(resolve(dirname(path), specifier))}()`
    : specifier.startsWith('node:') ? `process.getBuiltinModule('${specifier}')` : `require('${specifier}')`
  const code = stripTypeScriptTypes(readFileSync(path, 'utf8'))
    .replaceAll(/^import\s+\*\s+as\s+(\w+)\s+from\s+'([^']+)'$/gm,
      (_, name: string, from: string) => `const ${name} = ${target(from)}`)
    .replaceAll(/^import\s+\{([^}]*)\}\s+from\s+'([^']+)'$/gm, (_, names: string, from: string) =>
      `const {${names.replaceAll(/\bas\b/g, ':')}} = ${target(from)}`)
    .replaceAll(/^export (async function|function|class|const) (\w+)/gm, (_, kind: string, name: string) => {
      exported.push(name)
      return `${kind} ${name}`
    })
    .replaceAll(/^export const \{([^}:]*)\} =/gm, (_, names: string) => {
      exported.push(...names.split(',').map((name) => name.trim()).filter(Boolean))
      return `const {${names}} =`
    })
    .replaceAll(/\bimport\('(\.[^']+)'\)/g, (_, from: string) => `Promise.resolve().then(() => ${target(from)})`)
    .replaceAll('import.meta.url', `urlOf(${JSON.stringify(relative(folder, path))})`)
  const rest = /^(?:import|export)\b.*$/m.exec(code)
  if (rest !== null) throw new Error(`Cannot join ${path}: "${rest[0]}"`)
  // Only the entry may await at its top: everything else is imported by code that doesn't wait.
  return `const $${number} = once((${number === 0 ? 'async ' : ''}() => {${code}\nreturn { ${exported.join(', ')} } }))`
}
