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

/** Bytes of a name that a guest connects to: DNS's own limit. */
export const HOST_NAME_BYTES_MAX = 253

/** A WebAssembly page. */
export const WASM_PAGE_BYTES = 65_536

/** Pages of a memory32: 4 GiB. */
export const WASM_PAGES_MAX = 65_536

/** The least that a machine's balloon leaves it: a kernel with less is killed by its own want of memory. */
export const MACHINE_MEMORY_BYTES_MIN = 32 * 1024 * 1024

/** Pages of 64 KiB of a machine in a snapshot, its disks' with its RAM's: 1 TiB. */
export const MACHINE_PAGES_MAX = 16_777_216

/** What a machine's engine saves beside RAM, in parts: some 10 KiB a vCPU, a QEMU's state 1 MiB. */
export const MACHINE_SECTIONS_MAX = 1024
export const MACHINE_SECTION_BYTES_MAX = 64 * 1024 * 1024

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

/** Cells of one process: V8 ends the process at some 16,000 memories or the kernel's count of maps. */
export const CELLS_PER_PROCESS_MAX = 10_000

/** JSON of one request to the API: a manifest of thousands of cells. */
export const API_JSON_BYTES_MAX = 1024 * 1024
/** A manifest's file: as much as may be sent. Who reads YAML compares each key of a map with all before it. */
export const MANIFEST_CHARS_MAX = API_JSON_BYTES_MAX
/** How deep a request's JSON may nest: a manifest has 8 levels. */
export const API_JSON_DEPTH_MAX = 32
/** Values in a request's JSON: telling what is wrong with each of so many takes 0.2 s. */
export const API_JSON_VALUES_MAX = 100_000
/** Wrong fields that one answer of the API tells. */
export const API_ISSUES_MAX = 100
/** A secret's value, which a guest gets as a variable or a small file. */
export const API_SECRET_BYTES_MAX = 65_536
/** Connections to one listener of the API. Those beyond are closed at once. */
export const API_CONNECTIONS_MAX = 4096
/** Head of one request to the API, with the arguments of `exec` in it. */
export const API_HEAD_BYTES_MAX = 16_384
/** How long a client of the API has for a request's head, and for a TLS handshake: slow ones hold connections. */
export const API_HEAD_MS_MAX = 10_000
/** How long it has for JSON or a secret; and how long for the next piece of a module or an archive. */
export const API_BODY_MS_MAX = 30_000
/** How long it has for a whole request: a module of 1 GiB at 300 KiB/s. */
export const API_REQUEST_MS_MAX = 3_600_000
/** How long one request waits for something to happen; then the client asks again. */
export const API_WAIT_MS_MAX = 300_000
/** How long a session waits for a client that doesn't read, before it is closed. */
export const API_STALL_MS_MAX = 300_000
/** Bytes that a session has on the way to a client before it waits for it. */
export const API_SESSION_BYTES_MAX = 256 * 1024
/** Items of one answer of the API: 10 MB of guests, 0.1 s. */
export const API_LIST_ITEMS_MAX = 10_000
/** Refusals of unknown clients that go to the audit log in a minute: they mustn't fill the disk. */
export const API_STRANGERS_MAX = 60

/** What a name of a volume is charged, so that empty files can't fill a disk: a block of most file systems. */
export const VOLUME_ENTRY_BYTES = 4096

/** Files of one volume that a process has open: beyond it a guest gets ENFILE. Each takes 40 bytes of shared memory. */
export const VOLUME_OPEN_FILES_MAX = 32_768

/** How long a lock of a volume is waited for: longer only if the thread that has it died, and then it is taken. */
export const VOLUME_LOCK_MS_MAX = 10_000

/** A shared file of up to this size is copied while its pCPU waits, some 0.3 ms; a larger one on the thread pool. */
export const COPY_AT_ONCE_BYTES_MAX = 1024 * 1024

/** Bytes copied at once on the thread pool. */
export const COPY_STEP_BYTES = 1024 * 1024

/** Entries that the host looks at before it lets others have its thread, some milliseconds. */
export const TREE_ENTRIES_AT_ONCE = 128

/** Entries of an archive: beyond any sane one, and some minutes of work. */
export const ARCHIVE_ENTRIES_MAX = 1_000_000

/**
 * Bytes of a hosted guest's output on their way from its pCPU, each of stdout and stderr: then the guest waits. Ten
 * thousand guests that flood at once hold 320 MB.
 */
