// tests/fuzz/static_checks.ts: what must be true of a translated module's code, whether or not it is executed.

import { BodyReader, eachBody } from '../../src/wasm/body.ts'
import { customSection, importsOf, type Module } from '../../src/wasm/module.ts'
import { instructionOf } from '../../src/wasm/opcodes.ts'
import { Reader } from '../../src/wasm/reader.ts'

/** A check has so many instructions at most, the call of $yield among them. */
const CHECK_INSTRUCTIONS_MAX = 10
const CALL = /^(return_)?call$/
const CALL_BY_REFERENCE = /^(return_)?call_(indirect|ref)$/
const BULK = /^(memory|table)\.(fill|copy|init)$/
/** What may be done without a check, by the space it is in. */
const BULK_MAX = { memory: 64 * 1024, table: 1024 }

/** A branch hint that isn't at a branch: V8 ignores it, and the check is slow. */
export function misplacedHint(module: Module): string | undefined {
  const section = customSection(module, 'metadata.code.branch_hint')
  if (section === undefined) return undefined
  const hints = new Map<number, Set<number>>()
  const reader = new Reader(module.bytes, section.offset, section.end, 'branch hints')
  for (let functions = reader.u32(); functions > 0; functions--) {
    const offsets = new Set<number>()
    hints.set(reader.u32(), offsets)
    for (let entries = reader.u32(); entries > 0; entries--) {
      offsets.add(reader.u32())
      reader.skip(reader.u32())
    }
  }
  const imported = importsOf(module, 'func').length
  const body = new BodyReader(module.bytes)
  eachBody(module, (start, end, f) => {
    const offsets = hints.get(imported + f)
    if (offsets === undefined) return
    body.open(start, end)
    while (body.next()) {
      const name = instructionOf(body.opcode)!.name
      if (name === 'if' || name === 'br_if') offsets.delete(body.at - start)
    }
  })
  const left = [...hints].find(([, offsets]) => offsets.size > 0)
  return left === undefined ? undefined : `function ${left[0]} has a hint at ${[...left[1]].join()} where no branch is`
}

/** What has no check and must have one, in the translation of `original`. */
export function missingCheck(original: Module, translated: Module): string | undefined {
  const imported = importsOf(original, 'func').length
  const yields = imported + original.functionCount
  const callees = new Map<number, number[]>()
  let found: string | undefined
  const reader = new BodyReader(translated.bytes)
  eachBody(translated, (start, end, defined) => {
    const f = imported + defined
    if (f >= yields) return
    const scan = new FunctionScan(yields)
    reader.open(start, end)
    while (reader.next()) scan.step(reader)
    if (scan.missing !== undefined) found ??= `function ${f}: ${scan.missing}`
    if (!scan.checksAtEntry) callees.set(f, scan.callees)
  })
  return found ?? uncheckedCycle(callees)
}

/** Goes over a function of the guest's. */
class FunctionScan {
  missing: string | undefined
  checksAtEntry = false
  readonly callees: number[] = []
  readonly #yields: number
  #count = 0
  // Instructions since the head of a loop that wasn't checked yet; -1: there is none.
  #sinceHead = -1
  #lastCheck = -Infinity
  #callsByReference = false
  #constant = -1

  constructor(yields: number) {
    this.#yields = yields
  }

  step({ opcode, slots }: BodyReader): void {
    const { name } = instructionOf(opcode)!
    const index = slots[0]! >>> 0
    this.#count++
    if (this.#sinceHead >= 0 && ++this.#sinceHead > CHECK_INSTRUCTIONS_MAX) this.missing ??= 'a loop has no check'
    if (name === 'loop') this.#sinceHead = 0
    if (CALL.test(name)) {
      if (index === this.#yields) {
        this.#sinceHead = -1
        this.#lastCheck = this.#count
        if (this.#count <= CHECK_INSTRUCTIONS_MAX) this.checksAtEntry = true
      } else this.callees.push(index)
    } else if (CALL_BY_REFERENCE.test(name)) this.#callsByReference = true
    else if (BULK.test(name)) {
      const max = BULK_MAX[name.startsWith('memory') ? 'memory' : 'table']
      // A check may have come between the length and the instruction.
      const hidden = this.#count - this.#lastCheck < CHECK_INSTRUCTIONS_MAX
      if (!hidden && (this.#constant < 0 || this.#constant > max)) this.missing ??= `${name} may be long`
    } else if (name === 'end' && this.#callsByReference && !this.checksAtEntry) {
      this.missing ??= 'it calls by reference and has no check at its entry'
    }
    this.#constant = name === 'i32.const' ? slots[0]! : -1
  }
}

/** Functions without a check at their entry must not call each other in a circle. */
function uncheckedCycle(callees: ReadonlyMap<number, readonly number[]>): string | undefined {
  const done = new Set<number>()
  const walk = (f: number, path: readonly number[]): string | undefined => {
    if (path.includes(f)) return `functions ${path.join()} call each other without a check`
    if (done.has(f)) return undefined
    for (const callee of new Set(callees.get(f))) {
      if (!callees.has(callee)) continue
      const cycle = walk(callee, [...path, f])
      if (cycle !== undefined) return cycle
    }
    done.add(f)
    return undefined
  }
  for (const f of callees.keys()) {
    const cycle = walk(f, [])
    if (cycle !== undefined) return cycle
  }
  return undefined
}
