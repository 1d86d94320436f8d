// base/signals.ts: signals by number (Linux): exit statuses are 128 + signal, as in a shell.

/** Numbers of the signals that end a guest. */
export const signals = { SIGHUP: 1, SIGINT: 2, SIGABRT: 6, SIGKILL: 9, SIGPIPE: 13, SIGTERM: 15 } as const