export const OUTPUT_WINDOW_BYTES_MAX = 32 * 1024

/** What a piece of output costs of the window beside its bytes: the objects that carry it. */
export const OUTPUT_PIECE_BYTES = 256

/** A frame between host and cell process: the figures of 12,000 cells have some 10 MB. */
export const FRAME_BYTES_MAX = 32 * 1024 * 1024

/** Bytes of a stream in one frame: others' frames come between. */
export const STREAM_FRAME_BYTES_MAX = 64 * 1024

/** Bytes of a stream, each way, that its reader has not taken yet: then the writer waits. */
export const STREAM_WINDOW_BYTES_MAX = 256 * 1024

/** Output kept for an attached client that doesn't read: then it is cut off, as the guest isn't held up for it. */
export const ATTACHED_BYTES_MAX = 1024 * 1024

/** Attachments to one guest's console: each holds up to ATTACHED_BYTES_MAX. */
export const ATTACHMENTS_MAX = 16

/** Messages to a host that reads nothing: then the connection is closed, as the process's memory is bounded. */
export const UNSENT_BYTES_MAX = 128 * 1024 * 1024

/** A guest's log: a file has so many bytes at most, and so many files are kept, the current one included. */
export const LOG_FILE_BYTES_MAX = 10 * 1024 * 1024
export const LOG_FILES_MAX = 3

/** Text of one line of a log: what is longer goes into several, as the CRI format has it. */
export const LOG_LINE_BYTES_MAX = 16 * 1024

/** Logs that are written to at the same time: the thread pool has four threads, and others need them. */
export const LOG_WRITES_MAX = 2

/** Compiled modules that a cell process keeps though no guest of it uses them. */
export const MODULES_IDLE_MAX = 16

/** Guests that a cell process writes to disk or reads from there at once: each has a copy of its memory meanwhile. */
export const SNAPSHOTS_AT_ONCE = 2

/** Bytes of guests' memories as of their last snapshots that a cell process keeps to compare the next ones with. */
export const SNAPSHOTS_KNOWN_BYTES_MAX = 256 * 1024 * 1024

/** Bytes that a guest may answer to a health check before the end of the status line. */
export const HEALTH_ANSWER_BYTES_MAX = 4096

/** Health checks under way at once in a cell process: each is a connection. */
export const HEALTH_CHECKS_MAX = 256

/** A manifest, index or configuration of an image: what registries take, too. */
export const IMAGE_MANIFEST_BYTES_MAX = 4 * 1024 * 1024

/** All blobs of one image: a module at its limit, and room for the layers of other tools around one. */
export const IMAGE_BYTES_MAX = 4 * 1024 * 1024 * 1024

/** All blobs of a machine's image: a kernel, an initrd and disks, which are compressed. */
export const MACHINE_IMAGE_BYTES_MAX = 64 * 1024 * 1024 * 1024

/** Layers of one image: Docker's own limit. */
export const IMAGE_LAYERS_MAX = 128

/** What the layers of one image may unpack to: some 10 s of work, whatever a bomb claims. */
export const IMAGE_UNPACKED_BYTES_MAX = 8 * 1024 * 1024 * 1024

/** Entries in the archives of one image: a whole Linux distribution has fewer. */
export const IMAGE_ENTRIES_MAX = 200_000

/** Modules among them that are looked at: one is to run. */
export const IMAGE_MODULES_MAX = 1000

/** A connection to a registry on which nothing arrives and nothing leaves for so long has failed. */
export const REGISTRY_STALL_MS = 30_000

/** Guests of one host: each costs the host's process some kilobytes. */
export const GUESTS_MAX = 200_000

/** Descriptors in one datagram that we look at: senders of ours put one into it, others are closed. */
export const DESCRIPTORS_PASSED_MAX = 8

/**
 * Descriptors that a cell process was sent and that no message that it has read has named yet: the ports of all of its
 * guests if they start at once, as after a power failure, as each is taken out of the kernel's queue with the first.
 */
export const DESCRIPTORS_WAITING_MAX = 16_384

/** Descriptors in the kernel's queue to a cell process, where it can be made so long: who sends more waits. */
export const DESCRIPTORS_QUEUED_MAX = 1024

/** Connections that a host makes for guests at one time, and those among them for one project's. */
export const EGRESS_DIALS_MAX = 4096
export const EGRESS_DIALS_PROJECT_MAX = 512

