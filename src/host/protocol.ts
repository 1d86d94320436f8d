// host/protocol.ts: what the host and a guests' process say to each other.
//
// A process is a cell process, or a machine process with one guest only; both speak this. It listens on a socket of
// its run folder (`c`, stream); the host connects, after a restart anew. Each side sends frames (frames.ts): JSON
// messages, or bytes of a stream with its number. Descriptors travel apart, as datagrams with SCM_RIGHTS to the
// process's second socket (`f`): the host sends the descriptor first, then the message that names it by its ticket, so
// that the process finds it there when it reads the message.
//
// The process is the truth about what runs, the host about what should. The process keeps an end until the host has
// acknowledged it: no end is lost while no host is there. It says nothing before its hello, and an end that is told
// there may be told again after it. JSON has no Infinity: terms without a limit have null there. Elsewhere: the process
// (cell_process.ts), the host's side of a connection (process_link.ts).

import type { Outcome, Usage } from '../cell/cell.ts'
import type { Call } from '../cell/library.ts'
import type { Figures } from '../cell/pcpu_worker.ts'
import type { MachineConfig } from '../image/machine_image.ts'
import type { MachineFigures } from '../machine/engine.ts'
import type { Terms } from '../sched/node.ts'
import type { Health } from './spec.ts'

export const PROTOCOL_VERSION = 1

/** What a cell process is started with: JSON in `config.json` of its run folder. Paths are absolute. */
export type ProcessConfig = {
  readonly process: number; readonly project: string
  /** Its own folder: sockets `c` and `f`, config.json. It ends itself when this is gone and no host is connected. */
  readonly runFolder: string
  /** Blobs by digest: `sha256/HEX`. */
  readonly blobFolder: string
  /** Where it keeps translations and logs: its own to write. */
  readonly cacheFolder: string; readonly logFolder: string
  /** Snapshots of the project (snapshot/store.ts): the process writes and reads them. */
  readonly snapshotFolder: string
  readonly quantumNs: number
  /** Of a machine process. */
  readonly engine?: { readonly name: 'kvm' | 'qemu'; readonly why: string } | undefined
}

/** A volume as a process sees it. */
export type MountedVolume = {
  /** The folder on the host. */
  readonly path: string; readonly guest: string; readonly readOnly: boolean
  /** Most bytes that it may hold; undefined: not bounded (a folder of `files`). */
  readonly sizeBytes?: number | undefined
}

/** A cell to be started. `run` counts the starts of one guest: an answer about an earlier run is recognised. */
export type GuestLaunch = {
  readonly id: string; readonly run: number; readonly name: string
  /** The module's digest, `sha256:HEX`; the process reads it from the blob folder. */
  readonly module: string
  readonly args: readonly string[]; readonly env: readonly (readonly [string, string])[]
  readonly memoryPagesMax: number
  readonly stubs: readonly string[]; readonly calls?: readonly Call[] | undefined
  readonly deterministic: boolean; readonly unbounded: boolean
  readonly terms: Terms; readonly pool?: string | undefined
  readonly volumes: readonly MountedVolume[]
  /** One listening descriptor each, in this order. `fds`: tickets of sockets that the host has opened for it. */
  readonly ports: readonly { readonly port: number; readonly tickets: readonly number[] }[]
  readonly connect: readonly { readonly name: string; readonly port: number }[]
  /** Networks by name, of its project: empty if it is in none. */
  readonly networks: readonly string[]
  readonly health?: Health | undefined
  readonly stdin: boolean
  readonly timeoutNs?: number | undefined
  /** It writes to this stream in place of its log, and reads from it: one of `exec`. */
  readonly stream?: number | undefined
  /** In place of a program of `exec`, in a machine: an archive (tar) of a path as output, or one to be unpacked. */
  readonly files?: { readonly way: 'get' | 'put'; readonly path: string } | undefined
  /** It is a machine: `module` is the digest of its image's configuration. */
  readonly machine?: MachineLaunch | undefined
  /**
   * It goes on from a snapshot of the project, in place of beginning; `event` is told to it. `sleptMs`: its monotonic
   * clock goes on so much later than it stopped, so that timers are due that would have been. A child of `fork` has no
   * snapshot (''): it goes on from its parent, and is the `number`th from 1 on.
   */
  readonly from?: {
    readonly snapshot: string; readonly event: LifecycleEvent
    readonly sleptMs?: number | undefined; readonly number?: number | undefined
  } | undefined
}

/** What only a machine is told. A volume of it is a disk: `path` is the folder with its file. */
export type MachineLaunch = {
  readonly engine: 'kvm' | 'qemu'
  /** Its image; blobs are in the blob folder. */
  readonly image: MachineConfig
  readonly vcpus: number; readonly memoryBytes: number; readonly kernelArgs?: string | undefined
  /** Where it keeps what it writes to the disks of its image. */
  readonly folder: string
  /** What it may reach outside, as its spec says; and who else is in its networks when it starts. */
  readonly egress: readonly string[]; readonly peers: readonly Peer[]
  /** Its number in the project's networks, and among the machines of the host. */
  readonly address: number; readonly cid: number
  /** Tickets of /dev/kvm and of a TAP device, opened by the host. */
  readonly kvm?: number | undefined; readonly tap?: number | undefined
  /** Of a fork's child: RAM, which it shares with the others until it writes. */
  readonly ram?: number | undefined
}

