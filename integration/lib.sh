# lib.sh FILE TEST: what the tests have in common, then TEST of FILE. Started by integration/suite, which says in the
# environment what is tested: GOSANDBOX, APPS (example programs by Go release), SLICE, WORK, TEST_USER, TEST_UID.
set -eu

fail() { echo "$*" >&2; exit 1; }
skip() { echo "$*"; exit 77; }

# is WHAT GOT WANTED
is() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }
# at_least WHAT GOT LEAST
at_least() { [ "$2" -ge "$3" ] || fail "$1 is $2, less than $3"; }

# wait_until SECONDS WHAT COMMAND...: polls until the command succeeds. The clock is the kernel's, since an emulated
# machine may be slow at anything.
wait_until() {
	local seconds=$1 what=$2 begun now
	shift 2
	begun=$(cut -d. -f1 /proc/uptime)
	until "$@"; do
		now=$(cut -d. -f1 /proc/uptime)
		[ $((now - begun)) -lt "$seconds" ] || fail "not within $seconds s: $what"
		sleep 0.05
	done
}

# unit NAME [PROPERTY...] -- COMMAND...: starts a transient service in the test's slice, and returns when it is up as
# its Type= defines that; at once where NO_BLOCK is set.
unit() {
	local name=$1 properties=
	shift
	echo "$name.service" >>"$WORK/units"
	while [ "$1" != -- ]; do
		properties="$properties --property=$1"
		shift
	done
	shift
	# shellcheck disable=SC2086 # properties without blanks
	systemd-run --quiet ${NO_BLOCK:+--no-block} --slice="$SLICE" --unit="$name" $properties -- "$@"
}

# tenant NAME [PROPERTY...] -- [FLAG...] BINARY...: a service as an operator would write it, up when the binary runs.
tenant() {
	local name=$1 properties=
	shift
	while [ "$1" != -- ]; do
		properties="$properties $1"
		shift
	done
	shift
	# shellcheck disable=SC2086
	unit "$name" Type=notify NotifyAccess=main Delegate=yes KillMode=mixed $properties -- \
		"$GOSANDBOX" run --tenant "$name" "$@"
}

# pair NAME PORT GRACE COMMAND...: a socket unit and the service that its first connection starts, as an operator writes
# them. Each test has a NAME of its own, since systemd finds new units by itself but has to be told of changed ones,
# which takes long.
UNITS=/run/systemd/system PAIRS=
pair() {
	local name=$1 port=$2 grace=$3
	shift 3
	[ ! -e "$UNITS/gosandbox@$name.service" ] || fail "$UNITS/gosandbox@$name.service is there already"
	echo "gosandbox@$name.service" >>"$WORK/units"
	cat >"$UNITS/gosandbox@$name.socket" <<-END
		[Socket]
		ListenStream=127.0.0.1:$port
		FileDescriptorName=http
		Service=gosandbox@$name.service
		Slice=$SLICE
	END
	cat >"$UNITS/gosandbox@$name.service" <<-END
		[Service]
		Type=notify
		NotifyAccess=main
		ExecStart=$GOSANDBOX run --tenant %i --grace ${grace}s --listen http=tcp:127.0.0.1:$port $*
		Delegate=yes
		KillMode=mixed
		TimeoutStopSec=40
		Slice=$SLICE
	END
	PAIRS="$PAIRS gosandbox@$name"
	# shellcheck disable=SC2064 # as they are now
	trap "for unit in $PAIRS; do systemctl stop \$unit.socket; rm -f '$UNITS'/\$unit.*; done" EXIT
	systemctl start "gosandbox@$name.socket"
}

property() { systemctl show --value -p "$2" "$1"; }
# The directory of a unit's cgroup.
cgroup() { echo "/sys/fs/cgroup$(property "$1" ControlGroup)"; }
slice() { cgroup "$SLICE"; }
supervisor() { property "$1.service" MainPID; }
log() { journalctl --quiet --no-pager -o cat -u "$1.service"; }
logged() { log "$1" | grep -qe "$2"; }
# number FILE KEY: of a flat keyed file of the kernel's.
number() { awk -v key="$2" '$1 == key { print $2 }' "$1"; }

is_active() { systemctl --quiet is-active "$1"; }
is_down() { case $(systemctl is-active "$1") in inactive | failed) ;; *) return 1 ;; esac; }
is_gone() { ! kill -0 "$1" 2>/dev/null || [ "$(state "$1")" = Z ]; }
state() { sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }
is_missing() { [ ! -e "$1" ]; }
is_empty() { [ ! -e "$1/cgroup.events" ] || [ "$(number "$1/cgroup.events" populated)" = 0 ]; }
grep_quietly() { grep -qse "$1" "$2"; }

# get PORT PATH
get() { curl -sS --max-time 40 "http://127.0.0.1:$1$2"; }
answers() { [ "$(curl -sS --max-time 10 "http://127.0.0.1:$1/" 2>/dev/null)" = "hello from $2" ]; }

# The host's numbers of init and app of the tenant whose cgroup is DIR.
init_of() { in_namespace "$1" 1; }
# The app is init's first child; Go gives it the number 2 inside.
app_of() { in_namespace "$1" 2; }
in_namespace() {
	local pid
	while read -r pid; do
		if [ "$(awk '$1 == "NSpid:" { print $NF }' "/proc/$pid/status" 2>/dev/null)" = "$2" ]; then
			echo "$pid"
			return
		fi
	done <"$1/1/cgroup.procs"
	return 1
}

as_user() {
	setpriv --reuid="$TEST_USER" --regid="$TEST_USER" --clear-groups \
		env -i PATH="$PATH" LC_ALL=C HOME=/nonexistent XDG_RUNTIME_DIR="/run/user/$TEST_UID" \
		DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$TEST_UID/bus" "$@"
}
user_session() {
	touch "$WORK/user-units"
	echo "user@$TEST_UID.service" >>"$WORK/units"
	systemctl start "user@$TEST_UID.service"
}

# has_limits DIR: 64M, half a processor, 40 processes, set by the flags in LIMITS.
LIMITS='--memory 64M --cpu 0.5 --pids 40'
has_limits() {
	[ -d "$1" ] || fail "$1: no such cgroup"
	is memory.max "$(cat "$1/memory.max")" $((64 << 20))
	is cpu.max "$(cat "$1/cpu.max")" '50000 100000'
	is pids.max "$(cat "$1/1/pids.max")" 40
	is "populated of $1/1" "$(number "$1/1/cgroup.events" populated)" 1
	is memory.oom.group "$(cat "$1/1/memory.oom.group")" 1
}

# shellcheck disable=SC1090 # the file of tests
. "$1"
"$2"
