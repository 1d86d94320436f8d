// cli/doctor.ts: `cellar doctor`: what this machine can do for a host, for people or as JSON.

import { readFileSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import { canRun, examine, type Finding } from '../host/doctor.ts'
import { defaultState } from './address.ts'
import { DOCTOR_FLAGS, parseFlags } from './flags.ts'
import { print } from './print.ts'

/** `cellar doctor`: 0 if cells can run here, 1 if something that they need is missing. Throws CellarError. */
export async function doctor(argv: readonly string[]): Promise<number> {
  const { flags, rest } = parseFlags(argv, DOCTOR_FLAGS)
  if (rest.length > 0) throw new CellarError('USAGE', [`Cannot examine "${rest[0]}": doctor takes flags only`])
  const format = flags.output?.[0] ?? 'text'
  if (format !== 'text' && format !== 'json') {
    throw new CellarError('FLAG_VALUE_INVALID', ['--output', format, 'text or json'])
  }
  const findings = await examine(flags.state?.[0] ?? defaultState())
  const ok = canRun(findings)
  if (format === 'json') {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as
      { version: string }
    print(`${JSON.stringify({ ok, version, findings }, null, 2)}\n`)
  } else print(text(findings))
  return ok ? 0 : 1
}

function text(findings: readonly Finding[]): string {
  const width = Math.max(...findings.map(({ name }) => name.length))
  const lines = findings.flatMap(({ name, ok, level, detail, hint }) => [
    `${ok ? 'ok     ' : level === 'needed' ? 'MISSING' : 'lacking'}  ${name.padEnd(width)}  ${detail}`,
    ...(hint === undefined ? [] : [`${' '.repeat(9 + width)}  hint: ${hint}`]),
  ])
  const missing = findings.filter(({ ok, level }) => !ok && level === 'needed').length
  const lacking = findings.filter(({ ok, level }) => !ok && level === 'wanted').length
  const verdict = missing > 0 ? `Cells can't run here: ${missing} of what they need is MISSING`
    : lacking > 0
      ? `Cells run here. What is lacking (${lacking}) would make them safer, faster or more`
      : 'Cells run here, and nothing is lacking'
  return `${lines.join('\n')}\n\n${verdict}\n`
}