/** What has become of a guest while it didn't run. */
export type LifecycleEvent = 'fork' | 'restore' | 'wake' | 'migrate'

/** How a cell ended. */
export type GuestEnd = {
  readonly id: string; readonly run: number
  /** One that was let go of has not ended. */
  readonly outcome: Exclude<Outcome, { readonly kind: 'moved' }>
    | { readonly kind: 'failed'; readonly code: string; readonly values: readonly unknown[] }
    /** A machine that has switched itself off, or couldn't go on. `reason`: a word, such as 'triple-fault'. */
    | { readonly kind: 'off' | 'crashed'; readonly reason: string }
  readonly usage?: Usage | undefined
  /** Milliseconds since 1970. */
  readonly startedAt?: number | undefined; readonly endedAt: number
  /** It was stopped by the host (`stop`), by its timeout, or since it was unhealthy; undefined: it ended by itself. */
  readonly by?: 'stop' | 'timeout' | 'unhealthy' | undefined
}

/** A cell that a process has. `startedAt`: undefined while it is being made. */
export type GuestState = {
  readonly id: string; readonly run: number
  readonly startedAt?: number | undefined; readonly healthy?: boolean | undefined
  /** How long it has run, by the monotonic clock: the wall clock may have jumped since it started. */
  readonly ageMs?: number | undefined
  /** It was captured, and waits to go on or to be released; or it is paused. */
  readonly held?: boolean | undefined; readonly paused?: boolean | undefined
  /** Why it can't be captured; undefined: it can. */
  readonly uncapturable?: string | undefined
}

/** A snapshot that a process has written. Times in nanoseconds: the guest didn't run for `stoppedNs`. */
export type Written = {
  readonly snapshot: string; readonly memoryBytes: number
  /** Bytes on disk of what this snapshot has brought, and of all that it refers to. */
  readonly newBytes: number; readonly storedBytes: number
  readonly chunks: number; readonly newChunks: number; readonly stoppedNs: number
  /** It waited for a timer that is due in so long: when to wake it, should it be hibernated. */
  readonly wakeInMs?: number | undefined
}

/** Host → process. */
export type ToProcess =
  | { readonly hello: number; readonly version: string }
  | { readonly start: GuestLaunch }
  | { readonly stop: string; readonly run: number; readonly signal: number }
  | { readonly ack: string; readonly run: number }
  | { readonly terms: string; readonly to: Terms }
  | { readonly pool: string; readonly to: Terms }
  | { readonly figures: number }
  /** Its output from now on as a stream, and the stream's bytes as its input. */
  | { readonly attach: string; readonly stream: number }
  /** The guest's input is at its end; or nobody is there any more, which ends a guest of `exec` by SIGHUP. */
  | { readonly eof: number } | { readonly detach: number }
  /** The process may send so many bytes more on the stream. */
  | { readonly credit: number; readonly bytes: number }
  /** Answers of `dial`: a ticket of a connected socket, or an errno of base/errno.ts. */
  | { readonly dialled: number; readonly ticket?: number; readonly errno?: number }
  /** Answers of `resolve`: addresses outside; none: nobody that it may reach. */
  | { readonly resolved: number; readonly addresses: readonly string[] }
  /** Who else is in the networks of a machine, from now on. */
  | { readonly peers: string; readonly are: readonly Peer[] }
  /** A connection from a guest of another process, for a guest's port. `from`: who it is. */
  | { readonly incoming: string; readonly port: number; readonly ticket: number; readonly request: number
    readonly from?: Peer }
  /** Nobody will ask for these: a launch that came to nothing. Published ports are free again then. */
  | { readonly drop: readonly number[] }
  /** Of a machine: asks its balloon to leave the guest so much of its memory. */
  | { readonly resize: string; readonly run: number; readonly memoryBytes: number }
  /** Keeps it from running, or lets it again. Memory and stack stay where they are. */
  | { readonly pause: string; readonly run: number; readonly paused: boolean }
  /**
   * Captures it and writes a snapshot; then it goes on (`resume`), or is held until `go` or `release`. `incremental`:
   * compared with the last capture of it. `durable`: on the disk when it is answered. Answered by `captured`.
   */
  | {
    readonly capture: string; readonly run: number; readonly request: number; readonly next: 'resume' | 'hold'
    readonly durable: boolean
    /** Its specification, as the snapshot is to have it. */
    readonly spec?: unknown
  }
  /** A guest that is held goes on; or is given up: it leaves without an end, answered by `released`. */
  | { readonly go: string; readonly run: number } | { readonly release: string; readonly run: number }
  /** Captures it once, starts each child from there, and lets it go on. Answered by `captured`, without `written`. */
  | { readonly fork: string; readonly run: number; readonly request: number; readonly children: readonly GuestLaunch[] }
  /**
   * Of a machine: copies its RAM into `ram` (a ticket of a memfd), and what else its children begin with into their
   * folders; then it goes on. Answered by `captured`, without `written`. The children are started after that.
   */
  | { readonly forkMachine: string; readonly run: number; readonly request: number; readonly ram: number
    readonly children: readonly { readonly folder: string }[] }
  /**
   * Snapshots that nobody needs any more: they are removed, and chunks that only they had. Their folder is the
   * project's own: the host doesn't reach into it.
   */
  | { readonly forget: readonly string[] }
  /** All snapshots of the project that are needed: others are a crash's leavings, and go once they are a day old. */
  | { readonly keep: readonly string[] }
  /**
   * Gives a snapshot to the stream, as the snapshot store sends it: with these chunks, or all but those of `without`,
   * another snapshot. Answered by `transferred`, then the stream's eof.
   */
  | {
    readonly transmit: string; readonly request: number; readonly stream: number
    readonly chunks?: readonly string[] | undefined; readonly without?: string | undefined
  }
  /**
   * Takes one from the stream. `warm`: what will soon run it, from this one (`isLast`) or from one that follows.
   * Answered by `transferred`, then the stream's eof.
   */
  | {
    readonly receive: number; readonly stream: number; readonly durable: boolean
    readonly warm?: Pick<GuestLaunch, 'module' | 'memoryPagesMax' | 'stubs' | 'calls' | 'deterministic' | 'unbounded'> &
      { readonly move: string; readonly isLast: boolean } | undefined
  }
  /** The answer to `asked`: an errno, 0 if it was done; `value`: of a fork, the number of children. */
  | { readonly told: number; readonly errno: number; readonly value?: number }
  /** No more guests come: it ends when the last has ended. */
  | { readonly drain: true }

