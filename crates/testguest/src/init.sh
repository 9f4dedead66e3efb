#!/bin/busybox sh
# First process of the Linux test guest. Says what it has, then does what the script at the start of its second
# disk says; without one it waits to be told to power off.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# PV drivers refuse to be loaded where they could not unplug what is emulated (xen_platform_pci=0): there the emulated
# devices are what is used.
list=pv
for module in $(cat /modules/first); do insmod "$module" 2>/dev/null || list=emulated; done
for module in $(cat /modules/$list); do insmod "$module"; done
# The second disk; what is emulated gets its name in any order. Disks come when their backends have answered.
find_second() {
    case $list in
    pv) second=/dev/xvdb ;;
    *) second=/dev/$(ls /sys/bus/scsi/devices/1:0:0:0/block 2>/dev/null) ;;
    esac
    [ -b "$second" ]
}
tries=0
until find_second || [ $tries = 100 ]; do usleep 100000; tries=$((tries + 1)); done
echo "TESTGUEST up $(cut -d' ' -f1 /proc/uptime) disks: $(ls /sys/block | tr '\n' ' ') nics: $(ls /sys/class/net | tr '\n' ' ')"
if [ -b "$second" ]; then
    dd if=$second of=/script bs=4096 count=1 2>/dev/null
    tr -d '\000' </script >/script.sh
    sh /script.sh
    echo "TESTGUEST script ended with $?"
fi
while true; do sleep 1000; done
