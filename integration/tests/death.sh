# SIGKILL of the supervisor, of init and of the app, in each state of a tenant: nothing stays, and the next start is
# clean. systemd is told to kill nothing itself (KillMode=process), and a second process keeps the delegated cgroup
# alive, so what is left is left by gosandbox and the kernel. It sits in a leaf, as does gosandbox.

# A unit with a shell that starts what is written into a pipe, in leaves of its delegated cgroup.
stage() {
	mkfifo "$WORK/start"
	# shellcheck disable=SC2016 # for the other shell
	unit stage Delegate=yes KillMode=process -- sh -c 'set -e
		dir=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
		mkdir "$dir/shell" "$dir/leaf"
		echo 0 >"$dir/shell/cgroup.procs"
		while read -r line; do
			eval "(echo 0 >$dir/leaf/cgroup.procs; exec $line) &"
		done <>"$1"' sh "$WORK/start"
	dir=$(cgroup stage.service)
	wait_until 10 'the stage is up' test -e "$dir/leaf/cgroup.procs"
}

# start PORT ARGUMENT...: a tenant on the stage; SUPERVISOR is its number.
start() {
	: >"$WORK/log"
	echo "$GOSANDBOX run --tenant acme --memory 64M --grace 60s $* >>$WORK/log 2>&1" >"$WORK/start"
	wait_until 20 'the supervisor starts' supervisor_runs
}
supervisor_runs() {
	SUPERVISOR=
	while read -r SUPERVISOR; do
		[ "$(cat "/proc/$SUPERVISOR/comm" 2>/dev/null)" = gosandbox ] && return
	done <"$dir/leaf/cgroup.procs"
	return 1
}
# It has number 2 before it executes the binary as well.
app_runs() {
	APP=$(app_of "$dir/acme" 2>/dev/null) || return
	case $(readlink "/proc/$APP/exe") in /app*) ;; *) return 1 ;; esac
}
init_runs() { INIT=$(init_of "$dir/acme" 2>/dev/null); }

running() {
	start --listen 18050 "$APPS/1.27/web"
	wait_until 20 'the app runs' app_runs
	init_runs || fail 'no init'
	wait_until 20 'it answers' answers 18050 acme
}

# An app with a grandchild in a session of its own.
running_with_orphan() {
	start "$APPS/1.27/hello" orphan
	wait_until 20 'it has an orphan' grep_quietly '^orphan [0-9]' "$WORK/log"
	app_runs && init_runs || fail 'no app'
	at_least 'processes' "$(wc -l <"$dir/acme/1/cgroup.procs")" 3
}

# Init is caught before its first step: its cgroup is born frozen.
starting() {
	mkdir "$dir/acme"
	echo 1 >"$dir/acme/cgroup.freeze"
	start --listen 18050 "$APPS/1.27/web"
	wait_until 20 'init is there' init_runs
	frozen() { [ "$(number "$dir/acme/1/cgroup.events" frozen)" = 1 ]; }
	wait_until 20 'init is frozen' frozen
	APP=
}

stopping() {
	start "$APPS/1.27/hello" ignore-term
	wait_until 20 'it ignores SIGTERM' grep_quietly '^ready$' "$WORK/log"
	app_runs && init_runs || fail 'no app'
	kill -TERM "$SUPERVISOR"
	# Init passed it on when the app ignores it, which shows nowhere; what shows is that the supervisor took it.
	taken() { [ "$(awk '$1 == "SigPnd:" || $1 == "ShdPnd:" { printf "%s", $2 }' "/proc/$SUPERVISOR/status" | tr -d 0)" = '' ] &&
		[ "$(state "$SUPERVISOR")" = S ]; }
	wait_until 10 'the supervisor takes the signal' taken
}

# killed VICTIM: then nothing may be left, and a start like any other has to work.
killed() {
	kill -KILL "$1"
	[ ! -e "$dir/acme/cgroup.freeze" ] || echo 0 >"$dir/acme/cgroup.freeze" 2>/dev/null || true
	wait_until 10 'the supervisor ends' is_gone "$SUPERVISOR"
	wait_until 10 'init ends' is_gone "$INIT"
	[ -z "$APP" ] || wait_until 10 'the app ends' is_gone "$APP"
	wait_until 10 'its cgroup is empty' is_empty "$dir/acme"
	is "what is left of gosandbox" "$(cat "$dir/leaf/cgroup.procs")" ''
	[ "$1" = "$SUPERVISOR" ] || is_missing "$dir/acme" || fail 'a living supervisor left its cgroup'
	[ "$1" = "$SUPERVISOR" ] || is_missing /run/gosandbox/acme.json || fail 'a living supervisor left its state file'
	cat "$WORK/log"

	running
	is 'oom_kill of the new one' "$(number "$dir/acme/1/memory.events" oom_kill)" 0
	is 'its cgroups' "$(cd "$dir/acme" && echo */)" '1/ broker/'
	kill -TERM "$SUPERVISOR"
	wait_until 20 'the next one ends' is_gone "$SUPERVISOR"
	grep_quietly drained "$WORK/log" || fail "the next one did not end by itself: $(cat "$WORK/log")"
	is_missing "$dir/acme" || fail 'the next one left its cgroup'
}

test_the_supervisor_while_starting() { stage; starting; killed "$SUPERVISOR"; }
test_init_while_starting() { stage; starting; killed "$INIT"; }
test_the_supervisor_while_running() { stage; running; killed "$SUPERVISOR"; }
test_init_while_running() { stage; running; killed "$INIT"; }
test_the_app_while_running() { stage; running; killed "$APP"; }
test_the_supervisor_with_an_orphan() { stage; running_with_orphan; killed "$SUPERVISOR"; }
test_init_with_an_orphan() { stage; running_with_orphan; killed "$INIT"; }
test_the_app_with_an_orphan() { stage; running_with_orphan; killed "$APP"; }
test_the_supervisor_while_stopping() { stage; stopping; killed "$SUPERVISOR"; }
test_init_while_stopping() { stage; stopping; killed "$INIT"; }
test_the_app_while_stopping() { stage; stopping; killed "$APP"; }
