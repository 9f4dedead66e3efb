# A boot sector that leaves to the hypervisor as often as it can: CPUID is always the hypervisor's to answer, and it
# needs no one else for that. COM1 gets a word at the start, then a dot for every 20000 exits.
        .code16
        .globl  _start
        .set    COM1, 0x3f8
        .set    EXITS, 20000

_start:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $_start, %sp
        cld
        movw    $COM1, %dx
        movw    $ready, %si
next:
        lodsb
        testb   %al, %al
        jz      round
        outb    %al, %dx
        jmp     next
round:
        movl    $EXITS, %esi
leave:
        xorl    %eax, %eax
        cpuid
        decl    %esi
        jnz     leave
        movw    $COM1, %dx
        movb    $'.', %al
        outb    %al, %dx
        jmp     round

ready:          .asciz  "TESTGUEST ready\r\n"

        .org    510
        .word   0xaa55
