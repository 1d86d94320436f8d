// tests/conformance/wast_script.ts: reads a script of the WebAssembly specification's test suite (.wast).
//
// A script is a list of s-expressions: modules, calls of their exports, and assertions about both (the format is in the
// specification's interpreter/README.md, "Scripts"). The text of a module is left as it is: converting it to bytes is
// somebody else's work. What scripts have for custom sections is read as 'other', which nobody executes.

import { argumentOf, expectedOf, type Argument, type Expected } from './wast_values.ts'

/** A module: its text, as written or quoted, or its bytes. */
export type Source = { readonly text: string } | { readonly bytes: Uint8Array<ArrayBuffer> }

/** What a script does with an instance: a call, or a look at a global. `id` is undefined for the last instance. */
export type Action = {
  readonly kind: 'invoke' | 'get'; readonly id: string | undefined; readonly name: string
  readonly args: readonly Argument[]
}

/** A command. 'refused' is assert_invalid or assert_malformed. */
export type Command = { readonly line: number } & (
  | { readonly kind: 'module' | 'definition'; readonly id: string | undefined; readonly source: Source }
  | { readonly kind: 'instance'; readonly id: string | undefined; readonly definition: string | undefined }
  | { readonly kind: 'register'; readonly id: string | undefined; readonly name: string }
  | { readonly kind: 'action'; readonly action: Action }
  | { readonly kind: 'return'; readonly action: Action; readonly expected: readonly Expected[] }
  | { readonly kind: 'trap' | 'exhaustion' | 'exception'; readonly action: Action }
  | { readonly kind: 'uninstantiable' | 'unlinkable' | 'refused'; readonly source: Source }
  | { readonly kind: 'other'; readonly head: string }
)

/** A word, a string with its quotes, or a list. [start, end) is where it stands. */
export type Node = {
  readonly start: number; readonly end: number; readonly text: string; readonly items: readonly Node[] | undefined
}

/** Reads a script. Throws SyntaxError. */
export function parseScript(text: string): Command[] {
  const nodes = parseNodes(text)
  // A script may be the fields of one module.
  if (nodes.length > 0 && !COMMANDS.has(headOf(nodes[0]!))) {
    return [{ kind: 'module', id: undefined, line: 1, source: { text: `(module ${text}\n)` } }]
  }
  let line = 1
  let at = 0
  return nodes.map((node) => {
    for (; at < node.start; at++) if (text.charCodeAt(at) === NEWLINE) line++
    return { line, ...commandOf(node, text) }
  })
}

/** The s-expressions of a text, without comments and annotations. Throws SyntaxError. */
export function parseNodes(text: string): Node[] {
  const top: Node[] = []
  const open: { start: number; items: Node[] }[] = []
  let items = top
  for (let at = 0; at < text.length;) {
    if (text.startsWith('(;', at)) {
      at = endOfComment(text, at)
      continue
    }
    TOKEN.lastIndex = at
    const token = TOKEN.exec(text)?.[0]
    if (token === undefined) throw new SyntaxError(`an unclosed string at ${at}`)
    const start = at
    at += token.length
    if (token === '(') {
      open.push({ start, items })
      items = []
    } else if (token === ')') {
      const list = open.pop()
      if (list === undefined) throw new SyntaxError(`a parenthesis too many at ${start}`)
      const node = { start: list.start, end: at, text: '', items }
      items = list.items
      if (!headOf(node).startsWith('@')) items.push(node)
    } else if (!BLANK.test(token)) items.push({ start, end: at, text: token, items: undefined })
  }
  if (open.length > 0) throw new SyntaxError(`an unclosed parenthesis at ${open[0]!.start}`)
  return top
}

/** The bytes that a string stands for. */
export function bytesOf(quoted: string): Uint8Array<ArrayBuffer> {
  const bytes: number[] = []
  for (const [part, escape] of quoted.slice(1, -1).matchAll(STRING_PART)) {
    if (escape === undefined) bytes.push(...new TextEncoder().encode(part))
    else if (escape in ESCAPES) bytes.push(ESCAPES[escape]!)
    else if (escape.startsWith('u')) {
      bytes.push(...new TextEncoder().encode(String.fromCodePoint(Number(`0x${escape.slice(2, -1)}`))))
    } else bytes.push(Number(`0x${escape}`))
  }
  return Uint8Array.from(bytes)
}

function endOfComment(text: string, start: number): number {
  let depth = 0
  for (const { 0: mark, index } of text.slice(start).matchAll(/\(;|;\)/g)) {
    depth += mark === '(;' ? 1 : -1
    if (depth === 0) return start + index + 2
  }
  throw new SyntaxError(`an unclosed comment at ${start}`)
}

