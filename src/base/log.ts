// base/log.ts: the host's own log: one JSON object a line, for whoever collects them.
//
// `level` as syslog has it; under journald each line begins with its priority, `<N>`, which journald takes off. Values
// must not be secrets: nothing here looks at them.

/** Syslog's severities (RFC 5424, table 2). */
const SEVERITY = { error: 3, warn: 4, info: 6 } as const

/** Writes lines. */
export type Log = {
  readonly [level in keyof typeof SEVERITY]: (msg: string, fields?: Readonly<Record<string, unknown>>) => void
}

/** A log that gives each line, its end included, to `write`. `priorities`: for journald. */
export function newLog(write: (line: string) => void, priorities = false): Log {
  const at = (level: keyof typeof SEVERITY) => (msg: string, fields: Readonly<Record<string, unknown>> = {}): void => {
    const line = JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })
    write(`${priorities ? `<${SEVERITY[level]}>` : ''}${line}\n`)
  }
  return { error: at('error'), warn: at('warn'), info: at('info') }
}
