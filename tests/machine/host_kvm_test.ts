// tests/machine/host_kvm_test.ts: a whole host where KVM is ordinary: the Debian guest under our own monitor, operated
// like any other guest.
//
// The image is made here, of the distribution's packages; the host runs where KVM is, in a nested host mostly, with
// the commands of an operator in the order below (host_kvm_program.ts). Each test looks at what some of them said.

import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { CellarError } from '../../src/base/errors.ts'
import { BlobStore } from '../../src/image/blob_store.ts'
import { MANIFEST_TYPE } from '../../src/image/image.ts'
import { LayoutFolder } from '../../src/image/layout.ts'
import { makeDebian } from '../../src/image/machine_debian.ts'
import { runTwice } from './guests.ts'
import type { HostStep } from './host_kvm_program.ts'
import { findKvm } from './kvm_place.ts'
import { quote } from './nested_host.ts'
import { ROOT } from './nested_packages.ts'

const kvm = await findKvm('host-kvm-test')
const TEST_MS_MAX = 290_000
const RUN_MS_MAX = 270_000

type Said = { readonly text: string; readonly status: number; readonly ms: number }

/** The Debian image as a layout in `folder`. Throws CellarError where packages can't be had. */
async function makeImage(folder: string, scratch: string): Promise<void> {
  mkdirSync(scratch)
  const manifest = await makeDebian(new BlobStore(folder), {
    source: { folder: join(ROOT, '.cache/debian'), say: () => {} }, packages: [], scratch })
  await new LayoutFolder(folder).writeManifest(manifest, MANIFEST_TYPE, 'latest')
}

const inGuest = (guest: string, line: string): HostStep => ({ words: ['exec', guest, 'sh', '-c', line], again: true })
const address = "ip -4 addr show eth0 | sed -n 's/.*inet //p'"
const who = `cat /nonce; hostname; ${address}`
// It has its own as soon as its agent has asked for one.
const anew = `A=$(${address}); [ -n "$A" ] && ! grep -qF "$A" /address && { ${who}; }`

/** What the operator does, by name. */
const steps = {
  pull: { words: ['pull', 'oci:IMAGE:latest'] },
  cell: { words: ['run', '-d', '--name', 'counter', '--expose', '80', 'guests/counter.wasm', 'counter'] },
  run: { words: ['run', '-d', '--name', 'vm', '--restart', 'on-failure', 'debian:latest'] },
  exec: inGuest('vm', `echo nonce-1 >/nonce; uname -s`),
  status: { words: ['exec', 'vm', 'sh', '-c', 'exit 7'] },
  cellByName: inGuest('vm', 'wget -q -O - http://counter/'),
  first: inGuest('vm', `${address} >/address; ${who}`),
  ps: { words: ['ps', '-o', 'wide'] },
  stats: { words: ['stats', '-o', 'json', 'vm'] },
  snapshot: { words: ['snapshot', 'vm', 's1'] },
  restore: { words: ['restore', 's1', '--name', 'again'] },
  restored: inGuest('again', anew),
  removed: { words: ['rm', '-f', 'again'] },
  fork: { words: ['fork', 'vm', '--name', 'child'] },
  forked: inGuest('child', anew),
  removedToo: { words: ['rm', '-f', 'child'] },
  pause: { words: ['pause', 'vm'] },
  paused: { words: ['ps'] },
  resume: { words: ['resume', 'vm'] },
  resumed: inGuest('vm', 'cat /nonce'),
  reboot: { words: ['exec', 'vm', 'sh', '-c', 'sleep 0.2; reboot'] },
  rebooted: inGuest('vm', 'test ! -e /nonce && echo anew'),
  stop: { words: ['stop', 'vm'] },
  stopped: { words: ['ps', '-a'] },
  limited: { words: ['run', '-d', '--name', 'limited', '--cpu-limit', '25%', '--restart', 'no', 'debian:latest'] },
  group: { line: 'cat /sys/fs/cgroup/cellar/machine-*/cpu.max', again: true },
} as const satisfies Record<string, HostStep>

