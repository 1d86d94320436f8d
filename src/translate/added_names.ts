// translate/added_names.ts: the names under which a translated module and the hypervisor know each other.

/** The name under which the pCPU's control memory (shared; save_area.ts) is imported. */
export const CONTROL_MEMORY = 'control'

/** The export that is the table of where a guest goes, () → (): when its time is over, and when its stack was left. */
export const YIELD_TABLE = 'cellar:yield'
export const YIELD = 0
export const LEFT = 1

/** The export that is the fuel that is left (a mutable i32): below 0 the guest leaves, and gets more. */
export const FUEL_GLOBAL = 'cellar:fuel'

/** Exports of a module that can be captured (capture.ts); an index follows some of them. */
export const CAPTURE_EXPORTS = {
  function: 'cellar:function', enter: 'cellar:enter', save: 'cellar:save', load: 'cellar:load',
  global: 'cellar:global ', table: 'cellar:table ', tag: 'cellar:tag ', funcs: 'cellar:funcs',
  externs: 'cellar:externs',
} as const

/** A continuation's name in a stack; a function's begins with the index of the one that it goes on with. */
export const CONTINUATION_NAME = 'cellar-continuation'
