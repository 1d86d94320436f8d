// host/translation_worker.ts: the thread that reads, checks, translates and compiles large modules for a cell process.
//
// Its own thread, since clang takes seconds, and the consoles of all guests wait for the main thread. It ends with its
// owner's word or with what it couldn't do for want of memory: the heap of a thread is bounded, so a module that takes
// too much of it fails its own starts and nobody else's. Elsewhere: who asks it, and for what (modules.ts).

import { parentPort, workerData } from 'node:worker_threads'
import { CellarError, type ErrorCode } from '../base/errors.ts'
import type { Executable } from '../cell/executable.ts'
import { loadPreemptible } from '../cell/preemptible.ts'
import type { ProgramRules } from '../cell/program.ts'
import { TranslationCache } from '../cell/translation_cache.ts'
import type { Options } from '../translate/translate.ts'

/** What the thread is started with (workerData). */
export type TranslationStart = { readonly cacheFolder: string }

/** A module to be loaded, as loadPreemptible takes it. */
export type Order = { readonly path: string; readonly rules: ProgramRules; readonly options: Options }

/** One for each order, in their order. What isn't a CellarError ends the thread. */
export type Delivery = { readonly executable: Executable }
  | { readonly failed: { readonly code: ErrorCode; readonly values: readonly unknown[] } }

const cache = new TranslationCache((workerData as TranslationStart).cacheFolder)
const port = parentPort!

port.on('message', (order: Order) => port.postMessage(deliver(order)))

function deliver({ path, rules, options }: Order): Delivery {
  try {
    return { executable: loadPreemptible(path, rules, options, cache) }
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    return { failed: { code: error.code, values: error.values } }
  }
}
