#!/bin/busybox sh
# First process of the Linux test guest. Says what it has, then does what the script at the start of its second
# disk says; without one it waits to be told to power off.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "$module"; done
# The PV disks come when their backends have answered; the first one is what we were booted from.
tries=0
while [ ! -e /dev/xvda ] && [ $tries -lt 100 ]; do usleep 100000; tries=$((tries + 1)); done
echo "TESTGUEST up $(cut -d' ' -f1 /proc/uptime) disks: $(ls /sys/block | tr '\n' ' ') nics: $(ls /sys/class/net | tr '\n' ' ')"
if [ -e /dev/xvdb ]; then
    dd if=/dev/xvdb of=/script bs=4096 count=1 2>/dev/null
    tr -d '\000' </script >/script.sh
    sh /script.sh
    echo "TESTGUEST script ended with $?"
fi
while true; do sleep 1000; done
