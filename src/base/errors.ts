// base/errors.ts: the catalogue of everything that an operator may be told.
//
// One entry an error: the exit status of the CLI, the message, and what to do. Messages begin with a capital, have no
// period, use the active voice, and state the action and the offending value. Codes are stable: scripts match on them.
// docs/reference/errors.md is generated from this table.

import { HOST_ERRORS } from './host_errors.ts'

type Entry = { exit: 1 | 124 | 125 | 126 | 127; status?: number; message: (...values: never[]) => string; hint: string }

const entry = <A extends readonly unknown[]>(exit: Entry['exit'], message: (...values: A) => string, hint: string) =>
  ({ exit, message, hint })

/**
 * Exit 1: a host refused, as other clients of hosts have it; 124: its time was up; 125: we could not; 126: the program
 * can't be run; 127: the program isn't there (as Docker and POSIX shells).
 */
export const ERRORS = {
  USAGE: entry(125, (what: string) => what, "Run 'cellar help' or 'cellar COMMAND --help'"),
  FLAG_UNKNOWN: entry(125, (flag: string, near: string) => `Cannot use flag ${flag} as no such flag exists${near}`,
    "Flags of Cellar stand before the program, the program's own arguments after it; see 'cellar run --help'"),
  FLAG_VALUE_INVALID: entry(125, (flag: string, value: string, want: string) =>
    `Cannot use ${flag} "${value}" as it must be ${want}`, "See 'cellar run --help' for what each flag takes"),
  FLAG_VALUE_MISSING: entry(125, (flag: string) => `Cannot use ${flag} without a value`,
    "See 'cellar run --help' for what each flag takes"),

  PROGRAM_NOT_FOUND: entry(127, (path: string) => `Cannot find program "${path}"`,
    'Check the path: it is relative to the current folder'),
  PROGRAM_UNREADABLE: entry(126, (path: string, why: string) => `Cannot read program "${path}": ${why}`,
    'Check that it is a file and that you may read it'),
  MODULE_EMPTY: entry(126, (path: string) => `Cannot run "${path}" as the file is empty`,
    'Build or download the program again'),
  MODULE_TOO_LARGE: entry(126, (path: string, bytes: number) =>
    `Cannot run "${path}" as it is larger than a module may be: current size is ${bytes} bytes`,
    'Strip debug information from the program'),
  MODULE_IS_TEXT: entry(126, (path: string) => `Cannot run "${path}" as it is a text file, not a WebAssembly module`,
    "A .wat file needs 'wat2wasm' first; source code needs a compiler"),
  MODULE_NOT_WASM: entry(126, (path: string, magic: string) =>
    `Cannot run "${path}" as it isn't WebAssembly: the file begins with ${magic}`,
    'Give a .wasm file; a native executable must be compiled for wasm32-wasip1'),
  MODULE_IS_COMPONENT: entry(126, (path: string) =>
    `Cannot run "${path}" as it is a WebAssembly component (WASI 0.2 or later)`,
    'Compile for wasm32-wasip1 (WASI preview 1): this version runs core modules only'),
  MODULE_VERSION_UNSUPPORTED: entry(126, (path: string, version: number) =>
    `Cannot run "${path}" as its binary format has version ${version}`,
    'This version of Cellar runs binary format version 1'),
  MODULE_TRUNCATED: entry(126, (path: string, where: string) =>
    `Cannot run "${path}" as the module is cut off in its ${where}`,
    'Build or download the program again'),
  MODULE_MALFORMED: entry(126, (path: string, offset: number, what: string) =>
    `Cannot run "${path}" as the module is malformed at byte ${offset}: ${what}`,
    'Build or download the program again'),
  MODULE_INVALID: entry(126, (path: string, what: string) =>
    `Cannot run "${path}" as the module doesn't validate: ${what}`,
    "The compiler that made it is at fault, or a tool that changed it; 'wasm-validate' tells more"),
  MODULE_UNBOUNDED: entry(126, (path: string, construct: string) =>
    `Cannot share a pCPU with "${path}" as it uses ${construct}, which can't be kept within bounds`,
    "Run it alone, without flags or a stack that share CPU; or accept that it may hold " +
      "others up: --unbounded, or 'unbounded: true' in a manifest"),
  TRANSLATION_TOO_LARGE: entry(126, (path: string) =>
    `Cannot run "${path}" as its translation takes more memory than a thread may have`,
    'Split the module, or give the machine more memory'),
  MODULE_INITIALISER_TRAPPED: entry(126, (path: string, what: string) =>
    `Cannot run "${path}" as it traps before its start: ${what}`,
    "A data or element segment doesn't fit: the compiler that made it is at fault, or a tool that changed it"),
  MODULE_NO_START: entry(126, (path: string, exports: string) =>
    `Cannot run "${path}" as it exports no _start: it is a library (exports: ${exports})`,
    'Build it as a command (wasi-libc: crt1-command.o; Rust: a binary crate), or call its exports from a manifest'),
  IMPORT_UNKNOWN: entry(126, (path: string, names: string) =>
    `Cannot run "${path}" as it imports what the hypervisor doesn't have: ${names}`,
    'If the program works without them, bind them to stubs with --stub MODULE; a stub that is called ends the guest'),
  IMPORT_TYPE_WRONG: entry(126, (path: string, name: string, got: string, want: string) =>
    `Cannot run "${path}" as it imports ${name} with the type ${got}: the hypervisor's is ${want}`,
    'The program was built for another version of WASI: build it for wasm32-wasip1'),
  IMPORT_PREVIEW0: entry(126, (path: string) =>
    `Cannot run "${path}" as it is built for WASI preview 0 (imports of wasi_unstable)`,
    'Build it again for wasm32-wasip1 with an SDK from 2020 or later'),
  THREADS_UNSUPPORTED: entry(126, (path: string, what: string) => `Cannot run "${path}" as it needs threads: ${what}`,
    'Build it without threads (wasm32-wasip1, not wasm32-wasip1-threads)'),
  MEMORY64_UNSUPPORTED: entry(126, (path: string) =>
    `Cannot run "${path}" as it has a 64-bit memory, and WASI preview 1 has 32-bit pointers`,
    'Build it for wasm32-wasip1'),
  MEMORIES_UNSUPPORTED: entry(126, (path: string, count: number) => `Cannot run "${path}" as it has ${count} memories`,
    'WASI preview 1 programs have one memory'),
  MEMORY_BELOW_MINIMUM: entry(125, (path: string, minimum: string, limit: string) =>
    `Cannot start "${path}" as it needs ${minimum} of memory at the start: its limit is ${limit}`, 'Raise --memory'),
  MEMORY_UNAVAILABLE: entry(125, (path: string, size: string) =>
    `Cannot start "${path}" as the host can't give it ${size} of memory`,
    'Lower --memory, or stop other guests'),

  VOLUME_NOT_FOUND: entry(125, (path: string) => `Cannot grant folder "${path}" as it doesn't exist`,
    'Create it first, or check --dir HOST[:GUEST][:ro]'),
  VOLUME_NOT_A_FOLDER: entry(125, (path: string) => `Cannot grant "${path}" as it isn't a folder`,
    'Give the folder that holds it: --dir HOST[:GUEST][:ro]'),
  VOLUME_UNREADABLE: entry(125, (path: string, why: string) => `Cannot grant folder "${path}": ${why}`,
    'Check that you may open it'),
  VOLUME_UNSUPPORTED: entry(125, (path: string, why: string) => `Cannot grant folder "${path}" on this machine: ${why}`,
    'Run without --dir, or on Linux'),
  PORT_IN_USE: entry(125, (address: string) => `Cannot listen on ${address} as the port is in use`,
    'Choose another port, or port 0 for a free one'),
  LISTEN_FAILED: entry(125, (address: string, why: string) => `Cannot listen on ${address}: ${why}`,
    'Check the address of --listen tcp:HOST:PORT'),

  MANIFEST_INVALID: entry(125, (path: string, what: string) => `Cannot use manifest "${path}": ${what}`,
    'See docs/reference/manifest.md'),
  RESERVATION_REFUSED: entry(125, (name: string, wanted: string, largest: string, total: string) =>
    `Cannot reserve ${wanted} of a pCPU for "${name}": the most that one pCPU has left is ${largest}, of all ${total}`,
    'Lower reservations, or give the stack more pCPUs: a cell runs on one of them'),
  EXPORT_UNKNOWN: entry(126, (path: string, name: string) =>
    `Cannot call "${name}" as "${path}" doesn't export such a function`,
    "'cellar inspect' lists the exports"),
  OUTPUT_FAILED: entry(125, (why: string) => `Cannot write the answer to stdout: ${why}`,
    'Check where stdout leads: a full disk, or a device that takes nothing'),
  GUEST_DEADLOCKED: entry(125, () => 'Stopped the guest as it waits for what can never happen',
    'The program polls only descriptors that are closed or ended'),
  GUEST_TIMED_OUT: entry(124, (guest: string, time: string) =>
    `Stopped ${guest} as it ran for longer than its timeout of ${time}`,
    'Raise --timeout, or the timeout of the cell'),
  WAIT_TIMED_OUT: entry(124, (what: string, wanted: string, state: string) =>
    `Cannot wait any longer for ${what} to be ${wanted}: it is ${state}`, 'Raise --timeout, or wait again'),
  ...HOST_ERRORS,
} satisfies Record<string, Entry>

/** A stable name of an error, such as 'MODULE_EMPTY'. */
export type ErrorCode = keyof typeof ERRORS

/** An operator's error: a code from the catalogue and the values of its message. */
export class CellarError<C extends ErrorCode = ErrorCode> extends Error {
  override readonly name = 'CellarError'
  readonly code: C
  /** What the message was made of: an error that crosses a thread is made again from these. */
  readonly values: readonly unknown[]
  readonly hint: string
  /** Exit status of the CLI. */
  readonly exit: number
  /** Status of an HTTP answer. */
  readonly status: number

  constructor(code: C, values: Parameters<(typeof ERRORS)[C]['message']>, options?: ErrorOptions) {
    const { message, hint, exit, status } = ERRORS[code] as Entry
    super((message as (...values: readonly unknown[]) => string)(...values), options)
    this.code = code
    this.values = values
    this.hint = hint
    this.exit = exit
    this.status = status ?? (exit === 127 ? 404 : exit === 126 ? 422 : 400)
  }
}
