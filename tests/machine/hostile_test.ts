// tests/machine/hostile_test.ts: guests that misuse every device, under KVM: they harm nobody but themselves.
//
// A guest is a list of steps (flat_program.ts): it sets a device up as the specification wants it, but for one thing,
// and says what the device's status is then; at the end it sets the device up as a good driver does, and says how many
// buffers came back. Beside them, in another process, a Linux boots. What the devices make of random rings is found
// out elsewhere (src/virtio/hostile_fuzz_test.ts); here are the ways from a vCPU to them: exits, windows, eventfds.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { SLEEP_OFF } from '../../src/machine/acpi.ts'
import { deviceTable, SERIAL_PORT, SLEEP_CONTROL_PORT, VIRTIO_MMIO_BASE } from '../../src/machine/layout.ts'
import { flatProgram, type Step } from './flat_program.ts'
import { bootGuests, makeGuestInitrd, QUIET_LINE, type GuestRequest } from './guests.ts'
import { findKvm } from './kvm_place.ts'

const kvm = await findKvm('hostile-test')
const TEST_MS_MAX = 200_000
const LIMIT_MS = 40_000

const DESC = 0x30_0000
const AVAIL = 0x30_1000
const USED = 0x30_2000
const DATA = 0x30_3000
const RING = 8
const BUFFER_BYTES = 64
const NEXT = 1
const WRITE = 2
const INDIRECT = 4

const STATUS = 0x70
const NOTIFY = 0x50
const RESETS = 4
const FILLER = 0x78
/** ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK; and with DEVICE_NEEDS_RESET. */
const RUNNING = 0x0f
const NEEDS_RESET = 0x40

/** A queue of each kind of device that takes buffers from the driver, and whether the device writes to them. */
const QUEUES = { console: [1, 0], rng: [0, WRITE], balloon: [0, 0], vsock: [1, 0], net: [1, 0], blk: [0, 0] } as const
const DEVICES = deviceTable({ nics: [{ mac: '', fd: 0, kind: 'stream', mtu: 0 }],
  disks: [{ path: '', format: 'raw', readOnly: false, serial: '', backingFolders: [] }] })

type Chain = readonly { at: number; high?: number; length: number; flags: number; next?: number }[]
/** How a device is set up: what differs from the right way. */
type Setup = { chain?: Chain; head?: number; made?: number; size?: number; rings?: readonly number[]; high?: number }

/** Sets up the device at `base`, with a chain that it finds as soon as it is ready. */
function setUp(base: number, queue: number, setup: Setup): Step[] {
  const { chain = [], head = 0, made = 1, size = RING, rings = [DESC, AVAIL, USED], high = 0 } = setup
  const word = (offset: number, value: number): Step => ['write32', base + offset, value]
  return [
    ['fill32', DESC, 0, 0x3000 / 4],
    ...chain.flatMap(({ at, high = 0, length, flags, next = 0 }, i): Step[] => [
      ['write32', DESC + 16 * i, at], ['write32', DESC + 16 * i + 4, high], ['write32', DESC + 16 * i + 8, length],
      ['write32', DESC + 16 * i + 12, flags | next << 16]]),
    ['write32', AVAIL, made << 16], ['write32', AVAIL + 4, head],
    word(STATUS, 0), word(STATUS, 1), word(STATUS, 3),
    word(0x24, 1), word(0x20, 1), word(0x24, 0), word(0x20, 1 << 28), word(STATUS, 0xb),
    word(0x30, queue), word(0x38, size),
    ...rings.flatMap((place, i): Step[] => [word(0x80 + 16 * i, place), word(0x84 + 16 * i, high)]),
    word(0x44, 1), word(STATUS, RUNNING),
  ]
}

