# Measures QMP's round trip and rate through outriggerd and through stock vchan-socket-proxy, and outriggerd's memory a
# guest, RUNS times. Prints one line a figure: `@ ID VALUE UNIT`. Read by bash in the embedded host's dom0.
status=0
say() { echo "@ qmp.$1 $2 $3"; }
failed() { echo "FAILED: $*"; status=1; }
pss() { awk '/^Pss:/ { print $2 }' "/proc/$(pidof outriggerd)/smaps_rollup"; }
start_ours() {
    setsid outriggerd >>/var/log/outrigger/outriggerd.log 2>&1 </dev/null &
    local tries=300
    until outrigger qmp hello query-status >/dev/null 2>&1; do
        tries=$((tries - 1)); [ $tries -gt 0 ] || { failed 'outriggerd has no session'; return 1; }
        sleep 0.1
    done
}
stop_ours() { kill "$(pidof outriggerd)"; while pidof outriggerd >/dev/null; do sleep 0.1; done; }
# load NAME SOCKET CLIENTS
load() {
    local line; line=$(qmp-load "$2" "$3" 4) || { failed "$1"; return 1; }
    set -- "$1" $line
    say "latency.$1" "$2" us
    say "rate.$1" "$3" 1/s
}
guest() {
    # No two guests may write one disk.
    sed "s|^name.*|name = '$1'|; s|/examples/hello-|/tmp/bench/$1-|" /examples/hello.cfg >"/tmp/bench/$1.cfg"
    for disk in disk data; do cp "/examples/hello-$disk.img" "/tmp/bench/$1-$disk.img"; done
    outrigger create "/tmp/bench/$1.cfg" >/dev/null || failed "create $1"
}

mkdir -p /tmp/bench
guest hello
outrigger qmp hello query-status >/dev/null || failed 'no QMP'
stub=$(xenstore-read "/local/domain/$(outrigger domid hello)/image/device-model-domid")
place=/local/domain/$stub/device-model/$(outrigger domid hello)/qmp-vchan
for run in $(seq "$RUNS"); do
    echo "-- run $run of $RUNS"
    load ours_1 /run/outrigger/qmp/hello.sock 1
    load ours_8 /run/outrigger/qmp/hello.sock 8
    stop_ours
    /usr/lib/xen-4.17/bin/vchan-socket-proxy "$stub" "$place" /tmp/bench/stock.sock & proxy=$!
    tries=100
    until [ -S /tmp/bench/stock.sock ]; do tries=$((tries - 1)); [ $tries -gt 0 ] || break; sleep 0.1; done
    load stock_1 /tmp/bench/stock.sock 1
    kill $proxy 2>/dev/null; wait $proxy 2>/dev/null
    rm -f /tmp/bench/stock.sock
    start_ours
done
before=$(pss)
guest second
guest third
sleep 3
say memory_per_guest "$((($(pss) - before) / 2))" KiB
for name in hello second third; do outrigger destroy $name || failed "destroy $name"; done
exit $status
