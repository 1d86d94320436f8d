// translate/uncapturable.ts: a function whose frame can't be kept.

/** The module has a function that can't be captured. `index`: of the function; `why`: what it does. */
export class Uncapturable extends Error {
  override readonly name = 'Uncapturable'
  readonly index: number
  readonly why: string

  constructor(index: number, why: string) {
    super(`function ${index} ${why}`)
    this.index = index
    this.why = why
  }
}
