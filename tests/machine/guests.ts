// tests/machine/guests.ts: small guests for tests: Debian's kernel with an initramfs of busybox that does one thing.
//
// What the guest does is a word on its command line (`do=off`), so that one initramfs serves all tests. A guest is
// booted by guest_program.ts, in a process of its own, on the place that has KVM.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CpioWriter } from '../../src/image/machine_cpio.ts'
import type { MachineEnd } from '../../src/machine/engine.ts'
import { quote } from './nested_host.ts'
import type { KvmPlace } from './kvm_place.ts'

/** A machine to boot. `until`: it is over when its console says this. `powerButton`: pressed when it has said this. */
export type GuestRequest = {
  kernel: string; initrd?: string | undefined; commandLine: string; vcpus: number; memoryBytes: number; limitMs: number
  until?: string | undefined; powerButton?: string | undefined
}

/** What became of it: how it ended, or the error that kept it from starting. */
export type GuestOutcome = {
  end: MachineEnd | 'said' | 'late'; ms: number; exits: Readonly<Record<string, number>>; consoleBytes: number
  console: string; residentBytes: number
} | { error: string; message: string }

/** Command line of a guest whose console is the serial port. */
export const QUIET_LINE = 'console=ttyS0 quiet panic=-1'

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
    for event in /dev/input/event*; do echo "has $event"; done
    echo "waits for the button"
    head -c 24 /dev/input/event0 >/dev/null && echo "heard the button" && poweroff -f ;;
  *do=flood*) head -c 100000 /dev/zero | tr '\\0' x; echo; echo "flood over"; poweroff -f ;;
  *do=list*) cat /proc/interrupts /proc/iomem; ls /sys/bus/virtio/devices; dmesg; poweroff -f ;;
esac
while :; do sleep 100; done
`

/** Writes the initramfs of these guests to `folder`. */
export function makeGuestInitrd(folder: string, place: KvmPlace): string {
  const archive = new CpioWriter()
  archive.file('init', INIT, 0o755)
  archive.file('bin/busybox', readFileSync(place.busybox), 0o755)
  for (const name of ['proc', 'sys', 'dev']) archive.folder(name)
  archive.device('dev/console', 'char', 5, 1)
  const path = join(folder, 'guest.cpio')
  writeFileSync(path, archive.finish())
  return path
}

/** Boots a machine at `place`. What the request leaves out is that of a small guest. */
export async function bootGuest(place: KvmPlace, request: Partial<GuestRequest>, { npt = true } = {}):
  Promise<GuestOutcome> {
  const whole: GuestRequest = { kernel: place.kernel, commandLine: QUIET_LINE, vcpus: 1, memoryBytes: 256 * 2 ** 20,
    limitMs: LIMIT_MS, ...request }
  const files = [request.kernel, request.initrd].filter((path) => path !== undefined)
  const output = await place.run(
    `exec node --disable-warning=ExperimentalWarning tests/machine/guest_program.ts ${quote(JSON.stringify(whole))}`,
    { files, npt, timeoutMs: whole.limitMs + PLACE_MARGIN_MS })
  const line = output.stdout.toString().trimEnd().split('\n').at(-1)!
  if (output.status !== 0 || !line.startsWith('{')) {
    throw new Error(`the VMM's process ended with ${output.status}${output.timedOut ? ', late' : ''}: ${output.stderr}`)
  }
  return JSON.parse(line) as GuestOutcome
}
