# A boot sector that reads a CD: for each byte on COM1 it reads the first sector of the first CD drive through the BIOS
# and prints the text at its start, which ends with a zero byte, or that there is no disc.
        .code16
        .globl  _start

        .set    COM1, 0x3f8
        .set    FIRST_CD, 0xe0          # SeaBIOS numbers CD drives from here
        .set    TRIES, 8                # the first command after a change of the disc is refused
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
        call    open_port
        movw    $ready, %si
        call    print

wait:
        movw    $COM1 + 5, %dx          # line status: a byte has come?
        inb     %dx, %al
        testb   $0x01, %al
        jnz     read
        sti                             # sleep until the timer
        hlt
        jmp     wait
read:
        movw    $COM1, %dx
        inb     %dx, %al
        movw    $disc, %si
        call    print
        movb    $TRIES, tries
again:
        movb    $0, BUFFER
        movw    $1, packet + 2          # the BIOS writes what it has read here
        movw    $packet, %si
        movb    $FIRST_CD, %dl
        movb    $0x42, %ah              # read by block address
        int     $0x13
        movw    $BUFFER, %si
        jnc     show
        decb    tries
        jnz     again
        movw    $none, %si
show:
        movb    $0, BUFFER + 64         # whatever it is, no more than this is printed
        call    print
        movw    $newline, %si
        call    print
        jmp     wait

# Sets the port to 115200 8n1, without interrupts.
open_port:
        movw    $COM1 + 1, %dx
        xorb    %al, %al
        outb    %al, %dx
        movw    $COM1 + 3, %dx
        movb    $0x83, %al              # the next two bytes are the divisor
        outb    %al, %dx
        movw    $COM1, %dx
        movb    $1, %al
        outb    %al, %dx
        incw    %dx
        xorb    %al, %al
        outb    %al, %dx
        movw    $COM1 + 3, %dx
        movb    $0x03, %al
        outb    %al, %dx
        ret

# Prints the text at %si, up to its zero byte.
print:
        lodsb
        testb   %al, %al
        jz      2f
        pushw   %ax
        movw    $COM1 + 5, %dx          # line status: room for a byte?
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        jmp     print
2:      ret

ready:          .asciz  "READER up\r\n"
disc:           .asciz  "disc: "
none:           .asciz  "none"
newline:        .asciz  ".\r\n"
tries:          .byte   0
        .balign 4
packet:         .byte   16, 0           # its size
                .word   1               # sectors
                .word   BUFFER, 0       # offset and segment
                .quad   0               # the first one

        .org    510
        .word   0xaa55
