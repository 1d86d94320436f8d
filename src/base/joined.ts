// base/joined.ts: modules joined into one file of CommonJS, so that a process starts quickly.
//
// Node spends a third of a millisecond on each module that it loads, and more where it strips types: what does so takes
// a tenth of a second to load itself, in each process and each thread. Here each module becomes a function that runs
// once, when it is first imported:
//   const $7 = once(() => { const { a, b: c } = $3(); function f() { … }; return { f } })
// Types are stripped by Node itself. The sources keep to the forms that this needs: named and namespace imports,
// exports of declarations. What else it finds it refuses. Who uses it: the command line (cli/image.ts), which has two
// files, a host for its guests' processes (host/process_code.ts), and the benches of machines.

import { readFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { dirname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

/** How modules that are joined refer to what is elsewhere. Paths are of sources, and absolute. */
export type JoinRules = {
  /** Code for the URL of a source: what `import.meta.url` is in it. */
  urlOf(path: string): string
  /** Code for the URL of what runs as this source in a thread or a process of its own. Default: `urlOf`. */
  entryUrlOf?(path: string): string
  /** True for what is imported dynamically from its source, and isn't joined. */
  isApart?(path: string): boolean
  /** Modules' code by path, for who joins several files by these rules: it is made once. */
  readonly made?: Map<string, string>
}

/** What joined files begin with: what their modules are made with. */
export const JOINED_PRELUDE = 'const once = (run) => { let made; return () => made ??= run() }'

/** A module that another one imports, at once or later, in the code of that one: a mark that becomes a call. */
const MARK = /\$\{(\/[^}]*\.ts)\}\$(later)?/g

/**
 * Adds to `codes`, by path, the modules at `paths` and all that they import at once, or later if `isOften` says so:
 * the paths of what is imported later beside these.
 */
export function collect(
  paths: readonly string[], codes: Map<string, string>, rules: JoinRules, isOften: (path: string) => boolean,
): string[] {
  const [found, later] = [[...paths], [] as string[]]
  // What is found on the way is appended, and so comes to its turn.
  for (const path of found) {
    if (codes.has(path)) continue
    const code = rules.made?.get(path) ?? translated(path, rules)
    rules.made?.set(path, code)
    codes.set(path, code)
    for (const [, imported, isLater] of code.matchAll(MARK)) {
      (isLater === undefined || isOften(imported!) ? found : later).push(imported!)
    }
  }
  checkImports(codes)
  return later
}

/** What a module imports by name, as its code has it once it is translated; and what it gives. */
const IMPORTED = /\bconst \{([^}]*)\} = \$\{(\/[^}]*\.ts)\}\$(?!later)/g
const GIVEN = /\nreturn \{ ([^}]*) \}$/

// A name that isn't there would be undefined: Node refuses that in modules, and so do we, here.
function checkImports(codes: ReadonlyMap<string, string>): void {
  const given = new Map([...codes].map(([path, code]) => [path, new Set(GIVEN.exec(code)?.[1]?.split(', '))]))
  for (const [path, code] of codes) {
    for (const [, names, from] of code.matchAll(IMPORTED)) {
      const missing = names!.split(',').map((name) => name.split(':', 1)[0]!.trim())
        .find((name) => name !== '' && given.get(from!)?.has(name) === false)
      if (missing === undefined) continue
      throw new Error(`Cannot join ${path}: it imports ${missing}, which ${from} doesn't give`)
    }
  }
}

/** The names that modules have in joined files: the first's is $0. */
export function namesOf(codes: ReadonlyMap<string, string>): Map<string, string> {
  return new Map([...codes.keys()].map((path, i) => [path, `$${i}`]))
}

/**
 * The definition of a module, of its code as `collect` has made it. `eager`: V8 compiles it with the file. `laterCall`:
 * code for the promise of a module that is imported dynamically, of its path and name.
 */