test('the Debian guest runs under KVM as a guest of a host', { skip: kvm.skip, timeout: TEST_MS_MAX }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'cellar-host-kvm-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const image = join(folder, 'debian')
  try {
    await makeImage(image, join(folder, 'scratch'))
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    return t.skip(`no image of Debian here: ${error.message}`)
  }
  await using place = kvm.open()
  t.diagnostic(place.way)
  const list = JSON.stringify(Object.values(steps)).replace('oci:IMAGE:', `oci:${image}:`)
  const output = await runTwice(place, `
    S=$(mktemp -d); export CELLAR_HOST=$S/host.sock
    bin/cellar host --state $S >$S/said 2>&1 & H=$!
    for i in $(seq 120); do [ -S $CELLAR_HOST ] && break; sleep 0.5; done
    node --disable-warning=ExperimentalWarning tests/machine/host_kvm_program.ts ${quote(list)}; R=$?
    kill -9 $H; cat $S/said $S/log/* >&2; rm -rf $S; exit $R`,
  { files: [image], timeoutMs: RUN_MS_MAX }, (text) => t.diagnostic(text))
  const told = `${output.stdout}\n${output.stderr}`
  assert.equal(output.status, 0, told)
  const said = readAnswers(output.stdout.toString(), told)
  t.diagnostic(Object.entries(said).map(([name, { status, ms }]) => `${name} ${ms} ms${status === 0 ? '' : ` (${
    status})`}`).join(', '))
  for (const [name, { status, text }] of Object.entries(said)) {
    if (name !== 'status' && name !== 'reboot') assert.equal(status, 0, `${name}: ${text}\n${told}`)
  }
  await look(t, said)
})

function readAnswers(text: string, told: string): Record<keyof typeof steps, Said> {
  const names = Object.keys(steps)
  const found: Record<string, Said> = {}
  let at = 0
  for (const mark of text.matchAll(/\x1e(\d+) (\d+) (\d+)\n/g)) {
    found[names[Number(mark[1])]!] = { text: text.slice(at, mark.index), status: Number(mark[2]), ms: Number(mark[3]) }
    at = mark.index + mark[0].length
  }
  assert.equal(Object.keys(found).length, names.length, told)
  return found as Record<keyof typeof steps, Said>
}

async function look(t: TestContext, said: Record<keyof typeof steps, Said>): Promise<void> {
  const lines = (name: keyof typeof steps): string[] => said[name].text.trim().split('\n').map((line) => line.trim())

  await t.test('it boots under our monitor, which ps names with the reason', () => {
    assert.match(said.ps.text, /^vm .*\bkvm: \S+/m)
    assert.match(said.exec.text, /^Linux$/m)
  })

  await t.test('exec has the program\'s own status', () => assert.equal(said.status.status, 7))

  await t.test('it reaches a cell by name', () => assert.match(said.cellByName.text, /count/))

  await t.test('stats lists its exits by reason', () => {
    const [{ machine }] = JSON.parse(said.stats.text) as [{ machine: { exits: Record<string, number> } }]
    t.diagnostic(JSON.stringify(machine.exits))
    assert.ok(machine.exits['KVM_EXIT_IO']! > 0, said.stats.text)
  })

  await t.test('what is restored or forked has its memory, and a name and an address of its own', () => {
    const [nonce, name, own] = lines('first')
    assert.deepEqual([nonce, name], ['nonce-1', 'vm'])
    for (const [step, guest] of [['restored', 'again'], ['forked', 'child']] as const) {
      const [theirNonce, theirName, theirs] = lines(step)
      assert.deepEqual([theirNonce, theirName], ['nonce-1', guest])
      assert.match(theirs!, /^\d+\.\d+\.\d+\.\d+\/\d+ /)
      assert.notEqual(theirs, own)
    }
  })

  await t.test('it pauses, and goes on', () => {
    assert.match(said.paused.text, /^vm .*paused/m)
    assert.match(said.resumed.text, /^nonce-1$/m)
  })

  await t.test('it reboots, and runs again', () => assert.match(said.rebooted.text, /^anew$/m))

  await t.test('when it is stopped it goes down by itself', () => {
    assert.match(said.stopped.text, /^vm .*stopped \(0\)/m)
  })

  await t.test('a limit of its CPU is one of its control group', () => {
    assert.equal(said.group.text.trim(), '25000 100000')
  })
}
