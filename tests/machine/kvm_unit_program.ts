// tests/machine/kvm_unit_program.ts: a program of kvm-unit-tests, made bootable by PVH (our VMM, and QEMU).
//
// Such a program (x86/*.flat) is a 32-bit ELF file for a multiboot loader: 32-bit protected mode, no paging, ebx →
// multiboot information with the memory's size, the arguments, and one module: the environment, which stands in for
// QEMU's fw_cfg and test device. Here a segment with exactly that, and a few instructions that lead to it, is put in
// front, and a Xen note that names them as the entry. The program itself is unchanged.

/** What a program is told. */
export type UnitProgram = {
  name: string; args: readonly string[]; vcpus: number; memoryBytes: number
}

const STUB_START = 0x10_0000
const PAGE = 4096
const INFO_OFFSET = 64
const MODULE_OFFSET = 192
const TEXT_OFFSET = 256
const STUB_BYTES = PAGE
const HEADER_BYTES = 52
const PROGRAM_HEADER_BYTES = 32
const PT_LOAD = 1
const PT_NOTE = 4
const XEN_ELFNOTE_PHYS32_ENTRY = 18
const MULTIBOOT_MAGIC = 0x2bad_b002

/** The ELF file to boot in place of `flat`. */
export function wrapUnitProgram(flat: Buffer, program: UnitProgram): Buffer {
  if (flat.readUInt32BE(0) !== 0x7f45_4c46 || flat[4] !== 1) throw new Error(`${program.name} isn't a 32-bit ELF file`)
  const headersAt = flat.readUInt32LE(28)
  const headers: Buffer[] = Array.from({ length: flat.readUInt16LE(44) }, (_, i) =>
    Buffer.from(flat.subarray(headersAt + i * PROGRAM_HEADER_BYTES, headersAt + (i + 1) * PROGRAM_HEADER_BYTES)))
    .filter((header) => header.readUInt32LE(0) === PT_LOAD)
  const stub = makeStub(flat.readUInt32LE(24), program)
  const note = makeNote()
  // The file: headers and note in the first page, the stub in the second, then the program as it was.
  const before = PAGE + STUB_BYTES
  for (const header of headers) header.writeUInt32LE(header.readUInt32LE(4) + before, 4)
  headers.push(programHeader(PT_LOAD, PAGE, STUB_START, stub.length))
  const noteAt = HEADER_BYTES + (headers.length + 1) * PROGRAM_HEADER_BYTES
  headers.push(programHeader(PT_NOTE, noteAt, 0, note.length))
  const first = Buffer.alloc(PAGE)
  flat.copy(first, 0, 0, HEADER_BYTES)
  first.writeUInt32LE(STUB_START, 24)
  first.writeUInt32LE(HEADER_BYTES, 28)
  first.writeUInt32LE(0, 32)
  first.writeUInt16LE(headers.length, 44)
  first.writeUInt16LE(0, 48)
  first.writeUInt16LE(0, 50)
  Buffer.concat([...headers, note]).copy(first, HEADER_BYTES)
  return Buffer.concat([first, stub, flat])
}

// Code at its begin; then the information, the module and the texts that they lead to.
function makeStub(entry: number, { name, args, vcpus, memoryBytes }: UnitProgram): Buffer {
  const stub = Buffer.alloc(STUB_BYTES)
  const megabytes = memoryBytes / 2 ** 20
  const commandLine = Buffer.from(`${[name, ...args].join(' ')}\0`)
  const environment = Buffer.from(`NR_CPUS=${vcpus}\nMEMSIZE=${megabytes}\nMEMLIMIT=${megabytes}\nTEST_DEVICE=0\n` +
    'BOOTLOADER=0\nPCID=1\n')
  const environmentAt = TEXT_OFFSET + commandLine.length
  commandLine.copy(stub, TEXT_OFFSET)
  environment.copy(stub, environmentAt)
  stub[0] = 0xb8 // mov eax, MULTIBOOT_MAGIC
  stub.writeUInt32LE(MULTIBOOT_MAGIC, 1)
  stub[5] = 0xbb // mov ebx, the information
  stub.writeUInt32LE(STUB_START + INFO_OFFSET, 6)
  stub[10] = 0xe9 // jmp entry
  stub.writeInt32LE(entry - (STUB_START + 15), 11)
  const info = stub.subarray(INFO_OFFSET)
  info.writeUInt32LE(0b1101, 0) // memory, command line, modules
  info.writeUInt32LE(640, 4)
  info.writeUInt32LE(memoryBytes / 1024 - 1024, 8)
  info.writeUInt32LE(STUB_START + TEXT_OFFSET, 16)
  info.writeUInt32LE(1, 20)
  info.writeUInt32LE(STUB_START + MODULE_OFFSET, 24)
  stub.writeUInt32LE(STUB_START + environmentAt, MODULE_OFFSET)
  stub.writeUInt32LE(STUB_START + environmentAt + environment.length, MODULE_OFFSET + 4)
  return stub
}

function makeNote(): Buffer {
  const note = Buffer.alloc(20)
  note.writeUInt32LE(4, 0)
  note.writeUInt32LE(4, 4)
  note.writeUInt32LE(XEN_ELFNOTE_PHYS32_ENTRY, 8)
  note.write('Xen\0', 12)
  note.writeUInt32LE(STUB_START, 16)
  return note
}

function programHeader(type: number, offset: number, address: number, length: number): Buffer {
  const header = Buffer.alloc(PROGRAM_HEADER_BYTES)
  const words = [type, offset, address, address, length, length, 7, type === PT_LOAD ? PAGE : 4]
  words.forEach((word, i) => header.writeUInt32LE(word, i * 4))
  return header
}
