# A UEFI application that talks on COM1: a whole PE image, headers and all, assembled as a flat binary for address 0.
#
# It writes its greeting to the port itself, because firmware built for release shows nothing on a serial port, then
# the firmware's own vendor text out of the system table, and sleeps. The code runs wherever it is loaded. Layout of
# the headers: "PE Format" of Microsoft's documentation.
        .code64
        .set    COM1, 0x3f8
        .set    SECTION, 0x1000         # where the only section lies in memory and, to keep this file simple, in the file

image:
        .ascii  "MZ"
        .org    0x3c
        .long   pe - image
pe:
        .ascii  "PE\0\0"
        .word   0x8664                  # x86-64
        .word   1                       # sections
        .long   0, 0, 0
        .word   section - optional
        .word   0x0022                  # executable, large addresses; not fixed to an address
optional:
        .word   0x020b                  # PE32+
        .byte   0, 0
        .long   0x1000, 0, 0            # code, data, empty data
        .long   SECTION                 # entry point
        .long   SECTION                 # base of code
        .quad   0                       # wanted address
        .long   0x1000, 0x1000          # alignment in memory and in the file
        .word   0, 0, 0, 0, 0, 0
        .long   0
        .long   0x2000, 0x1000          # size of the image and of the headers
        .long   0
        .word   10                      # an application for EFI
        .word   0
        .quad   0, 0, 0, 0
        .long   0, 16
        .fill   16, 8, 0                # no data directories: nothing to relocate
section:
        .ascii  ".text\0\0\0"
        .long   0x1000, SECTION, 0x1000, SECTION
        .long   0, 0, 0
        .long   0xe0000020              # code, may be run, read and written

        .org    SECTION
# EFI_STATUS entry(EFI_HANDLE %rcx, EFI_SYSTEM_TABLE *%rdx)
        cld
        movq    %rdx, %rbx
        movw    $COM1 + 1, %dx          # no interrupts
        xorb    %al, %al
        outb    %al, %dx
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

        leaq    greeting(%rip), %rsi
1:      lodsb
        testb   %al, %al
        jz      2f
        call    put
        jmp     1b
2:      movq    24(%rbx), %rsi          # the vendor, in UCS-2, behind the table's header
        movl    $40, %ecx               # of which so much is shown
3:      lodsw
        testw   %ax, %ax
        jz      4f
        call    put
        decl    %ecx
        jnz     3b
4:      leaq    end(%rip), %rsi
5:      lodsb
        testb   %al, %al
        jz      6f
        call    put
        jmp     5b
6:      hlt
        jmp     6b

# Writes %al to COM1.
put:
        movb    %al, %ah
        movw    $COM1 + 5, %dx          # line status: room for a byte?
7:      inb     %dx, %al
        testb   $0x20, %al
        jz      7b
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
        ret

greeting:       .asciz  "Hello from a UEFI application on COM1, firmware: "
end:            .asciz  "\r\nTESTGUEST end\r\n"
        .org    0x2000
