// cell/trace.ts: `--trace`: a line on stderr for each hypercall, with the milliseconds since the trace began.

import { writeSync } from 'node:fs'
import type { Tracer } from './hypercalls.ts'

/** A tracer that writes to the process's stderr at once, so that a trap or a kill loses nothing. */
export function traceToStderr(): Tracer {
  const start = performance.now()
  return (line) => void writeSync(2, `[${(performance.now() - start).toFixed(3).padStart(10)} ms] ${line}\n`)
}
