// host/service_files.ts: the host as a service of systemd: the texts of its files.
//
// Guests outlive their host: a stop or restart of the service ends the host's own process only (KillMode=process). The
// service is confined as far as the host's work allows: it starts processes of other users in namespaces of their own,
// and those lengthen a queue of theirs in /proc/sys; everything else of the system it can only read.

/** A file and where it belongs. */
export type ServiceFile = { readonly path: string; readonly text: string }

/** The name of the service. */
export const SERVICE = 'cellar.service'
/** Where a host keeps its state as a service. */
export const SERVICE_STATE = '/var/lib/cellar'
const STATE_DIRECTORIES = '/var/lib/'

/** The files of a service that runs `program` (bin/cellar) on the state in `state`. Paths are absolute. */
export function serviceFiles(program: string, state: string): ServiceFile[] {
  return [
    { path: `/etc/systemd/system/${SERVICE}`, text: unit(program, state) },
    { path: '/etc/sysusers.d/cellar.conf', text: SYSUSERS },
    { path: '/etc/tmpfiles.d/cellar.conf', text: tmpfiles(state) },
  ]
}

const SYSUSERS = `# Who is in this group may do everything with the host, by its socket.
g cellar -
`

// 0711: processes of projects pass through it to what is theirs.
function tmpfiles(state: string): string {
  return `# The state of the Cellar host, and its socket where 'cellar' looks for it.
d ${path(state)} 0711 root root -
d /run/cellar 0755 root root -
L+ /run/cellar/host.sock - - - - ${path(`${state}/host.sock`)}
`
}

function unit(program: string, state: string): string {
  // Below /var/lib systemd makes the folder itself.
  const own = state.startsWith(STATE_DIRECTORIES)
    ? `StateDirectory=${path(state.slice(STATE_DIRECTORIES.length))}\nStateDirectoryMode=0711\n` : ''
  return `[Unit]
Description=Cellar host: keeps guests running
Wants=network-online.target
After=network-online.target
RequiresMountsFor=${path(state)}
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=${word(program)} host --state ${word(state)} --group cellar
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
TimeoutStartSec=300
WatchdogSec=30

# Guests survive a restart of their host.
KillMode=process
Delegate=yes
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-900

${own}UMask=0022
NoNewPrivileges=yes
CapabilityBoundingSet=${CAPABILITIES.join(' ')}
RestrictNamespaces=net ipc uts
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
ProtectSystem=strict
ReadWritePaths=${word(state)}
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes

[Install]
WantedBy=multi-user.target
`
}

/** Files of other users, ports below 1024, users and namespaces of cell processes, their ends, threads' priorities. */
const CAPABILITIES = [
  'CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_DAC_READ_SEARCH', 'CAP_FOWNER', 'CAP_FSETID', 'CAP_KILL',
  'CAP_NET_BIND_SERVICE', 'CAP_SETGID', 'CAP_SETPCAP', 'CAP_SETUID', 'CAP_SYS_ADMIN', 'CAP_SYS_NICE',
  'CAP_SYS_RESOURCE',
]

/** A word of a command line in a unit: quoted, and nothing in it replaced (systemd.syntax(7), systemd.service(5)). */
function word(text: string): string {
  return `"${path(text).replaceAll('$', '$$$$')}"`
}

/** A path in a unit or a line of tmpfiles.d, with specifiers and quotes made harmless. */
function path(text: string): string {
  return text.replace(/["\\]/g, '\\$&').replaceAll('%', '%%')
}
