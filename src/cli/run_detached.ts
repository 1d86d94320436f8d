// cli/run_detached.ts: `cellar run -d`: the flags of a run as a guest of a host.
//
// The program is a file, which is sent unless the host has it, or else the name of an image. The host checks the rest:
// the schema of a guest is its own.

import { statSync } from 'node:fs'
import { CellarError } from '../base/errors.ts'
import type { GuestView } from '../host/operator.ts'
import { clientFor, type Client } from './client.ts'
import type { Parsed, RUN_FLAGS } from './flags.ts'
import { BEGIN_WAIT } from './guest_verbs.ts'
import { print, tell } from './print.ts'
import { isTold, ToldError } from './told.ts'
import { uploaded } from './upload.ts'

/** Flags that only a run in the foreground has, and what to use instead. */
const FOREGROUND_ONLY: Readonly<Record<string, string>> = {
  dir: 'left out: a guest of a host has volumes (-v)', listen: 'left out: a host publishes ports (-p)',
  quantum: 'left out: a host has one for all', 'clock-resolution': 'left out on a host',
    stats: "left out: see 'cellar stats'",
  trace: 'left out on a host', file: "left out: use 'cellar apply -f'",
}
/** Fields of a spec that have another name than their flag. */
const FLAG_OF: Readonly<Record<string, string>> = {
  ports: 'publish', volumes: 'volume', networks: 'network', secrets: 'secret', labels: 'label', stubs: 'stub',
  stdin: 'interactive', machine: 'vcpus',
}
const EXIT = 125

/** Creates and starts the guest, and prints its name. Throws ToldError with the exit status of a run's errors. */
export async function runDetached(parsed: Parsed<typeof RUN_FLAGS>): Promise<number> {
  try {
    const guest = await created(await clientFor(parsed.flags), parsed)
    print(`${guest.name}\n`)
    return startOf(guest)
  } catch (error) {
    throw refusalOf(error)
  }
}

/** Creates and starts the guest that a command line describes. `more`: of its spec. Throws CellarError, ToldError. */
export async function created(host: Client, { flags, rest }: Parsed<typeof RUN_FLAGS>,
  more: Readonly<Record<string, unknown>> = {}): Promise<GuestView> {
  for (const [name, want] of Object.entries(FOREGROUND_ONLY)) {
    const given = flags[name as keyof typeof flags]
    if (given !== undefined) throw new CellarError('FLAG_VALUE_INVALID', [`--${name}`, given[0]!, want])
  }
  const [program, ...args] = rest
  if (program === undefined) throw new CellarError('USAGE', ['Cannot run without a program'])
  const spec = specOf(flags)
  const image = isProgram(program) ? await uploaded(host, program) : program
  const name = flags.name?.[0]
  return await host.ask<GuestView>('POST', host.path('guests'), { query: { wait: BEGIN_WAIT },
    body: { ...(name === undefined ? {} : { name }), start: true,
      spec: { ...spec, ...more, image, args: [nameOf(program), ...args] } } })
}

/** True for a file, or what is written as a path: else it is the name of an image, be there a folder called so. */
export function isProgram(program: string): boolean {
  return program.endsWith('.wasm') || /^\.{0,2}(?:\/|$)/.test(program) ||
    statSync(program, { throwIfNoEntry: false })?.isFile() === true
}

/** An error with the exit status of a run's, in the words of who gave flags: the host speaks of its request. */
export function refusalOf(error: unknown): unknown {
  if (!isTold(error) || error.exit > 1) return error
  const field = /: \/(?:spec\/)?([\w-]+)\S* of its body: (.+)$/s.exec(error.message)
  if (field !== null) {
    const flag = `--${FLAG_OF[field[1]!] ?? field[1]}`
    return new ToldError({ message: `Cannot use ${flag}: ${field[2]}`, code: error.code,
      hint: "See 'cellar run --help' for what each flag takes", exit: EXIT }, { cause: error })
  }
  return new ToldError({ message: error.message, code: error.code, hint: error.hint, exit: EXIT }, { cause: error })
}

