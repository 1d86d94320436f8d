// qemu/test_support.ts: guests of one boot sector, and what drives them: an engine with a real QEMU, for tests.

import { closeSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import type { MachineEnd, Sections } from '../machine/engine.ts'
import type { MachineSpec } from '../machine/spec.ts'
import { makeRam } from '../sys/guest_ram.ts'
import { QemuEngine, type QemuOptions } from './qemu_engine.ts'
import { probeQemu } from './qemu_probe.ts'

const probe = probeQemu()
/** Why tests with a real QEMU are left out; undefined: they aren't. */
export const qemuMissing = probe.ok ? undefined : probe.reason

const WAIT_MS_MAX = 30_000
const LOOK_MS = 10
const RAM_BYTES = 32 * 2 ** 20

// 16-bit code at 0x7c00, where a BIOS puts a boot sector. Each begins with: xor ax,ax; mov ds,ax
const START = [0x31, 0xc0, 0x8e, 0xd8]
/** mov dx,0x604; mov ax,0x2000; out dx,ax; hlt; jmp $-1: q35's power management switches off. */
const POWER_OFF = [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd]

/** What a boot sector does. */
const BOOT_SECTORS = {
  /** Says "BOOTED" and powers off: mov si,0x7c1c; mov dx,0x3f8; 1: lodsb; test al,al; jz 2; out dx,al; jmp 1; 2: … */
  hello: [...START, 0xbe, 0x1c, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, ...POWER_OFF,
    ...Buffer.from('BOOTED\0')],
  /** mov dx,0xcf9; mov al,6; out dx,al; hlt: the chip set's reset. */
  reset: [...START, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4],
  /** lidt [0x7d00], which is zero; int3: no handler for it, nor for that, nor for that. */
  tripleFault: [...START, 0x0f, 0x01, 0x1e, 0x00, 0x7d, 0xcc],
  /** mov dx,0x3f8; mov al,'x'; 1: out dx,al; jmp 1 */
  flood: [...START, 0xba, 0xf8, 0x03, 0xb0, 0x78, 0xee, 0xeb, 0xfd],
  /** cli; hlt; jmp $-1 */
  halt: [...START, 0xfa, 0xf4, 0xeb, 0xfd],
  /**
   * cli, as the BIOS would read the line, too; 1: mov cx,0; loop $; mov dx,0x3fd; in al,dx; test al,1; jz 1;
   * mov dx,0x3f8; in al,dx; cmp al,'q'; je 2; out dx,al; jmp 1; 2: … Without the pause QEMU's other threads hardly
   * come to run.
   */
  echo: [...START, 0xfa, 0xb9, 0x00, 0x00, 0xe2, 0xfe, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf3, 0xba, 0xf8, 0x03,
    0xec, 0x3c, 0x71, 0x74, 0x03, 0xee, 0xeb, 0xe8, ...POWER_OFF],
  /**
   * Counts in a byte of its RAM, and says each count as a letter, A to P, with a pause: 1: mov al,[0x7e00];
   * inc byte [0x7e00]; and al,15; add al,'A'; mov dx,0x3f8; out dx,al; mov cx,0; 2: in al,0x80; loop 2; jmp 1
   */
  count: [...START, 0xa0, 0x00, 0x7e, 0xfe, 0x06, 0x00, 0x7e, 0x24, 0x0f, 0x04, 0x41, 0xba, 0xf8, 0x03, 0xee,
    0xb9, 0x00, 0x00, 0xe4, 0x80, 0xe2, 0xfc, 0xeb, 0xe8],
} as const

/** What a boot sector of ours does. */
export type BootCode = keyof typeof BOOT_SECTORS

/** A machine under test, and all that it says. */
export class TestMachine {
  readonly engine: QemuEngine
  readonly said: string[] = []
  readonly agents: Duplex[] = []
  readonly #ended = Promise.withResolvers<MachineEnd>()
  readonly ramFd: number
  readonly #isRamOurs: boolean
  output = ''
  ends = 0

  constructor(spec: Partial<MachineSpec>, options: Partial<QemuOptions> = {}) {
    const whole: MachineSpec = { name: 'test', vcpus: 1, memoryBytes: RAM_BYTES, boot: undefined, disks: [], nics: [],
      cid: 3, generation: '00112233445566778899aabbccddeeff', ...spec }
    this.#isRamOurs = options.ramFd === undefined
    this.ramFd = options.ramFd ?? makeRam(whole.memoryBytes)
    this.engine = new QemuEngine({ spec: whole, ramFd: this.ramFd, isRamPrivate: false,
      qemu: { path: probe.path!, accelerator: 'tcg' }, ...options, events: {
        console: (bytes) => { this.output += Buffer.from(bytes).toString('latin1') },
        ended: (end) => {
          this.ends++
          this.#ended.resolve(end)
        },
        agent: (stream) => { this.agents.push(stream) },
        say: (text) => { this.said.push(text) },
      } })
  }

  /** Waits for the console to say it, and forgets what was said until then. What fits. */
  async says(wanted: RegExp): Promise<RegExpExecArray> {
    const found = await eventually(() => wanted.exec(this.output), () => `the console said ${this.output.slice(-2000)}`)
    this.output = this.output.slice(found.index + found[0].length)
    return found
  }

  ended(): Promise<MachineEnd> {
    return Promise.race([this.#ended.promise, new Promise<never>((_, reject) => {
      setTimeout(() => reject(new Error(`it hasn't ended; ${this.output.slice(-2000)}`)), WAIT_MS_MAX).unref()
    })])
  }

  async saved(): Promise<Sections> {
    await this.engine.pause()
    return this.engine.save()
  }

  async close(): Promise<void> {
    await this.engine.close()
    if (this.#isRamOurs) closeSync(this.ramFd)
  }
}

/** Waits until `look` finds something. */
export async function eventually<T>(look: () => T | undefined | null | false, why: () => string): Promise<T> {
  const until = performance.now() + WAIT_MS_MAX
  for (;;) {
    const found = look()
    if (found !== undefined && found !== null && found !== false) return found
    if (performance.now() > until) throw new Error(`Waited in vain: ${why()}`)
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
}

/** A folder for a test, gone when the test is over. */
export function scratchFolder(t: { after(clean: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-qemu-'))
  t.after(() => rmSync(folder, { recursive: true }))
  return folder
}

/** A raw disk in `folder` that begins with this boot sector, as the first disk of a machine without a kernel. */
export function bootDisk(folder: string, code: BootCode): MachineSpec['disks'][number] {
  const path = join(folder, `${code}.raw`)
  const disk = Buffer.alloc(1024 * 1024)
  disk.set(BOOT_SECTORS[code])
  disk.writeUInt16LE(0xaa55, 510)
  writeFileSync(path, disk)
  return { path, format: 'raw', readOnly: false, serial: code, backingFolders: [] }
}
