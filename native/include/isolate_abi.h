/* SPDX-License-Identifier: MIT */
/*
 * isolate_abi.h - the layouts that the C library shares with its callers.
 *
 * Rules: fixed-width types, no implicit padding, zero means unset, fields are only ever appended.
 * Therefore a descriptor that may be absent is stored as fd + 1 (`..._fd_plus1`), and addresses are
 * stored as 64-bit numbers. Each struct is one list of X(type, name, offset); the list makes the struct,
 * the static asserts and the table that iso_abi_fields() exports, which tests compare with every mirror.
 */
#ifndef ISOLATE_ABI_H
#define ISOLATE_ABI_H

#include <stdint.h>

#define ISO_ABI_VERSION 1
#define ISO_EXIT_MAGIC 0x4f534931u /* "1ISO" */

#define ISO_DECLARE_FIELD(type, name, offset) type name;

/* What the child was doing when it failed. The order is the order of execution. */
#define ISO_STEPS(X)                                                                                                   \
	X(PLAN, 1, "plan")	 /* the request itself: version, size, contradictions */                               \
	X(PREPARE, 2, "prepare") /* pipes, pidfds and stacks of the caller */                                          \
	X(CLONE, 3, "clone")	 /* clone3(2), clone(2) or fork(2) */                                                  \
	X(SIGNALS, 4, "signals")                                                                                       \
	X(SESSION, 5, "session") /* setsid(2) */                                                                       \
	X(PDEATHSIG, 6, "pdeathsig")                                                                                   \
	X(CGROUP, 7, "cgroup")	 /* index: entry of cgroup_procs_fds, -1 for cgroup_fd */                              \
	X(UNSHARE, 8, "unshare") /* namespaces that cannot be made by the clone */                                     \
	X(MAPS, 9, "maps")	 /* index 0: uid_map, 1: setgroups, 2: gid_map */                                      \
	X(JOIN, 10, "join")	 /* index: entry of joins */                                                           \
	X(HOSTNAME, 11, "hostname")                                                                                    \
	X(LOOPBACK, 12, "loopback")                                                                                    \
	X(MOUNTS, 13, "mounts") /* index: entry of mounts */                                                           \
	X(CWD, 14, "cwd")                                                                                              \
	X(FORK, 15, "fork") /* the init starts the main process */                                                     \
	X(UMASK, 16, "umask")                                                                                          \
	X(RLIMITS, 17, "rlimits")	    /* index: entry of rlimits */                                              \
	X(CAPABILITIES, 18, "capabilities") /* index: the capability, -1 for capset(2) */                              \
	X(NO_NEW_PRIVS, 19, "no_new_privs")                                                                            \
	X(LANDLOCK, 20, "landlock") /* index: entry of landlock */                                                     \
	X(STDIO, 21, "stdio")	    /* index: 0, 1 or 2 */                                                             \
	X(FDS, 22, "fds")	    /* index: entry of keep_fds, -1 for close_range(2) */                              \
	X(SECCOMP, 23, "seccomp")                                                                                      \
	X(EXEC, 24, "exec")                                                                                            \
	X(INIT, 25, "init")		/* isolate-init could not be executed, or died early */                        \
	X(PROC, 26, "proc")		/* /proc is not that of the caller's PID namespace */                          \
	X(SECUREBITS, 27, "securebits") /* before CAPABILITIES */

#define ISO_DECLARE_STEP(name, number, text) ISO_STEP_##name = number,
enum iso_step { ISO_STEPS(ISO_DECLARE_STEP) };

/* iso_plan.flags */
#define ISO_NEW_SESSION (1u << 0)
#define ISO_LOOPBACK_UP (1u << 1)
#define ISO_NO_NEW_PRIVS (1u << 2)
#define ISO_CLOSE_FDS (1u << 3)
#define ISO_SET_UMASK (1u << 4)
#define ISO_SET_CAPABILITIES (1u << 5)
#define ISO_MONITOR (1u << 6) /* isolate-init watches and ends the tree; a PID namespace has that by itself */
#define ISO_FLAGS_ALL ((1u << 7) - 1)

