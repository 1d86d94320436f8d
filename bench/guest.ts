// bench/guest.ts: what the benches share.

/** A function "NAME" that calls a hypercall as often as its argument says. */
export function loopOf(name: string, call: string): string {
  return `(func (export "${name}") (param $n i32)
    (loop $again (drop (call ${call})) (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))`
}

/** Nanoseconds for each of `n` rounds of `run`, the best of five after warming up. */
export async function nsPer(n: number, run: (n: number) => unknown): Promise<number> {
  for (let i = 0; i < 3; i++) await run(n)
  let best = Infinity
  for (let i = 0; i < 5; i++) {
    const start = performance.now()
    await run(n)
    best = Math.min(best, (performance.now() - start) * 1e6 / n)
  }
  return best
}

/** The value below which a share `p` of `values` lies. Sorts them. */
export function percentile(values: number[], p: number): number {
  values.sort((a, b) => a - b)
  return values[Math.min(values.length - 1, Math.floor(values.length * p))]!
}
