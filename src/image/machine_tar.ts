// image/machine_tar.ts: a tree of layers as one tar archive (POSIX pax), for tools that make file systems of one.
//
// Each entry has a pax header with what ustar's fields are too narrow for. Owners are numbers: names would mean this
// machine's users. Of extended attributes, capabilities and users' own go through; those that overlayfs would take for
// its own don't.

import type { LayerEntry } from './machine_layers.ts'

const BLOCK = 512
const FLAGS = { file: '0', 'hard link': '1', link: '2', char: '3', block: '4', folder: '5', fifo: '6' } as const
const XATTR = /^(security\.capability|user\.)/
/** What seven and eleven octal digits hold. */
const SMALL_MAX = 8 ** 7
const LARGE_MAX = 8 ** 11

/** The archive. Throws what reading the layers throws. */
export async function* tarOf(layers: {
  entries(): AsyncIterable<LayerEntry> | Iterable<LayerEntry> }): AsyncGenerator<Uint8Array> {
  for await (const entry of layers.entries()) {
    if (entry.kind === 'other') continue
    yield headerOf(entry, FLAGS[entry.kind])
    if (entry.content === undefined) continue
    yield* entry.content
    yield Buffer.alloc((BLOCK - entry.size % BLOCK) % BLOCK)
  }
  yield Buffer.alloc(2 * BLOCK)
}

function headerOf(entry: LayerEntry, flag: string): Uint8Array {
  const name = `./${entry.path}${entry.kind === 'folder' && entry.path !== '' ? '/' : ''}`
  const link = entry.kind === 'hard link' ? `./${entry.link}` : entry.kind === 'link' ? entry.link : ''
  const records: Buffer[] = []
  const record = (key: string, value: string | Uint8Array): void => {
    const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value as Uint8Array), Buffer.from('\n')])
    // The length counts its own digits.
    let length = rest.length + 1
    while (String(length).length + rest.length !== length) length = String(length).length + rest.length
    records.push(Buffer.from(String(length)), rest)
  }
  if (Buffer.byteLength(name) > 100) record('path', name)
  if (Buffer.byteLength(link) > 100) record('linkpath', link)
  for (const key of ['uid', 'gid'] as const) if (entry[key] >= SMALL_MAX) record(key, String(entry[key]))
  if (entry.size >= LARGE_MAX) record('size', String(entry.size))
  for (const [key, value] of entry.xattrs) if (XATTR.test(key)) record(`SCHILY.xattr.${key}`, value)
  const own = blockOf({ ...entry, name, link, flag })
  if (records.length === 0) return own
  const pax = Buffer.concat(records)
  const nothing = { mode: 0o644, uid: 0, gid: 0, mtime: 0, link: '', major: 0, minor: 0 }
  return Buffer.concat([blockOf({ ...nothing, name: './PaxHeaders', size: pax.length, flag: 'x' }), pax,
    Buffer.alloc((BLOCK - pax.length % BLOCK) % BLOCK), own])
}

function blockOf(entry: Pick<LayerEntry, 'mode' | 'uid' | 'gid' | 'mtime' | 'size' | 'link' | 'major' | 'minor'> &
  { readonly name: string; readonly flag: string }): Buffer {
  const block = Buffer.alloc(BLOCK)
  const octal = (value: number, at: number, digits: number): void => {
    block.write(Math.min(value, 8 ** digits - 1).toString(8).padStart(digits, '0'), at, 'latin1')
  }
  Buffer.from(entry.name).copy(block, 0, 0, 100)
  octal(entry.mode, 100, 7)
  octal(entry.uid, 108, 7)
  octal(entry.gid, 116, 7)
  octal(entry.size, 124, 11)
  octal(entry.mtime, 136, 11)
  block.fill(0x20, 148, 156)
  block.write(entry.flag, 156, 'latin1')
  Buffer.from(entry.link).copy(block, 157, 0, 100)
  block.write('ustar\x0000', 257, 'latin1')
  octal(entry.major, 329, 7)
  octal(entry.minor, 337, 7)
  octal(block.reduce((sum, byte) => sum + byte, 0), 148, 6)
  block[154] = 0
  return block
}
