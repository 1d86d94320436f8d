// host/sessions.ts: guests' consoles for somebody who looks: logs, `attach`, `exec`.
//
// Bytes go between the API and the guest's process; the host keeps none of them. What `exec` starts is a cell like the
// guest: its image or another, with its folders, networks and variables, under the same limits, and its output goes to
// who asked for it. It isn't in the database: it ends with who asked for it, or with the host.

import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import type { Lifecycle } from './lifecycle.ts'
import { readLog } from './log_reader.ts'
import type { LogLine, LogOptions, Operator, Session } from './operator.ts'
import type { Paths } from './paths.ts'
import type { LinkStream, ProcessLink } from './process_link.ts'
import { kindOf, type Guest } from './state.ts'

/** What a machine runs if nothing else is said. */
const SHELL: readonly string[] = ['/bin/sh']

/** The lines of a guest's log. */
export function logsOf(paths: Paths, { row }: Guest, options: LogOptions): AsyncIterable<LogLine> {
  return readLog(join(paths.logs(row.project), row.id), options)
}

/** The console of a guest that runs. Throws GUEST_NOT_RUNNING. */
export function attach(guest: Guest): Session {
  const stream = linkOf(guest).openStream()
  linkOf(guest).send({ attach: guest.row.id, stream: stream.id })
  return sessionOf(stream)
}

/** Runs a program beside a guest that runs. Throws GUEST_NOT_RUNNING. */
export function exec(lifecycle: Lifecycle, guest: Guest, module: string, command: Parameters<Operator['exec']>[2]):
Session {
  const link = linkOf(guest)
  const launch = lifecycle.launchBeside(guest)
  const stream = link.openStream()
  link.send({ start: {
    ...launch, id: `exec-${randomBytes(6).toString('hex')}`, run: 1, module,
    // As a command line, the program's name first; without one, the guest's own.
    args: command.args.length > 0 ? command.args : kindOf(guest.row.spec) === 'machine' ? SHELL : launch.args,
    env: [...launch.env, ...Object.entries(command.env ?? {})],
    ...(module === launch.module ? {} : { stubs: [], calls: undefined }),
    // What the guest is promised is promised once.
    terms: { ...launch.terms, reservation: 0 },
    ports: [], connect: [], health: undefined, timeoutNs: undefined, stdin: true, stream: stream.id,
  } })
  return sessionOf(stream)
}

/** The process of a guest that runs. Throws GUEST_NOT_RUNNING. */
export function linkOf({ row, handle }: Guest): ProcessLink {
  if ((row.phase !== 'running' && row.phase !== 'paused') || handle?.link === undefined) {
    throw new CellarError('GUEST_NOT_RUNNING', [row.name, row.phase])
  }
  return handle.link
}

function sessionOf(stream: LinkStream): Session {
  return {
    output: stream.output, status: stream.status, write: (bytes) => stream.write(bytes), endInput: () => stream.end(),
    close: () => stream.close(),
  }
}
