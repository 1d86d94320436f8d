// cell/pcpu_worker.ts: a pCPU as a worker thread, and the messages that drive it.
//
// The thread that owns it (stack.ts) posts commands, and gets back what became of each cell. Counters lie in shared
// memory, so that the owner can read them while a guest keeps this thread busy. Where cells share the pCPU by force the
// owner announces each message (alarm.ts), or a guest that is alone would not let it be read.

import { closeSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { CellarError } from '../base/errors.ts'
import { nowNs } from '../base/stopwatch.ts'
import type { LabelledOutput } from '../services/console/labelled.ts'
import { nullConsole } from '../services/console/console.ts'
import type { RemoteInput, RemoteOutput, RemotePort } from '../services/console/remote.ts'
import { StandardInput, StandardOutput } from '../services/console/stdio.ts'
import type { Asked, LifecycleGrant } from '../services/lifecycle/lifecycle.ts'
import { RemoteLifecycle, type LifecyclePort } from '../services/lifecycle/remote.ts'
import { ENDED, type Node, type Terms } from '../sched/node.ts'
import type { Account } from '../sched/run_queue.ts'
import type { End } from '../wasi/p1/context.ts'
import { Alarm } from './alarm.ts'
import type { Cell, Moved, Origin, Outcome, Usage } from './cell.ts'
import { Dispatcher, type ScheduledTurn } from './dispatcher.ts'
import type { Executable } from './executable.ts'
import type { Call } from './library.ts'
import { giveBack, lend } from './memory_image.ts'
import { flushed, Pcpu, type Console, type Grants, type Watch } from './pcpu.ts'
import type { NetCommand, NetGrants, NetReport } from './pcpu_net.ts'
import type { CellState } from './state.ts'

/** What a pCPU is started with (workerData). Without `shared`, cells run until they wait. */
export type PcpuStart = {
  readonly shared?: {
    readonly control: WebAssembly.Memory; readonly bell: SharedArrayBuffer; readonly streams: SharedArrayBuffer
    readonly quantumNs: number
  }
  /** The processor to which the thread is bound, where the kernel lets it. */
  readonly processor?: number
  /** Cells may have networks. */
  readonly net?: boolean
}

/** A cell to be started. */
export type Start = {
  readonly executable: Executable
  readonly grants: Grants
  readonly calls: readonly Call[] | undefined
  readonly trace: boolean
  /** Answers by hypercall (HYPERCALL_NAMES). */
  readonly counts: Uint32Array
  readonly terms?: Terms
  /** Default: the root. */
  readonly pool?: string | undefined
  /** The cell's lines of output begin with this, and it has no input. Default: the process's own streams. */
  readonly label?: string | undefined
  /** The owner has its console (services/console/remote.ts): it gets what comes, and gives input if there is any. */
  readonly remote?: { readonly stdin: boolean } | undefined
  /** What it has of networks, if the pCPU has any. */
  readonly net?: NetGrants | undefined
  /** It is stopped when it has run for so long. */
  readonly timeoutNs?: number | undefined
  /** Who it is, and what has become of it; undefined: nobody keeps it. */
  readonly lifecycle?: LifecycleGrant | undefined
  /** It goes on from there, in place of beginning. `stoppedAtNs` (nowNs): its clock has gone on since. */
  readonly from?: Origin & { readonly stoppedAtNs?: number | undefined } | undefined
  /** It is there, and waits for `pause` to let it run. */
  readonly paused?: boolean | undefined
}

/** Owner → worker. */
export type Command =
  | ({ readonly start: number } & Started)
  /** What starts mean by this number from now on; undefined: nothing any more. */
  | { readonly executable: number; readonly is: Executable | undefined }
  | { readonly pool: string; readonly terms: Terms }
  | { readonly id: number; readonly terms: Terms }
  | { readonly stop: number; readonly end: End }
  | { readonly report: 'all' | 'pools' | 'loads' }
  /** Keeps a cell from running, or lets it again. */
  | { readonly pause: number; readonly is: boolean }
  /** Stops a cell, and answers with what is left of it; then it goes on, or is given up. `lend`: until `unlend`. */
  | { readonly capture: number; readonly lend: boolean; readonly spare?: SharedArrayBuffer | undefined }
  | { readonly unlend: number }
  | { readonly goOn: number; readonly continuation: WebAssembly.Module }
  | { readonly giveUp: number }
  /** The answer to what a cell has asked (services/lifecycle/remote.ts). */
  | { readonly told: number; readonly serial: number; readonly errno: number }
  /** Of a remote console: pieces of output are done with; input; its end (null); nobody reads any more. */
  | { readonly credit: number; readonly channel: number; readonly bytes: number }
  | { readonly input: number; readonly bytes: Uint8Array | null }
  | { readonly hangUp: number }
  | NetCommand

/** A start as it is posted: an executable that many cells have is posted once, and then named by its number. */
type Started = Omit<Start, 'executable'> & { readonly executable: Executable | number }

/** What became of a cell's time so far, and of its memory. */
export type Figures = Account & {
  readonly id: number; readonly memoryBytes: number
  /** Who had the pCPU while it was runnable, most first, -1 for cells that have ended; empty if it isn't known. */
  readonly waitedFor: readonly (readonly [id: number, ns: number])[]
  readonly throttledBy: 'itself' | 'its pool' | undefined
}

/** Worker → owner. `id` is that of `start`. */
export type Report =
  | { readonly id: number; readonly created: true }
  | { readonly id: number; readonly ended: Outcome; readonly usage: Usage; readonly figures?: Figures }
  /** It was given up. */
  | { readonly id: number; readonly left: Moved; readonly usage: Usage; readonly figures: Figures }
  | { readonly id: number; readonly failed: Pick<CellarError, 'code' | 'values'> }
  | Told
  | { readonly paused: number; readonly is: boolean }
  | { readonly captured: number; readonly state: CellState; readonly figures: Figures; readonly atNs: number }
  | { readonly captured: number; readonly failed: Pick<CellarError, 'code' | 'values'> }
  | { readonly asks: number; readonly asked: Asked; readonly serial: number }
  | { readonly output: number; readonly channel: number; readonly bytes: Uint8Array }
  | { readonly taken: number; readonly count: number }
  | NetReport

/** What a pCPU tells when it is asked to: `figures` of all, or `loads` since it was last asked for them. */
export type Told = {
  readonly figures: readonly Figures[]; readonly loads: readonly LoadFigures[]
  readonly busyNs: number; readonly pools: readonly PoolFigures[]
}

/** Of `forNs`, what a cell has wanted of the pCPU, and what it was given. Who wants next to nothing isn't told of. */
export type LoadFigures = { readonly id: number; readonly forNs: number; readonly wantedNs: number
  readonly receivedNs: number; readonly memoryBytes: number }

/** For how long a pool's cells on this pCPU have wanted to run, as a whole. */
export type PoolFigures = { readonly pool: string; readonly ageNs: number; readonly wantedNs: number }

/** In place of the id of cells that have ended. */
const GONE = -1

type RemoteConsole = { readonly stdin: RemoteInput | undefined; readonly stdout: RemoteOutput
  readonly stderr: RemoteOutput }
type Running = {
  cell: Cell | undefined; readonly turn: ScheduledTurn | undefined; end?: End; remote?: RemoteConsole
  lifecycle?: RemoteLifecycle
  /** By its owner; because it is captured. */
  isPaused: boolean; isHeld: boolean
  /** Who waits for the cell to be there. */
  readonly created: PromiseWithResolvers<void>
  /** Its account when its load was last asked for. */
  seen: { readonly ageNs: number; readonly wantedNs: number; readonly runningNs: number }
}

const { shared, processor, net: hasNet } = workerData as PcpuStart
const pcpu = new Pcpu(shared?.control)
const alarm = shared === undefined ? undefined : new Alarm(new Int32Array(shared.control.buffer), shared.bell)
const dispatcher = alarm === undefined ? undefined : new Dispatcher(alarm, shared!.quantumNs)
dispatcher?.queue.blame(true)
const running = new Map<number, Running>()
const ids = new Map<Node<ScheduledTurn>, number>()
const pools = new Map<string, Node<ScheduledTurn>>()
const executables = new Map<number, Executable>()
/** Memories that other threads copy from: they are there until those are done, whatever becomes of their cells. */
const lent = new Map<number, WebAssembly.Memory>()
const port = parentPort!

// Before the first message: input may follow a start at once.
const remoteConsole = shared === undefined ? undefined : await import('../services/console/remote.ts')
const net = hasNet !== true ? undefined : new (await import('./pcpu_net.ts')).PcpuNet(
  (report, transfer) => port.postMessage(report satisfies Report, transfer ?? []),
  { control: shared!.control.buffer as unknown as SharedArrayBuffer, read: () => alarm!.messageRead() })
if (processor !== undefined) (await import('../sys/affinity.ts')).bindThread(processor)
const remotePort: RemotePort = {
  output: (guest, channel, bytes) =>
    port.postMessage({ output: guest, channel, bytes } satisfies Report, [bytes.buffer]),
  taken: (guest, count) => post({ taken: guest, count }),
}
const lifecyclePort: LifecyclePort = { ask: (guest, asked, serial) => post({ asks: guest, asked, serial }) }
port.on('message', (message: Command) => {
  alarm?.messageRead()
  if ('start' in message) void start(message)
  else if ('pool' in message) setPool(message.pool, message.terms)
  else if ('terms' in message) setTerms(message.id, message.terms)
  else if ('stop' in message) stop(message.stop, message.end)
  else if ('report' in message) report(message.report)
  else if ('executable' in message) setExecutable(message.executable, message.is)
  else if ('pause' in message) pause(message.pause, message.is)
  else if ('capture' in message) void capture(message)
  else if ('unlend' in message) unlend(message.unlend)
  else if ('goOn' in message) goOn(message.goOn, message.continuation)
  else if ('giveUp' in message) running.get(message.giveUp)?.cell?.giveUp()
  else if ('told' in message) running.get(message.told)?.lifecycle?.told(message.serial, message.errno)
  else if ('net' in message) net!.handle(message)
  else tellConsole(message)
})

function setExecutable(number: number, is: Executable | undefined): void {
  if (is === undefined) executables.delete(number)
  else executables.set(number, is)
}

function tellConsole(message: Extract<Command, { credit: number } | { input: number } | { hangUp: number }>): void {
  if ('credit' in message) {
    const remote = running.get(message.credit)?.remote
    ;(message.channel === 1 ? remote?.stdout : remote?.stderr)?.credit(message.bytes)
  } else if ('input' in message) {
    const stdin = running.get(message.input)?.remote?.stdin
    if (message.bytes === null) stdin?.end()
    else stdin?.push(message.bytes)
  } else {
    const remote = running.get(message.hangUp)?.remote
    remote?.stdout.hangUp()
    remote?.stderr.hangUp()
  }
}

async function start(message: { readonly start: number } & Started): Promise<void> {
  const { start: id, grants, calls, timeoutNs } = message
  const executable = typeof message.executable === 'number' ? executables.get(message.executable)! : message.executable
  const turn = dispatcher?.admit(message.terms, message.pool === undefined ? undefined : pools.get(message.pool))
  if (turn !== undefined) ids.set(turn.node, id)
  const record: Running = { cell: undefined, turn, isPaused: message.paused === true, isHeld: false,
    created: Promise.withResolvers(), seen: { ageNs: 0, wantedNs: 0, runningNs: 0 } }
  running.set(id, record)
  holdOrNot(record)
  let callOff = (): void => {}
  try {
    const { labelled, ...console } = await consoleFor(message, record)
    const cell = await create({ ...message, executable }, console, record)
    record.cell = cell
    record.created.resolve()
    post({ id, created: true })
    if (record.end !== undefined) cell.context.stop(record.end)
    if (timeoutNs !== undefined && dispatcher !== undefined) {
      callOff = dispatcher.after(timeoutNs, () => stop(id, { kind: 'exit', code: TIMED_OUT }))
    }
    const ended = calls === undefined ? await cell.runOrMove()
      : await (await import('./library.ts')).runLibrary(cell, executable.name, calls)
    callOff()
    if (ended.kind === 'moved') post({ id, left: ended, usage: cell.usage(), figures: figuresOf(id, cell, turn!) })
    else {
      await flushed(grants)
      for (const stream of labelled) await stream.settled(SETTLE_MS_MAX)
      const figures = turn === undefined ? {} : { figures: figuresOf(id, cell, turn) }
      post({ id, ended, usage: cell.usage(), ...figures })
    }
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    turn?.end()
    post({ id, failed: { code: error.code, values: error.values } })
  } finally {
    callOff()
    running.delete(id)
    record.created.resolve()
    if (message.net !== undefined) net!.release(message.net.guest)
    if (turn !== undefined) ids.delete(turn.node)
    turn?.close()
    if (record.cell !== undefined && !lent.has(id)) giveBack(record.cell.context.memory.memory)
  }
}

async function create(
  { executable, grants, trace, counts, net: granted, lifecycle, from, start: id }: Start & { readonly start: number },
  console: Console, record: Running,
): Promise<Cell> {
  const tracer = trace ? (await import('./trace.ts')).traceToStderr() : undefined
  if (lifecycle !== undefined) record.lifecycle = new RemoteLifecycle(lifecyclePort, id, lifecycle)
  const watch: Watch = { tracer, counts, turn: record.turn, lifecycle: record.lifecycle,
    from: from === undefined ? undefined : originOf(from) }
  if (granted === undefined) return await pcpu.create(executable, grants, console, watch)
  let isGiven = false
  try {
    return await pcpu.create(executable, grants, console, { ...watch, dialer: net!.dialer(granted.guest),
      more: (descriptors) => {
        isGiven = true
        return net!.grant(descriptors, granted)
      } })
  } finally {
    // Nobody else knows of its sockets by now.
    if (!isGiven) for (const fd of granted.ports.flatMap(({ fds }) => fds)) closeSync(fd)
  }
}

function originOf({ state, continuation, stoppedAtNs }: NonNullable<Start['from']>): Origin {
  if (stoppedAtNs === undefined) return { state, continuation }
  return { state: { ...state, monotonicNs: state.monotonicNs + nowNs() - stoppedAtNs }, continuation }
}

async function consoleFor({ start: id, label, remote }: { readonly start: number } & Started, record: Running):
Promise<Console & { labelled: readonly LabelledOutput[] }> {
  if (remote !== undefined) {
    const { RemoteInput, RemoteOutput } = remoteConsole!
    const stdin = remote.stdin ? new RemoteInput(remotePort, id) : undefined
    const [stdout, stderr] = [new RemoteOutput(remotePort, id, 1), new RemoteOutput(remotePort, id, 2)]
    record.remote = { stdin, stdout, stderr }
    return { stdin: stdin ?? nullConsole, stdout, stderr, labelled: [] }
  }
  if (label === undefined) {
    return { stdin: new StandardInput(0), stdout: new StandardOutput(1), stderr: new StandardOutput(2), labelled: [] }
  }
  const { LabelledOutput } = await import('../services/console/labelled.ts')
  const [stdout, stderr] = [1, 2].map((fd) => new LabelledOutput(fd, label, shared!.streams)) as
    [LabelledOutput, LabelledOutput]
  return { stdin: nullConsole, stdout, stderr, labelled: [stdout, stderr] }
}

function setPool(name: string, terms: Terms): void {
  const pool = pools.get(name)
  if (pool !== undefined) dispatcher!.setTerms(pool, terms)
  else pools.set(name, dispatcher!.addPool(terms))
}

function setTerms(id: number, terms: Terms): void {
  const turn = running.get(id)?.turn
  // One that has ended is here until its output is written.
  if (turn !== undefined && turn.node.state !== ENDED) dispatcher!.setTerms(turn.node, terms)
}

function pause(id: number, is: boolean): void {
  const record = running.get(id)
  if (record === undefined) return
  record.isPaused = is
  holdOrNot(record)
  post({ paused: id, is })
}

function holdOrNot({ turn, isPaused, isHeld }: Running): void {
  if (turn === undefined || turn.node.state === ENDED) return
  if (isPaused || isHeld) dispatcher!.pause(turn.node)
  else dispatcher!.unpause(turn.node)
}

// It is paused until it goes on, and unwinds its stack at once, however many are before it.
async function capture({ capture: id, lend: lends, spare }: Extract<Command, { capture: number }>): Promise<void> {
  const record = running.get(id)
  await record?.created.promise
  const { cell, turn } = record ?? {}
  if (record === undefined || cell === undefined || turn === undefined || turn.node.state === ENDED) return
  record.isHeld = true
  holdOrNot(record)
  const { memory } = cell.context.memory
  if (lends) {
    lend(memory)
    lent.set(id, memory)
  }
  try {
    const captured = cell.capture(spare)
    turn.unwind()
    const state = await captured
    post({ captured: id, state: { ...state, deadlineNs: cell.context.deadlineNs },
      figures: figuresOf(id, cell, turn), atNs: nowNs() })
  } catch (error) {
    if (!(error instanceof CellarError)) throw error
    record.isHeld = false
    holdOrNot(record)
    post({ captured: id, failed: { code: error.code, values: error.values } })
  }
}

// The others are done. Of a cell that is gone nobody needs it any more.
function unlend(id: number): void {
  const memory = lent.get(id)
  lent.delete(id)
  if (memory !== undefined && !running.has(id)) giveBack(memory)
}

function goOn(id: number, continuation: WebAssembly.Module): void {
  const record = running.get(id)
  if (record?.cell === undefined || !record.isHeld) return
  record.cell.goOn(continuation)
  record.isHeld = false
  holdOrNot(record)
}

function stop(id: number, end: End): void {
  const record = running.get(id)
  if (record === undefined) return
  if (record.cell === undefined) record.end = end
  else {
    record.cell.context.stop(end)
    // One that is captured goes on, to nothing but its end: with what, it doesn't ask.
    if (record.isHeld) record.cell.goOn(NOTHING)
  }
  record.isPaused = record.isHeld = false
  holdOrNot(record)
  // It needs the pCPU once more to end: no limit is to keep it from that.
  setTerms(id, UNLIMITED)
}

function report(what: 'all' | 'pools' | 'loads'): void {
  const figures = what !== 'all' ? [] : [...running].flatMap(([id, { cell, turn }]) =>
    cell === undefined || turn === undefined ? [] : [figuresOf(id, cell, turn)])
  const wanted = [...pools].map(([pool, node]): PoolFigures => {
    const { ageNs, runningNs, runnableNs, throttledNs } = dispatcher!.account(node)
    return { pool, ageNs, wantedNs: runningNs + runnableNs + throttledNs }
  })
  const loads = what === 'loads' ? [...running].flatMap(([id, record]) => loadOf(id, record)) : []
  post({ figures, loads, busyNs: dispatcher === undefined ? 0 : dispatcher.account(dispatcher.queue.root).runningNs,
    pools: wanted })
}

// The first time: since it is here.
function loadOf(id: number, record: Running): LoadFigures[] {
  const { cell, turn, seen } = record
  if (cell === undefined || turn === undefined) return []
  const { ageNs, runningNs, runnableNs } = dispatcher!.account(turn.node)
  const wantedNs = runningNs + runnableNs
  record.seen = { ageNs, wantedNs, runningNs }
  const forNs = ageNs - seen.ageNs
  if (wantedNs - seen.wantedNs <= LOAD_MIN * forNs) return []
  return [{ id, forNs, wantedNs: wantedNs - seen.wantedNs, receivedNs: runningNs - seen.runningNs,
    memoryBytes: cell.context.memory.memory.buffer.byteLength }]
}

function figuresOf(id: number, cell: Cell, { node }: ScheduledTurn): Figures {
  const { queue } = dispatcher!
  const by = queue.throttledBy(node)
  return {
    id,
    ...dispatcher!.account(node),
    memoryBytes: cell.context.memory.memory.buffer.byteLength,
    waitedFor: queue.blamed(node).map(([other, ns]) =>
      [other === undefined ? GONE : ids.get(other) ?? GONE, ns] as const),
    throttledBy: by === undefined ? undefined : by === node ? 'itself' : 'its pool',
  }
}

function post(message: Report): void {
  port.postMessage(message)
}

const UNLIMITED: Terms = { shares: 10_000, reservation: 0, limit: Infinity }
const TIMED_OUT = 124
/** A module of which nothing runs. */
const NOTHING = new WebAssembly.Module(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0))
/** Of a pCPU: who wants less is no load. */
const LOAD_MIN = 0.01
/** How long a cell's end is held back for its last line to be written. */
const SETTLE_MS_MAX = 1000
