// qemu/qemu_process.ts: a QEMU as our child: started with its descriptors, its last words, its end.
//
// It must not outlive us, whatever ends us: setpriv(1) asks the kernel to kill it with the thread that started it, and
// becomes it. Where there is no setpriv, a cgroup must see to that.
//
// What it writes to stderr: lines of its own, which begin with its name, and TCG's log, of which only one line matters
// (command_line.ts). Both are of bounded length here, whatever a guest makes it write.

import { spawn, type ChildProcess } from 'node:child_process'
import { accessSync, constants } from 'node:fs'

/** How it ended. `words`: its last words, or its status or signal. */
export type QemuExit = { readonly words: string; readonly hasTripleFaulted: boolean }

const SETPRIV = '/usr/bin/setpriv'
/** Lines of its own that are kept, and characters of each. */
const WORDS_MAX = 4
const LINE_CHARACTERS_MAX = 500
const TRIPLE_FAULT = 'Triple fault'
/** What begins a line of TCG's log: a register, or the words that come with a reset. */
const LOG_LINE = /^(CPU Reset|[A-Z][A-Z0-9]{1,5} ?=|[A-Z]{2} {2}=|EFER|CCS|Triple fault)/

/** A running QEMU. */
export class QemuProcess {
  /** 0 if it couldn't be started. */
  readonly pid: number
  /** Resolves when it has ended and all that it wrote is read. */
  readonly ended: Promise<QemuExit>
  readonly #child: ChildProcess
  readonly #words: string[] = []
  #line = ''
  #hasTripleFaulted = false
  #isOver = false

  /** `fds`: what it inherits, as 3, 4, … */
  constructor(path: string, args: readonly string[], fds: readonly number[]) {
    const wrapper = mayRun(SETPRIV) ? [SETPRIV, '--pdeathsig', 'KILL', '--'] : []
    const [file, ...rest] = [...wrapper, path, ...args]
    this.#child = spawn(file!, rest, { stdio: ['ignore', 'ignore', 'pipe', ...fds], env: {}, cwd: '/' })
    this.pid = this.#child.pid ?? 0
    const { promise, resolve } = Promise.withResolvers<QemuExit>()
    this.ended = promise
    this.#child.stderr!.setEncoding('latin1').on('data', (text: string) => this.#wrote(text))
    const end = (how: string): void => {
      this.#isOver = true
      this.#kept(this.#line)
      resolve({ words: this.#words.join('; ') || how, hasTripleFaulted: this.#hasTripleFaulted })
    }
    this.#child.once('error', (error) => {
      if (this.pid === 0) end(error.message)
    })
    // 'close' comes when stderr has ended, too.
    this.#child.once('close', (status, signal) => end(signal === null ? `it ended with status ${status}` :
      `it was ended by ${signal}`))
  }

  get isOver(): boolean { return this.#isOver }

  kill(): void {
    this.#child.kill('SIGKILL')
  }

  #wrote(text: string): void {
    const lines = (this.#line + text).split('\n')
    // A line without an end isn't one of its own.
    this.#line = lines.pop()!.slice(0, LINE_CHARACTERS_MAX)
    for (const line of lines) this.#kept(line)
  }

  #kept(line: string): void {
    if (line === TRIPLE_FAULT) this.#hasTripleFaulted = true
    if (line.trim() === '' || LOG_LINE.test(line)) return
    this.#words.push(line.replace(/^\S*qemu-system-x86_64: /, '').replace(/[^\x20-\x7e]/g, '?')
      .slice(0, LINE_CHARACTERS_MAX))
    if (this.#words.length > WORDS_MAX) this.#words.shift()
  }
}

function mayRun(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
