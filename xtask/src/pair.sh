#!/bin/sh
# The trial "a pair of hosts": both hosts run this. They reach each other by name, b sends 10 MB to a, a writes to the
# shared disk and b reads it. Every wait has an end.
fail() {
    echo "failed: $*"
    exit 1
}
# within SECONDS WHAT...: waits until the command succeeds.
within() {
    left=$1; shift
    until "$@"; do
        left=$((left - 1)); [ $left -gt 0 ] || return 1
        sleep 1
    done
}
# take PORT FILE: listens there and writes what comes to the file. Not from nc's own output: with an empty input it ends
# the connection before all has come.
take() {
    printf '#!/bin/sh\ncat >%s\n' "$2" >/tmp/take && chmod 755 /tmp/take
    timeout 60 nc -l -p "$1" -e /tmp/take
}
# say TEXT HOST PORT: sends a line.
say() { echo "$1" | timeout 60 nc "$2" "$3" 2>/dev/null; }
# send FILE HOST PORT: sends a file, and notes when that began, in hundredths of a second.
now() { cut -d' ' -f1 /proc/uptime | tr -d .; }
send() { begun=$(now) && timeout 60 nc "$2" "$3" <"$1" 2>/dev/null; }
# hear PORT: prints the line that comes there.
hear() { take "$1" /tmp/heard && cat /tmp/heard; }

echo "$(hostname), $(ip -o -4 addr show pair0 | tr -s ' ' | cut -d' ' -f2,4), $(cat /sys/class/net/pair0/address)"
echo "boot $(cat /proc/sys/kernel/random/boot_id), random $(head -c 8 /dev/urandom | od -An -tx1)"
[ -b /dev/vda ] || fail "there is no shared disk"
case $OUTRIGGER_HOST in
a)
    ping -c 3 -W 10 host-b || fail "host-b does not answer"
    take 2000 /tmp/payload || fail "nothing came from host-b"
    sum=$(sha256sum </tmp/payload)
    rm /tmp/payload
    told=$(hear 2001)
    [ "$sum" = "$told" ] || fail "received $sum, sent $told"
    echo "10 MB from host-b arrived: $sum"
    # By O_DIRECT, past this kernel's cache; b is told when it is done.
    head -c 1048576 /dev/urandom >/tmp/block
    dd if=/tmp/block of=/dev/vda bs=64k oflag=direct conv=fsync 2>/dev/null || fail "the shared disk cannot be written"
    sum=$(sha256sum </tmp/block)
    rm /tmp/block
    within 30 say "$sum" host-b 2002 || fail "host-b does not listen"
    [ "$(hear 2003)" = read ] || fail "host-b did not read what was written"
    ;;
b)
    within 30 ping -c 1 -W 10 host-a >/dev/null || fail "host-a does not answer"
    # A first look, so that a copy of the old contents would show.
    dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum >/tmp/before
    head -c 10000000 /dev/urandom >/tmp/payload
    within 30 send /tmp/payload host-a 2000 || fail "10 MB cannot be sent"
    echo "10 MB sent in $((($(now) - begun) * 10)) ms"
    within 30 say "$(sha256sum </tmp/payload)" host-a 2001 || fail "host-a does not listen"
    rm /tmp/payload
    sum=$(hear 2002)
    now=$(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum)
    [ "$now" = "$sum" ] || fail "the shared disk holds $now, host-a wrote $sum"
    [ "$now" != "$(cat /tmp/before)" ] || fail "the shared disk has not changed"
    echo "the shared disk holds what host-a wrote: $now"
    within 30 say read host-a 2003 || fail "host-a does not listen"
    ;;
*) fail "OUTRIGGER_HOST is '$OUTRIGGER_HOST'" ;;
esac
