/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of rnbd beyond those that nbd.ko has (trace/events/nbd.h): where
 * a generation stands, and what its connections die of.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM nbd
/* Two headers of one system: its variable needs a name of its own here. */
#undef TRACE_SYSTEM_VAR
#define TRACE_SYSTEM_VAR rnbd
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE rnbd_events

#if !defined(RNBD_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define RNBD_EVENTS_H

#include <linux/tracepoint.h>

TRACE_EVENT(nbd_phase,
	TP_PROTO(u32 index, u64 generation, const char *phase),
	TP_ARGS(index, generation, phase),
	TP_STRUCT__entry(
		__field(u32, index)
		__field(u64, generation)
		__string(phase, phase)
	),
	TP_fast_assign(
		__entry->index = index;
		__entry->generation = generation;
		__assign_str(phase);
	),
	TP_printk("nbd%u: generation %llu: %s", __entry->index,
		  __entry->generation, __get_str(phase))
);

TRACE_EVENT(nbd_connection_dead,
	TP_PROTO(u32 index, u32 connection, const char *reason),
	TP_ARGS(index, connection, reason),
	TP_STRUCT__entry(
		__field(u32, index)
		__field(u32, connection)
		__string(reason, reason)
	),
	TP_fast_assign(
		__entry->index = index;
		__entry->connection = connection;
		__assign_str(reason);
	),
	TP_printk("nbd%u: connection %u: %s", __entry->index,
		  __entry->connection, __get_str(reason))
);

#endif /* RNBD_EVENTS_H */

/* This part must be outside protection. */
#include <trace/define_trace.h>
