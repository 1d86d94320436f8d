// tests/conformance/wast_values.ts: the values of a test script, as bits: what is passed, and what may come back.
//
// A JavaScript number can't hold every NaN, and v128 has no form in JavaScript at all. So a number is its bits, a
// bigint, and a result is text: 'f32 7fc00000', 'v128 …', 'ref null', 'ref extern 3', 'ref i31 7', 'ref func'.

import type { Node } from './wast_script.ts'

export type NumberType = 'i32' | 'i64' | 'f32' | 'f64' | 'v128'

/** What a function is called with: the bits of a number; the number that names a host's object, or null. */
export type Argument =
  | { readonly type: NumberType; readonly bits: bigint } | { readonly type: 'ref'; readonly host: number | null }

/** Results that are all allowed: most often one. */
export type Expected = readonly Pattern[]

/** Lanes from the lowest, each with bits or a class of NaNs; a number is one lane. Or the kind of a reference. */
type Pattern =
  | { readonly type: NumberType; readonly width: number; readonly lanes: readonly Lane[] }
  | { readonly type: 'ref'; readonly text: string }
type Lane = bigint | 'nan:canonical' | 'nan:arithmetic'

const BITS: Readonly<Record<string, number>> = { i8: 8, i16: 16, i32: 32, i64: 64, f32: 32, f64: 64 }
const EXPONENT_BITS: Readonly<Record<number, number>> = { 32: 8, 64: 11 }

/** Reads an argument: `(i32.const 1)`, `(ref.null func)`, `(ref.extern 2)`. */
export function argumentOf(node: Node): Argument {
  const [head, value] = words(node)
  if (head === 'ref.null') return { type: 'ref', host: null }
  if (head === 'ref.extern' || head === 'ref.host') return { type: 'ref', host: Number(value) }
  const pattern = patternOf(node)
  if (pattern.type === 'ref') throw new SyntaxError(`no argument: ${head}`)
  let bits = 0n
  pattern.lanes.forEach((lane, i) => {
    if (typeof lane === 'string') throw new SyntaxError(`no argument: ${lane}`)
    bits |= lane << BigInt(i * pattern.width)
  })
  return { type: pattern.type, bits }
}

/** Reads what is expected: an argument, a class of values, or several of them. */
export function expectedOf(node: Node): Expected {
  return node.items?.[0]?.text === 'either' ? node.items.slice(1).map(patternOf) : [patternOf(node)]
}

/** True if `results` are what is expected, or may be. */
export function allows(expected: readonly Expected[], results: readonly string[]): boolean {
  return expected.length === results.length &&
    expected.every((patterns, i) => patterns.some((one) => matches(one, results[i]!)))
}

/** The text of a number. */
export function numberText(type: NumberType, bits: bigint): string {
  return `${type} ${bits.toString(16).padStart(type === 'v128' ? 32 : BITS[type]! / 4, '0')}`
}

/** What is expected, for a message. */
export function expectedText(expected: readonly Expected[]): string {
  return expected.map((patterns) => patterns.map((one) => {
    if (one.type === 'ref') return one.text
    return `${one.type} ${one.lanes.map((lane) => typeof lane === 'string' ? lane : lane.toString(16)).join(' ')}`
  }).join(' or ')).join(', ')
}

function matches(pattern: Pattern, result: string): boolean {
  const [type, ...rest] = result.split(' ')
  if (type !== pattern.type) return false
  if (pattern.type === 'ref') return matchesReference(pattern.text, rest)
  const bits = BigInt(`0x${rest[0]}`)
  return pattern.lanes.every((lane, i) => matchesLane(lane, pattern.width,
    (bits >> BigInt(i * pattern.width)) & mask(pattern.width)))
}

// `(ref.extern)` is any object of the host's, `(ref.eq)` whatever can be compared, `(ref.any)` whatever isn't null.
function matchesReference(expected: string, [kind = '', id]: readonly string[]): boolean {
  const [wanted = '', number] = expected.split(' ')
  if (wanted === 'any') return kind !== 'null'
  if (wanted === 'eq') return ['i31', 'struct', 'array'].includes(kind)
  return (wanted === 'host' ? 'extern' : wanted) === kind && (number === undefined || number === id)
}

function matchesLane(lane: Lane, width: number, bits: bigint): boolean {
  if (typeof lane === 'bigint') return lane === bits
  const quiet = canonicalNan(width)
  // Arithmetic: the highest bit of the fraction is set, and any others may be.
  return lane === 'nan:canonical' ? (bits & mask(width - 1)) === quiet : (bits & quiet) === quiet
}

