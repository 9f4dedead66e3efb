# A boot sector for the ways in which a guest ends: it has no drivers, and hears the ACPI power button.
#
# On COM1, `p` lets it power off and `r` reboot. The power button's bit is looked at as long as nothing comes, and
# powers it off too. Where the registers are: ACPI_PM1A_EVT_BLK_ADDRESS_V1 in Xen's public/hvm/ioreq.h; how a PIIX4 is
# switched off: the sleep type 0 of its control register.
        .code16
        .globl  _start
        .set    COM1, 0x3f8
        .set    PM1_STATUS, 0xb000
        .set    PM1_CONTROL, 0xb004
        .set    POWER_BUTTON, 0x0100
        .set    SLEEP_ENABLE, 0x2000

_start:
        ljmp    $0, $setup
setup:
        xorw    %ax, %ax
        movw    %ax, %ds
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
        movw    $ready, %si
        call    print

look:
        movw    $PM1_STATUS, %dx
        inw     %dx, %ax
        testw   $POWER_BUTTON, %ax
        jnz     button
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
        cmpb    $'p', %al
        je      power_off
        cmpb    $'r', %al
        jne     look
        movw    $reboots, %si
        call    print
        movb    $0xfe, %al              # the keyboard controller's reset line
        outb    %al, $0x64
        jmp     stay
button:
        movw    $pressed, %si
        call    print
power_off:
        movw    $powers_off, %si
        call    print
        movw    $PM1_CONTROL, %dx
        movw    $SLEEP_ENABLE, %ax
        outw    %ax, %dx
stay:
        hlt
        jmp     stay

# Writes the text at %si, up to its zero byte.
print:
        lodsb
        testb   %al, %al
        jz      2f
        movb    %al, %ah
        movw    $COM1 + 5, %dx          # line status: room for a byte?
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
        jmp     print
2:      ret

ready:          .asciz  "TESTGUEST ready\r\n"
pressed:        .asciz  "TESTGUEST power button\r\n"
powers_off:     .asciz  "TESTGUEST powers off\r\n"
reboots:        .asciz  "TESTGUEST reboots\r\n"

        .org    510
        .word   0xaa55
