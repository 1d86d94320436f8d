// base/host_errors.ts: the part of the catalogue (errors.ts) that a host has: what its CLI and its API tell.
//
// Beside the exit status each has the status of an HTTP answer: 404 for what isn't there, 409 for what the state
// forbids now, 422 for what can't be as it is asked for, 403 for what the caller may not, 507 for a full disk.

const entry = <A extends readonly unknown[]>(status: number, message: (...values: A) => string, hint: string) =>
  ({ exit: 1 as const, status, message, hint })

export const HOST_ERRORS = {
  HOST_UNREACHABLE: entry(503, (address: string, why: string) => `Cannot reach the host at ${address}: ${why}`,
    "Start one with 'cellar host', or name another: --host, CELLAR_HOST, 'cellar context use'"),
  HOST_RUNNING: entry(409, (state: string, pid: string) =>
    `Cannot run a host on "${state}" as another one runs on it: process ${pid}`,
    'Stop that one first, or choose another folder with --state'),
  HOST_STATE_UNUSABLE: entry(500, (state: string, why: string) => `Cannot keep the host's state in "${state}": ${why}`,
    'Choose another folder with --state, or mend this one'),
  HOST_STATE_DAMAGED: entry(500, (path: string, why: string) =>
    `Cannot use the state in "${path}" as it is damaged: ${why}`,
    "'cellar host recover --state DIR' goes back to the latest backup and keeps the damaged file beside it"),
  HOST_STATE_NEWER: entry(500, (path: string, found: number, known: number) =>
    `Cannot use the state in "${path}" as a newer Cellar has written it: its version is ${found}, ours ${known}`,
    'Run that version of Cellar, or choose another folder with --state'),
  HOST_STATE_PATH_LONG: entry(500, (path: string, bytes: number, most: number) =>
    `Cannot keep the host's state in "${path}" as sockets in it have paths of ${bytes} bytes: ${most} is the most`,
    'Choose a folder with a shorter path'),
  HOST_DISK_FULL: entry(507, (what: string) => `Cannot ${what} as the disk of the host is full`,
    'Free space where the state is, then try again: nothing was changed'),
  HOST_DRAINING: entry(503, () => 'Cannot start anything as the host is shutting down', 'Try again when it is back'),
  HOST_INSTALL_FAILED: entry(500, (what: string, why: string) => `Cannot install ${what}: ${why}`,
    'Run it as root on a machine with systemd, or see --help'),

  REQUEST_INVALID: entry(400, (what: string) => `Cannot do that as the request is wrong: ${what}`,
    'See /openapi.json, or docs/reference/api.md'),
  REQUEST_TOO_LARGE: entry(413, (what: string, most: string) => `Cannot take ${what} as it is larger than ${most}`,
    'Send less at once'),
  ROUTE_NOT_FOUND: entry(404, (method: string, path: string) => `Cannot ${method} ${path} as there is no such thing`,
    'See /openapi.json, or docs/reference/api.md'),
  METHOD_NOT_ALLOWED: entry(405, (method: string, path: string, allowed: string) =>
    `Cannot ${method} ${path}: it takes ${allowed}`, 'See /openapi.json, or docs/reference/api.md'),
  MEDIA_TYPE_WRONG: entry(415, (type: string, wanted: string) =>
    `Cannot read a body of type "${type}": ${wanted} is wanted`, 'Say so in the header Content-Type'),
  REQUEST_SLOW: entry(408, (what: string) => `Cannot wait any longer for ${what}`, 'Send it faster'),
  UPGRADE_REQUIRED: entry(426, (path: string, protocol: string) =>
    `Cannot answer at ${path} as it speaks WebSocket with sub-protocol ${protocol}`,
    "Use 'cellar attach' or 'cellar exec', or a WebSocket client"),
  HOST_NAME_WRONG: entry(421, (name: string) => `Cannot answer for "${name}" as this is the API on a loopback address`,
    'Use localhost or the address itself'),
  INTERNAL: entry(500, () => 'Cannot do that as something in the host failed',
    "The host's log has more under the same request id"),
  UNAUTHENTICATED: entry(401, (why: string) => `Cannot let you in: ${why}`,
    "Give a token ('cellar token create' makes one), a client certificate, or use the host's socket"),
  FORBIDDEN: entry(403, (who: string, what: string) => `Cannot let ${who} ${what}`,
    'Ask for a token with the scope or project that this needs'),
  IDEMPOTENCY_KEY_REUSED: entry(422, (key: string) =>
    `Cannot use idempotency key "${key}" as it was used for another request`, 'Use a new key for a new request'),
  IDEMPOTENCY_KEY_BUSY: entry(409, (key: string) =>
    `Cannot answer as the request with idempotency key "${key}" is still under way`, 'Try again in a moment'),
  GENERATION_STALE: entry(412, (name: string, given: string, current: number) =>
    `Cannot change "${name}" as it has changed meanwhile: generation ${given} was given, it is ${current}`,
    'Read it again, then repeat the change'),

  NOT_FOUND: entry(404, (kind: string, name: string) => `Cannot find ${kind} "${name}"`,
    "Check the name and the project (-P); 'cellar ps -A -a', 'cellar volume ls' and so on list what there is"),
  EXISTS: entry(409, (kind: string, name: string) => `Cannot create ${kind} "${name}" as it exists`,
    'Choose another name, or remove it first'),
  IN_USE: entry(409, (kind: string, name: string, by: string) =>
    `Cannot change ${kind} "${name}" as it is in use by ${by}`,
    'Stop or remove what uses it first'),
  NAME_INVALID: entry(422, (kind: string, name: string) => `Cannot call a ${kind} "${name}"`,
    'Names are of letters, digits, ".", "_" and "-", begin with a letter or digit, and have 40 characters at most'),
  REFERENCE_UNKNOWN: entry(422, (guest: string, kind: string, name: string) =>
    `Cannot create "${guest}" as there is no ${kind} "${name}"`, 'Create it first, or apply a manifest that has it'),
  GUEST_RUNNING: entry(409, (name: string) => `Cannot remove "${name}" as it runs`,
    "Stop it first, or use 'rm --force'"),
  GUEST_NOT_RUNNING: entry(409, (name: string, state: string) =>
    `Cannot reach "${name}" as it doesn't run: it is ${state}`,
    "Start it with 'cellar start', or wait until it runs: 'cellar wait --for running'"),
  CAPTURE_IMPOSSIBLE: entry(409, (name: string, why: string) => `Cannot save "${name}" as it runs: ${why}`,
    "'cellar inspect' says of a program whether it can be saved, and why not"),
  CAPTURE_ENDED: entry(409, (name: string) => `Cannot save "${name}" as it has ended`,
    'Save it while it runs'),
  GUEST_PHASE_WRONG: entry(409, (what: string, name: string, phase: string) =>
    `Cannot ${what} "${name}" as it is ${phase}`, "'cellar ps' tells what guests do; 'cellar wait' waits for it"),
  WAKE_FAILED: entry(503, (name: string, why: string) => `Cannot wake "${name}": ${why}`,
    'What was saved of it is kept: mend what is wrong, then resume it; to begin anew, stop it and start it'),
  GUEST_UNSUPPORTED: entry(422, (name: string, what: string) => `Cannot run "${name}" on a host: ${what}`,
    'See docs/reference/manifest.md for what a cell of a host may say'),
  ADMISSION_REFUSED: entry(409, (name: string, what: string, wanted: string, left: string) =>
    `Cannot admit "${name}" as ${what} is missing: it asks for ${wanted}, and ${left} is left`,
    'Lower what it asks for, remove other guests, or raise the pool'),
  PORT_TAKEN: entry(409, (name: string, address: string, by: string) =>
    `Cannot publish ${address} for "${name}" as ${by} has it`, 'Choose another port'),
  PROCESS_LOST: entry(500, (project: string, why: string) => `Cannot reach the cell process of "${project}": ${why}`,
    "See 'cellar events' and the process's log in the state folder"),

  IMAGE_INVALID: entry(422, (image: string, what: string) => `Cannot use image "${image}": ${what}`,
    'An image is an OCI artifact with one WebAssembly module (docs/images.md)'),
  IMAGE_REFERENCE_INVALID: entry(422, (text: string) => `Cannot read "${text}" as the name of an image`,
    'Such as app, app:1.2, registry.example.com/team/app:1.2 or app@sha256:…'),
  IMAGE_DIGEST_WRONG: entry(502, (what: string, want: string, got: string) =>
    `Cannot use ${what} as its digest is wrong: ${want} was promised, it is ${got}`,
    'The registry or the network is at fault, or somebody between: nothing of it was kept'),
  IMAGE_TOO_LARGE: entry(422, (image: string, bytes: number, most: number) =>
    `Cannot take image "${image}" as it has ${bytes} bytes: ${most} is the most`, 'Make a smaller image'),
  REGISTRY_FAILED: entry(502, (registry: string, what: string, why: string) => `Cannot ${what} at ${registry}: ${why}`,
    'Check the address and the credentials (~/.docker/config.json), then try again: what was fetched is kept'),
  REGISTRY_DENIED: entry(502, (registry: string, what: string) => `Cannot ${what} at ${registry}: it denies access`,
    "Log in with a tool that writes ~/.docker/config.json, such as 'docker login'"),
  OPERATIONS_FULL: entry(429, (most: number) => `Cannot start another operation as ${most} are under way`,
    'Wait for one to end, or cancel one: cellar operation ls'),
  OPERATION_CANCELLED: entry(409, (what: string) => `Cancelled ${what}`, 'Start it again'),
  OPERATION_INTERRUPTED: entry(500, (what: string) => `Cannot finish ${what} as the host was stopped meanwhile`,
    'Start it again: what was done is kept where it can be'),

  VOLUME_IN_USE: entry(409, (name: string, by: string) => `Cannot change volume "${name}" as guests use it: ${by}`,
    'Stop them first'),
  VOLUME_TOO_SMALL: entry(422, (name: string, size: string, used: string) =>
    `Cannot make volume "${name}" ${size} large as it holds ${used}`, 'Give it a larger size'),
  PATH_UNSAFE: entry(422, (what: string, path: string) => `Cannot unpack ${what} as the path "${path}" leads out of it`,
    'The archive is damaged or hostile: make it again with paths below its top'),
  ARCHIVE_INVALID: entry(422, (what: string, why: string) => `Cannot unpack ${what}: ${why}`, 'Give a tar archive'),

  MOVE_REFUSED: entry(409, (guest: string, host: string, why: string) => `Cannot move "${guest}" to ${host}: ${why}`,
    'It goes on here; mend what is wrong there, and move it again'),
  MOVE_UNDERWAY: entry(409, (guest: string, host: string) =>
    `Cannot change "${guest}" as it is on its way to ${host}, which alone knows whether it runs there`,
    'Wait until that host answers: it is asked again and again'),
  MOVE_INSECURE: entry(422, (address: string) => `Cannot move a guest to ${address} as anybody could listen`,
    'Use https://, or a loopback address'),

  CONTEXT_INVALID: entry(400, (path: string, what: string) => `Cannot use the contexts in "${path}": ${what}`,
    "Mend the file, or delete it and use 'cellar context create'"),

  MACHINE_NO_ENGINE: entry(422, (name: string, why: string) =>
    `Cannot run machine "${name}" as nothing here can: ${why}`,
    "See 'cellar doctor'; QEMU runs machines anywhere: apt-get install qemu-system-x86"),
  MACHINE_LOST: entry(500, (name: string, why: string) => `Cannot go on with machine "${name}": ${why}`,
    "See 'cellar logs' for its last words, and the host's log"),
  MACHINE_TAP_FAILED: entry(422, (name: string, tap: string, why: string) =>
    `Cannot give "${name}" the network device "${tap}": ${why}`,
    'Make it first, and run the host as root: ip tuntap add dev NAME mode tap vnet_hdr'),
  MACHINE_WORD: entry(422, (name: string, what: string) => `Cannot use "${what}" for "${name}" as it is a machine`,
    'That is for cells; see docs/machines.md'),
  CELL_WORD: entry(422, (name: string, what: string) => `Cannot use "${what}" for "${name}" as its image is a cell's`,
    'That is for machines; see docs/machines.md'),
  VOLUME_KIND: entry(422, (name: string, volume: string) =>
    `Cannot give "${name}" the volume "${volume}" as it is a folder: a machine needs a disk`,
    'Create one: cellar volume create NAME --disk --size 1GiB'),
  VOLUME_SHARED: entry(409, (name: string, volume: string, by: string) =>
    `Cannot start "${name}" as "${by}" has the disk "${volume}"`, 'Stop that one, or give each a disk of its own'),
  KVM_NOT_PERMITTED: entry(403, (name: string, why: string) => `Cannot run "${name}" with KVM: /dev/kvm answers ${why}`,
    'Run the host as root or in the group kvm, or run it with --engine qemu'),
  MACHINE_KERNEL_UNREADABLE: entry(422, (path: string, why: string) => `Cannot read kernel "${path}": ${why}`,
    'Check the path, and that the host may read it'),
  MACHINE_KERNEL_DAMAGED: entry(422, (path: string, why: string) =>
    `Cannot boot kernel "${path}" as it is damaged: ${why}`,
    'Give the kernel as the distribution ships it, such as /boot/vmlinuz-*'),
  MACHINE_KERNEL_UNSUPPORTED: entry(422, (path: string, why: string) => `Cannot boot kernel "${path}": ${why}`,
    'Give a 64-bit Linux kernel (bzImage, from Linux 3.8 on), or an ELF kernel with a PVH entry point'),
  MACHINE_INITRD_UNREADABLE: entry(422, (path: string, why: string) => `Cannot read initrd "${path}": ${why}`,
    'Check the path, and that the host may read it'),
  MACHINE_INITRD_LARGE: entry(422, (path: string, bytes: number, most: number) =>
    `Cannot boot with initrd "${path}" as it has ${bytes} bytes: the kernel can take ${most}`,
    'Make it smaller, or put what it holds on a disk'),
  MACHINE_MEMORY_SMALL: entry(422, (kernel: string, given: string, needed: string) =>
    `Cannot boot kernel "${kernel}" in ${given}: with its initrd it needs ${needed} to begin with`,
    'Raise --memory; what runs in the guest needs some more'),
  MACHINE_COMMAND_LINE_LONG: entry(422, (bytes: number, most: number) =>
    `Cannot boot with a kernel command line of ${bytes} bytes: ${most} is the most`, 'Shorten it'),
  MACHINE_VCPUS_MANY: entry(422, (wanted: number, most: number) =>
    `Cannot give a machine ${wanted} vCPUs: KVM here takes ${most}`, 'Lower --vcpus'),
  MACHINE_DISK_BOOT: entry(422, (name: string) => `Cannot boot "${name}" from its disk with KVM: that needs firmware`,
    'Give a kernel, or run it with --engine qemu'),
  KVM_FAILED: entry(500, (what: string, why: string) => `Cannot ${what} as KVM answers ${why}`,
    "'cellar doctor' tells what /dev/kvm can do here; --engine qemu does without it"),
  MACHINE_IMAGE_DAMAGED: entry(422, (image: string, why: string) => `Cannot use machine image "${image}": ${why}`,
    "Fetch it again, or make it anew: 'cellar image debian', 'cellar image import --kernel …'"),
  MACHINE_KERNEL_INVALID: entry(422, (path: string, why: string) => `Cannot use "${path}" as a kernel: ${why}`,
    'Give a 64-bit Linux kernel: a bzImage such as Debian\'s /boot/vmlinuz-*, or an ELF file'),
  MACHINE_INITRD_INVALID: entry(422, (path: string, why: string) => `Cannot use "${path}" as an initrd: ${why}`,
    'Give a cpio archive ("newc"), compressed or not, such as Debian\'s /boot/initrd.img-*'),
  MACHINE_DISK_INVALID: entry(422, (path: string, why: string) => `Cannot use "${path}" as a disk of an image: ${why}`,
    'Give a raw or a qcow2 file without a backing file; \'qemu-img convert\' makes one of others'),
  MACHINE_SEED_INVALID: entry(422, (path: string, why: string) => `Cannot use "${path}" in a cloud-init seed: ${why}`,
    'See docs/machines.md'),
  MACHINE_TOOL_MISSING: entry(422, (what: string, tool: string, from: string) =>
    `Cannot ${what} as the program ${tool} isn't here: Debian has it in ${from}`,
    "Install that package ('apt-get install …'), or do this on a machine that has it"),
  MACHINE_PACKAGES_FAILED: entry(422, (what: string, why: string) => `Cannot ${what}: ${why}`,
    "Look whether this machine reaches Debian's packages ('apt-get update'), or name others: --mirror, --release"),

  QEMU_MISSING: entry(422, (name: string, why: string) => `Cannot run "${name}" with QEMU: ${why}`,
    'Install it: apt-get install qemu-system-x86'),
  QEMU_OLD: entry(422, (path: string, version: string) => `Cannot use the QEMU at ${path} as its version is ${version}`,
    'Install QEMU 7.2 or later: apt-get install qemu-system-x86'),
  QEMU_FAILED: entry(500, (name: string, why: string) => `Cannot go on with "${name}" as QEMU failed: ${why}`,
    "These are QEMU's own words; the log of the machine has what came before"),

  SNAPSHOT_DAMAGED: entry(422, (name: string, why: string) => `Cannot use snapshot "${name}" as it is damaged: ${why}`,
    'Take another one, or fetch it again: nothing was started from it'),
  SNAPSHOT_FOREIGN: entry(422, (why: string) => `Cannot go on from the snapshot here: ${why}`,
    'It goes on with the program, the grants and a version of Cellar like those that it was taken with'),
  SNAPSHOT_NEWER: entry(422, (name: string, found: number, known: number) =>
    `Cannot use snapshot "${name}" as a newer Cellar has written it: its format is ${found}, ours ${known}`,
    'Run that version of Cellar'),
  AGENT_NOT_CONNECTED: entry(503, (name: string) => `Cannot reach the agent in "${name}"`,
    "The machine's agent must run and have its line: wait until it has started, or see 'cellar console'"),
  AGENT_FAILED: entry(502, (name: string, what: string, why: string) => `Cannot do that in "${name}": ${what}: ${why}`,
    'What the agent in the machine says is the guest\'s own word: look there'),

  DISK_NOT_FOUND: entry(404, (path: string) => `Cannot find disk "${path}"`,
    'Check the path, or create the disk first'),
  DISK_EXISTS: entry(409, (path: string) => `Cannot create disk "${path}" as it exists already`,
    'Choose another path, or delete that file'),
  DISK_UNREADABLE: entry(422, (path: string, why: string) => `Cannot open disk "${path}": ${why}`,
    'Check that it is a file, and that Cellar may read and write it'),
  DISK_UNWRITABLE: entry(422, (path: string, why: string) => `Cannot change disk "${path}": ${why}`,
    'Check that there is room where it lies, and that Cellar may write it'),
  DISK_DAMAGED: entry(422, (path: string, why: string) => `Cannot use disk "${path}" as it is damaged: ${why}`,
    "'qemu-img check' tells more about a qcow2 image; restore the disk from a copy if it can't be mended"),
  DISK_UNSUPPORTED: entry(422, (path: string, what: string) =>
    `Cannot use disk "${path}" as it needs what Cellar doesn't have: ${what}`,
    "Convert it with 'qemu-img convert -O qcow2'; 'qemu-img rebase -u -F FORMAT' states the format of a backing file"),
  DISK_IN_USE: entry(409, (path: string) => `Cannot open disk "${path}" as another machine or program uses it`,
    'Stop that one first; many may share a disk that all of them only read'),
  DISK_SIZE_UNALIGNED: entry(422, (path: string, unit: number, size: number) =>
    `Cannot attach disk "${path}" as its size must be a multiple of ${unit} bytes: current size is ${size}`,
    "Make it larger: 'truncate -s %512 FILE' does that to a raw disk"),
  DISK_TOO_LARGE: entry(422, (path: string, size: number) =>
    `Cannot use disk "${path}" as it is larger than a disk may be: its size is ${size} bytes`,
    'Divide it among several disks, or choose larger clusters'),
  DISK_BACKING_OUTSIDE: entry(403, (path: string, backing: string) =>
    `Cannot use disk "${path}" as its backing file lies outside the folders that it may use: "${backing}"`,
    "Move the backing file beside the disk, or make the disk stand alone with 'qemu-img convert -O qcow2'"),
  DISK_SNAPSHOT_REFUSED: entry(422, (path: string, why: string) => `Cannot take a snapshot of disk "${path}": ${why}`,
    'Choose another name, or convert the image to one with refcounts of 16 bits'),
  DISK_SNAPSHOT_NOT_FOUND: entry(404, (path: string, name: string) =>
    `Cannot find a snapshot "${name}" in disk "${path}"`, "'qemu-img snapshot -l' lists what an image has"),
} as const
