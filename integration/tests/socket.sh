# Socket activation by systemd, with units as an operator writes them.

test_the_first_connection_starts_the_tenant_and_is_answered() {
	pair acme 18040 20 "$APPS/1.27/web"
	service=gosandbox@acme.service
	is 'the service before' "$(systemctl is-active $service || true)" inactive
	is 'its main process' "$(property $service MainPID)" 0
	[ ! -e "$(slice)/$service" ] || fail 'it has a cgroup already'

	is 'the first answer' "$(get 18040 /)" 'hello from acme'
	is_active $service || fail 'the service is not active'
	get 18040 /whoami >"$WORK/whoami"
	grep -q '"http=127.0.0.1:18040"' "$WORK/whoami" || fail "it did not get the socket by its name: $(cat "$WORK/whoami")"
	is 'the tenant lives in' "$(number "$(cgroup $service)/acme/1/cgroup.events" populated)" 1

	# Graceful: a request that is under way is answered, the status is the tenant's.
	dir=$(cgroup $service)
	get 18040 '/slow?d=2s' >"$WORK/slow" 2>&1 &
	slow=$!
	app=$(app_of "$dir/acme")
	# Accepted (it has an inode) and read (nothing is queued) by the app.
	connected() {
		[ -n "$(awk -v port=":$(printf %04X 18040)\$" \
			'$2 ~ port && $4 == "01" && $5 ~ /:00000000$/ && $10 != 0' /proc/net/tcp)" ]
	}
	wait_until 10 'the request is under way' connected
	systemctl stop $service 2>/dev/null
	wait $slow || fail "the request under way was not answered: $(cat "$WORK/slow")"
	is 'the answer under way' "$(cat "$WORK/slow")" 'slept 2s'
	is 'how it ended' "$(property $service Result)/$(property $service ExecMainCode)/$(property $service ExecMainStatus)" success/1/0
	logged "${service%.service}" '^drained$' || fail 'it did not say that it drained'
	is_gone "$app" || fail 'the app is still there'
	is_missing "$dir" || fail 'its cgroup is still there'

	# The socket stayed; the next connection starts it again.
	is_active gosandbox@acme.socket || fail 'the socket went with the service'
	is 'the answer after' "$(get 18040 /)" 'hello from acme'
}

test_a_connection_that_comes_during_the_stop_is_answered_by_the_next() {
	pair beta 18041 20 "$APPS/1.27/web"
	is 'the first answer' "$(get 18041 /)" 'hello from beta'
	first=$(supervisor gosandbox@beta)
	systemctl stop gosandbox@beta.service 2>/dev/null &
	stop=$!
	stopping() { [ "$(systemctl is-active gosandbox@beta.service)" != active ]; }
	wait_until 10 'it stops' stopping
	is 'the answer' "$(get 18041 /)" 'hello from beta'
	wait $stop
	second=$(supervisor gosandbox@beta)
	[ "$second" != "$first" ] || fail 'it never stopped'
}

test_an_app_that_ignores_sigterm_dies_at_the_deadline() {
	pair deaf 18042 3 "$APPS/1.27/hello" ignore-term
	service=gosandbox@deaf.service
	# It never answers; the connection alone starts it.
	curl -s --max-time 20 http://127.0.0.1:18042/ >/dev/null 2>&1 &
	wait_until 20 'the connection starts it' is_active $service
	wait_until 20 'it ignores SIGTERM' logged "${service%.service}" '^ready$'
	dir=$(cgroup $service)
	app=$(app_of "$dir/deaf")
	begun=$(awk '{ printf "%d", $1 * 1000 }' /proc/uptime)
	# The socket as well, or the waiting connection would start it again.
	systemctl stop gosandbox@deaf.socket $service
	took=$(($(awk '{ printf "%d", $1 * 1000 }' /proc/uptime) - begun))
	echo "stopping took $took ms"
	[ $took -ge 2900 ] && [ $took -le 9000 ] || fail "it took $took ms with a grace of 3 s"
	is_gone "$app" || fail 'the app is still there'
	logged "${service%.service}" 'tenant deaf: killed: it did not end by itself' || fail 'the verdict is missing'
	logged "${service%.service}" 'status=137' || fail 'the status is not 137'
	# It was gosandbox that killed it, and not systemd after a time of its own.
	! logged "${service%.service}" 'timed out' || fail 'systemd had to kill it'
}