/** What a driver must not do with a ring. */
const MISUSES: Readonly<Record<string, Setup>> = {
  'a chain that goes round': { chain: [{ at: DATA, length: 16, flags: NEXT, next: 0 }] },
  'a chain that leads out of its table': { chain: [{ at: DATA, length: 16, flags: NEXT, next: RING }] },
  'a buffer of 2^32 - 1 bytes': { chain: [{ at: DATA, length: 0xffff_ffff, flags: 0 }] },
  'a buffer outside of RAM': { chain: [{ at: DATA, high: 1, length: 16, flags: 0 }] },
  'a buffer in a window': { chain: [{ at: VIRTIO_MMIO_BASE, length: 16, flags: WRITE }] },
  'a table of half a descriptor': { chain: [{ at: DATA, length: 8, flags: INDIRECT }] },
  'a table outside of RAM': { chain: [{ at: 0xffff_f000, length: 64, flags: INDIRECT }] },
  'a head that is none': { head: RING },
  'more chains than there is room for': { made: 0xffff },
  'rings outside of RAM': { rings: [DESC, AVAIL, 0x7fff_0000] },
  'rings above all addresses': { high: 0xffff_ffff },
  'rings in a window': { rings: [VIRTIO_MMIO_BASE, VIRTIO_MMIO_BASE, VIRTIO_MMIO_BASE] },
  'rings that aren\'t aligned': { rings: [DESC + 1, AVAIL + 1, USED + 1] },
  'a queue of no size': { size: 0 },
  'a queue of three': { size: 3 },
  'a queue of 65535': { size: 0xffff },
}

/** Every register and what lies between them, in all sizes; the status in leaps; notifications of anything. */
function misuseRegisters(base: number): Step[] {
  const steps: Step[] = []
  for (let offset = 0; offset < 0x140; offset += 4) {
    const at = base + offset
    steps.push(['read32', at], ['read8', at + 1], ['read16', at + 3], ['write8', at, 0xff], ['write16', at + 1, 0xffff],
      ['write64', at, 0xffff_ffff], ['add32', at, 1], ['write32', at, 0xffff_ffff])
  }
  for (const status of [0xf, 0, 4, 0x80, 0, 8, 0xff, 0, 1, 0xb, 0]) steps.push(['write32', base + STATUS, status])
  steps.push(['fill8', base, 0x5a, 256], ['fill32', base + 0xff0, 7, 8], ['storm', base + NOTIFY, 0, 100],
    ['storm', base + NOTIFY, 0xffff_ffff, 20], ['write8', base + NOTIFY, 0], ['write64', base + NOTIFY, 0])
  return steps
}

/** A device: misuses of all kinds, then the right use. It says a byte for each of MISUSES, and two for that. */
function deviceSteps(kind: keyof typeof QUEUES, base: number): Step[] {
  const [queue, flags] = QUEUES[kind]
  const status: Step = ['say', base + STATUS]
  // What hvc0 writes goes where the serial line's bytes go, too: it is told apart from what is said.
  const isConsole = kind === 'console'
  return [
    ['fill8', DATA, isConsole ? FILLER : 0, BUFFER_BYTES],
    ...misuseRegisters(base),
    ...Object.values(MISUSES).flatMap((setup) => [...setUp(base, queue, setup),
      ['storm', base + NOTIFY, queue, 10] as Step, status]),
    // A reset while the device may be at work, again and again.
    ...Array.from({ length: RESETS }, (): Step[] => [...setUp(base, queue, good(kind, flags)),
      ['write32', base + NOTIFY, queue], ['write32', base + STATUS, 0]]).flat(),
    ...setUp(base, queue, good(kind, flags)), ['write32', base + NOTIFY, queue],
    // Time for a device that answers later.
    ...Array.from({ length: 50 }, (): Step => ['read32', base + STATUS]),
    status, ['say', USED + 2],
  ]
}

/** A chain that each device takes: what it makes of zeros is its own matter, but it gives them back. */
function good(kind: keyof typeof QUEUES, flags: number): Setup {
  if (kind !== 'blk') return { chain: [{ at: DATA, length: BUFFER_BYTES, flags }] }
  return { chain: [{ at: DATA, length: 16, flags: NEXT, next: 1 },
    { at: DATA + 0x200, length: 512, flags: NEXT | WRITE, next: 2 }, { at: DATA + 0x1000, length: 1, flags: WRITE }] }
}

