// tests/machine/guests.ts: small guests for tests: Debian's kernel with an initramfs of busybox that does one thing.
//
// What the guest does is a word on its command line (`do=off`), so that one initramfs serves all tests. A guest is
// booted by guest_program.ts, in a process of its own, on the place that has KVM.

import { readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { CpioWriter } from '../../src/image/machine_cpio.ts'
import type { MachineEnd } from '../../src/machine/engine.ts'
import { quote, type RunOptions } from './nested_host.ts'
import type { Output } from './nested_line.ts'
import type { KvmPlace } from './kvm_place.ts'

/**
 * A machine to boot. `until`: it is over when its console says this. `powerButton`: pressed `powerAfterMs` after its
 * console has said this. `diskBytes`: it has an empty disk of that size. `hasNic`: a network card, nobody behind it.
 */
export type GuestRequest = {
  kernel: string; initrd?: string | undefined; commandLine: string; vcpus: number; memoryBytes: number; limitMs: number
  until?: string | undefined; powerButton?: string | undefined; powerAfterMs?: number | undefined
  diskBytes?: number | undefined; hasNic?: boolean | undefined
}

/** What became of it: how it ended, or the error that kept it from starting. */
export type GuestOutcome = {
  end: MachineEnd | 'said' | 'late'; ms: number; exits: Readonly<Record<string, number>>; consoleBytes: number
  console: string; residentBytes: number; devices: Readonly<Record<string, Readonly<Record<string, number>>>>
} | { error: string; message: string }

/** Command line of a guest whose console is the serial port. */
export const QUIET_LINE = 'console=ttyS0 quiet panic=-1'

const MEMORY_BYTES = 128 * 2 ** 20
const LIMIT_MS = 90_000
const PLACE_MARGIN_MS = 30_000

const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "up with $(nproc) cpus"
case $(cat /proc/cmdline) in
  *do=off*) poweroff -f ;;
  *do=reset*) reboot -f ;;
  *do=crash*) echo c >/proc/sysrq-trigger ;;
  *do=halt*) halt -f ;;
  *do=button*)
    insmod /evdev.ko; insmod /button.ko
    (sleep 0.5; echo "waits for the button") &
    head -c 24 /dev/input/event0 >/dev/null && echo "heard the button" && poweroff -f ;;
  *do=flood*) head -c 20000 /dev/zero | tr '\\0' x; echo; echo "flood over"; poweroff -f ;;
  *do=list*) cat /proc/interrupts /proc/iomem; ls /sys/bus/virtio/devices; dmesg; poweroff -f ;;
esac
while :; do sleep 100; done
`

/** Writes the initramfs of these guests to `folder`. */
export function makeGuestInitrd(folder: string, place: KvmPlace): string {
  const archive = new CpioWriter()
  archive.file('init', INIT, 0o755)
  archive.file('bin/busybox', readFileSync(place.busybox), 0o755)
  for (const name of ['input/evdev.ko', 'acpi/button.ko']) {
    archive.file(basename(name), readFileSync(join(place.modules, 'kernel/drivers', name)))
  }
  for (const name of ['proc', 'sys', 'dev']) archive.folder(name)
  archive.device('dev/console', 'char', 5, 1)
  const path = join(folder, 'guest.cpio')
  writeFileSync(path, archive.finish())
  return path
}

/**
 * How guests are booted: `say` is told of a process that had to be started anew. `beside`: guests in a second process
 * at the same time, one after the other as well; what became of them comes last.
 */
export type BootOptions = { npt?: boolean; beside?: readonly Partial<GuestRequest>[]; say: (text: string) => void }

/** Boots a machine at `place`. What the request leaves out is that of a small guest. */
export async function bootGuest(place: KvmPlace, request: Partial<GuestRequest>, options: BootOptions):
  Promise<GuestOutcome> {
  return (await bootGuests(place, [request], options))[0]!
}

/** Boots one machine after the other, in one process: what became of each. */
export async function bootGuests(place: KvmPlace, requests: readonly Partial<GuestRequest>[],
  { npt = true, beside = [], say }: BootOptions): Promise<GuestOutcome[]> {
  const whole = (request: Partial<GuestRequest>): GuestRequest => ({ kernel: place.kernel, commandLine: QUIET_LINE,
    vcpus: 1, memoryBytes: MEMORY_BYTES, limitMs: LIMIT_MS, ...request })
  const program = (list: readonly Partial<GuestRequest>[]): string =>
    `node --disable-warning=ExperimentalWarning tests/machine/guest_program.ts ${
      quote(JSON.stringify(list.map(whole)))}`
  const all = [...requests, ...beside]
  const output = await runTwice(place, beside.length === 0 ? program(requests)
    : `F=$(mktemp); ${program(beside)} >$F & ${program(requests)}; S=$?; wait $!; B=$?; cat $F; exit $((S ? S : B))`, {
    files: all.flatMap(({ kernel, initrd }) => [kernel, initrd]).filter((path) => path !== undefined), npt,
    timeoutMs: all.reduce((sum, { limitMs = LIMIT_MS }) => sum + limitMs, PLACE_MARGIN_MS),
  }, say)
  const lines = output.stdout.toString().split('\n').filter((line) => line.startsWith('{'))
  if (output.status !== 0 || lines.length !== all.length) {
    throw new Error(`the VMM's process ended with ${output.status}${output.timedOut ? ', late' : ''}: ${output.stderr}`)
  }
  return lines.map((line) => JSON.parse(line) as GuestOutcome)
}

/**
 * Runs a command, and once more if Node itself crashed in a nested host: its processor is emulated, and a Node in it
 * crashes once in a while as it begins, with KVM or without (nested_host.ts says what is known). Twice is ours.
 */
export async function runTwice(place: KvmPlace, command: string, options: RunOptions, say: (text: string) => void):
  Promise<Output> {
  const output = await place.run(command, options)
  if (!place.isNested || !CRASHES.includes(output.status)) return output
  say(`crashed once in emulation: status ${output.status}: ${output.stderr.toString().trim().slice(0, WORDS_MAX)}`)
  return await place.run(command, options)
}

/** What a shell says of SIGILL, SIGTRAP (V8 gives up), SIGABRT and SIGSEGV. */
const CRASHES: readonly number[] = [132, 133, 134, 139]
const WORDS_MAX = 400
