# cpu.max and GOMAXPROCS.

usage() { number "$1/cpu.stat" usage_usec; }
# Milliseconds since boot.
clock() { awk '{ printf "%d", $1 * 1000 }' /proc/uptime; }

test_a_quota_holds() {
	tenant spinner -- --cpu 0.5 "$APPS/1.27/hello" spin 80s
	dir=$(cgroup spinner.service)/spinner
	is cpu.max "$(cat "$dir/cpu.max")" '50000 100000'
	throttled() { [ "$(number "$dir/cpu.stat" nr_throttled)" -ge 3 ]; }
	wait_until 20 'it is throttled' throttled

	used=$(usage "$dir") begun=$(clock) throttled=$(number "$dir/cpu.stat" nr_throttled)
	# Not a wait for something: the time that is measured over.
	sleep 5
	used=$(($(usage "$dir") - used)) took=$(($(clock) - begun))
	percent=$((used / 10 / took))
	echo "used $used us of CPU in $took ms: $percent %"
	[ $percent -ge 45 ] && [ $percent -le 55 ] || fail "not 50 % within a tenth"
	at_least 'nr_throttled in that time' $(($(number "$dir/cpu.stat" nr_throttled) - throttled)) 10
}

gomaxprocs() {
	tenant procs -- --cpu "$2" --listen 18010 "$APPS/$1/web"
	quota=$(cut -d' ' -f1 "$(cgroup procs.service)/procs/cpu.max")
	is 'the quota in cpu.max' "$quota" "$3"
	got=$(get 18010 /whoami | sed -n 's/.*"gomaxprocs": \([0-9]*\).*/\1/p')
	is "GOMAXPROCS of Go $1 at $2 processors" "$got" "$4"
	systemctl stop procs.service
}

test_gomaxprocs_is_the_quota_rounded_up_and_at_least_two() {
	[ "$(nproc)" -ge 4 ] || skip 'takes four processors'
	for go in 1.19 1.21 1.23 1.25 1.27; do
		gomaxprocs "$go" 0.5 50000 2
		gomaxprocs "$go" 2.5 250000 3
	done
}
