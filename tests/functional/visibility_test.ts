// tests/functional/visibility_test.ts: what another thread writes to the control word is seen by code of every tier.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

// Should V8 come to hoist the load of the control word out of loops, this would never end. The loop has no store and
// no call that might keep it from doing so, but for the check's own.
for (const flags of [['--no-liftoff'], ['--liftoff-only', '--no-wasm-tier-up'], ['--wasm-tiering-budget=1000']]) {
  test(`a word that another thread sets stops a loop under ${flags.join(' ')}`, { timeout: 30_000 }, () => {
    const script = fileURLToPath(new URL('./visibility.ts', import.meta.url))
    const { status, stderr } = spawnSync(process.execPath,
      ['--disable-warning=ExperimentalWarning', ...flags, script], { encoding: 'utf8', timeout: 20_000 })
    assert.equal(status, 0, stderr)
  })
}
