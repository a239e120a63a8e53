# What GOMEMLIMIT and GOMAXPROCS do to a tenant under the kernel's limits: figures, for people. Run by `make
# bench-runtime`, and not by `make integration`. What is claimed of them is held: `auto` lives where `off` dies.

# churned NAME FLAG... -- ARGUMENT...: runs the tenant to its end; prints what it said, or how it died, and what the
# kernel counted.
churned() {
	local name=$1 flags=
	shift
	while [ "$1" != -- ]; do
		flags="$flags $1"
		shift
	done
	shift
	# shellcheck disable=SC2086 # flags without blanks
	tenant "$name" "StandardOutput=file:$WORK/$name" -- $flags "$APPS/1.27/churn" "$@"
	dir=$(cgroup "$name.service")/$name
	: >"$WORK/stat"
	until is_down "$name.service"; do
		# It is gone with the tenant; the last look is near enough.
		cat "$dir/cpu.stat" >"$WORK/stat.new" 2>/dev/null && mv "$WORK/stat.new" "$WORK/stat"
		sleep 0.1
	done
	said=$(cat "$WORK/$name")
	# gosandbox's own verdict, which is in the same file.
	case $said in *'out of memory: memory.max'*) said='out of memory: killed' ;; esac
	[ -n "$said" ] || fail "$name said nothing: $(log "$name")"
}

memory() {
	churned "$1" --memory 64M --cpu 2 --memlimit "$2" -- alloc 34 6
	printf 'memlimit = %-7s %s\n' "$2" "$said"
}

test_an_allocation_heavy_tenant_of_34_mib_under_64_mib() {
	memory benchauto auto
	[ "$said" != 'out of memory: killed' ] || fail 'auto died'
	memory benchoff off
	[ "$said" = 'out of memory: killed' ] || fail 'off lived, so the figures compare nothing'
	# Too much, which is as if there were none; and less than what is live, which is to collect without end.
	memory benchmuch 256M
	memory benchlittle 30M
}

cpu() {
	churned "$1" --cpu 1 --maxprocs "$2" -- serve 8 8
	throttled=$(number "$WORK/stat" throttled_usec)
	printf 'maxprocs = %-5s %s, throttled %d times, %d ms of all threads\n' "$2" "$said" \
		"$(number "$WORK/stat" nr_throttled)" $((throttled / 1000))
}

test_a_cpu_bound_tenant_of_8_workers_under_1_processor() {
	cpu procsauto auto
	cpu procsoff off
	cpu procsmany 16
	cpu procsone 1
}