/* What one entry of the mount table does. Mirrored by plan.MountKind. */
enum iso_mount_kind {
	ISO_MOUNT_PROPAGATION = 1,
	ISO_MOUNT_MOUNT = 2,
	ISO_MOUNT_BIND = 3,
	ISO_MOUNT_MKDIR = 4,
	ISO_MOUNT_MKFILE = 5,
	ISO_MOUNT_SYMLINK = 6,
	ISO_MOUNT_PIVOT = 7,
	ISO_MOUNT_REMOUNT = 8,
	ISO_MOUNT_SETATTR = 9,
	ISO_MOUNT_UMOUNT = 10,
	ISO_MOUNT_SEND_DIR = 11,
	ISO_MOUNT_MKNOD = 12,
};

/* One line of uid_map or gid_map, user_namespaces(7). */
#define ISO_IDMAP_FIELDS(X)                                                                                            \
	X(uint32_t, inside, 0)                                                                                         \
	X(uint32_t, outside, 4)                                                                                        \
	X(uint32_t, count, 8)                                                                                          \
	X(uint32_t, pad, 12)
struct iso_idmap {
	ISO_IDMAP_FIELDS(ISO_DECLARE_FIELD)
};

/* All ones in soft or hard is RLIM_INFINITY. */
#define ISO_RLIMIT_FIELDS(X)                                                                                           \
	X(uint32_t, resource, 0)                                                                                       \
	X(uint32_t, pad, 4)                                                                                            \
	X(uint64_t, soft, 8)                                                                                           \
	X(uint64_t, hard, 16)
struct iso_rlimit {
	ISO_RLIMIT_FIELDS(ISO_DECLARE_FIELD)
};

/* setns(fd, flags); fd is a namespace file or a pidfd. */
#define ISO_JOIN_FIELDS(X)                                                                                             \
	X(int32_t, fd, 0)                                                                                              \
	X(uint32_t, flags, 4)
struct iso_join {
	ISO_JOIN_FIELDS(ISO_DECLARE_FIELD)
};

/*
 * source, target, fstype and data are const char *. data holds: options of MOUNT; the octal mode of MKFILE; of MKDIR
 * "mode" or "mode:uid:gid", exactly so whatever the umask is; of BIND the descriptor, in decimal, of a detached tree that takes
 * the place of source (open_tree(2), as the caller has prepared it; used up by this start); of SETATTR "set" or "set:clear",
 * MOUNT_ATTR_* bits in decimal or 0x hexadecimal; of REMOUNT, so written, the flags to take off; of MKNOD "mode:major:minor" of a
 * character device.
 */
#define ISO_MOUNT_FIELDS(X)                                                                                            \
	X(uint32_t, kind, 0)                                                                                           \
	X(uint32_t, pad, 4)                                                                                            \
	X(uint64_t, flags, 8) /* MS_*, mount(2); of SEND_DIR the socket */                                             \
	X(uint64_t, source, 16)                                                                                        \
	X(uint64_t, target, 24)                                                                                        \
	X(uint64_t, fstype, 32)                                                                                        \
	X(uint64_t, data, 40)
struct iso_mount {
	ISO_MOUNT_FIELDS(ISO_DECLARE_FIELD)
};

/*
 * One rule of a Landlock ruleset that the child makes: in its own mounts, for a rule holds for a file, not for a name.
 * With a path, rights are LANDLOCK_ACCESS_FS_*; what a file cannot have is left out of them. Else LANDLOCK_ACCESS_NET_*.
 */
#define ISO_LANDLOCK_FIELDS(X)                                                                                         \
	X(uint64_t, rights, 0)                                                                                         \
	X(uint64_t, path, 8) /* const char *, or 0 */                                                                  \
	X(uint32_t, port, 16)                                                                                          \
	X(uint32_t, optional, 20) /* 1: nothing at path is no failure */
struct iso_landlock {
	ISO_LANDLOCK_FIELDS(ISO_DECLARE_FIELD)
};

