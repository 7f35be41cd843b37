#!/bin/sh
# Starts and stops what `make demo` shows: the embedded service with its sample data, mounted at ./demo.
# Usage: integration/demo.sh start|stop, from the root of the checkout, with bin/ built.
#
# State is in .demo: service.pid, url, the cache and the logs. Only POSIX sh, coreutils, grep and sed are used, and
# root needs no fusermount3.
set -eu
umask 077

root=$(pwd -P)
state=$root/.demo
mnt=$root/demo

fail() {
	echo "demo: $*" >&2
	exit 1
}

# mounted says whether ./demo is a blobmount mount, alive or dead. The mount table writes a space as \040, and so on.
mounted() {
	path=$(printf %s "$mnt" | sed -e 's/\\/\\134/g' -e 's/ /\\040/g')
	grep -F " $path " /proc/self/mountinfo | grep -qF ' - fuse.blobmount '
}

# service prints the process id of our service, if it runs. A number in a file may be another process by now.
service() {
	pid=$(cat "$state/service.pid" 2>/dev/null) || return 1
	exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
	case $exe in
	"$root/bin/blobserver" | "$root/bin/blobserver (deleted)") echo "$pid" ;;
	*) return 1 ;;
	esac
}

stop() {
	if mounted; then
		"$root/bin/blobmount" unmount "$mnt"
	fi
	if pid=$(service); then
		kill "$pid"
		n=0
		while service >/dev/null; do # it ends its connections; a few milliseconds
			n=$((n + 1))
			[ "$n" -le 100 ] || fail "the service (process $pid) does not end"
			sleep 0.1
		done
	fi
	rm -rf "$state"
	if [ -d "$mnt" ]; then
		rmdir "$mnt" 2>/dev/null || fail "./demo is not a mount of ours and not empty: move away what is in it"
	fi
}

# abandon leaves nothing behind when the start failed or was interrupted.
abandon() {
	status=$?
	trap - EXIT INT TERM
	[ "$status" -ne 0 ] || status=1
	stop || true
	exit "$status"
}

start() {
	if service >/dev/null && mounted && ls "$mnt" >/dev/null 2>&1; then
		echo "The demo is running already."
		say
		return
	fi
	stop # what a reboot or a killed process left
	trap abandon EXIT INT TERM
	mkdir "$state" "$mnt"

	# The service prints its connection string when it answers. Reading from the FIFO waits for that, or for its end.
	mkfifo "$state/answer"
	nohup "$root/bin/blobserver" --listen 127.0.0.1:0 --sample --anonymous \
		>"$state/answer" 2>"$state/service.log" </dev/null &
	echo $! >"$state/service.pid"
	connection=
	read -r connection <"$state/answer" || true
	rm "$state/answer"
	[ -n "$connection" ] || fail "the service did not start: $(cat "$state/service.log")"
	printf '%s\n' "$connection" | sed -n 's/.*BlobEndpoint=\([^;]*\).*/\1/p' >"$state/url"

	# Variables of the user's own account would contradict the connection string.
	env -u AZURE_STORAGE_ACCOUNT_NAME -u AZURE_STORAGE_ACCOUNT_KEY -u AZURE_STORAGE_SAS_TOKEN \
		AZURE_STORAGE_CONNECTION_STRING="$connection" \
		"$root/bin/blobmount" --cache-dir "$state/cache" --log-file "$state/blobmount.log" az://demo "$mnt"
	trap - EXIT INT TERM
	say
}

say() {
	url=$(cat "$state/url")
	cat <<END

The container "demo" of a blob service on this machine is mounted at ./demo. Try:

  ls -lR demo                             names, sizes and times of the blobs
  cat demo/hello.txt                      read one
  echo "Hello from here" > demo/new.txt   write one; close commits it
  curl $url/demo/new.txt
                                          the same blob, asked of the service
  curl "$url/demo?restype=container&comp=list"
                                          what the container holds now
  cksum demo/data/random-64MiB.bin        stream 64 MiB
  mv demo/notes demo/moved; rm -r demo/moved

The service keeps everything in memory. Log: .demo/blobmount.log

Unmount and stop: make demo-stop
END
}

case ${1-} in
start) start ;;
stop)
	if [ ! -e "$state" ] && ! mounted; then
		echo "The demo is not running."
	else
		stop
		echo "The demo is unmounted and stopped."
	fi
	;;
*) fail "usage: integration/demo.sh start|stop" ;;
esac
