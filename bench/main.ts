// bench/main.ts: `npm run bench [NAME…]`: the figures of SPECIFICATION.md, each beside its baseline in the same run.
//
// Prints one JSON line for each figure: {"name", "value", "unit", "baseline", "ratio", "baselineOf"}. A name selects
// the figures of one file beside this one. Machines are noisy: the ratio is what counts, and both sides are measured
// in turns or right after each other.

/** One figure. `ratio` is value / baseline. */
export type Figure = {
  readonly name: string; readonly value: number; readonly unit: string
  readonly baseline: number; readonly baselineOf: string
}

const BENCHES = {
  start: () => import('./start.ts'),
  create: () => import('./create.ts'),
  hypercall: () => import('./hypercall.ts'),
  wait: () => import('./wait.ts'),
  read: () => import('./read.ts'),
  idle: () => import('./idle.ts'),
  compute: () => import('./compute.ts'),
  preempt: () => import('./preempt.ts'),
  translate: () => import('./translate.ts'),
  kernels: () => import('./kernels.ts'),
  share: () => import('./share.ts'),
  decide: () => import('./decide.ts'),
  host: () => import('./host.ts'),
  crowd: () => import('./crowd.ts'),
  fork: () => import('./fork.ts'),
  capture: () => import('./capture.ts'),
  snapshot: () => import('./snapshot.ts'),
  downtime: () => import('./downtime.ts'),
  engine: () => import('./engine.ts'),
  gateway: () => import('./gateway.ts'),
  virtio: () => import('./virtio.ts'),
  block: () => import('./block.ts'),
  machine: () => import('./machine.ts'),
} as const

const wanted = process.argv.slice(2)
for (const name of wanted) {
  if (Object.hasOwn(BENCHES, name)) continue
  process.stderr.write(`bench: no figure is called "${name}": ${Object.keys(BENCHES).join(', ')}\n`)
  process.exit(2)
}
for (const [name, load] of Object.entries(BENCHES)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue
  // One that takes minutes gives its figures one by one.
  for await (const figure of await (await load()).measure()) {
    const { value, baseline } = figure
    const round = (x: number): number => Number(x.toPrecision(4))
    const rounded = { value: round(value), baseline: round(baseline), ratio: round(value / baseline) }
    process.stdout.write(`${JSON.stringify({ ...figure, ...rounded })}\n`)
  }
}
