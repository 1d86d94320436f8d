// translate/untreatable.ts: a construct that can't be kept within bounds.

/** The module has a construct after which a guest couldn't be held to its share. `construct` names it. */
export class Untreatable extends Error {
  override readonly name = 'Untreatable'
  readonly construct: string

  constructor(construct: string) {
    super(`Cannot translate ${construct}`)
    this.construct = construct
  }
}
