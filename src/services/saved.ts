// services/saved.ts: descriptors as a snapshot keeps them: what they stand for, not what they are.
//
// Everything that a path names is opened anew beneath the volume that it was opened in. What can't be had again (a file
// that was removed, a connection to somebody outside) is `lost`: its number stays taken, and each use of it answers
// with the errno given.

import { EIO } from '../base/errno.ts'
import { FILETYPE_UNKNOWN } from './descriptor.ts'
import type { GuestEvent } from './lifecycle/lifecycle.ts'

/** Characters of `why` of what is lost. */
export const LOST_WHY_LENGTH_MAX = 200

/** A descriptor number with what it stands for. */
export type SavedDescriptor = {
  readonly fd: number
  readonly rightsBase: number; readonly rightsInheriting: number; readonly flags: number
  /** The guest's name of a granted folder. */
  readonly preopen?: string | undefined
  readonly is: SavedIs
}

/** What a descriptor stands for. `volume`: the number of the granted folder; paths are relative to it, '' itself. */
export type SavedIs =
  | { readonly kind: 'console'; readonly stream: 0 | 1 | 2 }
  | { readonly kind: 'directory'; readonly volume: number; readonly path: string }
  | {
    readonly kind: 'file'; readonly volume: number; readonly path: string; readonly offset: number
    readonly read: boolean; readonly write: boolean; readonly append: boolean
  }
  /** A listening socket: the number of the granted one. */
  | { readonly kind: 'listener'; readonly port: number }
  /** Lifecycle events (services/lifecycle), and those that the guest hasn't read yet. */
  | { readonly kind: 'events'; readonly unread?: readonly GuestEvent[] }
  | { readonly kind: 'lost'; readonly filetype: number; readonly errno: number; readonly why: string }

/** A stream of the guest's console: `number` 0 stdin, 1 stdout, 2 stderr. */
export function consoleStream(number: number): SavedIs {
  if (number === 0 || number === 1 || number === 2) return { kind: 'console', stream: number }
  return { kind: 'lost', filetype: FILETYPE_UNKNOWN, errno: EIO, why: 'a console has three streams' }
}
