// base/limits.ts: every limit on one page, with its reason. Unit and _MAX last.

/** Scatter/gather entries of one fd_read or fd_write: Linux's IOV_MAX, so that a list goes to the kernel as it is. */
export const IOVECS_MAX = 1024

/** Bytes that one hypercall moves. A longer transfer is answered short, as POSIX allows: the pCPU is shared. */
export const TRANSFER_BYTES_MAX = 1024 * 1024

/**
 * Bytes of one path, with its terminator: Linux's PATH_MAX. Longer ones get ENAMETOOLONG before the kernel is asked.
 */
export const PATH_BYTES_MAX = 4096

/** Links followed for one path: Linux's own limit, so that both of our resolvers agree. */
export const LINKS_MAX = 40

/** Descriptors that one walk holds. Deeper paths get ENAMETOOLONG: a guest mustn't use up the process's descriptors. */
export const WALK_DEPTH_MAX = 256

/** Tries of openat2 while renames elsewhere keep it from being sure about a `..`. Then we walk ourselves. */
export const OPENAT2_TRIES_MAX = 16

/** Descriptors of one cell. A connection needs one each; beyond it the guest gets EMFILE. */
export const DESCRIPTORS_MAX = 65_536

/** Entropy served at once; a longer request is served in such steps, and others have the pCPU between them. */
export const ENTROPY_BYTES_MAX = 65_536

/** Subscriptions of one poll_oneoff: one for each descriptor, both directions, and a clock. */
export const POLL_SUBSCRIPTIONS_MAX = 2 * DESCRIPTORS_MAX + 1

/** Bytes read ahead from a console's input. */
export const CONSOLE_READ_BYTES_MAX = 65_536

/** Bytes that a connection holds for a guest that doesn't read, or a peer that doesn't: then the other side waits. */
export const SOCKET_BUFFER_BYTES_MAX = 256 * 1024

/** Connections that wait for accept on one listening socket, as the kernel's somaxconn. */
export const LISTEN_BACKLOG_MAX = 4096

/** A WebAssembly page. */
export const WASM_PAGE_BYTES = 65_536

/** Pages of a memory32: 4 GiB. */
export const WASM_PAGES_MAX = 65_536

/** The size of a program's file: V8 refuses modules beyond 1 GiB. */
export const MODULE_BYTES_MAX = 1024 * 1024 * 1024

/** Frames printed of a trap's stack. */
export const TRAP_FRAMES_MAX = 64

/**
 * Entries by which the tables of a guest that shares its pCPU may grow, all together: some 30 MB of V8's heap, which no
 * limit on the guest's memory bounds.
 */
export const TABLE_GROWTH_MAX = 1_000_000

/** Entries that its tables may have from the start: filling them keeps the pCPU for some 0.1 s. */
export const TABLE_ENTRIES_MAX = 1_000_000

/** A line of a guest's output that is labelled: who writes more without an end of line gets several lines. */
export const LINE_BYTES_MAX = 65_536

/** The quantum: what is lost by switching is a thousandth of it, and I/O waits for no more than it. */
export const QUANTUM_NS_DEFAULT = 1_000_000
/** A shorter quantum would be spent on switching, a longer one felt by people. */
export const QUANTUM_NS_MIN = 100_000
export const QUANTUM_NS_MAX = 1_000_000_000

/** Copies of a cell in a stack: a process has room for 12,000 cells. */
export const COPIES_MAX = 10_000

/** pCPUs of a stack. */
export const PCPUS_MAX = 256

/** Shares of a cell or a pool: cgroup v2's cpu.weight has the same range. */
export const SHARES_MAX = 10_000
