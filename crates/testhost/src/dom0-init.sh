#!/bin/sh
# PID 1 of the embedded host's dom0. It mounts what a dom0 needs, starts xenstored and the daemons, says `ready`
# on the control port and then obeys the test host: `prepare EPOCH SECONDS`, `run EPOCH SECONDS`,
# `shell EPOCH ROWS COLUMNS TERM` or `off`.
#
# Control port, one line a message.  To the host: `step NAME`, `ready UPTIME`, `beat`, `exit STATUS`, `failed WHY`,
# `bye`.  From the host: the four words above.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:@XEN_TOOLS@ HOME=/root TERM=linux LC_ALL=C
umask 022
/bin/busybox --install -s

fail() {
    echo "testhost: $*" >/dev/console
    [ -e /run/control-open ] && echo "failed $*" >&3
    off
}
off() {
    sync
    echo o >/proc/sysrq-trigger
    while :; do sleep 60; done
}
step() {
    echo "testhost: $1 at $(cut -d' ' -f1 /proc/uptime)" >/dev/console
    [ -e /run/control-open ] && echo "step $1" >&3
}
# within TENTHS WHAT...: waits until the test succeeds, at most so many tenths of a second.
within() {
    tenths=$1; shift
    until "$@"; do
        tenths=$((tenths - 1)); [ $tenths -gt 0 ] || return 1
        sleep 0.1
    done
}
# load ORDER: loads the modules that a file names.
load() {
    while read -r module; do
        insmod "/modules/$module" || echo "testhost: module $module not loaded" >/dev/console
    done <"/modules/$1"
}
# Names this host of a pair and joins it to the other: the kernel's command line told it OUTRIGGER_HOST, a or b.
join_pair() {
    case $OUTRIGGER_HOST in a) address=10.77.0.1 ;; *) address=10.77.0.2 ;; esac
    hostname "host-$OUTRIGGER_HOST"
    printf '127.0.0.1 localhost\n10.77.0.1 host-a\n10.77.0.2 host-b\n' >/etc/hosts
    load pair-order
    # Large frames: what costs time under emulation is each one, whatever its size.
    within 100 test -e /sys/class/net/eth0 && ip link set eth0 name pair0 &&
        ip addr add $address/24 dev pair0 && ip link set pair0 mtu 9000 && ip link set pair0 up
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /share
mount -t devpts -o gid=5,mode=620 pts /dev/pts
mount -t tmpfs tmp /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/xen /run/xenstored /run/lock /run/outrigger /var/log/outrigger /var/lib/outrigger /var/log/xen /var/lib/xen
# Xen's hotplug scripts wait for a lock until they can look at /dev/stdin.
ln -sfn /proc/self/fd /dev/fd
for stream in stdin:0 stdout:1 stderr:2; do ln -sf "/proc/self/fd/${stream#*:}" "/dev/${stream%:*}"; done
[ -e /var/lock ] || ln -s /run/lock /var/lock
hostname dom0
ip link set lo up
load order
[ -z "$OUTRIGGER_HOST" ] || join_pair || fail "the network between the pair of hosts cannot be set up"
mount -t xenfs xenfs /proc/xen || fail "xenfs cannot be mounted"

# Port 1 is the control port, port 2 carries the script's output.
within 100 test -e /dev/vport0p1 -a -e /dev/vport0p2 || fail "the control port did not appear"
exec 3<>/dev/vport0p1
: >/run/control-open
# The kernel's command line tells which: c or ocaml.
case $OUTRIGGER_XENSTORED in ocaml) xenstored=oxenstored ;; *) xenstored=xenstored ;; esac
step $xenstored
$xenstored --pid-file /run/xenstored.pid || fail "$xenstored did not start"
within 100 test -S /run/xenstored/socket || fail "$xenstored has no socket"
xen-init-dom0 || fail "xen-init-dom0 failed"

if [ -x /usr/sbin/outrigger-consoled ]; then
    step "starting outrigger-consoled"
    # It returns when all consoles are served.
    timeout 60 outrigger-consoled >>/var/log/outrigger/consoled.log 2>&1 3>&- ||
        fail "outrigger-consoled: $(tail -n 1 /var/log/outrigger/consoled.log)"
elif command -v xenconsoled >/dev/null; then
    step "starting xenconsoled"
    xenconsoled --log=all --log-dir=/var/log/xen --pid-file=/run/xenconsoled.pid
fi
if [ -x /usr/sbin/outriggerd ]; then
    step "starting outriggerd"
    setsid outriggerd >>/var/log/outrigger/outriggerd.log 2>&1 </dev/null 3>&- &
    within 300 test -S /run/outrigger/outriggerd.sock ||
        fail "outriggerd: $(tail -n 1 /var/log/outrigger/outriggerd.log)"
fi

# Anything that was written before the snapshot must be on its way before the host stops the machine.
echo "ready $(cut -d' ' -f1 /proc/uptime)" >&3

mount_share() {
    date -s "@$1" >/dev/null
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 outrigger /share || fail "the share cannot be mounted"
    [ ! -d /share/put ] || cp -R /share/put/. /
}
# Only for the job itself: the shared disks of a preparation's run were other files.
find_shared_disks() { [ -z "$OUTRIGGER_HOST" ] || insmod /modules/virtio_blk.ko; }
beats() {
    while sleep 5; do echo beat >&3; done
}
collect() {
    echo "step collecting" >&3
    mkdir -p /share/logs
    dmesg >/share/logs/dom0-dmesg.log 2>&1
    ps -o pid,ppid,rss,args >/share/logs/dom0-processes.log 2>&1
    # Without xenstored, who asks hangs in the kernel.
    if pidof xenstored oxenstored >/dev/null; then
        xenstore-ls -f >/share/logs/xenstore.log 2>&1
        command -v xl >/dev/null && xl dmesg >/share/logs/xl-dmesg.log 2>&1
    fi
    cp -R /var/log/outrigger /var/log/xen /share/logs/ 2>/dev/null
    cp -R /tmp/. /share/logs/tmp 2>/dev/null
    umount /share
}

while read -r word now limit columns term <&3; do
    case $word in
    prepare | run)
        mount_share "$now"
        [ $word = prepare ] || find_shared_disks
        echo "step mounted" >&3
        beats &
        beats=$!
        (cd /root && exec timeout -k 5 "$limit" /share/script >/dev/vport0p2 2>&1 </dev/null 3>&-)
        status=$?
        kill $beats
        collect
        echo "exit $status" >&3
        ;;
    shell)
        mount_share "$now"
        find_shared_disks
        echo "step mounted" >&3
        beats &
        beats=$!
        # The size lasts only as long as somebody holds the terminal open.
        (
            exec </dev/hvc1 >/dev/hvc1 2>&1 3>&-
            stty rows "$limit" columns "$columns"
            cd /root && TERM=$term exec setsid -c sh -l
        )
        status=$?
        kill $beats
        collect
        echo "exit $status" >&3
        ;;
    off) break ;;
    esac
done
echo bye >&3
off
