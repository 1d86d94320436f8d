// tests/functional/bad_stack_test.ts: what an operator may get wrong where cells share the CPU: in stacks and in flags.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { cellar, Folder, guest, start } from '../support.ts'
import { refuses, type Refusal } from './refusal.ts'

const HELLO = readFileSync(guest('hello'))

/** A stack with one cell `a` of which this is said, and this above its cells. */
const withCell = (fields: string, top = ''): string =>
  `${top === '' ? '' : `${top}\n`}cells:\n  a: { program: hello.wasm${fields === '' ? '' : `, ${fields}`} }\n`

const CASES: (Partial<Refusal> & { what: string; text: string; names: RegExp })[] = [
  { what: 'a stack without cells', text: 'cells: {}\n',
    names: /cells: must have a cell at least \(line 1, column 8\)/ },
  { what: 'a stack whose cells are nothing', text: 'cells:\n', names: /cells: .*expected record/ },
  { what: 'a stack whose cells are a list', text: 'cells:\n  - program: hello.wasm\n', names: /cells: .*\(line 2, / },
  { what: 'a cell that is nothing', text: 'cells:\n  a:\n', names: /cells\.a: .*expected object/ },
  { what: 'an unknown key of a stack', text: withCell('', 'quantums: 1ms'), names: /"quantums".*\(line 1, column 1\)/ },
  { what: 'an unknown key of a cell', text: withCell('cpu-limits: 10%'),
    names: /"cpu-limits".*\(line 2, column \d+\)/ },
  { what: 'an unknown key of a pool', text: withCell('', 'pools: { p: { limit: 10% } }'),
    names: /"limit".*\(line 1, column \d+\)/ },
  { what: 'a cell in a pool that is not there', text: withCell('pool: p', 'pools: { q: {} }'),
    names: /cells\.a\.pool: no pool is called "p" \(line 3, column \d+\)/ },
  { what: 'a pool of every object', text: withCell('pool: constructor', 'pools: {}'), names: /"constructor"/ },
  { what: 'a name with a blank', text: 'cells: { "a b": { program: hello.wasm } }\n', names: /cells\.a b: / },
  { what: 'a name that a terminal would obey', text: 'cells: { "\\e[2J": { program: hello.wasm } }\n',
    names: /cells\./ },
  { what: 'a name that is too long', text: `cells: { ${'x'.repeat(41)}: { program: hello.wasm } }\n`,
    names: /cells\.x/ },
  { what: 'a cell without a program', text: 'cells: { a: { shares: 5 } }\n',
    names: /cells\.a: say one of program and image/ },
  ...['0', '10001', '1.5', '-1', 'many', '"100"'].map((value) => ({ what: `shares of ${value}`,
    text: withCell(`shares: ${value}`), names: /cells\.a\.shares: .*\(line 2, column 37\)/ })),
  ...['0', '0%', '-10%', 'half', '10 percent', '.inf', '"%"', '[10%]'].flatMap((value) =>
    ['cpu-limit', 'cpu-reservation'].map((key) => ({ what: `a ${key} of ${value}`, text: withCell(`${key}: ${value}`),
      names: RegExp(`cells\\.a\\.${key}: .*\\(line 2, column \\d+\\)`) }))),
  { what: 'a limit below the reservation', text: withCell('cpu-limit: 10%, cpu-reservation: 0.2'),
    names: /cells\.a\.cpu-limit: must be no less than cpu-reservation \(line 2, column \d+\)/ },
  { what: 'a pool whose limit is below its reservation',
    text: withCell('', 'pools: { p: { cpu-reservation: 150%, cpu-limit: 1 } }'),
    names: /pools\.p\.cpu-limit: must be no less than cpu-reservation \(line 1, column \d+\)/ },
  { what: 'a cell alone whose limit is below its reservation',
    text: 'program: hello.wasm\ncpu-reservation: 20%\ncpu-limit: 10%\n',
    names: /cpu-limit: must be no less than cpu-reservation \(line 3, column 12\)/ },
  { what: 'a reservation above a pCPU', text: withCell('cpu-reservation: 101%'),
    names: /cells\.a\.cpu-reservation: must be 1 at most.*\(line 2, column \d+\)/ },
  { what: 'a reservation above that of the pool',
    text: withCell('pool: p, copies: 3, cpu-reservation: 20%', 'pools: { p: { cpu-reservation: 50% } }'),
    names: /cells\.a\.cpu-reservation: pool "p" reserves less than its cells \(line 3, / },
  { what: 'reservations that no pCPU can keep', text: withCell('copies: 3, cpu-reservation: 60%', 'pcpus: 2'),
    code: 'RESERVATION_REFUSED', names: /reserve 60 % of a pCPU for "a-3".*left is 35 %, of all 70 %/ },
  ...['0', '1.5', '10001', '-1'].map((value) => ({ what: `${value} copies`, text: withCell(`copies: ${value}`),
    names: /cells\.a\.copies: / })),
  { what: 'copies that take the name of another cell',
    text: `${withCell('copies: 2')}  a-2: { program: hello.wasm }\n`, names: /cells\.a\.copies: .*"a-2"/ },
  ...['egress: [example.org]', 'restart: always', 'stdin: true', 'networks: [default]'].map((field) => ({
    what: `a cell with ${field}, which only a host has`, text: withCell(field),
    names: RegExp(`cells\\.a\\.${field.split(':')[0]}: only a host has this: use 'cellar apply -f' \\(line 2, `) })),
  { what: 'a volume of a host', text: withCell('', 'volumes: { v: {} }'), names: /volumes: only a host has this/ },
  { what: 'a pool with memory, which only a host has', text: withCell('', 'pools: { p: { memory: 1GiB } }'),
    names: /pools\.p\.memory: only a host has this/ },
  { what: 'a published port beyond all ports', text: withCell('ports: ["70000:80"]'),
    names: /cells\.a\.ports: 70000:80 is no port/ },
  { what: 'copies that publish one port', text: withCell('copies: 2, ports: ["8080:80"]'),
    names: /cells\.a\.ports: .*tcp:127\.0\.0\.1:8080.*\(line 2, / },
  { what: 'copies that listen on one port', text: withCell('copies: 2, listen: ["tcp:127.0.0.1:8080"]'),
    names: /cells\.a\.listen: .*tcp:127\.0\.0\.1:8080.*\(line 2, / },
  { what: 'a timeout of nothing', text: withCell('timeout: 0s'), names: /cells\.a\.timeout: / },
  { what: 'a time that is none', text: withCell('', 'for: ever'),
    names: /for: must be a duration .*\(line 1, column 6\)/ },
  ...['1us', '2s', 'short', '0'].map((value) => ({ what: `a quantum of ${value}`,
    text: withCell('', `quantum: ${value}`),
    names: /quantum: .*\(line 1, column 10\)/ })),
  ...['0', '257', '1.5'].map((value) => ({ what: `${value} pCPUs`, text: withCell('', `pcpus: ${value}`),
    names: /pcpus: .*\(line 1, column 8\)/ })),
  { what: 'a stack one of whose programs is not there', status: 127, code: 'PROGRAM_NOT_FOUND',
    text: `cells:\n  a: { program: ${guest('spin')} }\n  b: { program: nowhere.wasm }\n`, names: /nowhere\.wasm/ },
  { what: 'a stack one of whose cells can not be started', code: 'MEMORY_BELOW_MINIMUM',
    text: `cells:\n  a: { program: ${guest('spin')} }\n  b: { program: hello.wasm, memory: 64KiB }\n`,
    names: /128 KiB .* 64 KiB/ },
  { what: 'a stack one of whose folders is not there', code: 'VOLUME_NOT_FOUND',
    text: `cells:\n  a: { program: ${guest('spin')} }\n  b: { program: hello.wasm, volumes: [nowhere] }\n`,
    names: /nowhere/ },
]

for (const { what, text, status = 125, code = 'MANIFEST_INVALID', names } of CASES) {
  test(`cellar run -f refuses ${what}`, async () => {
    await refuses({ status, code, names }, (folder) => {
      folder.write('hello.wasm', HELLO)
      return ['-f', folder.write('stack.yaml', text)]
    })
  })
}

for (const flags of [['--shares', '5'], ['--dir', '.'], ['--timeout', '5s'], ['--memory', '1MiB'], ['--stats'],
  ['--trace'], ['--env', 'A=B'], ['--deterministic'], ['--name', 'x'], ['--cpu-limit', '10%']]) {
  test(`a stack refuses ${flags[0]}, which each of its cells says for itself`, async () => {
    await refuses({ status: 125, code: 'FLAG_VALUE_INVALID', names: RegExp(`${flags[0]} .*left out`) }, (folder) => {
      folder.write('hello.wasm', HELLO)
      return [...flags, '-f', folder.write('stack.yaml', withCell(''))]
    })
  })
}

test('a stack refuses arguments, and takes --quantum', async () => {
  await refuses({ status: 125, code: 'MANIFEST_INVALID', names: /a stack takes no arguments/ }, (folder) =>
    ['-f', folder.write('stack.yaml', withCell('')), 'argument'])
  await refuses({ status: 125, code: 'FLAG_VALUE_INVALID', names: /--quantum "2s"/ }, (folder) =>
    ['--quantum', '2s', '-f', folder.write('stack.yaml', `cells: { a: { program: ${guest('hello')} } }\n`)])
  using folder = new Folder()
  const file = folder.write('stack.yaml', `cells: { a: { program: ${guest('hello')} } }\n`)
  const { status, stdout } = await cellar(['run', '--quantum', '10ms', '-f', file])
  assert.deepEqual([status, stdout.toString()], [0, 'a | Hello from a cell\n'])
})

const FLAGS: [string, string][] = [
  ...['0', '10001', '-1', '1.5', 'many', '', '0x10', ' 5'].map((value): [string, string] => ['--shares', value]),
  ...['0', '0%', '-10%', 'half', '', '10 percent'].flatMap((value): [string, string][] =>
    [['--cpu-limit', value], ['--cpu-reservation', value]]),
  ...['1us', '99us', '1.1s', '0', 'short', ''].map((value): [string, string] => ['--quantum', value]),
]

for (const [flag, value] of FLAGS) {
  test(`cellar run refuses ${flag} "${value}"`, async () => {
    await refuses({ status: 125, code: 'FLAG_VALUE_INVALID', names: RegExp(`${flag} "${value}" as it must be`) },
      () => [`${flag}=${value}`, guest('hello')])
  })
}

test('cellar run refuses a limit below the reservation, and a reservation that no pCPU can keep', async () => {
  await refuses({ status: 125, code: 'FLAG_VALUE_INVALID', names: /--cpu-limit "10%" .*reservation/ },
    () => ['--cpu-limit', '10%', '--cpu-reservation', '20%', guest('hello')])
  await refuses({ status: 125, code: 'RESERVATION_REFUSED', names: /97 %.*95 %/ },
    () => ['--cpu-reservation', '97%', guest('hello')])
})

// (type (array (mut i32))) (memory (export "memory") 1)
// (func (export "_start") (drop (array.new_default 0 (i32.const 5))))
const COLLECTED = Uint8Array.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 7, 2, 0x5e, 0x7f, 1, 0x60, 0, 0, 3, 2, 1, 1,
  5, 3, 1, 0, 1, 7, 19, 2, 6, ...Buffer.from('memory'), 2, 0, 6, ...Buffer.from('_start'), 0, 0,
  10, 10, 1, 8, 0, 0x41, 5, 0xfb, 7, 0, 0x1a, 0x0b])

test('a program that can not be kept within bounds is refused by what it uses, unless that is wanted', async () => {
  const expected: Refusal = { status: 126, code: 'MODULE_UNBOUNDED', names: /uses array\.new_default/ }
  await refuses(expected, (folder) => ['--cpu-limit', '50%', folder.write('gc.wasm', COLLECTED)])
  await refuses(expected, (folder) => {
    folder.write('gc.wasm', COLLECTED)
    return ['-f', folder.write('stack.yaml', 'cells: { a: { program: gc.wasm } }\n')]
  })
  using folder = new Folder()
  const program = folder.write('gc.wasm', COLLECTED)
  const wanted = folder.write('stack.yaml', 'cells: { a: { program: gc.wasm, unbounded: true } }\n')
  for (const args of [[program], ['--unbounded', '--cpu-limit', '50%', program], ['-f', wanted]]) {
    const { status, stderr } = await cellar(['run', ...args])
    assert.equal(status, 0, stderr)
  }
})

test('a stack that can not be started leaves nothing running', async () => {
  using folder = new Folder()
  folder.write('hello.wasm', HELLO)
  const file = folder.write('stack.yaml',
    `cells:\n  a: { program: ${guest('spin')} }\n  b: { program: hello.wasm, memory: 64KiB }\n`)
  using running = start(['run', '-f', file])
  const { status } = await running.ended
  assert.equal(status, 125)
  // bin/cellar is the process itself: there is none below it, and it is gone.
  assert.throws(() => process.kill(running.child.pid!, 0), { code: 'ESRCH' })
})
