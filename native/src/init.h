/* SPDX-License-Identifier: MIT */
/*
 * init.h - what isolate-init finds under its first descriptors: the contract between supervise.c and init.c.
 */
#ifndef ISO_INIT_H
#define ISO_INIT_H

enum {
	ISO_INIT_STATUS_FD, /* a socket: one byte down, one struct iso_exit up */
	ISO_INIT_CALLER_FD, /* a pidfd of the caller */
	ISO_INIT_PROC_FD,   /* /proc as the caller has it, for a monitor */
};

#endif
