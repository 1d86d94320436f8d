// base/units.ts: sizes and durations as people write them.

const SIZES: Record<string, number> = {
  '': 1, b: 1, k: 1024, kb: 1000, kib: 1024, m: 1024 ** 2, mb: 1e6, mib: 1024 ** 2, g: 1024 ** 3, gb: 1e9,
    gib: 1024 ** 3,
}
const DURATIONS_NS: Record<string, number> = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, '': 1e9, s: 1e9, m: 60e9, min: 60e9,
  h: 3600e9 }

/** Bytes of '64MiB', '1.5g', '65536'; undefined if it isn't a size. `k m g` alone are binary, as Docker has them. */
export function parseSize(text: string): number | undefined {
  return parse(text, SIZES)
}

/** Nanoseconds of '5s', '250ms', '1.5m', '10' (seconds); undefined if it isn't a duration. */
export function parseDuration(text: string): number | undefined {
  return parse(text, DURATIONS_NS)
}

/** pCPUs of '25%', '0.25', '1.5', above 0; undefined if it isn't a part of a CPU. */
export function parseCpu(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*(%?)$/.exec(text.trim())
  if (match === null) return undefined
  const cpus = Number(match[1]) / (match[2] === '%' ? 100 : 1)
  return cpus > 0 ? cpus : undefined
}

/** '64 MiB', '1.5 KiB': IEC units, for people. */
export function formatSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit++ }
  return `${unit === 0 || Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`
}

/** '850 ns', '12.3 µs', '4.56 ms', '1.2 s': for people. */
export function formatDuration(ns: number): string {
  if (ns < 1e3) return `${Math.round(ns)} ns`
  if (ns < 1e6) return `${Number((ns / 1e3).toFixed(1))} µs`
  if (ns < 1e9) return `${Number((ns / 1e6).toFixed(2))} ms`
  return `${Number((ns / 1e9).toFixed(2))} s`
}

function parse(text: string, units: Record<string, number>): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([a-zµ]*)$/i.exec(text.trim())
  const unit = match?.[2]?.toLowerCase() ?? '?'
  return Object.hasOwn(units, unit) ? Math.round(Number(match![1]) * units[unit]!) : undefined
}
