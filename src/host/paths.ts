// host/paths.ts: where things lie in the state folder (docs/host.md has the table).
//
// Names of projects and guests are checked before they come here (spec.ts NAME): none of them can lead elsewhere.

import { join, resolve } from 'node:path'
import { CellarError } from '../base/errors.ts'

/** Bytes of a socket's path: sun_path of unix(7), less its final NUL. */
const SOCKET_PATH_BYTES_MAX = 107
/** The longest name of a socket in the state folder: `run/NUMBER/c`. */
const LONGEST_SOCKET = 'run/9999999/c'

/** The folders and files of one host. */
export class Paths {
  readonly state: string

  /** Throws HOST_STATE_PATH_LONG if sockets could not be made in it. */
  constructor(state: string) {
    this.state = resolve(state)
    const bytes = Buffer.byteLength(join(this.state, LONGEST_SOCKET))
    if (bytes > SOCKET_PATH_BYTES_MAX) {
      throw new CellarError('HOST_STATE_PATH_LONG', [this.state, bytes, SOCKET_PATH_BYTES_MAX])
    }
  }

  get socket(): string { return join(this.state, 'host.sock') }
  get lock(): string { return join(this.state, 'host.lock') }
  get runs(): string { return join(this.state, 'run') }
  get log(): string { return join(this.state, 'log') }
  /** What cell processes run (process_code.ts). */
  get code(): string { return join(this.state, 'code') }
  get projects(): string { return join(this.state, 'projects') }

  /** What a cell process says on stdout and stderr. */
  processLog(process: number): string { return join(this.log, `process-${process}.log`) }
  run(process: number): string { return join(this.runs, String(process)) }
  project(name: string): string { return join(this.projects, name) }
  volumes(project: string): string { return join(this.project(project), 'volumes') }
  volume(project: string, name: string): string { return join(this.volumes(project), name) }
  logs(project: string): string { return join(this.project(project), 'logs') }
  cache(project: string): string { return join(this.project(project), 'cache') }
  snapshots(project: string): string { return join(this.project(project), 'snapshots') }
  machines(project: string): string { return join(this.project(project), 'machines') }
  machine(project: string, guest: string): string { return join(this.machines(project), guest) }
  files(project: string, guest: string): string { return join(this.project(project), 'files', guest) }
}
