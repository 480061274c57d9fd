# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Shared by the scripts of this folder: where things are, messages, steps, locks. Sourced.

set -euo pipefail
# A `make` above us would hand its flags and job server on to the makes we start.
unset MAKEFLAGS MFLAGS MAKELEVEL

# shellcheck disable=SC2034 # used by those who source this
{
	SRC=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
	TOOLCHAIN=$SRC/toolchain
	CACHE=${XDG_CACHE_HOME:-${HOME:?is not set, and neither is XDG_CACHE_HOME}/.cache}/rnbd
	BUILD=$CACHE/build/$(printf %s "$SRC" | sha256sum | cut -c1-12)
	LOGS=$CACHE/log
}

say() { printf '%s\n' "$*" >&2; }

# die MESSAGE [HINT...]: what was wrong, then what to do about it, one line each.
die() {
	say "error: $1"
	shift
	for hint; do say "       $hint"; done
	exit 1
}

# debug_variant OPTION: the debug kernel that --debug or --debug=VARIANT means.
debug_variant() {
	local variant=${1#--debug}
	variant=${variant#=}
	printf '%s\n' "${variant:-kasan}"
}

# Is the kernel asked for that of the first line of toolchain/series?
is_preferred() {
	local series suite
	read -r series suite < <(grep '^[0-9]' -- "$TOOLCHAIN/series")
	[[ ${KERNEL:-$series} == "$series" && ${SUITE:-$suite} == "$suite" ]]
}

# The preferred series' debug kernel is built when it is first wanted. One for another series, which takes as long
# again, is used if there is one: make debug-kernel KERNEL=SERIES makes it.
uses_debug_kernel() { is_preferred || [[ $("$TOOLCHAIN/debug-kernel" --if-there) ]]; }

make_cache() {
	local status=0
	mkdir -p -- "$CACHE" "$LOGS" "$CACHE/lock" "$CACHE/cargo-home" "$BUILD/home" 2>/dev/null || status=$?
	[[ $status == 0 && -w $CACHE && -w $LOGS && -w $CACHE/lock && -w $CACHE/cargo-home && -w $BUILD ]] ||
		die "the cache $CACHE is not writable for $(id -un)" \
			"it may have been made by root; give it back: sudo chown -R $(id -un) '$CACHE'/{log,lock,build,cargo-home}" \
			"or choose another place: XDG_CACHE_HOME=DIR make ..."
}

no_root() {
	die "this needs root, to make and enter the toolchain root with chroot" \
		"run it as root, or install sudo and allow $(id -un) to use it"
}

# as_root CMD...: the toolchain root is made and entered by root alone.
as_root() {
	if ((EUID == 0)); then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo --preserve-env=http_proxy,https_proxy,no_proxy -- "$@"
	else
		no_root
	fi
}

# show_progress TEXT LOG: elapsed time and the log's last line, once a second, on a terminal.
show_progress() {
	local text=$1 log=$2 start=$SECONDS last
	while sleep 1 && kill -0 $$ 2>/dev/null; do
		last=$(tail -c 300 -- "$log" 2>/dev/null | tr '\r\t' '\n ' | tail -n 1 | tr -cd '[:print:]')
		printf '\r\033[K  %s  %d s  \033[2m%.40s\033[0m' "$text" $((SECONDS - start)) "$last" >&2
	done
}

# announce TEXT: a line for a step that lasts, where there is no terminal: a log must not stay empty for minutes.
announce() {
	local pause
	# A pipe that nobody writes to. What is killed here is this shell alone: a `sleep` would outlive it, with its files.
	exec {pause}<> <(:)
	read -rt 2 -u "$pause" || ! kill -0 $$ 2>/dev/null || say "  $1 ..."
}

# step TEXT LOGNAME CMD...: run CMD with its output in a log; one line with its time, or the log's end. One that lasts
# is seen to: on a terminal in a line that moves, elsewhere in a line that says what has begun.
step() {
	local text=$1 log=$LOGS/$2.log start=$EPOCHREALTIME ticker='' status=0
	shift 2
	: >"$log"
	if [[ ! -t 2 ]]; then
		announce "$text" &
		ticker=$!
	elif [[ ! ${IN_BACKGROUND-} ]]; then
		show_progress "$text" "$log" &
		ticker=$!
	fi
	"$@" >"$log" 2>&1 </dev/null || status=$?
	if [[ $ticker ]]; then
		kill "$ticker" 2>/dev/null || true
		wait "$ticker" 2>/dev/null || true
		[[ ! -t 2 ]] || printf '\r\033[K' >&2
	fi
	if ((status)); then
		say "  $text: failed (exit status $status). The last lines of $log:"
		tail -n 25 -- "$log" | sed 's/^/  | /' >&2
		return "$status"
	fi
	printf '  %-58s %6s s\n' "$text" "$(elapsed_since "$start")" >&2
}

# Seconds since then. Not for printf's %f, which takes the locale's comma alone.
elapsed_since() {
	local us=$((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}))
	printf '%d.%d' $((us / 1000000)) $((us / 100000 % 10))
}

# with_lock NAME CMD...: one run at a time for whoever shares this cache.
with_lock() {
	local fd status=0
	exec {fd}>"$CACHE/lock/$1"
	if ! flock --nonblock "$fd"; then
		say "  another run is at work on the same $1; waiting for it"
		flock "$fd"
	fi
	shift
	"$@" || status=$?
	exec {fd}>&-
	return "$status"
}