function patternOf(node: Node): Pattern {
  const [head = '', ...rest] = words(node)
  if (head.startsWith('ref.')) {
    const kind = head.slice('ref.'.length)
    return { type: 'ref', text: kind === 'null' || rest.length === 0 ? kind : `${kind} ${rest[0]}` }
  }
  const type = head.slice(0, -'.const'.length)
  if (type === 'v128') {
    const width = BITS[rest[0]!.replace(/x\d+$/, '')]!
    const float = rest[0]!.startsWith('f')
    return { type, width, lanes: rest.slice(1).map((one) => laneOf(one, width, float)) }
  }
  if (type !== 'i32' && type !== 'i64' && type !== 'f32' && type !== 'f64') throw new SyntaxError(`no value: ${head}`)
  return { type, width: BITS[type]!, lanes: [laneOf(rest[0]!, BITS[type]!, type.startsWith('f'))] }
}

function words({ items = [] }: Node): string[] {
  return items.map((one) => one.text)
}

function laneOf(text: string, width: number, float: boolean): Lane {
  if (text === 'nan:canonical' || text === 'nan:arithmetic') return text
  const negative = text.startsWith('-')
  const digits = text.replace(/^[-+]/, '').replaceAll('_', '')
  if (!float) return (negative ? -BigInt(digits) : BigInt(digits)) & mask(width)
  return magnitude(digits, width) | (negative ? 1n << BigInt(width - 1) : 0n)
}

function mask(width: number): bigint {
  return (1n << BigInt(width)) - 1n
}

function canonicalNan(width: number): bigint {
  const fraction = BigInt(width - 1 - EXPONENT_BITS[width]!)
  return (mask(EXPONENT_BITS[width]!) << fraction) | (1n << (fraction - 1n))
}

/** The bits of a float without sign, rounded once, to even: through a double, an f32 would be rounded twice. */
function magnitude(text: string, width: number): bigint {
  const exponentBits = EXPONENT_BITS[width]!
  const fraction = width - 1 - exponentBits
  const infinity = mask(exponentBits) << BigInt(fraction)
  if (text === 'inf') return infinity
  if (text === 'nan') return canonicalNan(width)
  if (text.startsWith('nan:')) return infinity | BigInt(text.slice('nan:'.length))
  const [numerator, denominator] = rational(text)
  if (numerator === 0n) return 0n
  const bias = 2 ** (exponentBits - 1) - 1
  const lowest = 1 - bias - fraction
  // The value is rounded × 2^exponent, where that has fraction + 1 bits unless the exponent is the lowest.
  let exponent = bitLength(numerator) - bitLength(denominator) - fraction - 1
  const [above, below] = scaled(numerator, denominator, exponent)
  if (above >= below << BigInt(fraction + 1)) exponent++
  exponent = Math.max(lowest, exponent)
  let rounded = divide(...scaled(numerator, denominator, exponent))
  if (rounded >> BigInt(fraction + 1) !== 0n) {
    rounded >>= 1n
    exponent++
  }
  if (rounded >> BigInt(fraction) === 0n) return rounded
  const biased = exponent - lowest + 1
  if (biased >= 2 ** exponentBits - 1) return infinity
  return (BigInt(biased) << BigInt(fraction)) + rounded - (1n << BigInt(fraction))
}

function rational(text: string): [numerator: bigint, denominator: bigint] {
  const hex = text.startsWith('0x')
  const [mantissa = '', exponent = '0'] = (hex ? text.slice(2) : text).split(hex ? /p/i : /e/i)
  const [whole = '', part = ''] = mantissa.split('.')
  const digits = BigInt(`${hex ? '0x' : ''}${whole}${part}`)
  const scale = Number(exponent) - part.length * (hex ? 4 : 1)
  const power = (hex ? 2n : 10n) ** BigInt(Math.abs(scale))
  return scale < 0 ? [digits, power] : [digits * power, 1n]
}

// A fraction that is numerator / denominator / 2^exponent.
function scaled(numerator: bigint, denominator: bigint, exponent: number): [above: bigint, below: bigint] {
  return exponent < 0 ? [numerator << BigInt(-exponent), denominator] : [numerator, denominator << BigInt(exponent)]
}

/** The nearest integer; of two, the even one. */
function divide(above: bigint, below: bigint): bigint {
  const quotient = above / below
  const twice = (above % below) * 2n
  return twice > below || (twice === below && (quotient & 1n) === 1n) ? quotient + 1n : quotient
}

function bitLength(n: bigint): number {
  return n.toString(2).length
}
