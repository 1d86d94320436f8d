// host/machine_forked.ts: what a fork's child finds in its folder: the state of its parent's engine, in one file.
//
// The parent's process writes it, the child's reads it once and removes it; both are of one project and one version, as
// a child begins with its fork or not at all. It is checked all the same: the folder is the project's to change.
//
//   FORKED · for each section: length of its name u32, its length u32, name, bytes

import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CellarError } from '../base/errors.ts'
import { MACHINE_SECTION_BYTES_MAX, MACHINE_SECTIONS_MAX } from '../base/limits.ts'
import type { Sections } from '../machine/engine.ts'
import type { GuestLaunch } from './protocol.ts'

const FILE = 'forked'
const NAME_BYTES_MAX = 64

/** Writes what a child goes on from. Throws a system error. */
export function writeForked(folder: string, sections: Sections): void {
  const parts: Uint8Array[] = []
  for (const [name, bytes] of sections) {
    const head = Buffer.alloc(8)
    head.writeUInt32LE(Buffer.byteLength(name), 0)
    head.writeUInt32LE(bytes.length, 4)
    parts.push(head, Buffer.from(name), bytes)
  }
  rmSync(join(folder, FILE), { force: true })
  writeFileSync(join(folder, FILE), Buffer.concat(parts), { mode: 0o600, flag: 'wx' })
}

/** Reads it, and removes it. Throws SNAPSHOT_DAMAGED. */
export function readForked({ machine, name }: GuestLaunch): Sections {
  const path = join(machine!.folder, FILE)
  const damaged = (): CellarError =>
    new CellarError('SNAPSHOT_DAMAGED', [`the fork of ${name}`, 'its state is cut off'])
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
    rmSync(path)
  } catch {
    throw damaged()
  }
  const sections = new Map<string, Uint8Array>()
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < 8 || sections.size >= MACHINE_SECTIONS_MAX) throw damaged()
    const [nameBytes, length] = [bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4)]
    at += 8
    if (nameBytes > NAME_BYTES_MAX || length > MACHINE_SECTION_BYTES_MAX || bytes.length - at < nameBytes + length) {
      throw damaged()
    }
    sections.set(bytes.toString('utf8', at, at + nameBytes), Uint8Array.from(bytes.subarray(at + nameBytes,
      at + nameBytes + length)))
    at += nameBytes + length
  }
  return sections
}