/* Everything the child does between clone and exec, or between fork and the caller's code. All fds are borrowed. */
#define ISO_PLAN_FIELDS(X)                                                                                             \
	X(uint32_t, size, 0)		  /* sizeof(struct iso_plan) as the caller knows it */                         \
	X(uint32_t, version, 4)		  /* ISO_ABI_VERSION */                                                        \
	X(uint64_t, namespaces, 8)	  /* CLONE_NEW* */                                                             \
	X(uint64_t, flags, 16)		  /* ISO_NEW_SESSION ... */                                                    \
	X(uint64_t, init, 24)		  /* const char *: path of isolate-init, where there is an init */             \
	X(uint64_t, hostname, 32)	  /* const char * */                                                           \
	X(uint64_t, cwd, 40)		  /* const char * */                                                           \
	X(uint64_t, uid_map, 48)	  /* const struct iso_idmap * */                                               \
	X(uint64_t, gid_map, 56)	  /* const struct iso_idmap * */                                               \
	X(uint64_t, mounts, 64)		  /* const struct iso_mount * */                                               \
	X(uint64_t, rlimits, 72)	  /* const struct iso_rlimit * */                                              \
	X(uint64_t, joins, 80)		  /* const struct iso_join * */                                                \
	X(uint64_t, cgroup_procs_fds, 88) /* const int32_t *: open cgroup.procs files */                               \
	X(uint64_t, keep_fds, 96)	  /* const int32_t *, ascending, all above 2 */                                \
	X(uint64_t, seccomp, 104)	  /* const struct sock_filter * */                                             \
	X(uint32_t, uid_map_count, 112)                                                                                \
	X(uint32_t, gid_map_count, 116)                                                                                \
	X(uint32_t, mounts_count, 120)                                                                                 \
	X(uint32_t, rlimits_count, 124)                                                                                \
	X(uint32_t, joins_count, 128)                                                                                  \
	X(uint32_t, cgroup_procs_fds_count, 132)                                                                       \
	X(uint32_t, keep_fds_count, 136)                                                                               \
	X(uint32_t, seccomp_count, 140)	    /* instructions */                                                         \
	X(uint64_t, capabilities, 144)	    /* what remains, bit n = capability n; with ISO_SET_CAPABILITIES */        \
	X(uint32_t, cgroup_fd_plus1, 152)   /* directory of a v2 cgroup */                                             \
	X(uint32_t, landlock_fd_plus1, 156) /* a ruleset made before, enforced besides `landlock` */                   \
	X(uint32_t, pdeathsig, 160)	    /* for the main process when there is no init */                           \
	X(uint32_t, umask, 164)		    /* with ISO_SET_UMASK */                                                   \
	X(uint64_t, landlock, 168)	    /* const struct iso_landlock *: rules of a ruleset made by the child */    \
	X(uint64_t, landlock_fs, 176)	    /* what of LANDLOCK_ACCESS_FS_* it governs */                              \
	X(uint64_t, landlock_net, 184)	    /* of LANDLOCK_ACCESS_NET_* (ABI 4) */                                     \
	X(uint64_t, landlock_scoped, 192)   /* of LANDLOCK_SCOPE_* (ABI 6) */                                          \
	X(uint32_t, landlock_count, 200)                                                                               \
	X(uint32_t, securebits, 204) /* PR_SET_SECUREBITS; 0: unchanged */
struct iso_plan {
	ISO_PLAN_FIELDS(ISO_DECLARE_FIELD)
};

/* The program of iso_spawn. Absent stdio descriptors are inherited. */
#define ISO_EXEC_FIELDS(X)                                                                                             \
	X(uint32_t, size, 0)                                                                                           \
	X(uint32_t, executable_fd_plus1, 4) /* execveat(fd, "") instead of paths */                                    \
	X(uint64_t, paths, 8)		    /* const char *const *, NULL-ended: tried in order as execvp(3) does */    \
	X(uint64_t, argv, 16)		    /* char *const * */                                                        \
	X(uint64_t, envp, 24)		    /* char *const *; 0: the caller's */                                       \
	X(uint64_t, default_signals, 32)    /* bit n - 1: signal n is set to SIG_DFL though it was ignored */          \
	X(uint32_t, stdin_fd_plus1, 40)                                                                                \
	X(uint32_t, stdout_fd_plus1, 44)                                                                               \
	X(uint32_t, stderr_fd_plus1, 48)                                                                               \
	X(uint32_t, pad, 52)                                                                                           \
	X(uint64_t, arena, 56) /* memory of iso_arena(), of no other start meanwhile; 0: made and unmade for this one */
