// cli/told.ts: an error as an operator is told it, where the words aren't from our own catalogue.
//
// A host answers with a problem that has message, code and hint; a command may have a better hint than the catalogue.

/** Told as a CellarError is: message, code, hint; then the process ends with `exit`. */
export class ToldError extends Error {
  override readonly name = 'ToldError'
  readonly code: string
  readonly hint: string
  readonly exit: number

  constructor(told: { message: string; code: string; hint: string; exit: number }, options?: ErrorOptions) {
    super(told.message, options)
    this.code = told.code
    this.hint = told.hint
    this.exit = told.exit
  }
}

/** What a CellarError and a ToldError have in common. */
export type Told = Error & { readonly code: string; readonly hint: string; readonly exit: number }

/** True for what an operator is told in words; anything else that is thrown is a bug of ours. */
export function isTold(error: unknown): error is Told {
  return error instanceof Error && 'hint' in error && 'exit' in error && 'code' in error
}
