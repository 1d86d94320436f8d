// host/modules.ts: the modules of a cell process, compiled once for each way of running them.
//
// A guest holds what it runs. What nobody holds stays for the next start, MODULES_IDLE_MAX of them, the last used; of
// what was let go the translation is on disk (translation_cache.ts). Small modules are translated at once, in less time
// than a guest would notice; large ones by a thread (translation_worker.ts), once for all who wait for them, and in the
// order in which they were asked for. That thread goes when it has had nothing to do for a while: what it has read and
// written is many times a module's size.

import { statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import { CellarError } from '../base/errors.ts'
import { MODULES_IDLE_MAX } from '../base/limits.ts'
import type { Executable } from '../cell/executable.ts'
import { loadPreemptible } from '../cell/preemptible.ts'
import { TranslationCache } from '../cell/translation_cache.ts'
import type { GuestLaunch } from './protocol.ts'
import type { Delivery, Order, TranslationStart } from './translation_worker.ts'

/** From this size on a module is the thread's: smaller ones take less time than a thread's start. */
const APART_BYTES_MIN = 256 * 1024
/** How long the thread waits for another module. */
const LINGER_MS = 5000

/** What is held: to be given back by `release`. */
export type Held = { readonly executable: Executable; readonly key: string; users: number }

/** Where modules come from. */
export type ModuleOptions = {
  readonly blobFolder: string; readonly cacheFolder: string
  /** What is let go. */
  forget(executable: Executable): void
  /** MiB of heap that the thread may use. Default: what Node gives a thread. */
  readonly heapMb?: number | undefined
}

/** One that is being made, and for how many. */
type Coming = { readonly key: string; readonly made: Promise<Held>; waiting: number }
type Ordered = { readonly order: Order; deliver(executable: Executable): void; fail(error: unknown): void }

/** The compiled modules of a process. */
export class Modules {
  readonly #options: ModuleOptions
  readonly #cache: TranslationCache
  readonly #held = new Map<string, Held>()
  /** Those that nobody holds, the one that was let go first at the front. */
  readonly #idle = new Map<string, Held>()
  readonly #coming = new Map<string, Coming>()
  /** What the thread was asked for and hasn't delivered, the first in work. */
  #ordered: Ordered[] = []
  #thread: Worker | undefined
  #lingering: NodeJS.Timeout | undefined

  constructor(options: ModuleOptions) {
    this.#options = options
    this.#cache = new TranslationCache(options.cacheFolder)
  }

  /**
   * What a guest runs: at once, or a promise if it is large and nobody has run it lately. Who has called this must call
   * `release` with the result. Throws or rejects with CellarError.
   */
  hold({ module, stubs, calls, deterministic, unbounded }: Pick<GuestLaunch, 'module' | 'stubs' | 'calls' |
    'deterministic' | 'unbounded'>): Held | Promise<Held> {
    const key = JSON.stringify([module, stubs, calls !== undefined, deterministic, unbounded])
    const found = this.#held.get(key) ?? this.#idle.get(key)
    if (found !== undefined) return this.#take(found, 1)
    const coming = this.#coming.get(key)
    if (coming !== undefined) {
      coming.waiting++
      return coming.made
    }
    const order: Order = { path: this.#pathOf(module), rules: { stubs, library: calls !== undefined },
      options: { mode: deterministic ? 'fuel' : 'preempt', unbounded, capture: true } }
    if (sizeOf(order.path) >= APART_BYTES_MIN) return this.#await(key, order)
    const executable = loadPreemptible(order.path, order.rules, order.options, this.#cache)
    return this.#take({ executable, key, users: 0 }, 1)
  }

  release(held: Held): void {
    if (--held.users > 0) return
    this.#held.delete(held.key)
    this.#idle.set(held.key, held)
    if (this.#idle.size <= MODULES_IDLE_MAX) return
    const [oldest] = this.#idle.values()
    this.#idle.delete(oldest!.key)
    this.#options.forget(oldest!.executable)
  }

  /** What an error was made of, with `name` in place of the path of a blob: where those lie is our own affair. */
  valuesFor({ values }: CellarError, name: string): readonly unknown[] {
    const folder = join(this.#options.blobFolder, 'sha256')
    return values.map((value) => typeof value === 'string' && dirname(value) === folder ? name : value)
  }

  #take(held: Held, users: number): Held {
    held.users += users
    this.#idle.delete(held.key)
    this.#held.set(held.key, held)
    return held
  }

  #await(key: string, order: Order): Promise<Held> {
    const { promise, resolve, reject } = Promise.withResolvers<Executable>()
    // All who wait hold it before any of them goes on, so that none can let it go under another.
    const made = promise.then((executable) => {
      this.#coming.delete(key)
      return this.#take({ executable, key, users: 0 }, coming.waiting)
    }, (error: unknown) => {
      this.#coming.delete(key)
      throw error
    })
    const coming: Coming = { key, made, waiting: 1 }
    this.#coming.set(key, coming)
    this.#ordered.push({ order, deliver: resolve, fail: reject })
    clearTimeout(this.#lingering)
    const thread = this.#running()
    thread.ref()
    thread.postMessage(order)
    return made
  }

  #running(): Worker {
    if (this.#thread !== undefined) return this.#thread
    const { cacheFolder, heapMb } = this.#options
    const start: TranslationStart = { cacheFolder }
    const thread = new Worker(new URL('./translation_worker.ts', import.meta.url), { env: SHARE_ENV, workerData: start,
      ...(heapMb === undefined ? {} : { resourceLimits: { maxOldGenerationSizeMb: heapMb } }) })
    thread.on('message', (delivery: Delivery) => this.#delivered(delivery))
    thread.on('error', (error) => this.#failed(thread, error))
    thread.on('exit', (code) => this.#failed(thread, new Error(`the translating thread ended with status ${code}`)))
    return this.#thread = thread
  }

  #delivered(delivery: Delivery): void {
    const { deliver, fail } = this.#ordered.shift()!
    if ('executable' in delivery) deliver(delivery.executable)
    else fail(new CellarError(delivery.failed.code, delivery.failed.values as never))
    if (this.#ordered.length > 0) return
    this.#thread?.unref()
    this.#lingering = setTimeout(() => {
      const thread = this.#thread
      this.#thread = undefined
      void thread?.terminate()
    }, LINGER_MS).unref()
  }

  // What it had in work was too much for it, or met an error of ours. What comes after that is another thread's.
  #failed(thread: Worker, error: unknown): void {
    if (this.#thread !== thread) return
    this.#thread = undefined
    const [first, ...rest] = this.#ordered.splice(0)
    if (first === undefined) throw error
    if (!isWantOfMemory(error)) {
      for (const { fail } of [first, ...rest]) fail(error)
      return
    }
    this.#ordered = rest
    for (const { order } of rest) this.#running().postMessage(order)
    first.fail(new CellarError('TRANSLATION_TOO_LARGE', [first.order.path]))
  }

  #pathOf(digest: string): string {
    const [, hex] = /^sha256:([0-9a-f]{64})$/.exec(digest) ?? []
    if (hex === undefined) throw new CellarError('PROGRAM_NOT_FOUND', [digest])
    return join(this.#options.blobFolder, 'sha256', hex)
  }
}

// Its heap, or memory for bytes.
function isWantOfMemory(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'ERR_WORKER_OUT_OF_MEMORY' ||
    (error instanceof RangeError && error.message === 'Array buffer allocation failed')
}

// Who can't be looked at is for who reads it to complain of.
function sizeOf(path: string): number {
  try {
    return statSync(path).size
  } catch {
    return 0
  }
}
