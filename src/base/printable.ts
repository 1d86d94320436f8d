// base/printable.ts: names that a guest or an image chose, in messages of ours.

/** A guest's text for an operator's terminal: control characters spelled out, and not longer than `lengthMax`. */
export function printable(text: string, lengthMax = 80): string {
  const cut = text.length > lengthMax ? `${text.slice(0, lengthMax)}…` : text
  return cut.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (one) => `\\u{${one.codePointAt(0)!.toString(16)}}`)
}
