// cli/operations.ts: long work of a host, as seen from outside: lists, and progress until its end.
//
// On a terminal each operation has a line with a bar, which stays in its place; elsewhere a line is written when the
// stage changes. All of it goes to stderr. Ctrl-C cancels what the command itself began.

import { printable } from '../base/printable.ts'
import { signals } from '../base/signals.ts'
import { formatSize } from '../base/units.ts'
import type { OperationView, Problem } from '../host/operator.ts'
import type { Client } from './client.ts'
import type { Call } from './commands.ts'
import { ago, each, onInterrupt, printList } from './output.ts'
import { print, tell } from './print.ts'
import { ToldError } from './told.ts'

const POLL_MS = 200
const BAR_CHARS = 24

/** `cellar operation ls`. */
export async function listOperations(call: Call): Promise<number> {
  const host = await call.client()
  await printList(call, await host.list<OperationView>('/v1/operations'), {
    name: ({ id }) => id,
    columns: [
      { head: 'ID', of: ({ id }) => id }, { head: 'KIND', of: ({ kind }) => kind },
      { head: 'TARGET', of: ({ target }) => target }, { head: 'STATUS', of: ({ status }) => status },
      { head: 'STAGE', of: ({ stage }) => stage }, { head: 'PROGRESS', of: progressOf },
      { head: 'STARTED', of: ({ createdAt }) => ago(createdAt) }, { head: 'BY', wide: true, of: ({ by }) => by },
      { head: 'ERROR', wide: true, of: ({ error }) => error?.detail ?? '' },
    ],
  })
  return 0
}

/** `cellar operation wait`. */
export async function waitForOperations({ client, words }: Call): Promise<number> {
  const host = await client()
  const begun = await Promise.all(words.map((id) => host.ask<OperationView>('GET', operationPath(id))))
  return await finish(host, begun, { cancels: false })
}

/** `cellar operation cancel`. */
export async function cancelOperations({ client, words }: Call): Promise<number> {
  const host = await client()
  return await each(words, async (id) => {
    await host.ask('DELETE', operationPath(id))
    return id
  })
}

/**
 * Shows the progress of operations until all have ended; prints with `answer` what each came to, and tells what failed.
 * `cancels`: Ctrl-C cancels them. The exit status: 1 if any failed, 130 after Ctrl-C.
 */
export async function finish(host: Client, begun: readonly OperationView[],
  { cancels, answer }: { cancels: boolean; answer?: (operation: OperationView) => string }): Promise<number> {
  let isInterrupted = false
  using _ = onInterrupt(() => {
    isInterrupted = true
    if (cancels) for (const { id } of begun) host.ask('DELETE', operationPath(id)).catch(() => {})
  })
  // They go on without us.
  const isLeft = (): boolean => isInterrupted && !cancels
  const bars = new Bars(begun)
  const ended = await Promise.all(begun.map(async (first, i) => {
    let now = first
    while (now.status === 'running' && !isLeft()) {
      now = await host.ask<OperationView>('GET', operationPath(now.id), { query: { wait: `${POLL_MS}ms` } })
      bars.show(i, now)
    }
    return now
  }))
  bars.end()
  let failed = 0
  for (const operation of ended) {
    if (operation.status === 'done') {
      if (answer !== undefined) print(`${answer(operation)}\n`)
    } else if (operation.status !== 'running') {
      failed++
      if (!isInterrupted) tell(toldOf(operation))
    }
  }
  return isInterrupted ? 128 + signals.SIGINT : failed > 0 ? 1 : 0
}

function operationPath(id: string): string { return `/v1/operations/${encodeURIComponent(id)}` }

function toldOf({ error, kind, target, status }: OperationView): ToldError {
  const { detail, code, hint } = error ?? { detail: `Cannot finish ${kind} of ${target}: it is ${status}`,
    code: 'OPERATION_CANCELLED', hint: 'Start it again' } satisfies Partial<Problem>
  return new ToldError({ message: printable(detail, 1000), code, hint: printable(hint, 1000), exit: 1 })
}

/** `12 MiB of 40 MiB`; nothing if it isn't known. */
export function progressOf({ progress }: OperationView): string {
  if (progress === undefined) return ''
  const text = (value: number): string => progress.unit === 'bytes' ? formatSize(value) : String(value)
  return progress.total > 0 ? `${text(progress.done)} of ${text(progress.total)}` : text(progress.done)
}

/** Lines of operations under way. */
class Bars {
  readonly #operations: OperationView[]
  readonly #isLive = process.stderr.isTTY
  #drawn = 0

  constructor(begun: readonly OperationView[]) { this.#operations = [...begun] }

  show(i: number, now: OperationView): void {
    const before = this.#operations[i]!
    this.#operations[i] = now
    if (this.#isLive) this.#draw()
    else if (before.stage !== now.stage) process.stderr.write(`${this.#line(now)}\n`)
  }

  end(): void {
    if (this.#isLive && this.#drawn > 0) this.#draw()
  }

  #draw(): void {
    const columns = process.stderr.columns || 80
    const lines = this.#operations.map((one) => `${this.#line(one).slice(0, columns - 1)}\x1b[K\n`)
    process.stderr.write(`${this.#drawn === 0 ? '' : `\x1b[${this.#drawn}A`}${lines.join('')}`)
    this.#drawn = lines.length
  }

  #line(operation: OperationView): string {
    const { target, stage, status, progress } = operation
    const done = progress === undefined || progress.total <= 0 ? 0 : Math.min(1, progress.done / progress.total)
    const bar = !this.#isLive || progress === undefined || status !== 'running' ? ''
      : ` [${'='.repeat(Math.round(done * BAR_CHARS)).padEnd(BAR_CHARS)}]`
    const text = status === 'running' ? printable(stage) : status
    const more = status === 'running' && this.#isLive ? ` ${progressOf(operation)}` : ''
    return `${printable(target)}: ${text}${bar}${more}`.trimEnd()
  }
}
