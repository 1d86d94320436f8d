// host/modules.ts: the modules of a cell process, compiled once for each way of running them.
//
// A guest holds what it runs. What nobody holds stays for the next start, MODULES_IDLE_MAX of them, the last used ones;
// translations of what was let go are on disk (translation_cache.ts).

import { dirname, join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { MODULES_IDLE_MAX } from '../base/limits.ts'
import type { Executable } from '../cell/executable.ts'
import { loadPreemptible } from '../cell/preemptible.ts'
import { TranslationCache } from '../cell/translation_cache.ts'
import type { GuestLaunch } from './protocol.ts'

/** What is held: to be given back by `release`. */
export type Held = { readonly executable: Executable; readonly key: string; users: number }

/** The compiled modules of a process. */
export class Modules {
  readonly #blobFolder: string
  readonly #cache: TranslationCache
  readonly #forget: (executable: Executable) => void
  readonly #held = new Map<string, Held>()
  /** Those that nobody holds, the one that was let go first at the front. */
  readonly #idle = new Map<string, Held>()

  /** `forget` is called for what is let go. */
  constructor(blobFolder: string, cacheFolder: string, forget: (executable: Executable) => void) {
    this.#blobFolder = blobFolder
    this.#cache = new TranslationCache(cacheFolder)
    this.#forget = forget
  }

  /** What a guest runs. Reads, translates and compiles it if nobody ran it lately. Throws CellarError. */
  hold({ module, stubs, calls, deterministic, unbounded }: GuestLaunch): Held {
    const key = JSON.stringify([module, stubs, calls !== undefined, deterministic, unbounded])
    let held = this.#held.get(key) ?? this.#idle.get(key)
    if (held === undefined) {
      const executable = loadPreemptible(this.#pathOf(module), { stubs, library: calls !== undefined },
        { mode: deterministic ? 'fuel' : 'preempt', unbounded }, this.#cache)
      held = { executable, key, users: 0 }
    }
    held.users++
    this.#idle.delete(key)
    this.#held.set(key, held)
    return held
  }

  release(held: Held): void {
    if (--held.users > 0) return
    this.#held.delete(held.key)
    this.#idle.set(held.key, held)
    if (this.#idle.size <= MODULES_IDLE_MAX) return
    const [oldest] = this.#idle.values()
    this.#idle.delete(oldest!.key)
    this.#forget(oldest!.executable)
  }

  /** What an error was made of, with `name` in place of the path of a blob: where those lie is our own affair. */
  valuesFor({ values }: CellarError, name: string): readonly unknown[] {
    const folder = join(this.#blobFolder, 'sha256')
    return values.map((value) => typeof value === 'string' && dirname(value) === folder ? name : value)
  }

  #pathOf(digest: string): string {
    const [, hex] = /^sha256:([0-9a-f]{64})$/.exec(digest) ?? []
    if (hex === undefined) throw new CellarError('PROGRAM_NOT_FOUND', [digest])
    return join(this.#blobFolder, 'sha256', hex)
  }
}
