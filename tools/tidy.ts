// tools/tidy.ts: the house rules that neither the compiler nor oxlint knows, as data.
//
// `untidy(root)` reads the tree and answers with one line for each breach: "path:line: what, and what to do instead".
// `npm run ok` runs it, and it is itself tested (tidy_test.ts) with a bad sample for every rule. A rule that is wrong
// is changed here, with its reason; there are no comments that switch it off.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { exportsOf, functions, imports, lineCounter, mask } from './scan.ts'
import type { Import } from './scan.ts'

const FILE_LINES_MAX = 500
const FUNCTION_LINES_MAX = 70
const COLUMNS_MAX = 120

/** Which folder of src/ may import which: imports point one way. Its own files are always allowed. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  base: [],
  sys: ['base'],
  wasm: ['base'],
  translate: ['base', 'wasm'],
  sched: ['base'],
  services: ['base', 'sys'],
  wasi: ['base', 'sys', 'wasm', 'services'],
  cell: ['base', 'sys', 'wasm', 'translate', 'sched', 'services', 'wasi'],
  device: ['base', 'sys'],
  kvm: ['base', 'sys'],
  virtio: ['base', 'sys', 'services'],
  machine: ['base', 'sys', 'services', 'cell', 'device', 'kvm', 'virtio'],
  qemu: ['base', 'sys', 'services', 'machine'],
  image: ['base', 'sys', 'wasm'],
  snapshot: ['base', 'sys', 'services', 'cell', 'machine', 'image'],
  host: ['base', 'sys', 'wasm', 'translate', 'sched', 'services', 'wasi', 'cell', 'machine', 'qemu', 'image',
    'snapshot'],
  api: ['base', 'sys', 'sched', 'services', 'cell', 'machine', 'image', 'snapshot', 'host'],
  cli: ['base', 'sys', 'wasm', 'translate', 'sched', 'services', 'wasi', 'cell', 'machine', 'image', 'snapshot', 'host',
    'api'],
}

/** Folders that run in any JavaScript engine: nothing of Node in them. */
const PURE: readonly string[] = ['wasm', 'translate', 'sched']

/** Modules that one folder alone may import, and why. */
const RESERVED: Record<string, { folder: string; instead: string }> = {
  'node:ffi': { folder: 'sys', instead: 'raw pointers stay in src/sys: add what is missing there' },
}

/** Packages that src/ may import. A new one needs a page in docs/decisions. */
const PACKAGES: readonly string[] = ['@hono/node-server', 'hono', 'modern-tar', 'ws', 'yaml', 'zod']

/** Tests and what they share: they may import any package, and nothing but tests imports them. */
const TEST_FILES = /(_test|\/test_support)\.ts$/

/** Tables and goldens: longer than FILE_LINES_MAX because the specification is. */
const LONG_FILES: readonly RegExp[] = [/_golden\.ts$/]