export function definitionOf(path: string, code: string, names: ReadonlyMap<string, string>, eager: boolean,
  laterCall = (_: string, name: string): string => `Promise.resolve().then(() => ${name}())`): string {
  const body = code.replaceAll(MARK, (_, found: string, isLater: string | undefined) =>
    isLater === undefined ? `${names.get(found)}()` : laterCall(found, names.get(found)!))
  const name = names.get(path)
  // Only the entry may await at its top: everything else is imported by code that doesn't wait.
  const run = `${name === '$0' ? 'async ' : ''}() => {${body} }`
  return `const ${name} = once(${eager ? `(${run})` : run})`
}

/**
 * Joins programs, one at a time: the path of each and its code, in ASCII. `joined` has these paths by those of the
 * sources that they begin with: one that starts another gets the joined file. Adds all sources to `made`.
 */
export function* joinPrograms(joined: ReadonlyMap<string, string>, made: Map<string, string>):
Generator<[path: string, code: string]> {
  const urlOf = (path: string): string => JSON.stringify(pathToFileURL(path).href)
  const rules: JoinRules = { urlOf, made, entryUrlOf: (path) => urlOf(joined.get(path) ?? path) }
  for (const [entry, path] of joined) {
    const codes = new Map<string, string>()
    collect([entry], codes, rules, () => true)
    const names = namesOf(codes)
    const definitions = [...codes].map(([source, code]) => definitionOf(source, code, names, false))
    yield [path, ascii(`${JOINED_PRELUDE}\n${definitions.join('\n')}\nvoid $0()\n`)]
  }
}

/** Other characters as escapes, which strings, templates and patterns know: V8 reads a file of bytes faster. */
export function ascii(code: string): string {
  return code.replace(/[^\0-\x7f]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** A module's code as the body of a function, with marks in place of the modules that it imports. */
function translated(path: string, { urlOf, entryUrlOf = urlOf, isApart = () => false }: JoinRules): string {
  const exported: string[] = []
  const found = (specifier: string): string => resolve(dirname(path), specifier)
  const target = (specifier: string): string => specifier.startsWith('.') ? `\${${found(specifier)}}$`
    : specifier.startsWith('node:') ? `process.getBuiltinModule('${specifier}')` : `require('${specifier}')`
  // In place of a type's characters of several bytes it puts spaces of as many, which no code of ours has.
  const code = stripTypeScriptTypes(readFileSync(path, 'utf8')).replaceAll(/[\u00a0\u2002\ufeff]/g, ' ')
    .replaceAll(/^import\s+\*\s+as\s+(\w+)\s+from\s+'([^']+)'$/gm,
      (_, name: string, from: string) => `const ${name} = ${target(from)}`)
    .replaceAll(/^import\s+\{([^}]*)\}\s+from\s+'([^']+)'$/gm, (_, names: string, from: string) =>
      `const {${names.replaceAll(/\bas\b/g, ':')}} = ${target(from)}`)
    .replaceAll(/^export +(async function\*?|function\*?|class|const) (\w+)/gm, (_, kind: string, name: string) => {
      exported.push(name)
      return `${kind} ${name}`
    })
    .replaceAll(/^export const \{([^}:]*)\} =/gm, (_, names: string) => {
      exported.push(...names.split(',').map((name) => name.trim()).filter(Boolean))
      return `const {${names}} =`
    })
    .replaceAll(/\bimport\('(\.[^']+)'\)/g, (_, from: string) =>
      isApart(found(from)) ? `import(${urlOf(found(from))})` : `${target(from)}later`)
    .replaceAll(/\bnew URL\('(\.[^']+\.ts)', import\.meta\.url\)/g, (_, from: string) =>
      `new URL(${entryUrlOf(found(from))})`)
    .replaceAll('import.meta.url', urlOf(path))
  const rest = /^(?:import|export)\b.*$/m.exec(code)
  if (rest !== null) throw new Error(`Cannot join ${path}: "${rest[0]}"`)
  return `${code}\nreturn { ${exported.join(', ')} }`
}
