import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startHost } from '../host_support.ts'
import { guest } from '../support.ts'
test('storm', async () => {
  await using host = await startHost()
  await host.api('POST', '/v1/images?name=echo', readFileSync(guest('echo')))
  const N = 3000
  for (let at = 0; at < N; at += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, i) => host.api('POST', '/v1/projects/p/guests',
      { name: `g${at + i}`, spec: { image: 'echo', ports: ['0:80'] }, start: true })))
  }
  const look = async () => {
    const { body } = await host.api('GET', '/v1/projects/p/guests')
    const items = (body as any).items as any[]
    const by: Record<string, number> = {}
    for (const g of items) { const k = `${g.phase} r${g.restarts} ${g.exit?.reason ?? ''}`; by[k] = (by[k] ?? 0) + 1 }
    return by
  }
  for (let i = 0; i < 10; i++) { const b = await look(); console.log(b); if (Object.keys(b).length === 1) break; await sleep(1000) }
  for (const pid of host.cellProcesses()) process.kill(pid, 'SIGKILL')
  await sleep(2000)
  for (let i = 0; i < 12; i++) { const b = await look(); console.log(b); await sleep(1500); if (Object.keys(b).every((k) => k.startsWith('running'))) break }
})
