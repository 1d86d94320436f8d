// host/secrets.ts: secrets as they lie in the database: sealed, so that the database, and a backup, don't tell them.
//
// AES-256-GCM under the host's key, a random nonce each, the secret's place (project and name) as additional data: a
// sealed value that somebody moves to another name doesn't open. The key is in a file of its own, which no backup has.
// It is made once, and never while there are secrets: a new key would make them unreadable without a word.
//
//   sealed value: version (1 byte) | nonce (12) | tag (16) | ciphertext

import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import {
  closeSync, constants, fstatSync, fsyncSync, linkSync, openSync, readSync, rmSync, writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { isOwn, stateError, syncFolder } from './database.ts'

const KEY_BYTES = 32, NONCE_BYTES = 12, TAG_BYTES = 16, VERSION = 1
const HEAD_BYTES = 1 + NONCE_BYTES + TAG_BYTES

/** Seals and opens values under one key. */
export class Secrets {
  readonly #key: Buffer
  readonly #path: string

  private constructor(key: Buffer, path: string) {
    this.#key = key
    this.#path = path
  }

  /**
   * With the key of a state folder, which is made if it is missing; not if it `mustExist`, as there are secrets.
   * Throws HOST_STATE_UNUSABLE, also for a key that others could read or that is none; HOST_DISK_FULL.
   */
  static load(folder: string, mustExist: boolean): Secrets {
    const path = join(folder, 'secret.key')
    try {
      if (!mustExist) makeKey(folder, path)
      return new Secrets(readKey(path), path)
    } catch (error) {
      throw stateError(error, path)
    }
  }

  /** The value as it may be stored. */
  seal(project: string, name: string, value: Uint8Array): Uint8Array {
    const nonce = randomBytes(NONCE_BYTES)
    const cipher = createCipheriv('aes-256-gcm', this.#key, nonce, { authTagLength: TAG_BYTES })
    cipher.setAAD(placeOf(project, name))
    const sealed = Buffer.concat([cipher.update(value), cipher.final()])
    return Buffer.concat([Uint8Array.of(VERSION), nonce, cipher.getAuthTag(), sealed])
  }

  /** The value again. Throws HOST_STATE_UNUSABLE if it was sealed under another key, for another place, or changed. */
  open(project: string, name: string, sealed: Uint8Array): Uint8Array {
    try {
      if (sealed[0] !== VERSION || sealed.length < HEAD_BYTES) throw new RangeError('Cannot open what was not sealed')
      const nonce = sealed.subarray(1, 1 + NONCE_BYTES)
      const decipher = createDecipheriv('aes-256-gcm', this.#key, nonce, { authTagLength: TAG_BYTES })
      decipher.setAAD(placeOf(project, name)).setAuthTag(sealed.subarray(1 + NONCE_BYTES, HEAD_BYTES))
      return Buffer.concat([decipher.update(sealed.subarray(HEAD_BYTES)), decipher.final()])
    } catch (error) {
      const why = `secret "${name}" of project "${project}" was not sealed under this key, or was changed since`
      throw new CellarError('HOST_STATE_UNUSABLE', [this.#path, why], { cause: error })
    }
  }
}

function placeOf(project: string, name: string): Buffer {
  return Buffer.from(JSON.stringify([project, name]))
}

// Whole or not at all: under another name first. A key that is there stays.
function makeKey(folder: string, path: string): void {
  const partial = `${path}.new`
  rmSync(partial, { force: true })
  const fd = openSync(partial, 'wx', 0o600)
  try {
    writeSync(fd, randomBytes(KEY_BYTES))
    fsyncSync(fd)
    linkSync(partial, path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  } finally {
    closeSync(fd)
    rmSync(partial, { force: true })
  }
  syncFolder(folder)
}

function readKey(path: string): Buffer {
  const refuse = (why: string): never => { throw new CellarError('HOST_STATE_UNUSABLE', [path, why]) }
  // Not waiting, as opening a pipe would.
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const stat = fstatSync(fd)
    if (!stat.isFile() || stat.size !== KEY_BYTES) refuse(`it is no key: it must be a file of ${KEY_BYTES} bytes`)
    if (!isOwn(stat)) refuse('it belongs to another user')
    if ((stat.mode & 0o077) !== 0) refuse('other users may use it: its mode must be 0600')
    const key = Buffer.alloc(KEY_BYTES)
    if (readSync(fd, key) !== KEY_BYTES) refuse('it cannot be read whole')
    return key
  } finally {
    closeSync(fd)
  }
}