function headOf({ items }: Node): string {
  return items?.[0]?.text ?? ''
}

type Unplaced<T> = T extends unknown ? Omit<T, 'line'> : never

function commandOf(node: Node, text: string): Unplaced<Command> {
  const [head, subject, ...rest] = node.items ?? []
  switch (head?.text) {
    case 'module': return moduleOf(node, text)
    case 'register': return { kind: 'register', name: nameOf(subject!), id: rest[0]?.text }
    case 'invoke': case 'get': return { kind: 'action', action: actionOf(node) }
    case 'assert_return': return { kind: 'return', action: actionOf(subject!), expected: rest.map(expectedOf) }
    case 'assert_trap':
      return headOf(subject!) === 'module' ? { kind: 'uninstantiable', source: sourceOf(subject!, text) }
        : { kind: 'trap', action: actionOf(subject!) }
    case 'assert_exhaustion': return { kind: 'exhaustion', action: actionOf(subject!) }
    case 'assert_exception': return { kind: 'exception', action: actionOf(subject!) }
    case 'assert_unlinkable': return { kind: 'unlinkable', source: sourceOf(subject!, text) }
    case 'assert_invalid': case 'assert_malformed': return { kind: 'refused', source: sourceOf(subject!, text) }
    default: return { kind: 'other', head: head?.text ?? '' }
  }
}

function moduleOf(node: Node, text: string): Unplaced<Command> {
  const items = node.items!
  const what = items[1]?.text
  if (what === 'instance') return { kind: 'instance', id: items[2]?.text, definition: items[3]?.text }
  const id = items[what === 'definition' ? 2 : 1]
  return {
    kind: what === 'definition' ? 'definition' : 'module', id: id?.text.startsWith('$') === true ? id.text : undefined,
    source: sourceOf(node, text),
  }
}

function sourceOf({ items, start, end }: Node, text: string): Source {
  const definition = items![1]?.text === 'definition' ? items![1] : undefined
  const content = items!.slice(definition === undefined ? 1 : 2)
  if (content[0]?.text.startsWith('$') === true) content.shift()
  const strings = content.slice(1).map((one) => one.text)
  switch (content[0]?.text) {
    case 'binary': return { bytes: joined(strings, '') }
    case 'quote': return quotedSource(joined(strings, ' '))
    default: return { text: ascii(definition === undefined ? text.slice(start, end)
      : `(module ${text.slice(definition.end, end)}`) }
  }
}

// Converters refuse characters that could deceive a reader. These stand in strings, where they may be numbers.
function ascii(text: string): string {
  return text.replace(/[^\0-\x7f]/gu, (one) => `\\u{${one.codePointAt(0)!.toString(16)}}`)
}

// Text that isn't UTF-8 is no module, whatever follows.
function quotedSource(bytes: Uint8Array): Source {
  let text
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return { text: '(module not-utf-8)' }
  }
  return { text: /^\s*\(module\b/.test(text) ? text : `(module ${text}\n)` }
}

function joined(strings: readonly string[], separator: string): Uint8Array<ArrayBuffer> {
  const between = new TextEncoder().encode(separator)
  return Uint8Array.from(strings.flatMap((one) => [...bytesOf(one), ...between]))
}

function actionOf(node: Node): Action {
  const [head, ...rest] = node.items ?? []
  if (head?.text !== 'invoke' && head?.text !== 'get') throw new SyntaxError(`no action: ${head?.text}`)
  const id = rest[0]?.text.startsWith('$') === true ? rest.shift()!.text : undefined
  return { kind: head.text, id, name: nameOf(rest[0]!), args: rest.slice(1).map(argumentOf) }
}

function nameOf({ text }: Node): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytesOf(text))
}

const NEWLINE = 10
const BLANK = /^(\s|;;)/
const TOKEN = /\s+|;;[^\n\r]*|[$@]?"(?:[^"\\]|\\[^])*"|[()]|;|[^\s()";]+/y
const STRING_PART = /\\(u\{[0-9a-fA-F_]+\}|[0-9a-fA-F]{2}|[^])|[^\\]+/g
const ESCAPES: Readonly<Record<string, number>> = { 't': 9, 'n': 10, 'r': 13, '"': 34, "'": 39, '\\': 92 }
const COMMANDS = new Set([
  'module', 'register', 'invoke', 'get', 'assert_return', 'assert_trap', 'assert_exhaustion', 'assert_exception',
  'assert_unlinkable', 'assert_invalid', 'assert_malformed', 'assert_invalid_custom', 'assert_malformed_custom',
])
