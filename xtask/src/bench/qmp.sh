# Measures QMP's round trip and rate, RUNS times: through outriggerd and our stubdomain (ours), with Xen's own
# vchan-socket-proxy in dom0 and in a stubdomain made by hand (stock), with that proxy in dom0 and our stubdomain
# (mixed), and at QEMU's own socket within our stubdomain (qemu), below which nothing can get. Then outriggerd's memory
# a guest. Prints one line a figure: `@ ID VALUE UNIT`. Read by bash in the embedded host's dom0.
status=0
say() { echo "@ qmp.$1 $2 $3"; }
failed() { echo "FAILED: $*"; status=1; }
pss() { awk '/^Pss:/ { print $2 }' "/proc/$(pidof outriggerd)/smaps_rollup"; }
start_ours() {
    setsid outriggerd >>/var/log/outrigger/outriggerd.log 2>&1 </dev/null &
    wait_for 30 outrigger qmp hello query-status || failed 'outriggerd has no session'
}
stop_ours() { kill "$(pidof outriggerd)"; while pidof outriggerd >/dev/null; do sleep 0.1; done; }
# wait_for SECONDS COMMAND…
wait_for() {
    local tries=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do tries=$((tries - 1)); [ $tries -gt 0 ] || return 1; sleep 0.1; done
}
figures() {
    say "latency.$1" "$2" us
    say "rate.$1" "$3" 1/s
}
# load NAME SOCKET CLIENTS
load() {
    local line; line=$(qmp-load "$2" "$3" 4) || { failed "$1"; return 1; }
    figures "$1" $line
}
# guest NAME LINES…
guest() {
    local name=$1 line; shift
    # No two guests may write one disk.
    sed "s|^name.*|name = '$name'|; s|/examples/hello-|/tmp/bench/$name-|" /examples/hello.cfg >"/tmp/bench/$name.cfg"
    for line in "$@"; do echo "$line" >>"/tmp/bench/$name.cfg"; done
    for disk in disk data; do cp "/examples/hello-$disk.img" "/tmp/bench/$name-$disk.img"; done
    outrigger create "/tmp/bench/$name.cfg" >/dev/null || failed "create $name"
    # Until it only waits for a key.
    wait_for 60 grep -q 'echoing COM1' "/var/log/outrigger/console/$name-dm.3.log" || failed "$name does not boot"
}
stub() { xenstore-read "/local/domain/$(outrigger domid "$1")/image/device-model-domid"; }
# proxied NAME STUB GUEST: the same through the stock proxy in dom0.
proxied() {
    local socket=/tmp/bench/proxy.sock proxy
    vchan-socket-proxy "$2" "/local/domain/$2/device-model/$3/qmp-vchan" $socket & proxy=$!
    wait_for 10 test -S $socket
    load "$1" $socket 1
    kill $proxy 2>/dev/null; wait $proxy 2>/dev/null
    rm -f $socket
}
answered() { line=$(xenstore-read "$probe"); [ "$line" != go ]; }

mkdir -p /tmp/bench
guest hello "stubdomain_ramdisk = '/images/probed.img'"
guest stock "stubdomain_kernel = '/images/stock-vmlinuz'" "stubdomain_ramdisk = '/images/stock.img'" 'stubdomain_memory = 192'
outrigger qmp hello query-status >/dev/null || failed 'no QMP'
ours=$(stub hello) theirs=$(stub stock)
guest=$(outrigger domid hello) other=$(outrigger domid stock)
probe=/local/domain/$ours/device-model/$guest/probe
for run in $(seq "$RUNS"); do
    echo "-- run $run of $RUNS"
    load ours_1 /run/outrigger/qmp/hello.sock 1
    load ours_8 /run/outrigger/qmp/hello.sock 8
    stop_ours
    proxied stock_1 "$theirs" "$other"
    proxied mixed_1 "$ours" "$guest"
    xenstore-write "$probe" go
    if wait_for 30 answered; then figures qemu_1 $line; else failed 'no answer from within the stubdomain'; fi
    start_ours
done
outrigger destroy stock || failed 'destroy stock'
before=$(pss)
guest second
guest third
sleep 3
say memory_per_guest "$((($(pss) - before) / 2))" KiB
for name in hello second third; do outrigger destroy $name || failed "destroy $name"; done
exit $status