/** Spellings of a specification: exported whole, whether or not each is used. */
const WHOLE_TABLES: readonly { files: RegExp; names: RegExp }[] = [
  { files: /^src\/base\/errno\.ts$/, names: /^E[A-Z0-9]+$/ },
  { files: /^src\/wasi\/p1\/abi\.ts$/, names: /^[A-Z0-9_]+$/ },
  { files: /^src\/services\/descriptor\.ts$/, names: /^FILETYPE_/ },
  { files: /^src\/sys\//, names: /^[A-Z0-9_]+$/ },
  // Hypercalls: cell/hypercalls.ts reaches them by their names in the table.
  { files: /^src\/wasi\/(p1|cellar)\//, names: /^[a-z0-9]+(_[a-z0-9]+)+$/ },
]

const FORBIDDEN_NAMES: Record<string, string> = {
  'utils.ts': 'name the one thing that it does', 'types.ts': 'put a type beside what makes it',
  'index.ts': 'import the file itself',
}

type Ban = { pattern: RegExp; where: RegExp; in: 'code' | 'text'; instead: string }

// 'code' is searched with comments and literals blanked out, 'text' as it stands.
const BANS: readonly Ban[] = [
  { pattern: /\bconsole\.\w+/, where: /^src\/(?!cli\/)/, in: 'code', instead: 'return it, or let src/cli print it' },
  { pattern: /\bprocess\.exit\(/, where: /^src\/(?!cli\/)/, in: 'code', instead: 'throw a CellarError; src/cli ends' },
  { pattern: /\bas any\b/, where: /./, in: 'code', instead: 'write the type, or unknown and a check' },
  { pattern: /@ts-(ignore|nocheck)/, where: /./, in: 'text', instead: 'mend the type' },
  { pattern: /\.only\(|\bonly: true/, where: /_test\.ts$/, in: 'code', instead: 'run the file alone' },
  { pattern: /\b(FIXME|TODO|XXX|HACK)\b/, where: /./, in: 'text', instead: 'do it, or say in an issue what is left' },
  {
    pattern: /^\s*(export\s+)?(declare\s+)?(const\s+)?enum\s+\w/m, where: /./, in: 'code',
    instead: 'write an `as const` object',
  },
  {
    pattern: /^\s*(export\s+)?(declare\s+)?namespace\s+\w/m, where: /(?<!\.d\.ts)$/, in: 'code',
    instead: 'a file is a namespace',
  },
  {
    pattern: /\bconstructor\s*\([^)]*\b(public|private|protected|readonly)\s+\w+\s*[?:]/, where: /./, in: 'code',
    instead: 'declare the field and assign it: Node runs erasable syntax only',
  },
]

/** Files whose subject the words are. */
const MAY_NAME_BANS: readonly string[] = ['tools/tidy.ts', 'tools/tidy_test.ts']

type Source = { path: string; text: string; masked: string; imports: Import[] }

/** Every breach of the house rules under `root`, one line each; an empty list is tidy. */
export function untidy(root: string): string[] {
  const sources = ['src', 'tests', 'tools', 'bench'].flatMap((folder) => walk(root, folder, /\.ts$/)).map((path) => {
    const text = readFileSync(join(root, path), 'utf8')
    const masked = mask(text)
    return { path, text, masked, imports: imports(text, masked) }
  })
  return [
    ...sources.flatMap((source) => [
      ...name(source), ...header(source), ...sizes(source), ...bans(source), ...directions(source),
      ...testNames(source), ...rawPointers(source),
    ]),
    ...deadExports(sources),
    ...brokenLinks(root),
  ]
}

function name({ path }: Source): string[] {
  const found: string[] = []
  const file = basename(path)
  const forbidden = FORBIDDEN_NAMES[file]
  if (forbidden !== undefined) found.push(`${path}:1: a file called ${file}: ${forbidden}`)
  for (const part of path.replace(/\.ts$/, '').split('/')) {
    if (!/^[a-z0-9]+(_[a-z0-9]+)*(\.d)?$/.test(part)) found.push(`${path}:1: "${part}" isn't snake_case`)
  }
  return found
}

function header({ path, text }: Source): string[] {
  const first = text.replace(/^#!.*\n/, '').split('\n', 1)[0]!
  const wanted = `// ${path.replace(/^src\//, '')}: `
  if (first.startsWith(wanted) && first.length > wanted.length) return []
  return [`${path}:1: doesn't begin with "${wanted}…": say what the file is`]
}

function sizes({ path, text, masked }: Source): string[] {
  const found: string[] = []
  const lines = text.replace(/\n$/, '').split('\n')
  if (lines.length > FILE_LINES_MAX && !LONG_FILES.some((pattern) => pattern.test(path))) {
    found.push(`${path}:${FILE_LINES_MAX}: ${lines.length} lines: split by concept, at most ${FILE_LINES_MAX}`)
  }
  lines.forEach((line, i) => {
    const columns = [...line].length
    if (columns > COLUMNS_MAX) found.push(`${path}:${i + 1}: ${columns} columns: at most ${COLUMNS_MAX}`)
  })
  for (const { name, first, last } of functions(masked)) {
    // A suite is a list of tests, not a function to be understood at one sight.
    if (name === 'describe' || name === 'suite') continue
    const length = last - first + 1
    if (length > FUNCTION_LINES_MAX) {
      found.push(`${path}:${first}: ${name} has ${length} lines: at most ${FUNCTION_LINES_MAX}`)
    }
  }
  return found
}

function bans({ path, text, masked }: Source): string[] {
  if (MAY_NAME_BANS.includes(path)) return []
  return BANS.filter((ban) => ban.where.test(path)).flatMap((ban) => {
    const searched = ban.in === 'code' ? masked : text
    const lines = lineCounter(searched)
    return [...searched.matchAll(new RegExp(ban.pattern, `${ban.pattern.flags}g`))].map((match) =>
      `${path}:${lines(match.index + match[0].search(/\S/))}: "${match[0].trim()}": ${ban.instead}`)
  })
}

function directions({ path, imports }: Source): string[] {
  const [top, folder] = path.split('/') as [string, string]
  if (top !== 'src') return []
  const isTest = TEST_FILES.test(path)
  const allowed = MAY_IMPORT[folder]
  if (allowed === undefined) return [`${path}:1: src/${folder} has no line in MAY_IMPORT of tools/tidy.ts`]
  return imports.flatMap(({ from, line }) => {
    const wrong = (why: string): string[] => [`${path}:${line}: imports ${from}: ${why}`]
    const reserved = RESERVED[from]
    if (reserved !== undefined && reserved.folder !== folder) return wrong(reserved.instead)
    if (!isTest && TEST_FILES.test(from)) return wrong('it is for tests: move what is shared into a file of its own')
    if (from.startsWith('.')) {
      const [targetTop, target] = join(dirname(path), from).split('/') as [string, string]
      if (targetTop !== 'src') return isTest ? [] : wrong('src stands on its own: move what is shared into src')
      if (target === folder || allowed.includes(target)) return []
      return wrong(`src/${folder} may import ${['itself', ...allowed].join(', ')}`)
    }
    if (isTest) return []
    if (!from.startsWith('node:')) return PACKAGES.includes(from) ? [] : wrong('not in PACKAGES of tools/tidy.ts')
    return PURE.includes(folder) ? wrong(`src/${folder} runs in any engine: nothing of Node`) : []
  })
}

function testNames({ path, text, masked }: Source): string[] {
  if (!path.endsWith('_test.ts')) return []
  const lines = lineCounter(text)
  return [...masked.matchAll(/(?<![.\w$])(test|it)\(\s*(['"`])/g)].flatMap((match) => {
    const from = match.index + match[0].length
    const name = text.slice(from, masked.indexOf(match[2]!, from)).replace(/\$\{[^}]*\}/g, 'it')
    if (name.trim().split(/\s+/).length >= 3 && !/^should\b/.test(name) && !name.endsWith('.')) return []
    return [`${path}:${lines(match.index)}: test "${name}": write a sentence, without "should" or a period`]
  })
}

/** In src/sys each use of a raw pointer says why it is good: `// SAFETY:` on its line or in the five above. */
function rawPointers({ path, text, masked }: Source): string[] {
  if (!path.startsWith('src/sys/') || path.endsWith('_test.ts')) return []
  const lines = text.split('\n')
  return masked.split('\n').flatMap((line, i) => {
    if (!/\b(getRawPointer|toArrayBuffer|toBuffer)\(/.test(line)) return []
    if (lines.slice(Math.max(0, i - 5), i + 1).some((above) => above.includes('SAFETY:'))) return []
    return [`${path}:${i + 1}: a raw pointer without "// SAFETY:": say why it is good, and for how long`]
  })
}

/** What is exported and imported by nobody. A type counts as used if its own file uses it: it is in a signature. */
function deadExports(sources: readonly Source[]): string[] {
  const used = new Map<string, Set<string>>()
  for (const source of sources) {
    for (const { from, names, alias } of source.imports) {
      if (!from.startsWith('.')) continue
      const target = join(dirname(source.path), from)
      const set = used.get(target) ?? new Set()
      used.set(target, set)
      for (const name of names === '*' ? reachedThrough(source.masked, alias) : names) set.add(name)
    }
  }
  return sources.filter(({ path }) => !path.endsWith('_test.ts')).flatMap((source) => {
    const set = used.get(source.path) ?? new Set()
    const whole = WHOLE_TABLES.filter(({ files }) => files.test(source.path))
    return exportsOf(source.masked).flatMap(({ name, line, isType }) => {
      if (set.has(name) || set.has('*') || whole.some(({ names }) => names.test(name))) return []
      if (isType && (source.masked.match(new RegExp(`\\b${name}\\b`, 'g')) ?? []).length > 1) return []
      return [`${source.path}:${line}: ${name} is exported and imported by nobody: delete it, or don't export it`]
    })
  })
}

/** The names used of a namespace import; '*' if it is used as a whole. A dynamic import uses every name it can see. */
function reachedThrough(masked: string, alias: string): string[] {
  if (alias === '') return [...new Set(masked.match(/[\w$]+/g) ?? [])]
  const use = new RegExp(`(?<![\\w$]|[^.]\\.|as )${alias.replaceAll('$', '\\$')}(?:\\.([\\w$]+)|(?![\\w$]))`, 'g')
  return [...masked.matchAll(use)].map((match) => match[1] ?? '*')
}

/** Relative links in Markdown that lead nowhere. */
function brokenLinks(root: string): string[] {
  const pages = [...readdirSync(root).filter((file) => file.endsWith('.md')), ...walk(root, 'docs', /\.md$/)]
  return pages.flatMap((page) => {
    const text = readFileSync(join(root, page), 'utf8')
    const lines = lineCounter(text)
    return [...text.matchAll(/\]\(([^)#\s]+)(#[^)]*)?\)/g)].flatMap((match) => {
      if (/^[a-z]+:/.test(match[1]!) || existsSync(resolve(root, dirname(page), match[1]!))) return []
      return [`${page}:${lines(match.index)}: the link to ${match[1]} leads nowhere`]
    })
  })
}

function walk(root: string, folder: string, pattern: RegExp): string[] {
  if (!existsSync(join(root, folder))) return []
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((file) => file.isFile() && pattern.test(file.name))
    .map((file) => relative(root, join(file.parentPath, file.name))).sort()
}

if (import.meta.main) {
  const found = untidy(resolve(import.meta.dirname, '..'))
  for (const line of found) console.log(line)
  if (found.length > 0) console.log(`${found.length} untidy`)
  process.exitCode = found.length > 0 ? 1 : 0
}
