// SPDX-License-Identifier: MIT
/*
 * tiny.c - isolate-tiny: the smallest program there is to execute. With a name that begins with i it is the smallest init:
 * it waits until it has no child left. With an argument it waits until it is killed. No libc.
 */
#include "raw.h"

__attribute__((noreturn, used)) void tiny(const long *stack)
{
	const char *name = (const char *)stack[1];

	if (stack[0] > 0 && name[0] == 'i')
		while (raw4(__NR_wait4, -1, 0, 0, 0) > 0)
			;
	while (stack[0] > 1)
		raw5(__NR_ppoll, 0, 0, 0, 0, 0);
	for (;;)
		raw1(__NR_exit_group, 0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall tiny\n");
#else
__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl tiny\n");
#endif
