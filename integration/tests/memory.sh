# memory.max and GOMEMLIMIT. The kernel's word is oom_kill of memory.events: that of a slice counts all that ever
# happened below it, also in cgroups that are gone.

oom_kills() { number "$(slice)/memory.events" oom_kill; }

test_the_limit_kills_its_tenant_and_nobody_else() {
	tenant neighbour -- --memory 64M --listen 18001 "$APPS/1.27/web"
	neighbour=$(supervisor neighbour)
	before=$(oom_kills)
	tenant greedy -- --memory 64M "$APPS/1.27/hello" alloc 300 60s
	wait_until 40 'the tenant ends' is_down greedy.service

	at_least 'oom_kill of the slice' "$(oom_kills)" $((before + 1))
	is "the neighbour's oom_kill" "$(number "$(cgroup neighbour.service)/neighbour/memory.events" oom_kill)" 0
	get 18001 / >/dev/null || fail 'the neighbour does not answer'
	is "the neighbour's supervisor" "$(supervisor neighbour)" "$neighbour"
	# The supervisor outlived its tenant: it had something to say, and ended as the tenant did.
	logged greedy 'tenant greedy: out of memory: memory.max of 64M was reached' || fail 'the verdict does not name the limit'
	is 'how it ended' "$(property greedy.service ExecMainCode)/$(property greedy.service ExecMainStatus)" 2/9
}

test_a_limit_counts_what_is_in_tmp() {
	# Memory of a tmpfs is the tenant's as well; GOMEMLIMIT cannot know.
	tenant files -- --memory 32M --listen 18002 "$APPS/1.27/web"
	dir=$(cgroup files.service)/files
	is swap "$(cat "$dir/memory.swap.max" 2>/dev/null || echo 0)" 0
	pid=$(app_of "$dir") || fail 'no app'
	before=$(number "$dir/memory.stat" shmem)
	# As the tenant, in its own cgroup: what a write(2) of its own would be charged to.
	# shellcheck disable=SC2016 # for the other shell
	head -c 8M /dev/zero | sh -c 'echo 0 >"$1/cgroup.procs" &&
		exec nsenter -t "$2" -U -S 1000 -G 1000 sh -c "cat >/proc/$2/root/tmp/large"' sh "$dir/1" "$pid" ||
		fail 'the file cannot be written'
	at_least 'shmem in memory.stat' "$(number "$dir/memory.stat" shmem)" $((before + (8 << 20)))
	get 18002 / >/dev/null || fail 'it does not answer'
}

# Garbage that a collector may leave until far beyond the limit: GOGC=2000 lets the heap grow to 80 MiB before the
# first collection. Whether the tenant lives at 48 MiB depends on GOMEMLIMIT alone.
garbage() {
	tenant "$1" -- --memory 48M --env GOGC=2000 --memlimit "$2" --listen "$3" "$APPS/$4/web"
}

gomemlimit_saves() {
	before=$(oom_kills)
	garbage careful auto 18003 "$1"
	grep -q '"gomemlimit": 45088768' <<-END || fail "GOMEMLIMIT is not 43MiB: $(get 18003 /whoami)"
		$(get 18003 /whoami)
	END
	said=$(get 18003 '/gc?mb=300') || fail 'it died with GOMEMLIMIT'
	case $said in '300 MiB of garbage, '*) ;; *) fail "it says: $said" ;; esac
	is 'oom_kill with GOMEMLIMIT' "$(oom_kills)" "$before"
	is 'its limit' "$(cat "$(cgroup careful.service)/careful/memory.max")" $((48 << 20))

	garbage careless off 18004 "$1"
	if said=$(get 18004 '/gc?mb=300' 2>&1); then fail "it lives with memlimit = off: $said"; fi
	wait_until 20 'the tenant ends' is_down careless.service
	at_least 'oom_kill with memlimit = off' "$(oom_kills)" $((before + 1))
	logged careless 'memory.max of 48M was reached' || fail 'the verdict does not name the limit'
}

test_gomemlimit_saves_what_dies_without_it_go_1_19() { gomemlimit_saves 1.19; }
test_gomemlimit_saves_what_dies_without_it_go_1_27() { gomemlimit_saves 1.27; }

test_a_checked_copy_of_the_binary_is_the_tenants_memory() {
	size=$(stat -c %s "$APPS/1.27/web")
	tenant unchecked -- --memory 64M --listen 18005 "$APPS/1.27/web"
	[ "$(number "$(cgroup unchecked.service)/unchecked/memory.stat" shmem)" -lt "$size" ] || fail 'a copy that nobody asked for'
	tenant checked Environment=GOSANDBOX_BINARY_STATIC=true -- --memory 64M --listen 18006 "$APPS/1.27/web"
	at_least 'shmem in memory.stat' "$(number "$(cgroup checked.service)/checked/memory.stat" shmem)" "$size"
	get 18006 /whoami | grep -q '"gomemlimit"' || fail 'it does not answer'
	# And what gosandbox itself had of it in memory is gone.
	for fd in /proc/"$(supervisor checked)"/fd/*; do
		case $(readlink "$fd") in *memfd*) fail 'the supervisor keeps its copy' ;; esac
	done
}
