# The smallest guest that shows its devices at work: a boot sector of 512 bytes.
#
# It greets on both serial ports, reads the second sector of both disks through the BIOS and prints the text found
# there, then gives every byte that it receives on COM1 back. The disks' second sectors hold text that ends with a
# zero byte.
        .code16
        .globl  _start

        .set    COM1, 0x3f8
        .set    COM2, 0x2f8
        .set    BUFFER, 0x8000

_start:
        ljmp    $0, $setup
setup:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $_start, %sp
        cld

        movw    $COM1, %bp
        call    open_port
        movw    $greeting, %si
        call    print
        movw    $COM2, %bp
        call    open_port
        movw    $second_port, %si
        call    print

        movw    $COM1, %bp
        movb    $0x80, %dl
        call    show_disk
        movb    $0x81, %dl
        call    show_disk
        movw    $ready, %si
        call    print

echo:
        leaw    5(%bp), %dx             # line status: a byte has come?
        inb     %dx, %al
        testb   $0x01, %al
        jnz     received
        sti                             # sleep until the timer, 18 times a second: a guest that polls
        hlt                             # keeps its processor and its device model's busy for nothing
        jmp     echo
received:
        movw    %bp, %dx
        inb     %dx, %al
        call    put
        jmp     echo

# Sets the port at %bp to 115200 8n1, without interrupts.
open_port:
        leaw    1(%bp), %dx
        xorb    %al, %al
        outb    %al, %dx
        leaw    3(%bp), %dx
        movb    $0x83, %al              # the next two bytes are the divisor
        outb    %al, %dx
        movw    %bp, %dx
        movb    $1, %al
        outb    %al, %dx
        leaw    1(%bp), %dx
        xorb    %al, %al
        outb    %al, %dx
        leaw    3(%bp), %dx
        movb    $0x03, %al
        outb    %al, %dx
        ret

# Writes %al to the port at %bp.
put:
        pushw   %ax
        leaw    5(%bp), %dx             # line status: room for a byte?
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popw    %ax
        movw    %bp, %dx
        outb    %al, %dx
        ret

# Writes the text at %si, up to its zero byte.
print:
        lodsb
        testb   %al, %al
        jz      1f
        call    put
        jmp     print
1:      ret

# Prints the text in the second sector of the BIOS disk %dl.
show_disk:
        pushw   %dx
        movw    $disk, %si
        call    print
        popw    %dx
        pushw   %dx
        movb    %dl, %al
        subb    $0x80 - '0', %al
        call    put
        movw    $colon, %si
        call    print
        popw    %dx
        movw    $0x0201, %ax            # read one sector
        movw    $0x0002, %cx            # cylinder 0, sector 2
        movb    $0, %dh                 # head 0
        movw    $BUFFER, %bx
        int     $0x13
        movw    $BUFFER, %si
        jnc     1f
        movw    $unreadable, %si
1:      call    print
        movw    $newline, %si
        jmp     print

greeting:       .asciz  "Hello from an HVM guest on COM1\r\n"
second_port:    .asciz  "Hello from an HVM guest on COM2\r\n"
disk:           .asciz  "disk "
colon:          .asciz  ": "
unreadable:     .asciz  "cannot be read"
newline:        .asciz  "\r\n"
ready:          .asciz  "echoing COM1\r\n"

        .org    510
        .word   0xaa55