/** Tells of a guest that didn't come to run. It stays there, to be looked at. The exit status. */
export function startOf({ name, phase, exit }: GuestView): number {
  if (exit === undefined || (phase !== 'failed' && phase !== 'backing-off')) return 0
  tell(new ToldError({ message: `Started "${name}", and it is ${phase}: ${exit.reason}`, code: 'GUEST_NOT_RUNNING',
    hint: `See 'cellar logs ${name}' and 'cellar inspect ${name}'`, exit: EXIT }))
  return EXIT
}

/** What the program is told that it is called. */
function nameOf(program: string): string {
  return program.split('/').at(-1)!.split('@')[0]!
}

/** The part of a guest's spec that flags say; what isn't said isn't there. */
function specOf(flags: Parsed<typeof RUN_FLAGS>['flags']): Record<string, unknown> {
  const one = (name: keyof typeof flags): string | undefined => flags[name]?.[0]
  const number = (name: keyof typeof flags, text: string | undefined): number | undefined => {
    if (text === undefined || /^\d+$/.test(text)) return text === undefined ? undefined : Number(text)
    throw new CellarError('FLAG_VALUE_INVALID', [`--${name}`, text, 'a whole number'])
  }
  const pairs = (name: keyof typeof flags, want: string): Record<string, string> | undefined => {
    const list = flags[name]?.map((text) => {
      const at = text.indexOf('=')
      if (at < 1) throw new CellarError('FLAG_VALUE_INVALID', [`--${name}`, text, want])
      return [text.slice(0, at), text.slice(at + 1)] as const
    })
    return list === undefined ? undefined : Object.fromEntries(list)
  }
  const flag = (name: keyof typeof flags): true | undefined => flags[name] === undefined ? undefined : true
  const machine = { vcpus: number('vcpus', one('vcpus')), engine: one('engine'), 'kernel-args': one('kernel-args'),
    tap: one('tap') }
  const health = {
    tcp: number('health-tcp', one('health-tcp')), http: one('health-http'), interval: one('health-interval'),
    timeout: one('health-timeout'), retries: number('health-retries', one('health-retries')),
    'start-period': one('health-start-period'),
  }
  return {
    env: envOf(flags.env), memory: one('memory'), 'memory-reservation': one('memory-reservation'), stubs: flags.stub,
    shares: number('shares', one('shares')), 'cpu-limit': one('cpu-limit'), 'cpu-reservation': one('cpu-reservation'),
    deterministic: flag('deterministic'), unbounded: flag('unbounded'), timeout: one('timeout'), pool: one('pool'),
    volumes: flags.volume, ports: flags.publish, expose: flags.expose?.map((text) => number('expose', text)),
    connect: flags.connect, networks: flags.network, egress: flags.egress,
    secrets: pairs('secret', 'VARIABLE=NAME'), labels: pairs('label', 'KEY=VALUE'),
    restart: one('restart'), stdin: flag('interactive'), may: flags.may,
    hibernate: flags.hibernate === undefined ? undefined
      : one('hibernate') === 'pressure' ? {} : { idle: one('hibernate') },
    machine: Object.values(machine).every((value) => value === undefined) ? undefined : machine,
    health: Object.values(health).every((value) => value === undefined) ? undefined : health,
  }
}

/** K=V, or K to pass on one's own. */
function envOf(list: readonly string[] | undefined): Record<string, string> | undefined {
  return list === undefined ? undefined : Object.fromEntries(list.flatMap((text) => {
    const at = text.indexOf('=')
    if (at > 0) return [[text.slice(0, at), text.slice(at + 1)]]
    if (at === 0 || text === '') throw new CellarError('FLAG_VALUE_INVALID', ['--env', text, 'K=V, or K to pass on'])
    const own = process.env[text]
    return own === undefined ? [] : [[text, own]]
  }))
}
