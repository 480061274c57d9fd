// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of the tracepoints: nbd.ko's own, from the kernel's header, and ours.
 */

#include <linux/blk-mq.h>
#include <linux/nbd.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/nbd.h>
#include "rnbd_events.h"