/** Ports and memory where there is nothing, or what isn't for it. */
const ELSEWHERE: readonly Step[] = [
  ...Array.from({ length: 150 }, (_, i): Step[] => [0x0, 0x3f8, 0x600, 0xcf8, 0xfff0].flatMap((first): Step[] => {
    const port = first + i
    // What would end it, or what it says: those ports are for others to test.
    if (port > 0xffff || port >= 0x5fd && port <= 0x602 || port >= 0x61 && port <= 0x64) return []
    return port >= SERIAL_PORT - 3 && port < SERIAL_PORT + 8 ? [['in8', port], ['in32', port]]
      : [['out8', port, 0xff], ['out16', port, 0xffff], ['out32', port, 0xffff_ffff], ['in8', port], ['in32', port]]
  })).flat(),
  ['outs8', 0x80, 0, 3000], ['ins32', 0xfffe, 0, 500], ['ins32', SERIAL_PORT + 6, 0, 500],
  ...[VIRTIO_MMIO_BASE + DEVICES.length * 0x1000, 0xdfff_fffe, 0xe000_0000, 0xfed0_0000, 0xfee0_0000 - 4, 0xfffb_d000,
    0xffff_fff0].flatMap((at): Step[] => [['write8', at, 1], ['write32', at, 1], ['write64', at, 1], ['add32', at, 1],
    ['read8', at], ['read32', at], ['fill32', at - 0x40, 3, 16]]),
  ['fill32', 0xfec0_0000, 0xffff_ffff, 20],
]

const OFF: Step = ['out8', SLEEP_CONTROL_PORT, SLEEP_OFF]

test('guests that misuse devices, ports and memory harm themselves alone', {
  skip: kvm.skip, timeout: TEST_MS_MAX,
}, async (t) => {
  await using place = kvm.open()
  const folder = mkdtempSync(join(tmpdir(), 'cellar-hostile-test-'))
  t.after(() => rmSync(folder, { recursive: true }))
  t.diagnostic(place.way)
  const guest = (name: string, steps: readonly Step[]): Partial<GuestRequest> => {
    const kernel = join(folder, name)
    writeFileSync(kernel, flatProgram(steps))
    return { kernel, commandLine: '', limitMs: LIMIT_MS, diskBytes: 2 ** 20, hasNic: true }
  }
  const outcomes = await bootGuests(place, [
    guest('devices', [...DEVICES.flatMap(({ kind, base }) => deviceSteps(kind, base)), ...ELSEWHERE, OFF]),
    guest('window', [['jump', VIRTIO_MMIO_BASE]]),
    guest('nowhere', [['jump', 0xe000_0000]]),
  ], { say: (text) => t.diagnostic(text),
    beside: [{ initrd: makeGuestInitrd(folder, place), commandLine: `${QUIET_LINE} do=off` }] })
  const found = outcomes.map((outcome) => {
    assert.ok('end' in outcome, JSON.stringify(outcome))
    return outcome
  })
  const [misuser, ...others] = found
  t.diagnostic(JSON.stringify(found.map(({ end, ms, exits }) => [end, Math.round(ms), exits])))
  const said = [...Buffer.from(misuser!.console, 'latin1')].filter((byte) => byte !== FILLER)
  const names = Object.keys(MISUSES)

  for (const { kind } of DEVICES) {
    await t.test(`the device ${kind} refuses every misuse, and then serves a good driver`, (t) => {
      const { faults, ignoredAccesses } = misuser!.devices[`${kind}0`]!
      t.diagnostic(`${faults} faults, ${ignoredAccesses} accesses that were ignored`)
      const statuses = said.splice(0, names.length)
      assert.deepEqual(Object.fromEntries(names.map((name, i) => [name, statuses[i]! & NEEDS_RESET])),
        Object.fromEntries(names.map((name) => [name, NEEDS_RESET])))
      assert.equal(faults, names.length)
      const [status, used] = said.splice(0, 2)
      assert.equal(status, RUNNING)
      assert.equal(used, 1)
    })
  }

  await t.test('ports and memory without a device behind them are nothing to a guest, and no code', () => {
    assert.deepEqual(misuser!.end, { kind: 'off', reason: 'poweroff' })
    for (const { end } of others.slice(0, 2)) {
      assert.deepEqual(end, { kind: 'failed', reason: "KVM can't emulate an instruction of the guest" })
    }
  })

  await t.test('the guest beside them has booted, and has gone off', () => {
    const { end, console } = found.at(-1)!
    assert.match(console, /up with 1 cpus/)
    assert.deepEqual(end, { kind: 'off', reason: 'poweroff' })
  })
})
