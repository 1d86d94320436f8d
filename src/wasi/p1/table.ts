// wasi/p1/table.ts: the 46 functions of WASI preview 1 as data.
//
// name → signature, the file that implements it, whether it may wait, and how far it is supported. Dispatch
// (cell/hypercalls.ts), `cellar inspect`, `--trace` and docs/reference/hypercalls.md are read from here, together with
// what Cellar adds (wasi/cellar/table.ts).
// Spec: WebAssembly/WASI, legacy/preview1/witx/wasi_snapshot_preview1.witx.

/** One hypercall: parameter types and result as WebAssembly has them. */
export type Signature = {
  /** The module that a guest imports it from. */
  readonly module: 'wasi_snapshot_preview1' | 'cellar'
  readonly params: readonly ('i32' | 'i64')[]
  readonly result: 'i32' | null
  /** The file that implements it: of wasi/p1, or of wasi/cellar ('lifecycle', 'net'). */
  readonly file: 'args' | 'clock' | 'fd' | 'filestat' | 'lifecycle' | 'net' | 'path' | 'poll' | 'proc' | 'random' |
    'readdir' | 'sock'
  /** now: answers at once. wait: may park the vCPU. end: may end the guest. */
  readonly answers: 'now' | 'wait' | 'end'
  readonly support: 'full' | 'partial' | 'none'
  readonly note: string
}

const call = (file: Signature['file'], answers: Signature['answers'], params: string,
  support: Signature['support'] = 'full', note = ''): Signature =>
  ({
    module: 'wasi_snapshot_preview1', file, answers,
    params: params === '' ? [] : params.split(' ') as ('i32' | 'i64')[], result: 'i32', support, note,
  })

export const wasi_snapshot_preview1 = {
  args_get:                call('args', 'now', 'i32 i32'),
  args_sizes_get:          call('args', 'now', 'i32 i32'),
  environ_get:             call('args', 'now', 'i32 i32'),
  environ_sizes_get:       call('args', 'now', 'i32 i32'),
  clock_res_get:           call('clock', 'now', 'i32 i32'),
  clock_time_get:          call('clock', 'now', 'i32 i64 i32', 'full',
    'The precision asked for is met, never used to be less exact'),
  fd_advise:               call('fd', 'now', 'i32 i64 i64 i32', 'full', 'Checked, and passed on as advice'),
  fd_allocate:             call('fd', 'now', 'i32 i64 i64'),
  fd_close:                call('fd', 'now', 'i32'),
  fd_datasync:             call('fd', 'wait', 'i32'),
  fd_fdstat_get:           call('fd', 'now', 'i32 i32'),
  fd_fdstat_set_flags:     call('fd', 'now', 'i32 i32', 'partial',
    'APPEND and NONBLOCK; changing DSYNC, RSYNC or SYNC is ENOTSUP, as on Linux'),
  fd_fdstat_set_rights:    call('fd', 'now', 'i32 i64 i64'),
  fd_filestat_get:         call('filestat', 'now', 'i32 i32'),
  fd_filestat_set_size:    call('filestat', 'now', 'i32 i64'),
  fd_filestat_set_times:   call('filestat', 'now', 'i32 i64 i64 i32'),
  fd_pread:                call('fd', 'wait', 'i32 i32 i32 i64 i32'),
  fd_prestat_get:          call('fd', 'now', 'i32 i32'),
  fd_prestat_dir_name:     call('fd', 'now', 'i32 i32 i32'),
  fd_pwrite:               call('fd', 'wait', 'i32 i32 i32 i64 i32'),
  fd_read:                 call('fd', 'wait', 'i32 i32 i32 i32'),
  fd_readdir:              call('readdir', 'now', 'i32 i32 i32 i64 i32'),
  fd_renumber:             call('fd', 'now', 'i32 i32'),
  fd_seek:                 call('fd', 'now', 'i32 i64 i32 i32'),
  fd_sync:                 call('fd', 'wait', 'i32'),
  fd_tell:                 call('fd', 'now', 'i32 i32'),
  fd_write:                call('fd', 'wait', 'i32 i32 i32 i32'),
  path_create_directory:   call('path', 'now', 'i32 i32 i32'),
  path_filestat_get:       call('path', 'now', 'i32 i32 i32 i32 i32'),
  path_filestat_set_times: call('path', 'wait', 'i32 i32 i32 i32 i64 i64 i32'),
  path_link:               call('path', 'wait', 'i32 i32 i32 i32 i32 i32 i32'),
  path_open:               call('path', 'wait', 'i32 i32 i32 i32 i32 i64 i64 i32 i32'),
  path_readlink:           call('path', 'now', 'i32 i32 i32 i32 i32 i32'),
  path_remove_directory:   call('path', 'now', 'i32 i32 i32'),
  path_rename:             call('path', 'now', 'i32 i32 i32 i32 i32 i32'),
  path_symlink:            call('path', 'now', 'i32 i32 i32 i32 i32'),
  path_unlink_file:        call('path', 'now', 'i32 i32 i32'),
  poll_oneoff:             call('poll', 'wait', 'i32 i32 i32 i32'),
  proc_exit:               { ...call('proc', 'end', 'i32'), result: null },
  proc_raise:              call('proc', 'end', 'i32', 'full',
    'Ends the guest as the signal does by default; SIGCHLD, SIGURG, SIGWINCH and SIGCONT do nothing'),
  random_get:              call('random', 'wait', 'i32 i32'),
  sched_yield:             call('proc', 'wait', ''),
  sock_accept:             call('sock', 'wait', 'i32 i32 i32'),
  sock_recv:               call('sock', 'wait', 'i32 i32 i32 i32 i32 i32'),
  sock_send:               call('sock', 'wait', 'i32 i32 i32 i32 i32'),
  sock_shutdown:           call('sock', 'now', 'i32 i32'),
} as const satisfies Record<string, Signature>
