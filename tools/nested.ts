#!/usr/bin/env -S node --disable-warning=ExperimentalWarning
// tools/nested.ts: runs commands in a nested host (tests/machine/nested_host.ts) from the command line.
//
//   tools/nested.ts [flags] -- COMMAND ARGS…   runs a command there; the host is booted first if it isn't running
//   tools/nested.ts [flags] --run 'LINE'       the same with a line for sh
//   tools/nested.ts --start | --stop | --log   boots it; ends it; prints its kernel's messages
//   tools/nested.ts --fetch                    only brings the packages and says where they are, or why there are none
// Flags: --name NAME (several hosts; default "default"), --file HOST[:THERE] (repeatable), --npt 0|1,
// --timeout SECONDS, --fresh (boots anew). The status is the command's; 124: its time was over, 125: there
// is no nested host.

import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { NestedHost, quote } from '../tests/machine/nested_host.ts'
import { findPackages } from '../tests/machine/nested_packages.ts'

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      name: { type: 'string', default: 'default' }, file: { type: 'string', multiple: true, default: [] },
      npt: { type: 'string', default: '1' }, timeout: { type: 'string', default: '300' }, run: { type: 'string' },
      fetch: { type: 'boolean' }, start: { type: 'boolean' }, stop: { type: 'boolean' }, log: { type: 'boolean' },
      fresh: { type: 'boolean' },
    },
  })
  if (values.fetch) {
    const packages = findPackages()
    console.log('missing' in packages ? `nested: ${packages.missing}` : `nested: ${packages.kernel}`)
    return 'missing' in packages ? 125 : 0
  }
  const host = new NestedHost(values.name)
  if (values.stop) {
    await host.stop()
    return 0
  }
  if (values.log) {
    process.stdout.write(readFileSync(host.logPath))
    return 0
  }
  await host.start({ fresh: values.fresh ?? false })
  const line = values.run ?? positionals.map(quote).join(' ')
  const begun = performance.now()
  const output = await host.run(values.start && line === '' ? 'true' : line, {
    files: values.file.map((file) => {
      const [from, to = from] = file.split(':') as [string, string?]
      return { from: resolve(from), to: resolve(to) }
    }),
    npt: values.npt !== '0', timeoutMs: Number(values.timeout) * 1000,
    listeners: { stdout: (bytes) => process.stdout.write(bytes), stderr: (bytes) => process.stderr.write(bytes) },
  })
  const seconds = ((performance.now() - begun) / 1000).toFixed(1)
  console.error(`nested: ${output.timedOut ? 'time over' : `status ${output.status}`} after ${seconds} s`)
  return output.timedOut ? 124 : output.status
}

try {
  process.exitCode = await main()
} catch (error) {
  console.error(`nested: ${(error as Error).message}`)
  process.exitCode = 125
}
