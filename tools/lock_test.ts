// tools/lock_test.ts: the lock file holds what `npm ci` needs, on every platform.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

type Names = Record<string, string>
type Package = { dependencies?: Names; optionalDependencies?: Names }

// A registry that lacks a package for another platform makes npm leave it out; `npm ci` then fails everywhere.
test('every dependency of every locked package is in the lock file', () => {
  const text = readFileSync(new URL('../package-lock.json', import.meta.url), 'utf8')
  const { packages } = JSON.parse(text) as { packages: Record<string, Package> }
  const missing = Object.entries(packages).flatMap(([path, { dependencies, optionalDependencies }]) =>
    Object.keys({ ...dependencies, ...optionalDependencies })
      .filter((name) => packages[`node_modules/${name}`] === undefined &&
        packages[`${path}/node_modules/${name}`] === undefined)
      .map((name) => `${path || 'package.json'} needs ${name}`))
  assert.deepEqual(missing, [])
})
