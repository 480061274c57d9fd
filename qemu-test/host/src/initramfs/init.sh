#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# The guest's first process: mounts what programs expect, runs the job that the harness put beside
# it (/job), tells the harness how that ended, powers off. The console (ttyS0) is for the kernel; what the job
# prints goes to the second serial port, where the harness reads it.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM="${TERM:-linux}"

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null # the kernel may have done so
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777,size=75% tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/lock
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null # absent from some kernels
ln -s /proc/self/fd /dev/fd
ip link set lo up

. /job
if type interactive >/dev/null; then
	interactive
	poweroff -f
fi

results=/dev/ttyS1
stty -F $results raw -echo
echo "@init $(uname -r)" >$results
(job) </dev/null >$results 2>&1
echo "@exit $?" >$results
sync
poweroff -f
