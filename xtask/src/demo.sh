# The demonstration's part in dom0, read by busybox's sh. Set before this text: EXAMPLES, the folder of the example
# guest, and JSON, which is 1 when a machine reads along. What is seen lies in $RESULTS afterwards.
RESULTS=/tmp/demo
GREETING='Hello from an HVM guest on COM1'
TYPED='typed in dom0'
status=1

heading() { printf '\n\033[1m%s\033[0m\n' "$1"; }
# within SECONDS TEXT FILE: waits until the text stands in the file.
within() {
    seconds=$1
    until grep -q "$2" "$3" 2>/dev/null; do
        seconds=$((seconds - 1)); [ $seconds -gt 0 ] || return 1
        sleep 1
    done
}
# Userspace only: kernel threads have no memory of their own.
processes() { ps -o pid,rss,args | grep -v '\[' | grep -v 'ps -o'; }
finish() {
    kill $reader $second 2>/dev/null
    exit "$status"
}

rm -rf $RESULTS; mkdir -p $RESULTS
sed "s|/examples|$EXAMPLES|g" "$EXAMPLES/hello.cfg" >$RESULTS/hello.cfg
processes >$RESULTS/processes-before

heading 'Creating the guest of examples/hello.cfg'
if [ "$JSON" = 1 ]; then
    outrigger create --json $RESULTS/hello.cfg >$RESULTS/create.jsonl || { outrigger dm-log hello; finish; }
else
    outrigger create $RESULTS/hello.cfg || { outrigger dm-log hello; finish; }
fi

heading 'Its serial ports'
mkfifo $RESULTS/keyboard
outrigger console --serial 0 hello <$RESULTS/keyboard | tee $RESULTS/com1 & reader=$!
exec 9>$RESULTS/keyboard
if within "${PATIENCE:-120}" 'echoing COM1' $RESULTS/com1; then
    # Only now: a boot sector that has not begun to listen would miss it.
    printf '%s\r\n' "$TYPED" >&9
    within 20 "$TYPED" $RESULTS/com1 || echo 'The echo of what was typed did not come back'
fi
outrigger console --serial 1 --no-follow hello </dev/null | tee $RESULTS/com2 & second=$!
within 10 COM2 $RESULTS/com2
grep -q "$GREETING" $RESULTS/com1 && status=0
exec 9>&-

heading 'Processes in dom0'
processes | tee $RESULTS/processes
grep -c 'qemu-system\|xen-qemu' $RESULTS/processes >$RESULTS/qemu-count
echo "QEMU processes in dom0: $(cat $RESULTS/qemu-count)"

heading 'Guest and stubdomain'
outrigger list
outrigger info hello
outrigger info --json hello >$RESULTS/info.json
if [ "${KEEP:-0}" != 1 ]; then
    heading 'Destroying the guest'
    outrigger destroy hello || status=1
    outrigger list
fi
finish
