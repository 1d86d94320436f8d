// guests/hypercalls.h: the 46 functions of WASI preview 1 as WebAssembly has them, without wasi-libc in between.
//
// wasi-libc's own <wasi/api.h> takes C strings and typed pointers; a hostile guest passes numbers. Every pointer,
// length, descriptor and flag is a uint32_t here, whatever its width in the witx: what is too wide is handed over too.

#include <stdint.h>

#define HYPERCALL(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) extern

HYPERCALL(args_get) uint32_t args_get(uint32_t argv, uint32_t argv_buf);
HYPERCALL(args_sizes_get) uint32_t args_sizes_get(uint32_t argc, uint32_t argv_buf_size);
HYPERCALL(environ_get) uint32_t environ_get(uint32_t environ, uint32_t environ_buf);
HYPERCALL(environ_sizes_get) uint32_t environ_sizes_get(uint32_t environc, uint32_t environ_buf_size);
HYPERCALL(clock_res_get) uint32_t clock_res_get(uint32_t id, uint32_t resolution);
HYPERCALL(clock_time_get) uint32_t clock_time_get(uint32_t id, uint64_t precision, uint32_t time);
HYPERCALL(fd_advise) uint32_t fd_advise(uint32_t fd, uint64_t offset, uint64_t len, uint32_t advice);
HYPERCALL(fd_allocate) uint32_t fd_allocate(uint32_t fd, uint64_t offset, uint64_t len);
HYPERCALL(fd_close) uint32_t fd_close(uint32_t fd);
HYPERCALL(fd_datasync) uint32_t fd_datasync(uint32_t fd);
HYPERCALL(fd_fdstat_get) uint32_t fd_fdstat_get(uint32_t fd, uint32_t stat);
HYPERCALL(fd_fdstat_set_flags) uint32_t fd_fdstat_set_flags(uint32_t fd, uint32_t flags);
HYPERCALL(fd_fdstat_set_rights) uint32_t fd_fdstat_set_rights(uint32_t fd, uint64_t base, uint64_t inheriting);
HYPERCALL(fd_filestat_get) uint32_t fd_filestat_get(uint32_t fd, uint32_t buf);
HYPERCALL(fd_filestat_set_size) uint32_t fd_filestat_set_size(uint32_t fd, uint64_t size);
HYPERCALL(fd_filestat_set_times) uint32_t fd_filestat_set_times(uint32_t fd, uint64_t atim, uint64_t mtim,
  uint32_t fst_flags);
HYPERCALL(fd_pread) uint32_t fd_pread(uint32_t fd, uint32_t iovs, uint32_t iovs_len, uint64_t offset, uint32_t nread);
HYPERCALL(fd_prestat_get) uint32_t fd_prestat_get(uint32_t fd, uint32_t buf);
HYPERCALL(fd_prestat_dir_name) uint32_t fd_prestat_dir_name(uint32_t fd, uint32_t path, uint32_t path_len);
HYPERCALL(fd_pwrite) uint32_t fd_pwrite(uint32_t fd, uint32_t iovs, uint32_t iovs_len, uint64_t offset,
  uint32_t nwritten);
HYPERCALL(fd_read) uint32_t fd_read(uint32_t fd, uint32_t iovs, uint32_t iovs_len, uint32_t nread);
HYPERCALL(fd_readdir) uint32_t fd_readdir(uint32_t fd, uint32_t buf, uint32_t buf_len, uint64_t cookie,
  uint32_t bufused);
HYPERCALL(fd_renumber) uint32_t fd_renumber(uint32_t fd, uint32_t to);
HYPERCALL(fd_seek) uint32_t fd_seek(uint32_t fd, uint64_t offset, uint32_t whence, uint32_t newoffset);
HYPERCALL(fd_sync) uint32_t fd_sync(uint32_t fd);
HYPERCALL(fd_tell) uint32_t fd_tell(uint32_t fd, uint32_t offset);
HYPERCALL(fd_write) uint32_t fd_write(uint32_t fd, uint32_t iovs, uint32_t iovs_len, uint32_t nwritten);
HYPERCALL(path_create_directory) uint32_t path_create_directory(uint32_t fd, uint32_t path, uint32_t path_len);
HYPERCALL(path_filestat_get) uint32_t path_filestat_get(uint32_t fd, uint32_t flags, uint32_t path, uint32_t path_len,
  uint32_t buf);
HYPERCALL(path_filestat_set_times) uint32_t path_filestat_set_times(uint32_t fd, uint32_t flags, uint32_t path,
  uint32_t path_len, uint64_t atim, uint64_t mtim, uint32_t fst_flags);
HYPERCALL(path_link) uint32_t path_link(uint32_t old_fd, uint32_t old_flags, uint32_t old_path, uint32_t old_path_len,
  uint32_t new_fd, uint32_t new_path, uint32_t new_path_len);
HYPERCALL(path_open) uint32_t path_open(uint32_t fd, uint32_t dirflags, uint32_t path, uint32_t path_len,
  uint32_t oflags, uint64_t base, uint64_t inheriting, uint32_t fdflags, uint32_t opened_fd);
HYPERCALL(path_readlink) uint32_t path_readlink(uint32_t fd, uint32_t path, uint32_t path_len, uint32_t buf,
  uint32_t buf_len, uint32_t bufused);
HYPERCALL(path_remove_directory) uint32_t path_remove_directory(uint32_t fd, uint32_t path, uint32_t path_len);
HYPERCALL(path_rename) uint32_t path_rename(uint32_t fd, uint32_t old_path, uint32_t old_path_len, uint32_t new_fd,
  uint32_t new_path, uint32_t new_path_len);
HYPERCALL(path_symlink) uint32_t path_symlink(uint32_t old_path, uint32_t old_path_len, uint32_t fd,
  uint32_t new_path, uint32_t new_path_len);
HYPERCALL(path_unlink_file) uint32_t path_unlink_file(uint32_t fd, uint32_t path, uint32_t path_len);
HYPERCALL(poll_oneoff) uint32_t poll_oneoff(uint32_t in, uint32_t out, uint32_t nsubscriptions, uint32_t nevents);
HYPERCALL(proc_exit) void proc_exit(uint32_t rval);
HYPERCALL(proc_raise) uint32_t proc_raise(uint32_t sig);
HYPERCALL(random_get) uint32_t random_get(uint32_t buf, uint32_t buf_len);
HYPERCALL(sched_yield) uint32_t sched_yield(void);
HYPERCALL(sock_accept) uint32_t sock_accept(uint32_t fd, uint32_t flags, uint32_t accepted_fd);
HYPERCALL(sock_recv) uint32_t sock_recv(uint32_t fd, uint32_t ri_data, uint32_t ri_data_len, uint32_t ri_flags,
  uint32_t ro_datalen, uint32_t ro_flags);
HYPERCALL(sock_send) uint32_t sock_send(uint32_t fd, uint32_t si_data, uint32_t si_data_len, uint32_t si_flags,
  uint32_t so_datalen);
HYPERCALL(sock_shutdown) uint32_t sock_shutdown(uint32_t fd, uint32_t how);
