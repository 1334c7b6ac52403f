/* SPDX-License-Identifier: MIT */
/*
 * raw.h - system calls without libc: no errno, no thread-local storage, no cancellation points.
 *
 * For isolate-init, which has no libc, and for the moments in which a child runs on the caller's thread-local
 * storage, so that the caller must not touch it.
 */
#ifndef ISO_RAW_H
#define ISO_RAW_H

#include <asm/unistd.h>

#if defined(__x86_64__)
static inline long raw6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
static inline long raw6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#else
#error "isolate knows x86-64 and aarch64"
#endif

#define raw5(nr, a, b, c, d, e) raw6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define raw4(nr, a, b, c, d) raw5(nr, a, b, c, d, 0)
#define raw3(nr, a, b, c) raw4(nr, a, b, c, 0)
#define raw2(nr, a, b) raw3(nr, a, b, 0)
#define raw1(nr, a) raw2(nr, a, 0)

#endif
