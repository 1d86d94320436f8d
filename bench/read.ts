// bench/read.ts: fd_read of 4 KiB from a file in the page cache, against fs.readSync and against node:wasi.

import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { WASI } from 'node:wasi'
import wabt from 'wabt'
import { Pcpu } from '../src/cell/pcpu.ts'
import { cellOf, executableOfText } from '../src/cell/test_support.ts'
import { openVolume } from '../src/services/file/volume.ts'
import { RIGHTS_DIRECTORY, RIGHTS_FILE } from '../src/wasi/p1/abi.ts'
import { nsPer } from './guest.ts'
import type { Figure } from './main.ts'

// Opens "file" in descriptor 3 as descriptor 4; reads 4 KiB n times, from the start again at the end.
const wat = (memory: string): string => `(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  ${memory}
  (data (i32.const 16) "\\00\\10\\00\\00\\00\\10\\00\\00")
  (data (i32.const 32) "file")
  (func (export "_initialize"))
  (func (export "open") (result i32)
    (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 4) (i32.const 0) (i64.const 6) (i64.const 0)
      (i32.const 0) (i32.const 64)))
  (func (export "read") (param $n i32)
    (loop $again
      (if (call $read (i32.load (i32.const 64)) (i32.const 16) (i32.const 1) (i32.const 72)) (then (unreachable)))
      (if (i32.eqz (i32.load (i32.const 72)))
        (then (drop (call $seek (i32.load (i32.const 64)) (i64.const 0) (i32.const 0) (i32.const 80)))))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))`
const ROUNDS = 100_000
const FILE_BYTES = 1024 * 1024

export async function measure(): Promise<Figure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-bench-'))
  try {
    writeFileSync(join(folder, 'file'), Buffer.alloc(FILE_BYTES, 7))
    const cell = await ours(folder)
    const fd = openSync(join(folder, 'file'), 'r')
    const buffer = new Uint8Array(4096)
    const plain = await nsPer(ROUNDS, (n) => {
      for (let i = 0; i < n; i++) readSync(fd, buffer, 0, 4096, (i * 4096) % FILE_BYTES)
    })
    closeSync(fd)
    const value = await nsPer(ROUNDS, cell)
    const node = await nodes(folder)
    return [
      { name: 'read', value, unit: 'ns', baseline: plain, baselineOf: 'fs.readSync' },
      {
        name: 'read.node-wasi', value, unit: 'ns', baseline: await nsPer(ROUNDS, node),
        baselineOf: 'the same guest under node:wasi',
      },
    ]
  } finally {
    rmSync(folder, { recursive: true })
  }
}

async function ours(folder: string): Promise<(n: number) => Promise<unknown>> {
  const executable = await executableOfText(wat('(memory 1 16)'))
  const volume = {
    descriptor: openVolume(folder, { readOnly: true }), rightsBase: RIGHTS_DIRECTORY,
    rightsInheriting: RIGHTS_DIRECTORY | RIGHTS_FILE, flags: 0, preopen: Buffer.from('/'),
  }
  const cell = cellOf(new Pcpu(), executable, { entries: [volume] })
  if (await cell.call('open') !== 0) throw new Error('path_open failed')
  return (n) => cell.call('read', n)
}

async function nodes(folder: string): Promise<(n: number) => void> {
  const { buffer } = (await wabt()).parseWat('read.wat', wat('(memory (export "memory") 1 16)')).toBinary({})
  const wasi = new WASI({ version: 'preview1', preopens: { '/': folder } })
  const module = new WebAssembly.Module(buffer as Uint8Array<ArrayBuffer>)
  const instance = new WebAssembly.Instance(module, wasi.getImportObject() as WebAssembly.Imports)
  wasi.initialize(instance)
  if ((instance.exports['open'] as () => number)() !== 0) throw new Error('node:wasi: path_open failed')
  return instance.exports['read'] as (n: number) => void
}
