# A boot sector with a screen and a CD drive.
#
# In text mode it draws a row of red blocks and a row of green ones, and a line of text between them. On COM1, `r` lets
# it read the disc's first sector through the BIOS and print the text at its start, or the BIOS's error. `x` resets the
# drive: a drive whose disc was changed refuses to read until it was reset or asked for its sense, and SeaBIOS does
# neither, not even when it is told to reset the disk.
        .code16
        .globl  _start
        .set    COM1, 0x3f8
        .set    BUFFER, 0x8000
        .set    CD, 0xe0                # SeaBIOS's first CD drive, whatever was booted from
        .set    DRIVE, 0x176            # the same one's registers: first on the second IDE bus
        .set    COLUMNS, 80

_start:
        ljmp    $0, $setup
setup:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $_start, %sp
        cld
        movw    $COM1 + 3, %dx          # the next two bytes are the divisor: 115200 baud
        movb    $0x83, %al
        outb    %al, %dx
        movw    $COM1, %dx
        movb    $1, %al
        outb    %al, %dx
        movw    $COM1 + 1, %dx
        xorb    %al, %al
        outb    %al, %dx
        movw    $COM1 + 3, %dx          # eight bits, no parity, one stop bit
        movb    $3, %al
        outb    %al, %dx

        movw    $0x0003, %ax            # 80 columns, 25 rows
        int     $0x10
        movb    $0x20, %ch              # no cursor
        movb    $1, %ah
        int     $0x10
        movw    $0x0400, %dx
        movb    $0x04, %bl              # red
        call    row
        movw    $0x0600, %dx
        movb    $0x02, %bl              # green
        call    row
        movw    $0x0500, %dx
        call    move_to
        movw    $title, %si
1:      lodsb
        testb   %al, %al
        jz      2f
        movb    $0x0e, %ah
        int     $0x10
        jmp     1b
2:      movw    $ready, %si
        call    print

look:
        movw    $COM1 + 5, %dx          # line status: a byte has come?
        inb     %dx, %al
        testb   $0x01, %al
        jnz     typed
        sti                             # sleep until the timer, 18 times a second
        hlt
        jmp     look
typed:
        movw    $COM1, %dx
        inb     %dx, %al
        cmpb    $'r', %al
        je      read
        cmpb    $'x', %al
        jne     look
        movw    $DRIVE, %dx
        movb    $0xa0, %al              # the first drive of the two
        outb    %al, %dx
        incw    %dx
        movb    $0x08, %al              # DEVICE RESET
        outb    %al, %dx
1:      inb     %dx, %al                # until it is not busy
        testb   $0x80, %al
        jnz     1b
        movw    $reset, %si
        call    print
        jmp     look
read:
        movw    $disc, %si
        call    print
        movw    $packet, %si
        movw    $1, 2(%si)              # the BIOS writes here how many blocks it has read
        movb    $0x42, %ah              # read by number of block
        movb    $CD, %dl
        int     $0x13
        jc      failed
        movb    $0, BUFFER + 64
        movw    $BUFFER, %si
        call    print
        jmp     end
failed:
        pushw   %ax
        movw    $error, %si
        call    print
        popw    %ax
        movb    %ah, %bl
        shrb    $4, %ah
        call    digit
        movb    %bl, %ah
        call    digit
end:
        movw    $newline, %si
        call    print
        jmp     look

# Writes the lower half of %ah as a digit.
digit:
        movb    %ah, %al
        andb    $0x0f, %al
        cmpb    $10, %al
        sbbb    $0x69, %al
        das
        jmp     put

# Writes %al.
put:
        pushw   %dx
        pushw   %ax
        movw    $COM1 + 5, %dx          # line status: room for a byte?
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        popw    %dx
        ret

# Writes the text at %si, up to its zero byte.
print:
        lodsb
        testb   %al, %al
        jz      1f
        call    put
        jmp     print
1:      ret

# Moves the cursor to row %dh, column %dl.
move_to:
        movw    $0x0200, %ax
        movb    $0, %bh
        int     $0x10
        ret

# Fills row %dh with blocks of colour %bl.
row:
        call    move_to
        movw    $0x09db, %ax            # a full block, with a colour, so often
        movw    $COLUMNS, %cx
        int     $0x10
        ret

        .balign 4
packet: .byte   16, 0                   # one block to BUFFER, the first
        .word   1, BUFFER, 0
        .quad   0

title:          .asciz  "Outrigger test screen"
ready:          .asciz  "TESTGUEST ready\r\n"
reset:          .asciz  "reset\r\n"
disc:           .asciz  "disc: "
error:          .asciz  "error "
newline:        .asciz  "\r\n"

        .org    510
        .word   0xaa55
