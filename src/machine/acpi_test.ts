// machine/acpi_test.ts: ACPI tables, followed from the RSDP as a guest follows them; the DSDT through iasl.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { acpiTables } from './acpi.ts'
import { ACPI_END, ACPI_START, deviceTable } from './layout.ts'

const FULL = { nics: Array.from({ length: 4 }), disks: Array.from({ length: 8 }) } as never

// Every table that a guest reaches, by signature. Fails on a checksum, a signature or a place that is wrong.
function follow(bytes: Uint8Array): Map<string, DataView> {
  const at = (address: number, length: number): DataView => {
    assert.ok(address >= ACPI_START && address + length <= ACPI_START + bytes.length, `address ${address}`)
    return new DataView(bytes.buffer, address - ACPI_START, length)
  }
  const sums = (view: DataView): number => {
    let sum = 0
    for (let i = 0; i < view.byteLength; i++) sum += view.getUint8(i)
    return sum & 0xff
  }
  const found = new Map<string, DataView>()
  const table = (address: number): DataView => {
    const view = at(address, at(address, 36).getUint32(4, true))
    assert.equal(sums(view), 0, 'checksum')
    found.set(String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(i))), view)
    return view
  }
  assert.equal(Buffer.from(bytes.subarray(0, 8)).toString(), 'RSD PTR ')
  assert.deepEqual([sums(at(ACPI_START, 20)), sums(at(ACPI_START, 36))], [0, 0])
  const xsdt = table(Number(at(ACPI_START, 36).getBigUint64(24, true)))
  for (let i = 36; i < xsdt.byteLength; i += 8) table(Number(xsdt.getBigUint64(i, true)))
  table(Number(found.get('FACP')!.getBigUint64(140, true)))
  return found
}

test('acpiTables makes tables that a guest finds from the RSDP, each with its checksum', () => {
  const tables = follow(acpiTables({ vcpus: 2, devices: deviceTable({ nics: [], disks: [] }) }))
  assert.deepEqual([...tables.keys()].sort(), ['APIC', 'DSDT', 'FACP', 'XSDT'])
  const fadt = tables.get('FACP')!
  assert.equal(fadt.getUint32(112, true) >>> 20 & 1, 1, 'hardware-reduced')
  assert.equal(fadt.byteLength, 276)
})

test('the MADT names every vCPU and the IOAPIC', () => {
  const madt = follow(acpiTables({ vcpus: 32, devices: [] })).get('APIC')!
  const entries: number[][] = []
  for (let at = 44; at < madt.byteLength; at += madt.getUint8(at + 1)) {
    entries.push([madt.getUint8(at), madt.getUint8(at + (madt.getUint8(at) === 0 ? 3 : 2))])
  }
  assert.deepEqual(entries, [...Array.from({ length: 32 }, (_, id) => [0, id]), [1, 32]])
})

test('the tables of the largest machine fit into their place', () => {
  const bytes = acpiTables({ vcpus: 32, devices: deviceTable(FULL) })
  assert.ok(bytes.length <= ACPI_END - ACPI_START, `${bytes.length} bytes`)
  follow(bytes)
})

test('iasl takes the DSDT apart and puts it together again to the same bytes', (t) => {
  const dsdt = follow(acpiTables({ vcpus: 1, devices: deviceTable(FULL) })).get('DSDT')!
  const bytes = new Uint8Array(dsdt.buffer, dsdt.byteOffset, dsdt.byteLength)
  const folder = mkdtempSync(join(tmpdir(), 'cellar-acpi-'))
  try {
    writeFileSync(join(folder, 'dsdt.aml'), bytes)
    try {
      execFileSync('iasl', ['-d', 'dsdt.aml'], { cwd: folder, stdio: 'pipe' })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return t.skip('there is no iasl (acpica-tools)')
      throw error
    }
    const text = readFileSync(join(folder, 'dsdt.dsl'), 'utf8')
    assert.equal(text.match(/LNRO0005/g)?.length, 16)
    assert.match(text, /Notify \(PWRB, 0x80\)/)
    execFileSync('iasl', ['-oa', '-p', 'again', 'dsdt.dsl'], { cwd: folder, stdio: 'pipe' })
    // Behind the header, which names the compiler.
    assert.deepEqual(new Uint8Array(readFileSync(join(folder, 'again.aml'))).subarray(36), bytes.subarray(36))
  } finally {
    rmSync(folder, { recursive: true })
  }
})
