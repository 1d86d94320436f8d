// bench/machine_made.ts: what bench/machine.ts takes to the place that has KVM: the guest's initramfs, and our VMM.
//
// The initramfs has busybox, the modules of virtio and machine_guest.c, which is compiled here. What it does is the
// word `do` of the kernel's command line. Our VMM is joined into one file for each thread, as a host does it for its
// processes (src/host/process_code.ts).

import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { joinPrograms } from '../src/base/joined.ts'
import { CpioWriter } from '../src/image/machine_cpio.ts'
import type { KvmPlace } from '../tests/machine/kvm_place.ts'
import type { Tools } from './machine_place.ts'

const MODULES = ['drivers/virtio/virtio_ring', 'drivers/virtio/virtio', 'drivers/virtio/virtio_mmio',
  'drivers/block/virtio_blk', 'net/core/failover', 'drivers/net/net_failover', 'drivers/net/virtio_net']
const ENTRIES = ['./machine_vmm.ts', './machine_snapshot.ts', '../src/machine/vcpu_worker.ts',
  '../src/machine/device_thread.ts', '../src/snapshot/crew_worker.ts', '../src/sys/flush_worker.ts']
  .map((path) => fileURLToPath(new URL(path, import.meta.url)))

const INIT = `#!/bin/busybox sh
/bin/busybox echo "the guest is up"
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
case $do in
devices)
  for module in ${MODULES.map((path) => basename(path)).join(' ')}; do insmod /modules/$module.ko; done
  for card in /sys/class/net/eth*; do
    name=$(basename $card)
    case $(cat $card/address) in
      *:aa) ip addr add 10.99.1.2/24 dev $name ;;
      *) ip addr add 10.77.0.2/16 dev $name; gateway=$name ;;
    esac
    ip link set $name up
  done
  ip route add default via 10.77.0.1 dev $gateway
  # Our code is compiled while it runs: what is measured is what comes after.
  guest disk /dev/vda 4096 8 random $warm >/dev/null
  for depth in 1 8; do guest disk /dev/vda 4096 $depth random 1500; done
  guest disk /dev/vda 131072 1 sequential 1500
  for way in "10.99.1.1 tap" "10.88.0.1 gateway"; do
    set -- $way
    for round in 1 2; do
      guest net $1 7000 up $net -$2
      guest net $1 7000 down $net -$2
      guest net $1 7000 round $net -$2
    done
  done ;;
memory) guest memory 96 ;;
ticks) guest ticks 48 ;;
esac
echo "@done 0 0"
while :; do sleep 1000; done
`

/** Makes it all in `folder`; or says why that can't be. */
export function makeTools(place: KvmPlace, folder: string): Tools | string {
  const guest = join(folder, 'guest')
  const source = fileURLToPath(new URL('./machine_guest.c', import.meta.url))
  const made = spawnSync('cc', ['-static', '-O2', '-o', guest, source], { encoding: 'utf8' })
  if (made.error !== undefined) return 'there is no C compiler for the guest\'s program'
  if (made.status !== 0) return `the guest's program doesn't compile: ${made.stderr}`
  const archive = new CpioWriter()
  archive.file('init', INIT, 0o755)
  for (const name of ['bin', 'proc', 'sys', 'dev', 'modules']) archive.folder(name)
  archive.file('bin/busybox', readFileSync(place.busybox), 0o755)
  archive.file('bin/guest', readFileSync(guest), 0o755)
  for (const path of MODULES) {
    archive.file(`modules/${basename(path)}.ko`, readFileSync(join(place.modules, 'kernel', `${path}.ko`)))
  }
  archive.device('dev/console', 'char', 5, 1)
  const initrd = join(folder, 'initrd')
  writeFileSync(initrd, archive.finish())
  return { kernel: place.kernel, initrd, guest, ...programsIn(join(folder, 'vmm')) }
}

/** Paths of the programs. */
function programsIn(folder: string): Pick<Tools, 'vmm' | 'snapshot'> {
  mkdirSync(folder, { recursive: true })
  const joined = new Map(ENTRIES.map((path) => [path, join(folder, `${basename(path, '.ts')}.cjs`)]))
  for (const [path, code] of joinPrograms(joined, new Map())) writeFileSync(path, code)
  return { vmm: joined.get(ENTRIES[0]!)!, snapshot: joined.get(ENTRIES[1]!)! }
}
