# Counts the guests that the emulator breaks, and how long Linux guests take to boot. Prints one line a figure:
# `@ ID VALUE UNIT`. Read by bash in the embedded host's dom0.
#
# What broke guests under QEMU as Debian has it: whichever CPU restores an FPU state writes to a word of the first
# CPU's, which that changes itself whenever a guest leaves to Xen. So here a guest on the first CPU does nothing but
# leave, and dom0 on the second nothing but switch between processes.
PART=90
status=0

now() { cut -d' ' -f1 /proc/uptime; }
since() { echo "$(now) - $1" | bc; }
less() { [ "$(echo "$1 < $2" | bc)" = 1 ]; }
say() { echo "@ $1 $2 $3"; }
failed() { echo "FAILED: $*"; status=1; }
is_listed() { outrigger list | grep -q "\<$1\>"; }
config() {
    cat <<C
name = '$1'
type = 'hvm'
vcpus = 1
vga = 'none'
serial = 'pty'
hdtype = 'ahci'
disk = [ 'format=raw, vdev=hda, access=rw, target=/tmp/bench/$1.img' ]
on_poweroff = 'destroy'
on_reboot = 'destroy'
on_crash = 'destroy'
C
}
# create NAME: creates the guest of /tmp/bench/NAME.cfg; its serial line goes to $LOG.
create() {
    LOG=/var/log/outrigger/console/$1-dm.3.log
    rm -f "$LOG"
    outrigger create --json "/tmp/bench/$1.cfg" >"/tmp/bench/$1.jsonl" || { failed "create of $1"; return 1; }
}
# says NAME WORD SECONDS: waits for the word on its serial line; 1 when the guest is gone, 2 when time is up.
says() {
    local begun
    begun=$(now)
    until grep -qas "$2" "$LOG"; do
        is_listed "$1" || return 1
        less "$(since "$begun")" "$3" || return 2
        sleep 0.5
    done
}
# Guests that have Xen's own instruction pointer, since the last time that this was called.
broken() { xl dmesg -c | grep -c 'RIP: *e008:\[<ffff82d'; }

# exits: PART seconds of a guest that leaves to Xen all the time, created again when it breaks.
exits() {
    local left=$PART begun
    while less 0 "$left"; do
        create exits && says exits 'TESTGUEST ready' 120 || { failed 'the guest of exits did not start'; return; }
        begun=$(now)
        while is_listed exits && less "$(since "$begun")" "$left"; do sleep 0.5; done
        say exits.rate "$(echo "$(tr -cd . <"$LOG" | wc -c) * 20000 / $(since "$begun")" | bc)" per_s
        left=$(echo "$left - $(since "$begun")" | bc)
        outrigger destroy exits >/dev/null 2>&1
    done
}
# linux NAME: boots a Linux guest, wherever Xen runs it.
linux() {
    local begun
    create "$1" || return
    begun=$(now)
    if says "$1" 'TESTGUEST up' 600; then say linux.boot "$(since "$begun")" s; else echo "$1 did not come up"; fi
    outrigger destroy "$1" >/dev/null 2>&1
}

mkdir -p /tmp/bench
cp /root/exits-guest.img /tmp/bench/exits.img
{ config exits; echo 'memory = 32'; echo "cpus = '0'"; } >/tmp/bench/exits.cfg
for name in linux1 linux2; do
    cp /root/linux-guest.img /tmp/bench/$name.img
    { config $name; echo 'memory = 256'; } >/tmp/bench/$name.cfg
done
xl dmesg -c >/dev/null
exits_broken=0 linux_broken=0
for run in $(seq "$RUNS"); do
    echo "-- run $run of $RUNS: exits"
    xl vcpu-pin 0 0 1
    (while :; do echo; done | while read -r _; do :; done) & switches=$!
    exits
    kill $switches
    xl vcpu-pin 0 0 all
    exits_broken=$((exits_broken + $(broken)))
    echo "-- run $run of $RUNS: two Linux guests"
    linux linux1 & first=$!
    linux linux2 & second=$!
    wait $first || status=1
    wait $second || status=1
    linux_broken=$((linux_broken + $(broken)))
done
say exits.broken $exits_broken guests
say linux.broken $linux_broken guests
exit $status