/** Process → host. */
export type FromProcess =
  | {
    readonly hello: number; readonly process: number; readonly project: string; readonly pid: number
    readonly guests: readonly GuestState[]; readonly ends: readonly GuestEnd[]
    readonly engine?: { readonly name: 'kvm' | 'qemu'; readonly why: string } | undefined
  }
  | {
    readonly started: string; readonly run: number; readonly startedAt: number
    /** Why it can't be captured. */
    readonly uncapturable?: string | undefined
  }
  | { readonly ended: GuestEnd }
  | { readonly health: string; readonly run: number; readonly healthy: boolean; readonly why: string }
  | {
    readonly figures: number; readonly guests: Readonly<Record<string, GuestFigures>>; readonly process: ProcessFigures
  }
  /** A machine asks which addresses NAME has, outside. */
  | { readonly resolve: number; readonly id: string; readonly name: string }
  /**
   * A guest wants to reach NAME:PORT, and it isn't in this process: a peer elsewhere, or outside. Port 0 of a machine:
   * a stream of frames between the two.
   */
  | { readonly dial: number; readonly id: string; readonly name: string; readonly port: number }
  | { readonly incoming: number; readonly errno: number }
  /** All that the stream had was sent: the guest's output has ended. `status`: of `exec`. */
  | { readonly eof: number; readonly status?: number }
  | { readonly credit: number; readonly bytes: number }
  /** `started` is told of a restored guest, too. This tells of what kind it is, once it is known. */
  | { readonly paused: string; readonly run: number; readonly is: boolean }
  | {
    readonly captured: number; readonly id: string; readonly written?: Written | undefined
    readonly error?: { readonly code: string; readonly values: readonly unknown[] } | undefined
  }
  | { readonly released: string; readonly run: number }
  /** A guest asks for it by a hypercall. `name`: of the snapshot; `count`: of forks. */
  | {
    readonly asked: number; readonly id: string; readonly run: number
    readonly what: 'snapshot' | 'fork' | 'hibernate'; readonly name?: string; readonly count?: number
  }
  /** `missing`: chunks that it has to have and wasn't sent; with none the snapshot is kept. */
  | {
    readonly transferred: number; readonly snapshot?: string | undefined
    readonly missing?: readonly string[] | undefined
    readonly error?: { readonly code: string; readonly values: readonly unknown[] } | undefined
  }
  /** Something for the log: a health check that fails, a worker that died. */
  | { readonly say: string; readonly id?: string | undefined }

/** A guest of the same network. */
export type Peer = { readonly name: string; readonly address: number; readonly kind: 'cell' | 'machine' }

/** What became of a running cell's time and memory. */
export type GuestFigures = Omit<Figures, 'id' | 'waitedFor'> & {
  readonly pcpu: number
  /** The first few; '' for cells that have ended. */
  readonly waitedFor: readonly (readonly [id: string, ns: number])[]
  readonly hypercalls: number
  /** Of a machine. */
  readonly machine?: Omit<MachineFigures, 'vcpuNs' | 'residentBytes'> & { readonly vcpus: number } | undefined
}

export type ProcessFigures = { readonly memoryBytes: number; readonly cpuNs: number; readonly cells: number }

/** Streams of one attachment: bytes of a frame begin with one of these. */
export const STDIN = 0
export const STDOUT = 1
export const STDERR = 2
