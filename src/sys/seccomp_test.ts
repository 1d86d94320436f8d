// sys/seccomp_test.ts: the filter, run here as the kernel runs it, for both architectures. How it holds in a process:
// tests/security/jail_test.ts.

import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { cellFilter, noExecFilter, type Architecture, type Instruction } from './seccomp.ts'
import { CALLS, EXEC_CALLS, REFUSED_CALLS } from './seccomp_calls.ts'

const PID = 4321
const ALLOW = 0x7fff0000
const EPERM = 0x00050001
const ENOSYS = 0x00050026
const KILL = 0x80000000
const ARCHITECTURES = { x64: 0xc000003e, arm64: 0xc00000b7 } as const

/** What the kernel makes of a call: classic BPF, as far as the filter uses it. */
function answer(filter: readonly Instruction[], architecture: number, number: number, args: bigint[] = []): number {
  const data = new DataView(new ArrayBuffer(64))
  data.setInt32(0, number, true)
  data.setUint32(4, architecture, true)
  args.forEach((value, index) => data.setBigUint64(16 + index * 8, BigInt.asUintN(64, value), true))
  let loaded = 0
  for (let at = 0; ; at++) {
    const [code, jumpTrue, jumpFalse, value] = filter[at]!
    if (code === 0x20) loaded = data.getUint32(value, true)
    else if (code === 0x06) return value
    else at += (code === 0x15 ? loaded === value : code === 0x35 ? loaded >= value : (loaded & value) !== 0)
      ? jumpTrue : jumpFalse
  }
}

for (const name of ['x64', 'arm64'] as const satisfies Architecture[]) {
  const calls = CALLS[name]
  const filter = cellFilter(name, PID)
  const ask = (number: number, ...args: number[]): number =>
    answer(filter, ARCHITECTURES[name], number, args.map(BigInt))

  test(`cellFilter refuses each listed call of ${name} and no other`, () => {
    const refused = new Set(REFUSED_CALLS.map((call) => call[name === 'x64' ? 1 : 2]))
    const looked: number[] = Object.values(calls).filter((number) => number !== calls.seccomp)
    for (let number = 0; number < 600; number++) {
      if (!looked.includes(number)) assert.equal(ask(number), refused.has(number) ? EPERM : ALLOW, String(number))
    }
  })

  test(`cellFilter looks at the arguments of calls of ${name}`, () => {
    assert.equal(ask(calls.clone3), ENOSYS)
    // As the C library makes a thread, and as it forks.
    assert.equal(ask(calls.clone, 0x3d0f00), ALLOW)
    assert.equal(ask(calls.clone, 0x1200011), EPERM)
    assert.equal(ask(calls.clone, 0x3d0f00 | 0x10000000), EPERM)
    for (const family of [1, 2, 10, 16, 17, 40]) {
      assert.equal(ask(calls.socket, family), family === 1 ? ALLOW : EPERM)
      assert.equal(ask(calls.socketpair, family), family === 1 ? ALLOW : EPERM)
    }
    for (const pid of [PID, 1, 0, -1, PID + 1]) {
      assert.equal(ask(calls.kill, pid), pid === PID ? ALLOW : EPERM)
      assert.equal(ask(calls.tgkill, pid), pid === PID ? ALLOW : EPERM)
      assert.equal(ask(calls.prlimit64, pid), pid === PID || pid === 0 ? ALLOW : EPERM)
    }
    assert.equal(ask(calls.ioctl, 0, 0x5412), EPERM)
    assert.equal(ask(calls.ioctl, 0, 0x541c), EPERM)
    assert.equal(ask(calls.ioctl, 0, 0x5413), ALLOW)
  })

  test(`the filters of ${name} end calls of other architectures, and refuse those of x32`, () => {
    for (const one of [filter, noExecFilter(name)]) {
      for (const architecture of [0x40000003, ARCHITECTURES[name === 'x64' ? 'arm64' : 'x64']]) {
        assert.equal(answer(one, architecture, 1), KILL)
      }
      assert.equal(answer(one, ARCHITECTURES[name], 0x40000000), EPERM)
      assert.equal(answer(one, ARCHITECTURES[name], -1), EPERM)
    }
  })

  test(`a process of ${name} that has its child makes no other, and signals and limits nobody else`, () => {
    const [last, spawning] = [noExecFilter(name, [PID, PID + 1]), cellFilter(name, PID, true)]
    const asked = (number: number, ...args: number[]): number =>
      answer(last, ARCHITECTURES[name], number, args.map(BigInt))
    for (const call of REFUSED_CALLS) {
      const number = call[name === 'x64' ? 1 : 2]
      const isOnce = ['fork', 'vfork', 'capset'].includes(call[0])
      if (number === null) continue
      assert.equal(answer(spawning, ARCHITECTURES[name], number), isOnce ? ALLOW : EPERM, call[0])
      assert.equal(asked(number), isOnce ? EPERM : ALLOW, call[0])
    }
    for (const [call, number] of EXEC_CALLS.map((call) => [call[0], call[name === 'x64' ? 1 : 2]!] as const)) {
      assert.equal(asked(number), EPERM, call)
    }
    assert.equal(asked(calls.clone, 0x3d0f00), ALLOW)
    assert.equal(asked(calls.clone, 0x1200011), EPERM)
    for (const pid of [PID, PID + 1, 1, 0, -1, PID + 2]) {
      const isOurs = pid === PID || pid === PID + 1
      assert.equal(asked(calls.kill, pid), isOurs ? ALLOW : EPERM)
      assert.equal(asked(calls.tgkill, pid), isOurs ? ALLOW : EPERM)
      assert.equal(asked(calls.prlimit64, pid), isOurs || pid === 0 ? ALLOW : EPERM)
    }
  })

  test(`noExecFilter refuses to execute on ${name}, and nothing else`, () => {
    const numbers = EXEC_CALLS.map((call) => call[name === 'x64' ? 1 : 2])
    for (let number = 0; number < 600; number++) {
      const result = answer(noExecFilter(name), ARCHITECTURES[name], number)
      assert.equal(result, numbers.includes(number) ? EPERM : ALLOW, String(number))
    }
  })
}

test('REFUSED_CALLS and CALLS have the numbers of the kernel\'s own headers', (t) => {
  const headers = { x64: '/usr/include/x86_64-linux-gnu/asm/unistd_64.h', arm64: '/usr/include/asm-generic/unistd.h' }
  if (!Object.values(headers).every((path) => existsSync(path))) return t.skip('the headers are not installed')
  for (const [name, path] of Object.entries(headers) as [Architecture, string][]) {
    const defined = new Map([...readFileSync(path, 'utf8').matchAll(/^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$/gm)]
      .map((match) => [match[1]!, Number(match[2])]))
    const ours = [...[...REFUSED_CALLS, ...EXEC_CALLS].map((call) => [call[0], call[name === 'x64' ? 1 : 2]] as const),
      ...Object.entries(CALLS[name])]
    for (const [call, number] of ours) {
      // Headers may be older than a call.
      if (number !== null && defined.has(call)) assert.equal(number, defined.get(call), `${call} of ${name}`)
      if (number === null) assert.equal(defined.has(call), false, `${call} of ${name}`)
    }
  }
})