/** Names that a host looks up for machines at one time, and those among them for one project's: some never answer. */
export const EGRESS_LOOKUPS_MAX = 64
export const EGRESS_LOOKUPS_PROJECT_MAX = 8

/** Bytes that a cell process leaves unread until the host hears no more of it: launches of many guests at once fit. */
export const UNREAD_BYTES_MAX = 8 * 1024 * 1024

/** Changes that are committed together: beyond it the others have the thread between. */
export const COMMIT_GROUP_MAX = 1000

/** Events kept: some 40 MB, and no older ones than 30 days. */
export const EVENTS_MAX = 100_000
export const EVENT_AGE_MS_MAX = 30 * 24 * 3_600_000

/** Events and entries of the audit log are removed in steps of so many: a commit isn't held up by it. */
export const TRIM_STEP = 1000

/** JSON of one event: some of it was chosen by guests. */
export const EVENT_DATA_BYTES_MAX = 4096

/** Entries of the audit log kept, and characters of each of their fields, which clients choose. */
export const AUDIT_MAX = 100_000
export const AUDIT_TEXT_MAX = 512

/** Operations kept, those that have ended among them. */
export const OPERATIONS_MAX = 1000

/** Operations under way at once: each may hold connections, descriptors and disk. */
export const OPERATIONS_RUNNING_MAX = 64
/** Those of one client that is limited to a project: others' go on beside them. */
export const OPERATIONS_PROJECT_MAX = 16

/** Projects; pools, networks, secrets and volumes of one project, each: all are in the host's memory. */
export const PROJECTS_MAX = 10_000
export const PROJECT_ITEMS_MAX = 1000

/** JSON of the specs of a project's guests, as they are in the host's memory: 200 000 small ones fit. */
export const PROJECT_SPECS_BYTES_MAX = 128 * 1024 * 1024

/** Tokens: each request looks one up, and a person is to keep an overview. */
export const TOKENS_MAX = 1000

/** Answers kept for idempotency keys: for how long, how many, and of how many bytes in all, as they are in memory. */
export const IDEMPOTENCY_MS_MAX = 24 * 3_600_000
export const IDEMPOTENCY_KEYS_MAX = 10_000
export const IDEMPOTENCY_BYTES_MAX = 32 * 1024 * 1024

/** Backups of the state that are kept. */
export const BACKUPS_MAX = 3

/** Guests of which each has its own series of metrics: five for each, and a collector keeps all of them. */
export const GUEST_SERIES_MAX = 1000

/** Dials of a process's guests that wait for the host: beyond it they fail at once. */
export const DIALS_MAX = 1024

/** What a guest is given of secrets at a start, each counted as often as its spec names it: a launch is one message. */
export const GUEST_SECRETS_BYTES_MAX = 4 * 1024 * 1024

/** Copies that one `fork` makes: each is a guest of the host, with a row of its own. */
export const FORKS_MAX = 1000

/** The name of a snapshot, as a guest may give it. */
export const SNAPSHOT_NAME_BYTES_MAX = 40

/** Events that a guest hasn't read yet, of one descriptor: older ones are dropped. */
export const EVENTS_UNREAD_MAX = 64

/** Bytes of a snapshot's frames: those of the deepest stack that a pCPU has, several times over. */
export const SNAPSHOT_FRAMES_BYTES_MAX = 64 * 1024 * 1024
/** Bytes of a snapshot's globals: as many as a module of V8's limit has, with 16 bytes each. */
export const SNAPSHOT_GLOBALS_BYTES_MAX = 16 * 1024 * 1024
/** JSON of the specification in a snapshot: as much as the API takes. */
export const SNAPSHOT_SPEC_BYTES_MAX = API_JSON_BYTES_MAX
/** Labels of a snapshot. */
export const SNAPSHOT_LABELS_MAX = 64
/** Arguments, or variables, in a snapshot; and the bytes of one: as much as the API takes, or a secret has. */
export const SNAPSHOT_ARGUMENTS_MAX = 65_536
export const SNAPSHOT_ARGUMENT_BYTES_MAX = 1024 * 1024
/** A snapshot without its memory: all of the above, and 36 bytes for each of 65,536 pages. */
export const SNAPSHOT_BYTES_MAX = 128 * 1024 * 1024

