#!/bin/busybox sh
# PID 1 of the stubdomain that others are measured against: what someone writes by hand with Debian's kernel, busybox
# and Xen's own tools. It does what docs/misc/stubdom.txt of Xen asks for a start, and nothing beyond.
export PATH=/usr/bin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
while read -r module; do
    case $module in
        *privcmd.ko) insmod "$module" unrestricted=1 ;;
        *) insmod "$module" ;;
    esac
done </modules/order

guest=$(xenstore-read target)
place=$(xenstore-read "/local/domain/$guest/vm")/image/dm-argv
# An argument may hold spaces, but in this image none holds a line break.
set --
for key in $(xenstore-list "$place" | sort); do
    argument=$(xenstore-read "$place/$key")
    [ "$argument" != '$STUBDOM_RESTORE_INCOMING_ARG' ] || argument=fd:3
    set -- "$@" "$argument"
done
if xenstore-read device/console/2/backend >/dev/null 2>&1; then
    exec 3</dev/hvc2
    stty raw -echo <&3
fi
# Disks come when their driver is loaded and dom0 has answered.
for argument in "$@"; do
    case $argument in
        *file=/dev/xvd*)
            disk=${argument##*file=}
            until [ -e "${disk%%,*}" ]; do sleep 0.1; done ;;
    esac
done
/usr/libexec/xen-qemu-system-i386 -chardev socket,id=monitor,path=/run/qmp.sock,server=on,wait=off \
    -mon chardev=monitor,mode=control "$@" &
until [ -S /run/qmp.sock ]; do sleep 0.1; done
@PROXY@ --mode=server 0 "device-model/$guest/qmp-vchan" /run/qmp.sock &
while :; do wait; sleep 1; done
