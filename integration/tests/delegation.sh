# Where the tenant's cgroups come from: each way in which people start gosandbox.

# The supervisor's own cgroup, as the kernel tells it.
own_cgroup() { sed -n 's/^0:://p' "/proc/$1/cgroup"; }

# Limits can only be below a cgroup without processes, and the supervisor must not be under its tenant's.
is_in_a_leaf_of() {
	is "processes in $1 itself" "$(cat "$1/cgroup.procs")" ''
	case $2 in
	"${1#/sys/fs/cgroup}/acme"*) fail "the supervisor is in its tenant's cgroup" ;;
	"${1#/sys/fs/cgroup}"/*) ;;
	*) fail "the supervisor is in $2" ;;
	esac
}

service() {
	# shellcheck disable=SC2086 # LIMITS are words
	tenant acme "$@" -- $LIMITS --listen 18030 "$APPS/1.27/web"
	dir=$(cgroup acme.service)
	has_limits "$dir/acme"
	is_in_a_leaf_of "$dir" "$(own_cgroup "$(supervisor acme)")"
	wait_until 20 'it answers' answers 18030 acme
	# The kernel's word on who runs: the tenant's host id, no capability, no privileges to gain.
	pid=$(app_of "$dir/acme")
	uid=$(awk '$1 == "Uid:" { print $2 }' "/proc/$pid/status")
	is 'its capabilities' "$(awk '$1 == "CapBnd:" || $1 == "CapEff:" { printf "%s ", $2 }' "/proc/$pid/status")" \
		'0000000000000000 0000000000000000 '
	systemctl stop acme.service
	is_missing "$dir/acme" || fail "$dir/acme is still there"
	logged acme drained || fail 'it did not end by itself'
}

test_a_system_service_with_delegation() {
	service
	at_least "the tenant's host id" "$uid" 1879048192
}

test_a_service_of_another_user() {
	service "User=$TEST_USER" RuntimeDirectory=gosandbox-it
	is "the tenant's host id" "$uid" "$TEST_UID"
}

test_a_service_with_a_dynamic_user() {
	service DynamicUser=yes RuntimeDirectory=gosandbox-it
	[ "$uid" -ge 61184 ] && [ "$uid" -le 65519 ] || fail "the tenant's host id is $uid, none of systemd's dynamic ones"
}

test_a_service_of_the_users_own_systemd() {
	user_session
	# shellcheck disable=SC2086
	as_user systemd-run --user --quiet --collect --unit=acme -p Type=notify -p NotifyAccess=main -p Delegate=yes \
		-p KillMode=mixed -- "$GOSANDBOX" run --tenant acme $LIMITS --listen 18031 "$APPS/1.27/web"
	# In the cgroup of the service, or in a scope beside it: the user manager of systemd 252 does not mark what it delegates.
	at=$(own_cgroup "$(as_user systemctl --user show --value -p MainPID acme.service)")
	case $at in *"/user@$TEST_UID.service/"*/*) ;; *) fail "it is in $at" ;; esac
	dir=/sys/fs/cgroup${at%/*}
	is_in_a_leaf_of "$dir" "$at"
	has_limits "$dir/acme"
	wait_until 20 'it answers' answers 18031 acme
	as_user systemctl --user stop acme.service
	is_missing "$dir/acme" || fail "$dir/acme is still there"
}

# Started from a shell: says so, and starts itself again in a scope. What is left to check is the same for root and users.
scoped() {
	port=$1 pid=$2
	# The scope is in no slice of the tests.
	trap 'cat "$WORK/shell"; kill -KILL "$pid" 2>/dev/null || :' EXIT
	wait_until 20 'it starts again in a scope' grep_quietly 'starting again in a scope' "$WORK/shell"
	answers_or_gone() { answers "$port" acme || is_gone "$pid"; }
	wait_until 20 'it answers' answers_or_gone
	! is_gone "$pid" || fail 'it has ended'
	# systemd-run does not fork for a scope: the process is the one that was started.
	at=$(own_cgroup "$2")
	case $at in */gosandbox.slice/gosandbox-acme-*.scope/*) ;; *) fail "it is in $at" ;; esac
	dir=/sys/fs/cgroup${at%/*}
	is_in_a_leaf_of "$dir" "$at"
	has_limits "$dir/acme"
	kill -TERM "$pid"
	wait_until 20 'it ends' is_gone "$pid"
	wait_until 20 'the scope goes' is_missing "$dir"
}

# A shell is in the scope of its session; this one is made for the test.
in_a_session() { exec systemd-run --quiet --scope --slice="$SLICE" -- "$@"; }

test_roots_shell_gets_a_scope() {
	# shellcheck disable=SC2086
	in_a_session "$GOSANDBOX" run --tenant acme $LIMITS --listen 18032 "$APPS/1.27/web" >"$WORK/shell" 2>&1 &
	pid=$!
	scoped 18032 $pid
	status=0
	wait $pid || status=$?
	is 'its status' $status 0
}

test_a_users_shell_gets_a_scope() {
	user_session
	# A shell of that user's session, which is a unit without Delegate=. Everybody may write into its log.
	touch "$WORK/shell"
	chown "$TEST_USER" "$WORK/shell"
	# shellcheck disable=SC2016,SC2086 # systemd makes "$" of "$$"
	as_user systemd-run --user --quiet --collect --unit=shell -- sh -c 'exec "$$@" >>'"$WORK/shell 2>&1" \
		sh "$GOSANDBOX" run --tenant acme $LIMITS --listen 18033 "$APPS/1.27/web"
	pid=$(as_user systemctl --user show --value -p MainPID shell.service)
	scoped 18033 "$pid"
}

# refused WORDS COMMAND...: status 125, and one line with these words.
refused() {
	words=$1 status=0
	shift
	"$@" >"$WORK/said" 2>&1 || status=$?
	echo "it said: $(cat "$WORK/said")"
	is 'its status' $status 125
	grep -q "$words" "$WORK/said" || fail "it does not say: $words"
}

test_without_delegation_a_user_is_told_what_to_do() {
	refused 'not delegated to uid .*Delegate=yes' \
		systemd-run --quiet --wait --pipe --collect --slice="$SLICE" -p "User=$TEST_USER" -- \
		"$GOSANDBOX" run --tenant acme "$APPS/1.27/hello"
	is 'lines' "$(wc -l <"$WORK/said")" 1
}

test_without_delegation_best_effort_says_what_is_missing() {
	systemd-run --quiet --wait --pipe --collect --slice="$SLICE" -p "User=$TEST_USER" -- \
		"$GOSANDBOX" run --tenant acme --require cgroup=best-effort "$APPS/1.27/hello" >"$WORK/said" 2>&1 || fail 'it does not start'
	grep -q 'goes without every limit' "$WORK/said" || fail "it said: $(cat "$WORK/said")"
	grep -q 'hello from tenant acme' "$WORK/said" || fail "it said: $(cat "$WORK/said")"
}

test_a_scope_that_is_not_delegated_is_not_asked_for_twice() {
	refused 'not delegated' systemd-run --quiet --scope --collect --slice="$SLICE" -- \
		env GOSANDBOX_SCOPED=1 "$GOSANDBOX" run --tenant acme "$APPS/1.27/hello"
}

test_a_delegated_cgroup_with_others_in_it_is_refused() {
	# shellcheck disable=SC2016 # for the other shell
	refused 'cgroup.subtree_control: .*other processes sit in' \
		systemd-run --quiet --wait --pipe --collect --slice="$SLICE" -p Delegate=yes -- \
		sh -c '"$@"; exit $?' sh "$GOSANDBOX" run --tenant acme "$APPS/1.27/hello"
}

test_a_leaf_of_a_delegated_cgroup() {
	# What DelegateSubgroup= does where systemd has it: gosandbox is in a leaf and stays there.
	# shellcheck disable=SC2016,SC2086
	unit leaf Delegate=yes -- sh -c 'set -e
		dir=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
		mkdir "$dir/leaf"
		echo 0 >"$dir/leaf/cgroup.procs"
		exec "$@"' sh "$GOSANDBOX" run --tenant acme $LIMITS --listen 18034 "$APPS/1.27/web"
	wait_until 20 'it answers' answers 18034 acme
	dir=$(cgroup leaf.service)
	is "the supervisor's cgroup" "$(own_cgroup "$(supervisor leaf)")" "${dir#/sys/fs/cgroup}/leaf"
	has_limits "$dir/acme"
}

test_check_agrees() {
	(in_a_session "$GOSANDBOX" check) >"$WORK/check" || fail "$(cat "$WORK/check")"
	cat "$WORK/check"
	[ "$(grep -c '^ok ' "$WORK/check")" -ge 6 ] || fail 'lines are missing'
}

test_a_protected_supervisor_has_an_unprotected_tenant() {
	# shellcheck disable=SC2086
	tenant acme OOMScoreAdjust=-300 -- $LIMITS --listen 18032 "$APPS/1.27/web"
	is "the supervisor's oom_score_adj" "$(cat "/proc/$(supervisor acme)/oom_score_adj")" -300
	is "the tenant's oom_score_adj" "$(cat "/proc/$(app_of "$(cgroup acme.service)/acme")/oom_score_adj")" 0
	systemctl stop acme.service
}

test_a_system_service_without_delegation_is_told_so() {
	NO_BLOCK=1 unit plain Type=notify -- "$GOSANDBOX" run --tenant plain "$APPS/1.27/web"
	told() { log plain | grep -q 'add Delegate=yes to its'; }
	wait_until 30 'it says what to do' told
	is 'its status' "$(property plain.service ExecMainStatus)" 125
}