struct iso_exec {
	ISO_EXEC_FIELDS(ISO_DECLARE_FIELD)
};

/*
 * Called by iso_fork around the fork, void (*)(void), each may be 0: prepare in the caller before, parent in the
 * caller after (also after a failure), child in the child just before iso_fork returns there.
 */
#define ISO_HOOKS_FIELDS(X)                                                                                            \
	X(uint64_t, prepare, 0)                                                                                        \
	X(uint64_t, parent, 8)                                                                                         \
	X(uint64_t, child, 16)
struct iso_hooks {
	ISO_HOOKS_FIELDS(ISO_DECLARE_FIELD)
};

/* Where and why a start failed; step 0: it did not. index -1: the step has no list. */
#define ISO_FAILURE_FIELDS(X)                                                                                          \
	X(int32_t, step, 0)                                                                                            \
	X(int32_t, err, 4)                                                                                             \
	X(int32_t, index, 8)                                                                                           \
	X(uint32_t, pad, 12)
struct iso_failure {
	ISO_FAILURE_FIELDS(ISO_DECLARE_FIELD)
};

/* A started child. Pids are the caller's numbers; the caller owns the fds (close-on-exec). Without an init: 0, -1, -1. */
#define ISO_CHILD_FIELDS(X)                                                                                            \
	X(int32_t, main_pid, 0)                                                                                        \
	X(int32_t, main_pidfd, 4)                                                                                      \
	X(int32_t, init_pid, 8)                                                                                        \
	X(int32_t, init_pidfd, 12)                                                                                     \
	X(int32_t, status_fd, 16) /* one struct iso_exit will be written there by the init */                          \
	X(uint32_t, monitor, 20)  /* 1: the init is a monitor in the caller's PID namespace: iso_end_tree() */
struct iso_child {
	ISO_CHILD_FIELDS(ISO_DECLARE_FIELD)
};

/* How the main process ended, and its rusage: the record on status_fd, and the result of iso_wait. */
#define ISO_EXIT_FIELDS(X)                                                                                             \
	X(uint32_t, magic, 0)	  /* ISO_EXIT_MAGIC */                                                                 \
	X(int32_t, status, 4)	  /* as wait(2) has it */                                                              \
	X(uint32_t, leftovers, 8) /* 1: other processes of the tree remain */                                          \
	X(uint32_t, pad, 12)                                                                                           \
	X(uint64_t, user_usec, 16)                                                                                     \
	X(uint64_t, system_usec, 24)                                                                                   \
	X(uint64_t, max_rss_bytes, 32)                                                                                 \
	X(uint64_t, minor_faults, 40)                                                                                  \
	X(uint64_t, major_faults, 48)                                                                                  \
	X(uint64_t, voluntary_switches, 56)                                                                            \
	X(uint64_t, involuntary_switches, 64)                                                                          \
	X(uint64_t, blocks_in, 72)                                                                                     \
	X(uint64_t, blocks_out, 80)
struct iso_exit {
	ISO_EXIT_FIELDS(ISO_DECLARE_FIELD)
};

/* All structs above, for whoever wants to walk them: X(struct tag, field list). */
#define ISO_STRUCTS(X)                                                                                                 \
	X(iso_idmap, ISO_IDMAP_FIELDS)                                                                                 \
	X(iso_rlimit, ISO_RLIMIT_FIELDS)                                                                               \
	X(iso_join, ISO_JOIN_FIELDS)                                                                                   \
	X(iso_mount, ISO_MOUNT_FIELDS)                                                                                 \
	X(iso_landlock, ISO_LANDLOCK_FIELDS)                                                                           \
	X(iso_plan, ISO_PLAN_FIELDS)                                                                                   \
	X(iso_exec, ISO_EXEC_FIELDS)                                                                                   \
	X(iso_hooks, ISO_HOOKS_FIELDS)                                                                                 \
	X(iso_failure, ISO_FAILURE_FIELDS)                                                                             \
	X(iso_child, ISO_CHILD_FIELDS)                                                                                 \
	X(iso_exit, ISO_EXIT_FIELDS)

/* One field of one struct; the row with an empty field name carries the struct's size and alignment-free end. */
struct iso_abi_field {
	const char *owner;
	const char *field;
	uint32_t offset;
	uint32_t size;
};

#endif
