// tools/scan.ts: reads TypeScript just well enough for the checks of tools/tidy.ts.
//
// `mask` blanks out what isn't code (comments, and the insides of strings, templates and regular expressions) and keeps
// every other character where it was, so that braces can be counted and words searched by line. It is a scanner, not a
// parser: a `/` is taken as a regular expression where an operand may stand, which is how editors tell them apart.

/** A function in a source file, with its first and last line, counted from 1. */
export type FunctionSpan = { name: string; first: number; last: number }

/** What one import or re-export names. `names` is '*' for a namespace, a dynamic or a side-effect import. */
export type Import = { from: string; names: readonly string[] | '*'; alias: string; typeOnly: boolean; line: number }

/** `source` with comments and the insides of literals replaced by blanks; line breaks stay. */
export function mask(source: string): string {
  const out = source.split('')
  const blank = (from: number, to: number): void => {
    for (let i = from; i < to; i++) if (out[i] !== '\n') out[i] = ' '
  }
  // One entry for each template literal that is open: the depth of braces within its `${…}`.
  const templates: number[] = []
  let at = 0
  while (at < source.length) {
    const char = source[at]!
    const start = at
    if (char === '/' && source[at + 1] === '/') {
      at = end(source, '\n', at)
      blank(start, at)
    } else if (char === '/' && source[at + 1] === '*') {
      at = end(source, '*/', at + 2) + 2
      blank(start, at)
    } else if (char === "'" || char === '"') {
      at = quoted(source, at)
      blank(start + 1, at - 1)
    } else if (char === '/' && operandMayStand(out, at)) {
      at = regularExpression(source, at)
      blank(start + 1, at - 1)
    } else if (char === '`' || (char === '}' && templates.at(-1) === 0)) {
      if (char === '}') templates.pop()
      at = template(source, at + 1)
      const opens = source[at - 1] === '{'
      blank(start + 1, opens ? at - 2 : at - 1)
      if (opens) templates.push(0)
      if (opens && char === '`') out[start] = '`'
    } else {
      if (templates.length > 0 && char === '{') templates[templates.length - 1]!++
      if (templates.length > 0 && char === '}') templates[templates.length - 1]!--
      at++
    }
  }
  return out.join('')
}

/** The functions of `masked` (see mask): declarations, methods and arrow functions with a body in braces. */
export function functions(masked: string): FunctionSpan[] {
  const found: FunctionSpan[] = []
  const lines = lineCounter(masked)
  const open: { head: Head; from: number }[] = []
  let closed: Closed = { head: { kind: 'other' }, at: 0 }
  for (let at = 0; at < masked.length; at++) {
    if (masked[at] === '{') {
      const head = headOf(masked, at, closed)
      open.push({ head, from: head.kind === 'function' ? head.from : at })
    } else if (masked[at] === '}') {
      const opened = open.pop()
      if (opened === undefined) continue
      closed = { head: opened.head, at }
      if (opened.head.kind !== 'function') continue
      found.push({ name: opened.head.name, first: lines(opened.from), last: lines(at) })
    }
  }
  return found
}

