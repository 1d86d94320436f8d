// cell/jspi.d.ts: JavaScript Promise Integration, which TypeScript's library doesn't describe yet.
// Spec: WebAssembly/js-promise-integration, proposals/js-promise-integration/Overview.md.

declare namespace WebAssembly {
  /** An import that parks the calling stack until the promise that `implementation` returns is settled. */
  class Suspending {
    constructor(implementation: (...args: never[]) => Promise<unknown>)
  }
  /** `target` run on a stack of its own, so that what it calls may suspend. */
  function promising(target: (...args: never[]) => unknown): (...args: never[]) => Promise<unknown>
}