/** What the other host of a move answers: the digests of all chunks of the largest memory. */
export const MOVE_ANSWER_BYTES_MAX = 8 * 1024 * 1024
/** A host that neither sends nor takes anything for so long is not there. */
export const MOVE_STALL_MS = 30_000
/** How long a guest that moves may stand still until the destination has all of it: else it goes on where it is. */
export const MOVE_STOPPED_MS_MAX = 10_000
/** Rounds of copying while the guest runs: what it changes meanwhile goes into the next one. */
export const MOVE_ROUNDS_MAX = 5
/** Moves to a host that haven't come to an end; and of one project. */
export const MOVES_INCOMING_MAX = 256
export const MOVES_INCOMING_PROJECT_MAX = 16
/** Notes of a project's moves that were dropped: each is kept for a day. */
export const MOVE_NOTES_PROJECT_MAX = 1000
/** Bytes of a snapshot on its way, in all: chunks of the largest memory several times over. */
export const MOVE_BYTES_MAX = 32 * 1024 * 1024 * 1024
/** Chunks of 64 KiB that a project's snapshots have in all: 64 GiB. Knowing where each is takes 200 MB. */
export const SNAPSHOT_CHUNKS_MAX = 1024 * 1024

/** Entries of a virtqueue, the most that we offer: QEMU's default. A chain of descriptors is no longer. */
export const VIRTQUEUE_SIZE_MAX = 256
/** Chains of one queue that are served before other devices have their turn. */
export const VIRTQUEUE_ROUND_MAX = 64
/** How long a vCPU waits for the device thread to take a register's write: longer than a slow disk's flush. */
export const DEVICE_ANSWER_MS_MAX = 60_000
/** A frame of a machine's network card on a stream: an IPv4 packet of the largest size, as TSO makes them. */
export const NET_FRAME_BYTES_MAX = 65_535 + 18
/** Headers of a frame that we look at to fill a checksum in: Ethernet with a VLAN tag, IP and TCP with all options. */
export const NET_HEADERS_BYTES_MAX = 18 + 60 + 60 + 40
/** Data of one request to a disk: Linux asks for 1.25 MiB; ranges may overlap, so that RAM doesn't bound the sum. */
export const BLK_REQUEST_BYTES_MAX = 16 * 1024 * 1024
/** Ranges of one discard request, and bytes of each: some guests give up a whole disk at once. */
export const BLK_DISCARD_RANGES_MAX = 64
export const BLK_DISCARD_BYTES_MAX = 1024 * 1024 * 1024
/** Pages that a balloon is told of at once: Linux tells 256. */
export const BALLOON_PAGES_AT_ONCE_MAX = 16_384
/** A packet of a machine's vsock without its header: Linux's own limit (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE). */
export const VSOCK_PAYLOAD_BYTES_MAX = 64 * 1024
/** Bytes of a guest's console that are moved at once. */
export const VIRTIO_CONSOLE_BYTES_MAX = 64 * 1024
/** What a machine's serial line holds until the main thread takes it, and until the guest does. Powers of two. */
export const UART_OUTPUT_BYTES = 64 * 1024
export const UART_INPUT_BYTES = 4096

/** A frame of a machine's network card: the largest IPv4 packet, with Ethernet's head and a VLAN's tag. */
export const GATEWAY_FRAME_BYTES_MAX = 65_535 + 18
/** Bytes of one direction of a TCP connection with a machine: 250 MB/s where an answer takes a millisecond. */
export const TCP_BUFFER_BYTES_MAX = 256 * 1024
/** Holes in what a TCP connection has received: segments beyond further ones are dropped, and come again. */
export const TCP_HOLES_MAX = 32
/** TCP connections of one network card; bytes that all of them hold; and those of them that wait for a dial. */
export const GATEWAY_CONNECTIONS_MAX = 4096
export const GATEWAY_TCP_BYTES_MAX = 64 * 1024 * 1024
export const GATEWAY_DIALS_MAX = 256
/** Addresses whose names a gateway remembers, names of one address, and questions to the host at one time. */
export const GATEWAY_ADDRESSES_MAX = 4096
export const GATEWAY_NAMES_MAX = 8
export const GATEWAY_LOOKUPS_MAX = 64
/** Clients of a gateway's name server by TCP, at one time; and bytes of one question. */
export const GATEWAY_NAME_CLIENTS_MAX = 16
export const GATEWAY_QUESTION_BYTES_MAX = 1024
/** Flows of UDP that a gateway holds, and links to other machines; and packets that wait for one to be made. */
export const GATEWAY_FLOWS_MAX = 256
export const GATEWAY_LINKS_MAX = 64
export const GATEWAY_WAITING_MAX = 8
