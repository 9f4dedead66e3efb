# Measures create, first guest byte, destroy and dom0's memory for xl with QEMU in dom0, xl with the stubdomain, and
# ours, RUNS times each. Prints one line a figure: `@ ID VALUE UNIT`. Read by bash in the embedded host's dom0.
#
# xl has programs of their own for each guest, ours has none: what a guest needs in dom0 is what the daemons grow by
# when one more comes. The first guest of a daemon also makes it touch its own code: `dom0_memory_first.ours`.
STUB=/usr/lib/outrigger/stubdom
status=0

now() { cut -d' ' -f1 /proc/uptime; }
since() { echo "$(now) - $1" | bc; }
say() { echo "@ $1.$KIND $2 $3"; }
failed() { echo "FAILED: $KIND: $*"; status=1; }
# Memory of all processes in KiB, shared pages counted once.
memory() { cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ { sum += $2 } END { print sum + 0 }'; }
qemus() { ps -o args | grep -v grep | grep -c 'qemu-system'; }
# byte_in FILE: waits, at most 120 s, until the file holds something.
byte_in() {
    local tries=1200
    until [ -s "$1" ]; do tries=$((tries - 1)); [ $tries -gt 0 ] || return 1; sleep 0.1; done
}
# A part of xl's own: its console daemon in the place of ours.
use_xl() {
    killall outriggerd outrigger-consoled 2>/dev/null
    sleep 1
    xenconsoled --log=none --pid-file=/run/xenconsoled.pid
}
use_ours() {
    killall xenconsoled 2>/dev/null
    sleep 1
    outrigger-consoled
    setsid outriggerd >>/var/log/outrigger/outriggerd.log 2>&1 </dev/null &
    local tries=300
    until outrigger list >/dev/null 2>&1; do tries=$((tries - 1)); [ $tries -gt 0 ] || return 1; sleep 0.1; done
}
# measure MEMORY COM1 CREATE...: creates a guest, waits for its first byte in the file, says the figures.
measure() {
    local name=$1 com1=$2 before start; shift 2
    rm -f "$com1"
    before=$(memory)
    start=$(now)
    "$@" || { failed create; return 1; }
    say create "$(since "$start")" s
    if byte_in "$com1"; then say first_byte "$(since "$start")" s; else failed 'no byte from the guest'; fi
    say "$name" "$(echo "scale=2; ($(memory) - $before) / 1024" | bc)" MiB
    say qemu_processes "$(qemus)" count
}
# timed NAME COMMAND...
timed() {
    local name=$1 start; shift
    start=$(now)
    "$@" || failed "$name"
    say "$name" "$(since "$start")" s
}
# A stubdomain's serial port is a pty of xl's QEMU: it has to be open before the guest writes, or bytes are lost.
xl_stub_create() {
    xl create /tmp/bench/xl_stub.cfg & local pid=$!
    (
        for _ in $(seq 3000); do
            for path in $(xenstore-list -p /local/domain 2>/dev/null); do
                [ "$(xenstore-read "$path/name" 2>/dev/null)" = hello-dm ] || continue
                tty=$(xenstore-read "$path/device/console/3/tty" 2>/dev/null)
                [ -z "$tty" ] || exec cat "$tty" >/tmp/bench/com1
            done
            sleep 0.1
        done
    ) & reader=$!
    wait $pid
}
ours_create() { outrigger create --json /tmp/bench/ours.cfg >/tmp/bench/steps.jsonl; }
# What a guest needs in dom0 when the daemons have one already.
second() {
    local com1=/var/log/outrigger/console/second-dm.3.log before
    rm -f "$com1"
    before=$(memory)
    outrigger create --json /tmp/bench/second.cfg >/dev/null || { failed 'create of a second guest'; return; }
    byte_in "$com1" || failed 'no byte from the second guest'
    say dom0_memory "$(echo "scale=2; ($(memory) - $before) / 1024" | bc)" MiB
    outrigger destroy second >/dev/null || failed 'destroy of the second guest'
}

mkdir -p /tmp/bench
sed 's/^device_model_stubdomain_override.*/device_model_stubdomain_override = 0/
     s|^serial.*|serial = [ "file:/tmp/bench/com1", "null" ]|' /examples/hello.cfg >/tmp/bench/xl_dom0.cfg
{
    sed 's|^serial.*|serial = "pty"|' /examples/hello.cfg
    echo "stubdomain_kernel = '$STUB/vmlinuz'"
    echo "stubdomain_ramdisk = '$STUB/initramfs.img'"
    # What our toolstack gives its stubdomains too.
    echo "stubdomain_cmdline = 'console=hvc0 quiet rootfstype=ramfs xen_privcmd.unrestricted=1'"
    echo "stubdomain_memory = 160"
} >/tmp/bench/xl_stub.cfg
cp /examples/hello.cfg /tmp/bench/ours.cfg
cp /examples/hello-*.img /tmp/bench
sed 's/^name.*/name = "second"/; s|/examples/hello-|/tmp/bench/hello-|' /examples/hello.cfg >/tmp/bench/second.cfg

for run in $(seq "$RUNS"); do
    echo "-- run $run of $RUNS"
    use_xl
    KIND=xl_dom0
    measure dom0_memory /tmp/bench/com1 xl create /tmp/bench/xl_dom0.cfg && timed destroy xl destroy hello
    KIND=xl_stub reader=
    measure dom0_memory /tmp/bench/com1 xl_stub_create && timed destroy xl destroy hello
    [ -z "$reader" ] || kill $reader 2>/dev/null
    use_ours || failed 'our daemons did not start'
    KIND=ours
    if measure dom0_memory_first /var/log/outrigger/console/hello-dm.3.log ours_create; then
        say stubdom_memory "$(outrigger info --json hello | sed -n 's/.*"stub_memory_kib": *\([0-9]*\).*/\1/p')" KiB
        second
        timed destroy outrigger destroy hello
    fi
    sed -n 's/.*"id":"\([^"]*\)","name":"[^"]*","outcome":"done","millis":\([0-9.]*\).*/\1\t\2/p' /tmp/bench/steps.jsonl |
        while IFS="$(printf '\t')" read -r id millis; do
            echo "@ step.${id//-/_} $(echo "scale=3; $millis / 1000" | bc) s"
        done
done
exit $status
