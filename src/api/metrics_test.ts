// api/metrics_test.ts: the exposition, checked by Prometheus's own tool where it is installed.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import test from 'node:test'
import { app } from './dispatch.ts'
import { ApiMetrics } from './metrics.ts'
import { bearer, FakeOperator, sending } from './test_support.ts'

async function scraped(): Promise<string> {
  const metrics = new ApiMetrics()
  const { request } = app(new FakeOperator(), { metrics })
  try {
    await request('/v1/projects', sending('POST', { name: 'a' }))
    await request('/v1/projects', sending('POST', { name: 'a' }))
    for (let i = 0; i < 50; i++) await request(`/nothing/${i}`, { method: i % 2 === 0 ? 'GET' : 'PUT' })
    metrics.observe('GET', 'odd "path"\\\n', 200, 3)
    const response = await request('/metrics', { headers: bearer('reader') })
    assert.equal(response.headers.get('content-type'), 'text/plain; version=0.0.4; charset=utf-8')
    return await response.text()
  } finally {
    metrics.close()
  }
}

test('ApiMetrics counts requests by route and status, unknown paths as one', async () => {
  const text = await scraped()
  const total = (labels: string): string | undefined =>
    text.split('\n').find((line) => line.startsWith(`cellar_api_requests_total{${labels}}`))?.split(' ').at(-1)
  assert.equal(total('method="POST",route="/v1/projects",status="201"'), '1')
  assert.equal(total('method="POST",route="/v1/projects",status="409"'), '1')
  assert.equal(total('method="any",route="none",status="404"'), '50')
  assert.equal((text.match(/route="none"/g) ?? []).length, 12)
  assert.match(text, /_bucket\{method="GET",route="odd \\"path\\"\\\\\\n",status="200",le="2"\} 0\n.*le="10"\} 1\n/)
  assert.match(text, /^cellar_build_info\{version="0.1.0",node="26"\} 1$/m)
  assert.match(text, /^cellar_guests 0$/m)
  assert.match(text, /^process_cpu_seconds_total \d/m)
})

test('ApiMetrics writes what promtool accepts', async (t) => {
  const text = await scraped()
  const { error, status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'],
    { input: text, encoding: 'utf8' })
  if (error !== undefined) return t.skip('promtool is not installed here')
  assert.deepEqual([status, stdout, stderr], [0, '', ''])
})
