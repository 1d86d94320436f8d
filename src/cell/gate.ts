// cell/gate.ts: the WebAssembly module that stands between a guest and the hypervisor.
//
// A hypercall that answers at once is a plain import: ~4 ns. One that must wait parks the vCPU's stack by JSPI, which
// costs ten times as much and a turn of the microtask queue, even if the answer is there. So waiting is apart: the gate
// first *tries* the hypercall by a plain call, and suspends only if the answer is WAIT; woken, it tries again.
//
//   (func $fd_read (param i32 i32 i32 i32) (result i32)
//     (loop $again
//       (local.tee $r (call $try_fd_read …))            ;; plain import
//       (if (i32.ge_s (local.get $r) 0) (return …))     ;; an errno
//       (if (i32.eq (local.get $r) STOP) (unreachable)) ;; the guest ends here
//       (call $wait)                                    ;; WebAssembly.Suspending
//       (br_if $again (i32.eqz (call $resumed))))       ;; 1: stopped while it waited
//     (unreachable))
//
// It does three more things that only WebAssembly can do well: an i64 is passed on as two i32 halves, since JavaScript
// would get a BigInt from the heap; the guest is ended by a trap, which no catch_all of the guest can catch, where an
// exception thrown by us could be; and no JavaScript frame stands between the guest and $wait, which JSPI forbids.
// Of a guest that can be captured (translate/capture.ts) the gate keeps the arguments of a hypercall that waits as any
// function keeps its frame: what goes on calls it with them again.
//
// Elsewhere: the protocol's other half (wasi/p1/context.ts).

import { CONTROL_BASE, CONTROL_PAGES, CONTROL_POINTER, GATE_FRAME, TRAILER_BYTES } from '../translate/control_words.ts'
import { HYPERCALLS, type HypercallName } from '../wasi/cellar/table.ts'
import { STOP } from '../wasi/p1/context.ts'
import type { Signature } from '../wasi/p1/table.ts'
import { encodeModule, leb, name, section, SECTION_CUSTOM, sleb, type EncodableType, type ModuleParts } from
  '../wasm/encode.ts'

/** The gate's name in a stack: its frames are ours, not the guest's. */
export const GATE_NAME = 'cellar-gate'

/** True if `name` must be called through the gate. */
export function isGated(name: HypercallName): boolean {
  const { answers, params }: Signature = HYPERCALLS[name]
  return answers !== 'now' || params.includes('i64')
}

/** What a gate is for. `hypercalls`: all that the guest imports; `names` are those that must be called through it. */
export type GateKind = {
  /** The guest's quantum can end: it goes to `preempted`. */
  readonly preemptible?: boolean
  /** It looks up after a hypercall, too: code without a check of its own may make many of them. */
  readonly looks?: boolean
  /** Its stack can be left: numbers of hypercalls in the frames that the gate keeps, by name. */
  readonly capture?: ReadonlyMap<string, number> | undefined
}

/**
 * The gate for a guest that imports `names` (all gated). It imports `hypercall.NAME` for each, `vcpu.wait` (a
 * Suspending, () → ()) and `vcpu.resumed` (() → i32: RESUMED, STOPPED or UNWINDS), and exports each name with the
 * guest's signature, and `trap`, which ends the guest from within an import. For a preemptible guest it imports
 * `vcpu.preempt` (a Suspending), too, and exports `preempted`. For one that looks or can be captured it imports the
 * control memory as `vcpu.control`; and `vcpu.left`, which it exports for WebAssembly to call.
 */
export function encodeGate(
  names: readonly HypercallName[], { preemptible = false, looks = false, capture }: GateKind = {},
): Uint8Array<ArrayBuffer> {
  const types: { params: EncodableType[]; results: EncodableType[] }[] =
    [{ params: [], results: [] }, { params: [], results: ['i32'] }]
  const [ACTION, QUESTION] = [0, 1]
  const vcpu: { readonly name: string; readonly type: number }[] = [{ name: 'wait', type: ACTION },
    { name: 'resumed', type: QUESTION }, ...(preemptible ? [{ name: 'preempt', type: ACTION }] : []),
    ...(capture !== undefined ? [{ name: 'left', type: ACTION }] : [])]
  const [wait, resumed] = [names.length, names.length + 1]
  const indexOf = (name: string): number => names.length + vcpu.findIndex((one) => one.name === name)
  const tries = names.map((name) => {
    const { params }: Signature = HYPERCALLS[name]
    types.push({ params: params.flatMap((type): EncodableType[] => type === 'i64' ? ['i32', 'i32'] : ['i32']),
      results: ['i32'] })
    return { module: 'hypercall', name, type: types.length - 1 }
  })
  const imported = names.length + vcpu.length
  const preempted = imported + names.length + 1
  const look = looks ? [I32_CONST, 0, I32_LOAD, ALIGN_4, 0, IF, VOID, CALL, ...leb(preempted), END] : []
  const functions = names.map((name, index) => {
    const signature: Signature = HYPERCALLS[name]
    types.push({ params: [...signature.params], results: signature.result === null ? [] : ['i32'] })
    return { type: types.length - 1, ...code(signature, { attempt: index, wait, resumed, look,
      number: capture?.get(name) }) }
  })
  functions.push({ type: ACTION, locals: [], body: [UNREACHABLE] })
  if (preemptible) {
    functions.push({ type: ACTION, locals: [],
      body: [CALL, ...leb(indexOf('preempt')), CALL, ...leb(resumed), I32_CONST, STOPPED, I32_EQ, IF, VOID,
        UNREACHABLE, END] })
  }
  if (capture !== undefined) functions.push({ type: ACTION, locals: [], body: [CALL, ...leb(indexOf('left'))] })
  const parts: ModuleParts = {
    types,
    imports: [...tries, ...vcpu.map((one) => ({ module: 'vcpu', ...one })),
      ...(looks || capture !== undefined ? [{ module: 'vcpu', name: 'control', memory: CONTROL }] : [])],
    functions,
    exports: [...names, 'trap', ...(preemptible ? ['preempted'] : []), ...(capture !== undefined ? ['left'] : [])]
      .map((name, i) => ({ name, kind: 'func', index: imported + i })),
  }
  return new Uint8Array([...encodeModule(parts), ...NAME_SECTION])
}

