# The broker under systemd, on the kernel of a distribution: no PIDFD_THREAD, no synchronous wake-ups, Yama.

# The child of SUPERVISOR that is its broker.
broker_of() {
	local child
	for child in $(cat "/proc/$1/task/$1/children"); do
		[ "$(cat "/proc/$child/comm")" != gosandbox-brok ] || echo "$child"
	done
}

test_an_unmodified_server_is_started_by_the_first_connection() {
	for go in 1.19 1.27; do
		name=plain$(echo $go | tr -d .) port=181${go#*.}
		pair "$name" "$port" 5 "$APPS/$go/plain" -addr ":$port"
		is 'its main process before' "$(property "gosandbox@$name.service" MainPID)" 0
		is "the answer with Go $go" "$(get "$port" /)" 'hello from a plain server'
		app=$(app_of "$(cgroup "gosandbox@$name.service")/$name")
		[ "$(readlink "/proc/$app/ns/net")" != "$(readlink /proc/self/ns/net)" ] || fail 'it is in our network'
		is 'its interfaces' "$(nsenter -t "$app" -n ip -o link 2>/dev/null | wc -l)" 1
		systemctl stop "gosandbox@$name.socket" "gosandbox@$name.service"
	done
}

test_what_is_listed_is_reached_and_nothing_else() {
	tenant far -- --listen 18130 --network host "$APPS/1.27/plain" -addr :18131
	tenant near -- --listen 18132 --egress 127.0.0.1:18131 "$APPS/1.27/plain" -addr :18132
	wait_until 20 'it listens' get 18132 /
	is 'a listed one' "$(get 18132 '/dial?to=127.0.0.1:18131')" ok
	get 18132 '/dial?to=127.0.0.1:18130' | grep -q refused || fail 'the host answers on a port that is not listed'
	get 18132 '/dial?to=192.0.2.1:80' | grep -q denied || fail 'an address that is not listed is not denied'
	logged near 'connect to 192.0.2.1:80 denied: to allow it, add egress' || fail 'the log does not say so'
	# The broker is the tenant's and not the host's.
	broker=$(broker_of "$(supervisor near)")
	tenants=$(stat -c %u "/proc/$(app_of "$(cgroup near.service)/near")")
	is 'its real uid' "$(awk '$1 == "Uid:" { print $2 }' "/proc/$broker/status")" "$tenants"
	[ "$tenants" -ge 1879048192 ] || fail "the tenant is $tenants"
	is 'what it may in its namespace' "$(awk '$1 == "CapEff:" { print $2 }' "/proc/$broker/status")" 0000000000080000
	is 'its filters' "$(awk '$1 == "Seccomp:" { print $2 }' "/proc/$broker/status")" 2
}

test_without_its_broker_a_tenant_is_stopped() {
	tenant lone -- --listen 18133 "$APPS/1.27/plain" -addr :18133
	wait_until 20 'it listens' get 18133 /
	dir=$(cgroup lone.service)
	kill -KILL "$(broker_of "$(supervisor lone)")"
	wait_until 20 'it ends' is_down lone.service
	logged lone 'tenant lone: killed: its broker ended' || fail 'the verdict is missing'
	is_missing "$dir" || fail 'its cgroup is still there'
}

test_a_supervisor_that_is_killed_takes_its_broker_along() {
	tenant orphan -- --listen 18134 "$APPS/1.27/plain" -addr :18134
	wait_until 20 'it listens' get 18134 /
	supervisor=$(supervisor orphan)
	broker=$(broker_of "$supervisor")
	kill -KILL "$supervisor"
	wait_until 10 'the broker is gone' is_gone "$broker"
}

test_what_the_broker_does_is_charged_to_its_tenant() {
	tenant paid -- --memory 64M --listen 18135 --egress 127.0.0.1:18135 "$APPS/1.27/plain" -addr :18135
	wait_until 20 'it listens' get 18135 /
	dir=$(cgroup paid.service)/paid
	is 'in its cgroup' "$(cat "$dir/broker/cgroup.procs")" "$(broker_of "$(supervisor paid)")"
	is 'its limit is the' "$(cat "$dir/memory.max")" $((64 << 20))
	# Sockets are charged to the cgroup of whoever makes them.
	before=$(number "$dir/broker/memory.stat" sock)
	at_least 'the memory of brokered sockets' "$before" 0
	used=$(number "$dir/broker/cpu.stat" usage_usec)
	for _ in 1 2 3; do is 'a dial' "$(get 18135 '/dial?to=127.0.0.1:18135')" ok; done
	at_least 'its processor time' "$(number "$dir/broker/cpu.stat" usage_usec)" $((used + 1))
	systemctl stop paid.service
	is_missing "$dir" || fail 'its cgroup is still there'
}
