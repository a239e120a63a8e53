# pids.max.

test_a_fork_bomb_is_stopped() {
	before=$(cat "$(slice)/pids.current" 2>/dev/null || echo 0)
	dir=$(slice)/bomb.service/bomb
	# Not waited for: it goes off as soon as it runs, and its cgroup vanishes with it.
	NO_BLOCK=1 tenant bomb -- --pids 40 "$APPS/1.27/hello" fork-bomb 1000
	wait_until 20 'it has a cgroup' test -e "$dir/1/pids.current"
	is pids.max "$(cat "$dir/1/pids.max")" 40
	is 'pids.max with a broker' "$(cat "$dir/pids.max")" 41
	# Without a fork of our own, to be fast enough. Linux 6.1 counts in the cgroup that forked, later ones in the one
	# whose limit it was.
	# pids.current is what is charged, and the kernel charges a fork before it refuses it (pids_try_charge); what lives is
	# in cgroup.threads. It is no snapshot: some end while it is read, and others begin. What two readings have in common
	# was alive all the time between them.
	most=0 hit=0 alive=0 last=
	while { read -r now <"$dir/pids.current"; } 2>/dev/null; do
		[ "$now" -le "$most" ] || most=$now
		tasks=0 these=' '
		while read -r task; do
			these="$these$task "
			case $last in *" $task "*) tasks=$((tasks + 1)) ;; esac
		done 2>/dev/null <"$dir/1/cgroup.threads" || break
		last=$these
		[ "$tasks" -le $alive ] || alive=$tasks
		for file in "$dir/1/pids.events" "$dir/pids.events"; do
			{ read -r _ count <"$file"; } 2>/dev/null || break 2
			[ "$count" -le $hit ] || hit=$count
		done
	done
	wait_until 40 'the tenant ends' is_down bomb.service
	echo "most charged: $most, most alive: $alive"
	at_least 'processes charged' "$most" 30
	at_least 'tasks alive' "$alive" 20
	[ "$alive" -le 40 ] || fail "$alive tasks, more than pids.max"
	at_least 'max in pids.events' "$hit" 1
	started=$(log bomb | sed -n 's/^started \([0-9]*\) of 1000$/\1/p')
	[ -n "$started" ] || fail 'it did not live to tell'
	[ "$started" -ge 1 ] && [ "$started" -lt 40 ] || fail "it started $started processes"
	is_missing "$dir" || fail 'its cgroup is still there'
	is 'processes left in the slice' "$(cat "$(slice)/pids.current")" "$before"
}

test_the_neighbour_can_still_fork() {
	tenant forker -- --pids 40 --listen 18020 "$APPS/1.27/web"
	tenant bomb -- --pids 40 "$APPS/1.27/hello" fork-bomb 1000
	is 'its child' "$(get 18020 /exec)" 'hello from a child of forker'
	wait_until 40 'the bomb ends' is_down bomb.service
	is 'its child' "$(get 18020 /exec)" 'hello from a child of forker'
}

test_a_refused_call_at_the_limit_is_refused_like_any_other() {
	# The broker that is to record it has to be made first. 165 is mount(2), 1 is EPERM.
	tenant full -- --pids 40 "$APPS/1.27/calls" fill 165 165 sleep:1s
	wait_until 40 'it ends' is_down full.service
	is 'what it was answered' "$(log full | grep -c '^165 result=-1 errno=1$')" 2
	at_least 'children' "$(log full | sed -n 's/^filled \([0-9]*\) errno=11$/\1/p')" 10
	is 'its result' "$(systemctl show -P Result full.service)" success
	log full | grep -q 'refused mount(' || fail 'nobody says what was refused'
}