/** The imports and re-exports of `source`; `masked` is mask(source). */
export function imports(source: string, masked: string): Import[] {
  const found: Import[] = []
  const lines = lineCounter(masked)
  const statement = /\b(?:import|export)\s+(type\s+)?([\w$*{][^;='"`()]*?)\s*\bfrom\s*(['"])/g
  for (const match of masked.matchAll(statement)) {
    const clause = match[2]!
    const namespace = /\*\s*(?:as\s+([\w$]+))?/.exec(clause)
    const names = namespace ? '*' : importedNames(clause)
    const from = literal(source, match.index + match[0].length)
    found.push({ from, names, alias: namespace?.[1] ?? '', typeOnly: match[1] !== undefined, line: lines(match.index) })
  }
  for (const match of masked.matchAll(/\bimport\s*\(?\s*['"`]/g)) {
    const from = literal(source, match.index + match[0].length)
    found.push({ from, names: '*', alias: '', typeOnly: false, line: lines(match.index) })
  }
  return found
}

/** The names that `masked` exports, with their lines and whether each is a type. */
export function exportsOf(masked: string): { name: string; line: number; isType: boolean }[] {
  const lines = lineCounter(masked)
  const declared =
    /^export\s+(?:(?:declare|async|abstract)\s+)*(const|let|function\*?|class|type|interface)\s+([\w$]+)/gm
  return [...masked.matchAll(declared)].map((match) =>
    ({ name: match[2]!, line: lines(match.index), isType: match[1] === 'type' || match[1] === 'interface' }))
}

/** Gives the line of an index, counted from 1. */
export function lineCounter(text: string): (index: number) => number {
  const starts = [0]
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) starts.push(at + 1)
  return (index) => {
    let low = 0
    let high = starts.length
    while (high - low > 1) {
      const middle = (low + high) >> 1
      if (starts[middle]! <= index) low = middle
      else high = middle
    }
    return low + 1
  }
}

type Head = { kind: 'function'; name: string; from: number } | { kind: 'type'; from: number } | { kind: 'other' }

/** The pair of braces that closed last: what it was, and where it ended. */
type Closed = { head: Head; at: number }

const NOT_FUNCTIONS = ['if', 'for', 'while', 'switch', 'catch', 'with', 'await']

/** What the brace at `brace` opens. */
function headOf(masked: string, brace: number, closed: Closed): Head {
  const base = Math.max(0, brace - 2000)
  const before = masked.slice(base, brace).trimEnd()
  if (before.endsWith('=>')) return { kind: 'function', ...named(masked, lineStart(masked, base + before.length)) }
  // `(…): Promise<{ a: number }> {`: the first pair of braces is a type, the second the body.
  if (closed.head.kind === 'type' && /^[\s\w>|&,.[\]]*$/.test(masked.slice(closed.at + 1, brace))) {
    return { kind: 'function', ...named(masked, closed.head.from) }
  }
  const parenthesis = /\)\s*(:[^;{}()=]*(\([^()]*\)[^;{}()=]*)?)?$/.exec(before)
  if (parenthesis === null) return { kind: 'other' }
  const opening = matching(masked, base + parenthesis.index)
  const word = /([\w$#]+)\s*$/.exec(masked.slice(Math.max(0, opening - 200), opening).replace(/<[^()]*>\s*$/, ''))?.[1]
  if (word === undefined || NOT_FUNCTIONS.includes(word)) return { kind: 'other' }
  if (/[:|&<,]$/.test(before)) return { kind: 'type', from: lineStart(masked, opening) }
  return { kind: 'function', name: word, from: lineStart(masked, opening) }
}

function named(masked: string, from: number): { name: string; from: number } {
  const line = masked.slice(from, masked.indexOf('\n', from) >>> 0)
  const name = /(?:function\*?|const|let)\s+([\w$]+)/.exec(line) ?? /([\w$#]+)\s*[(<=:]/.exec(line)
  return { name: name?.[1] ?? 'a function', from }
}

function matching(masked: string, parenthesis: number): number {
  let depth = 0
  for (let at = parenthesis; at >= 0; at--) {
    if (masked[at] === ')') depth++
    if (masked[at] === '(' && --depth === 0) return at
  }
  return 0
}

function lineStart(text: string, at: number): number { return text.lastIndexOf('\n', at - 1) + 1 }

function importedNames(clause: string): string[] {
  const inBraces = /\{([^}]*)\}/.exec(clause)?.[1] ?? ''
  const names = inBraces.split(',').map((name) => name.trim().replace(/^type\s+/, '').replace(/\s+as\s+.*$/, ''))
  if (/^[\w$]+/.test(clause)) names.push('default')
  return names.filter((name) => name !== '')
}

/** The rest of a literal whose inside begins at `from`. */
function literal(source: string, from: number): string { return /^[^'"`\n]*/.exec(source.slice(from))![0] }

function end(source: string, what: string, from: number): number {
  const at = source.indexOf(what, from)
  return at < 0 ? source.length : at
}

function quoted(source: string, from: number): number {
  let at = from + 1
  while (at < source.length && source[at] !== source[from] && source[at] !== '\n') at += source[at] === '\\' ? 2 : 1
  return at + 1
}

/** The index after the back-quote that ends a template, or after the brace of its next `${`. */
function template(source: string, from: number): number {
  let at = from
  while (at < source.length) {
    if (source[at] === '`') return at + 1
    if (source[at] === '$' && source[at + 1] === '{') return at + 2
    at += source[at] === '\\' ? 2 : 1
  }
  return at
}

function regularExpression(source: string, from: number): number {
  let inClass = false
  let at = from + 1
  for (; at < source.length && source[at] !== '\n'; at++) {
    if (source[at] === '\\') at++
    else if (source[at] === '[') inClass = true
    else if (source[at] === ']') inClass = false
    else if (source[at] === '/' && !inClass) return at + 1
  }
  return at
}

const BEFORE_OPERANDS = ['return', 'typeof', 'case', 'in', 'of', 'void', 'throw', 'await', 'yield', 'else']

function operandMayStand(out: readonly string[], at: number): boolean {
  let before = at - 1
  while (before >= 0 && (out[before] === ' ' || out[before] === '\n')) before--
  if (before < 0 || '(,=:[!&|?{};<>+-*%~^'.includes(out[before]!)) return true
  const word = /([a-z]+)$/.exec(out.slice(Math.max(0, before - 10), before + 1).join(''))?.[1]
  return word !== undefined && BEFORE_OPERANDS.includes(word)
}
