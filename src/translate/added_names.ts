// translate/added_names.ts: the names by which a translated module imports and exports what was added to it.

/** The name under which the pCPU's control memory (shared, one page) is imported. */
export const CONTROL_MEMORY = 'control'
/** The export that is the table of one function, () → (): where a guest goes when its time is over. */
export const YIELD_TABLE = 'cellar:yield'
/** The export that is the fuel that is left (a mutable i32): below 0 the guest leaves, and gets more. */
export const FUEL_GLOBAL = 'cellar:fuel'
