// host/machine_mounts.ts: a machine's volumes as folders of it: mounted by its agent, where it has one.
//
// A volume is a disk, found in the guest by its serial. One that begins with nothing but zeroes gets ext4, or ext2
// where the guest has no more than busybox: nothing else is ever formatted, and nothing where that can't be looked at.
// A guest without an agent mounts what it likes itself.

import type { Agent } from '../machine/agent.ts'
import { CellarError } from '../base/errors.ts'
import { serialOf } from './machine_parts.ts'
import type { MountedVolume } from './protocol.ts'

/** $1: serial; $2: folder; $3: ro or rw. Needs what busybox has: cmp, grep, mkdir, mount; mke2fs for a new one. */
const SCRIPT = `
for sys in /sys/block/vd*; do [ "$(cat "$sys/serial" 2>/dev/null)" = "$1" ] && dev="/dev/\${sys##*/}"; done
[ -n "$dev" ] || { echo "no disk has the serial $1"; exit 1; }
mkdir -p "$2" || exit 1
grep -q "^[^ ]* $2 " /proc/mounts && exit 0
if [ "$3" = rw ] && cmp -s -n 1048576 "$dev" /dev/zero; then
  mkfs.ext4 -q "$dev" 2>/dev/null || mke2fs "$dev" >/dev/null || exit 1
fi
mount -o "$3" "$dev" "$2"
`
/** Bytes kept of what it complains of. */
const WORDS_MAX = 400

/** Mounts one volume. Rejects with AGENT_FAILED. */
export async function mount(agent: Agent, { path, guest, readOnly }: MountedVolume): Promise<void> {
  const serial = serialOf(path)
  const session = agent.exec({ argv: ['/bin/sh', '-c', SCRIPT, 'mount', serial, guest, readOnly ? 'ro' : 'rw'],
    hasInput: false })
  let words = ''
  for await (const { bytes } of session.output) words = (words + Buffer.from(bytes).toString()).slice(0, WORDS_MAX)
  const end = await session.ended
  if (end.kind === 'exited' && end.status === 0) return
  throw new CellarError('AGENT_FAILED', [serial, guest, words.trim() || `it ${end.kind}`])
}
