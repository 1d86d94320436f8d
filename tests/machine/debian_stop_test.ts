// tests/machine/debian_stop_test.ts: the Debian guest goes down as its agent is asked: its own way, and soon.
//
// Under QEMU, with emulation: no KVM is needed. Packages come from apt; without them it is skipped, and says so.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { CellarError } from '../../src/base/errors.ts'
import { ENOENT } from '../../src/base/errno.ts'
import { BlobStore } from '../../src/image/blob_store.ts'
import { digestOf } from '../../src/image/image.ts'
import { makeDebian } from '../../src/image/machine_debian.ts'
import { openMachineImage } from '../../src/image/machine_image.ts'
import { Agent } from '../../src/machine/agent.ts'

const QEMU = 'qemu-system-x86_64'
const PACKAGES = fileURLToPath(new URL('../../.cache/debian', import.meta.url))
const BOOT_MS_MAX = 90_000
/** Alone on a machine it is 0.3 s; forced, it is 2.2 s, and 10 s when nobody hears. */
const STOP_MS_MAX = 2_000
const missing = [QEMU, 'apt-get'].filter((tool) => spawnSync(tool, ['--version']).error !== undefined)
const skip = process.platform !== 'linux' || process.arch !== 'x64' ? 'for x86-64 Linux'
  : missing.length > 0 && `not here: ${missing.join(', ')}`

/** What the program in the guest that is to be asked does. */
const PROGRAM = 'trap "echo asked to end >/dev/console; exit" TERM; while :; do sleep 0.1; done'

test('stop lets programs of the Debian guest end by themselves, is soon done, and the guest had its address before',
  { skip, timeout: 200_000 }, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'cellar-stop-'))
    t.after(() => rmSync(folder, { recursive: true }))
    const scratch = join(folder, 'scratch')
    mkdirSync(scratch)
    const store = new BlobStore(join(folder, 'store'))
    const made = await makeDebian(store, { source: { folder: PACKAGES, say: () => {} }, packages: [], scratch })
      .catch((error: unknown) => {
        if (error instanceof CellarError && error.code === 'MACHINE_PACKAGES_FAILED') return error
        throw error
      })
    if (made instanceof CellarError) return t.skip(made.message)
    const { kernel, initrd, config } = openMachineImage(store, 'debian', digestOf(made))

    const agent = new Agent({ name: 'box', generation: '00'.repeat(16), request: async () => ({ errno: ENOENT }),
      changed: () => {} })
    const path = join(folder, 'agent')
    const server = createServer((socket) => agent.attach(socket.on('error', () => {}))).listen(path)
    await once(server, 'listening')
    const child = spawn(QEMU, ['-M', 'q35', '-nodefaults', '-accel', 'tcg', '-cpu', 'max', '-m', '256M', '-kernel',
      kernel!, '-initrd', initrd!, '-append', config.commandLine, '-serial', 'stdio', '-display', 'none', '-no-reboot',
      '-netdev', 'user,id=n', '-device', 'virtio-net-pci,netdev=n', '-device', 'virtio-serial-pci', '-chardev',
      `socket,id=a,path=${path}`, '-device', 'virtserialport,chardev=a,name=cellar.agent.0'],
    { stdio: ['pipe', 'pipe', 'inherit'] })
    t.after(() => {
      child.kill('SIGKILL')
      agent.close()
      server.close()
    })
    const [console, ended] = [text(child.stdout), once(child, 'exit')]
    await agent.connected(BOOT_MS_MAX)
    let out = ''
    const start = 'ip -4 addr show eth0; setsid sh -c "$0" </dev/null >/dev/null 2>&1 & sleep 1'
    const { output } = agent.exec({ argv: ['sh', '-c', start, PROGRAM], hasInput: false })
    for await (const { bytes } of output) out += Buffer.from(bytes).toString()
    assert.match(out, /inet 10\.0\.2\.15/)
    const began = performance.now()
    await agent.stop('poweroff')
    await ended
    const ms = performance.now() - began
    const said = await console
    assert.match(said, /asked to end/)
    assert.match(said, /Power down/)
    assert.doesNotMatch(said, /Emergency Remount/, 'it was forced')
    assert.ok(ms < STOP_MS_MAX, `it took ${Math.round(ms)} ms`)
  })
