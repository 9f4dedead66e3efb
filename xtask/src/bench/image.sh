# Measures stubdomains of three images, all started by our toolstack: from their unpausing until QEMU runs, RUNS times;
# then the memory that they have touched, and the least with which a guest starts that has a screen and two disks.
# Prints one line a figure: `@ ID VALUE UNIT`. Read by bash in the embedded host's dom0.
status=0
say() { echo "@ $1.$KIND $2 $3"; }
failed() { echo "FAILED: $KIND: $*"; status=1; }

# config MEMORY: a guest whose stubdomain is of KIND.
config() {
    sed 's/^name.*/name = "measured"/; s/^vga.*/vga = "stdvga"/' /examples/hello.cfg
    echo 'videoram = 16'
    echo "stubdomain_memory = $1"
    if [ "$KIND" != ours ]; then
        echo "stubdomain_kernel = '/images/$KIND/vmlinuz'"
        echo "stubdomain_ramdisk = '/images/$KIND/initramfs.img'"
    fi
}
create() {
    config "$1" >/tmp/measured.cfg
    rm -f /var/log/outrigger/console/measured-dm.*.log
    outrigger create --json /tmp/measured.cfg >/tmp/steps.jsonl 2>/tmp/errors
}
# started: seconds from the stubdomain's unpausing until QEMU runs.
started() {
    sed -n 's/.*"name":"\([^"]*\)","outcome":"done","millis":\([0-9.]*\).*/\1\t\2/p' /tmp/steps.jsonl | awk -F '\t' '
        $1 == "start the stubdomain" { counts = 1 }
        counts { sum += $2 }
        $1 == "wait for the device model" { counts = 0 }
        END { printf "%.3f", sum / 1000 }'
}
# hears WORDS: waits, at most 60 s, for them on the guest's first serial port.
hears() {
    local tries=600
    until grep -qs "$1" /var/log/outrigger/console/measured-dm.3.log; do
        tries=$((tries - 1)); [ $tries -gt 0 ] || return 1; sleep 0.1
    done
}
destroy() { outrigger destroy measured 2>/dev/null || failed destroy; }
# works MEMORY
works() {
    if ! create "$1"; then return 1; fi
    hears 'this is hdb'; local heard=$?
    destroy
    return $heard
}
usual() { case $KIND in ours) echo 64 ;; *) echo 160 ;; esac; }

for run in $(seq "$RUNS"); do
    echo "-- run $run of $RUNS"
    for KIND in reference debian ours; do
        create "$(usual)" || { failed create; cat /tmp/errors; continue; }
        say start "$(started)" s
        hears 'this is hdb' || failed 'the guest does not read its second disk'
        ready=$(sed -n 's/.*ready to start QEMU \([0-9]*\) ms.*/\1/p' /var/log/outrigger/console/measured-dm.0.log)
        [ -z "$ready" ] || say agent_ready "$(echo "scale=3; $ready / 1000" | bc)" s
        if [ "$run" = 1 ]; then
            # At rest: the guest waits for a key.
            sleep 3
            stub=$(xenstore-read "/local/domain/$(outrigger domid measured)/image/device-model-domid")
            if xl dump-core "$stub" /tmp/core >/dev/null; then
                vm-tests measure touched "$KIND" /tmp/core || failed 'the core cannot be read'
            else
                failed dump-core
            fi
            rm -f /tmp/core
        fi
        destroy
    done
done
for KIND in ours debian reference; do
    works=$(usual)
    case $KIND in ours) fails=24 step=8 ;; *) fails=48 step=16 ;; esac
    while [ $((works - fails)) -gt $step ]; do
        middle=$(((works + fails) / 2 / step * step))
        if works $middle; then works=$middle; else fails=$middle; fi
        echo "-- $KIND: works with $works MiB, not with $fails MiB"
    done
    # What works once by luck is not what works.
    works "$works" || failed "$works MiB work and then do not"
    say smallest_memory "$works" MiB
done
exit $status