/** Answers of `vcpu.resumed`: the guest goes on, ends, or leaves its stack to be captured. */
export const RESUMED = 0
export const STOPPED = 1
export const UNWINDS = 2

type Parts = {
  readonly attempt: number; readonly wait: number; readonly resumed: number; readonly look: readonly number[]
  /** In frames; undefined: it keeps none. */
  readonly number: number | undefined
}

function code(signature: Signature, { attempt, wait, resumed, look, number }: Parts):
    { locals: EncodableType[]; body: number[] } {
  const { params, result, answers } = signature
  const call = [...params.flatMap((type, i) => type === 'i32' ? [LOCAL_GET, ...leb(i)] : halves(i)), CALL,
    ...leb(attempt)]
  if (answers === 'now') return { locals: [], body: [...call, ...look] }
  const r = leb(params.length)
  const leave = number === undefined ? [] : [LOCAL_GET, ...r, I32_CONST, UNWINDS, I32_EQ, IF, VOID,
    ...keepArguments(signature, number), ...(result === null ? [] : [I32_CONST, 0]), RETURN, END]
  return {
    locals: ['i32'],
    body: [
      LOOP, VOID,
      ...call, LOCAL_TEE, ...r, I32_CONST, 0, I32_GE_S,
      IF, VOID, ...look, ...(result === null ? [] : [LOCAL_GET, ...r]), RETURN, END,
      LOCAL_GET, ...r, I32_CONST, ...sleb(STOP), I32_EQ, IF, VOID, UNREACHABLE, END,
      CALL, ...leb(wait), CALL, ...leb(resumed), LOCAL_TEE, ...r, I32_EQZ, BR_IF, 0,
      END,
      ...leave,
      UNREACHABLE,
    ],
  }
}

// A frame as translate/save_area.ts has it. The memory is the gate's first.
function keepArguments({ params }: Signature, number: number): number[] {
  const pointer = [I32_CONST, 0, I32_LOAD, ALIGN_4, ...leb(CONTROL_POINTER)]
  const put = (offset: number, value: readonly number[], store = I32_STORE): number[] =>
    [...pointer, ...value, store, 0, ...leb(offset)]
  let size = 0
  const stores = params.flatMap((type, i) => {
    const at = size
    size += type === 'i64' ? 8 : 4
    return put(at, [LOCAL_GET, ...leb(i)], type === 'i64' ? I64_STORE : I32_STORE)
  })
  return [...stores, ...put(size, [I32_CONST, ...sleb((GATE_FRAME | 0) + number)]), ...put(size + 4, [I32_CONST, 0]),
    ...put(size + 8, [I32_CONST, ...sleb(size)]),
    I32_CONST, 0, ...pointer, I32_CONST, ...sleb(size + TRAILER_BYTES), I32_ADD,
    I32_STORE, ALIGN_4, ...leb(CONTROL_POINTER),
    I32_CONST, 0, ...pointer, I32_STORE, ALIGN_4, ...leb(CONTROL_BASE)]
}

function halves(local: number): number[] {
  const get = [LOCAL_GET, ...leb(local)]
  return [...get, I32_WRAP_I64, ...get, I64_CONST, 32, I64_SHR_U, I32_WRAP_I64]
}

// Subsection 0: the module's name.
const NAME_SECTION = section(SECTION_CUSTOM, [...name('name'), 0, GATE_NAME.length + 1, ...name(GATE_NAME)])

const CONTROL = { min: 1, max: CONTROL_PAGES, shared: true } as const
const UNREACHABLE = 0x00
const LOOP = 0x03
const IF = 0x04
const END = 0x0b
const BR_IF = 0x0d
const RETURN = 0x0f
const CALL = 0x10
const LOCAL_GET = 0x20
const LOCAL_TEE = 0x22
const I32_LOAD = 0x28
const I32_STORE = 0x36
const I64_STORE = 0x37
/** memarg: alignment 2^2. */
const ALIGN_4 = 2
const I32_CONST = 0x41
const I64_CONST = 0x42
const I32_EQZ = 0x45
const I32_EQ = 0x46
const I32_GE_S = 0x4e
const I32_ADD = 0x6a
const I64_SHR_U = 0x88
const I32_WRAP_I64 = 0xa7
const VOID = 0x40
