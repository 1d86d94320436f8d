// cell/promising.ts: calls of WebAssembly on a stack of its own (JSPI; jspi.d.ts).

/** An exported function as one that may be suspended: it answers with a promise. Throws TypeError if it is none. */
export function promising(func: WebAssembly.ExportValue | undefined): (...args: unknown[]) => Promise<unknown> {
  return WebAssembly.promising(func as (...args: unknown[]) => unknown) as (...args: unknown[]) => Promise<unknown>
}
