# What `gosandbox units` writes, with the templates that `make install` installs.

UNITS=/run/systemd/system
SOURCES=$(dirname -- "$0")/../src/units

# installed NAME FLAG... BINARY...: the templates and the tenant's drop-ins, known to systemd.
installed() {
	local name=$1
	shift
	for unit in gosandbox@.service gosandbox@.socket gosandbox.slice; do
		sed "s|@BINDIR@|$(dirname "$GOSANDBOX")|" "$SOURCES/$unit" >"$UNITS/$unit"
	done
	echo "gosandbox@$name.service" >>"$WORK/units"
	trap "systemctl stop gosandbox@$name.socket gosandbox@$name.service; rm -rf '$UNITS'/gosandbox*" EXIT
	"$GOSANDBOX" units --tenant "$name" --dir "$UNITS" "$@" 2>"$WORK/wrote" || fail "$(cat "$WORK/wrote")"
	systemctl daemon-reload
}

test_the_units_are_clean_and_start_on_the_first_connection() {
	installed unit --listen 18061 "$APPS/1.27/web"
	is 'what systemd-analyze says' "$(systemd-analyze verify --man=no gosandbox@unit.service gosandbox@unit.socket 2>&1)" ''
	systemctl start gosandbox@unit.socket
	is 'the service before' "$(systemctl is-active gosandbox@unit.service || true)" inactive
	is 'the answer' "$(get 18061 /)" 'hello from unit'
	is 'its slice' "$(property gosandbox@unit.service Slice)" gosandbox.slice
	has_default_limits "$(cgroup gosandbox@unit.service)/unit"
	# The supervisor is root without the powers that it does not need: no CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_PTRACE.
	bounding=$(awk '$1 == "CapBnd:" { print $2 }' "/proc/$(supervisor gosandbox@unit)/status")
	is 'needless capabilities' "$((0x$bounding & (1 << 12 | 1 << 16 | 1 << 19)))" 0
	systemctl stop gosandbox@unit.service 2>/dev/null
	is 'how it ended' "$(property gosandbox@unit.service Result)" success
}

# The defaults, as the kernel has them.
has_default_limits() {
	is memory.max "$(cat "$1/memory.max")" 536870912
	is memory.swap.max "$(cat "$1/memory.swap.max")" 0
	is cpu.max "$(cat "$1/cpu.max")" '200000 100000'
	is pids.max "$(cat "$1/1/pids.max")" 512
	is memory.oom.group "$(cat "$1/1/memory.oom.group")" 1
}

test_with_a_dynamic_user_nothing_is_root() {
	installed dynamic --listen 18062 --dynamic-user "$APPS/1.27/web"
	systemctl start gosandbox@dynamic.socket
	is 'the answer' "$(get 18062 /)" 'hello from dynamic'
	uid=$(awk '$1 == "Uid:" { print $2 }' "/proc/$(supervisor gosandbox@dynamic)/status")
	[ "$uid" -ge 61184 ] && [ "$uid" -le 65519 ] || fail "the supervisor's uid is $uid, none of systemd's dynamic ones"
	is 'its capabilities' "$(awk '$1 == "CapEff:" { print $2 }' "/proc/$(supervisor gosandbox@dynamic)/status")" 0000000000000000
	has_default_limits "$(cgroup gosandbox@dynamic.service)/dynamic"
}

test_a_restart_under_load_refuses_and_resets_no_connection() {
	installed load --listen 18063 "$APPS/1.27/web"
	systemctl start gosandbox@load.socket
	is 'the answer' "$(get 18063 /)" 'hello from load'
	: >"$WORK/answers"
	# One request a connection, one after the other, until told to stop.
	while [ ! -e "$WORK/enough" ]; do
		curl -sS --max-time 60 http://127.0.0.1:18063/ >>"$WORK/answers" 2>&1
	done &
	client=$!
	for _ in 1 2 3; do
		before=$(wc -l <"$WORK/answers")
		systemctl restart gosandbox@load.service
		more() { [ "$(wc -l <"$WORK/answers")" -gt "$((before + 5))" ]; }
		wait_until 60 'requests are answered after the restart' more
	done
	touch "$WORK/enough"
	wait $client
	at_least 'answers' "$(grep -c '^hello from load$' "$WORK/answers")" 15
	is 'anything but answers' "$(grep -v '^hello from load$' "$WORK/answers" | head -n 3)" ''
}

test_the_journal_has_our_records_with_their_tenant() {
	NO_BLOCK=1 tenant journal -- --require cgroup=best-effort "$APPS/1.27/hello" signal ABRT
	said() { journalctl --quiet --no-pager -o cat GOSANDBOX_TENANT=journal | grep -q 'ended by signal 6 (SIGABRT)'; }
	wait_until 30 'the record of the end' said
	# What the tenant itself says is there too, and is not ours.
	NO_BLOCK=1 tenant forger -- --require cgroup=best-effort "$APPS/1.27/hello" stderr 3
	theirs() { log forger | grep -q line; }
	wait_until 30 "the tenant's lines" theirs
	is "records that claim to be about forger" "$(journalctl --quiet --no-pager -o cat GOSANDBOX_TENANT=forger | grep -c line || true)" 0
}

# The broker is made when the first call is refused, in the tenant's cgroup and under its limits.
test_a_refused_call_is_in_the_journal_and_explained() {
	NO_BLOCK=1 tenant refused -- "$APPS/1.27/calls" 20*319,s:x,9 sleep:60s
	said() { journalctl --quiet --no-pager -o cat GOSANDBOX_TENANT=refused | grep -q 'refused memfd_create(uname="x", flags=0x9) = EPERM'; }
	wait_until 30 'the record' said
	is 'processes of the broker' "$(wc -l <"$(cgroup refused.service)/refused/broker/cgroup.procs")" 1
	systemctl stop refused.service
	"$GOSANDBOX" explain refused | grep -qx 'memfd_create(uname="x", flags=0x9) = EPERM, 20 times, last .* ago' || fail "explained: $("$GOSANDBOX" explain refused)"
	journalctl --quiet --no-pager -o cat GOSANDBOX_TENANT=refused | grep -q 'EPERM, 20 times' || fail 'no last count'
}

test_the_watchdog_is_fed_and_the_status_is_told() {
	# A supervisor that did not answer would be killed by systemd after two seconds.
	tenant dog WatchdogSec=2 -- --require cgroup=best-effort --listen 18064 "$APPS/1.27/web"
	pid=$(supervisor dog)
	is 'its status text' "$(property dog.service StatusText)" running
	begun=$(cut -d. -f1 /proc/uptime)
	later() { [ $(($(cut -d. -f1 /proc/uptime) - begun)) -ge 6 ]; }
	wait_until 20 'six seconds have passed' later
	is 'its supervisor' "$(supervisor dog)" "$pid"
	is_active dog.service || fail 'it is not active any more'
	# The other way round: stopped, it cannot answer, and systemd does kill it.
	kill -STOP "$pid"
	wait_until 30 'systemd has noticed' is_down dog.service
	is 'why it ended' "$(property dog.service Result)" watchdog
}
