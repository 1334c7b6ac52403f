// SPDX-License-Identifier: MIT
/*
 * clone.c - clone3(2) onto another stack, with clone(2) where a seccomp profile answers ENOSYS (Docker).
 *
 * Owns the register work. The exit signal is 0: a SIGCHLD handler or waitpid(-1) of the caller does not see the
 * child before it executes a program (execve sets the exit signal back to SIGCHLD, linux/fs/exec.c de_thread()).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>

#include "launch.h"
#include "raw.h"

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif
#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
#ifndef __NR_clone3
#define __NR_clone3 435
#endif

/* As the kernel of Linux 5.7 has it; older headers lack the cgroup field. */
struct clone3_args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
		cgroup;
};

/* The child calls run(arg) at the top of the new stack; all other registers are the caller's, the TLS one too. */
static long clone3_call(struct clone3_args *args, int (*run)(void *), void *arg)
{
#if defined(__x86_64__)
	long ret;
	register long r8 __asm__("r8") = (long)run;
	register long r9 __asm__("r9") = (long)arg;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "and $-16, %%rsp\n\t"
			 "mov %%r9, %%rdi\n\t"
			 "call *%%r8\n\t"
			 "mov %%eax, %%edi\n\t"
			 "mov %[exit_group], %%eax\n\t"
			 "syscall\n\t"
			 "hlt\n"
			 "1:\n"
			 : "=a"(ret)
			 : "a"((long)__NR_clone3), "D"(args), "S"(sizeof(*args)), "r"(r8),
			   "r"(r9), [exit_group] "i"(__NR_exit_group)
			 : "rcx", "r11", "memory");
	return ret;
#else
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof(*args);
	register long x2 __asm__("x2") = (long)run;
	register long x3 __asm__("x3") = (long)arg;
	register long x8 __asm__("x8") = __NR_clone3;

	__asm__ volatile("svc 0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, xzr\n\t"
			 "mov x0, x3\n\t"
			 "blr x2\n\t"
			 "mov x8, %[exit_group]\n\t"
			 "svc 0\n\t"
			 "brk 1\n"
			 "1:\n"
			 : "+r"(x0)
			 : "r"(x1), "r"(x2), "r"(x3), "r"(x8), [exit_group] "i"(__NR_exit_group)
			 : "memory");
	return x0;
#endif
}

/* Ours by number: clone(2) has no room for NEWTIME (it overlaps the exit signal) nor for the 64-bit flags. */
static pid_t clone2(struct iso_clone *c, int (*run)(void *), void *arg)
{
	uint64_t flags = c->flags & 0xffffffffULL;
	int pid;

	if (flags & CLONE_NEWTIME)
		return -ENOSYS;
	c->used_clone2 = true;
	pid = clone(run, c->stack + c->stack_bytes, (int)flags, arg, &c->pidfd, NULL, NULL);
	return pid < 0 ? -errno : pid;
}

pid_t iso_clone(struct iso_clone *c, int (*run)(void *), void *arg)
{
	struct clone3_args args = {0};
	long pid;

	c->pidfd = -1;
	c->flags |= CLONE_PIDFD;
	args.flags = c->flags | (c->cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0);
	args.pidfd = (uintptr_t)&c->pidfd;
	args.stack = (uintptr_t)c->stack;
	args.stack_size = c->stack_bytes;
	args.cgroup = c->cgroup_fd >= 0 ? (uint64_t)c->cgroup_fd : 0;
	pid = clone3_call(&args, run, arg);
	if (pid == -ENOSYS)
		return clone2(c, run, arg);
	return (pid_t)pid;
}
