# A PV guest of one page of code that does nothing but use its console.
#
# Its command line is one letter and, for most, a number in hexadecimal digits; without a number it goes on for ever:
#   sN  writes N numbered lines of 16 bytes (15 hexadecimal digits from 0 on, and a line feed) as fast as they are taken
#   wN  the same, after the first byte of input
#   xN  the same, and then powers off at once, with what nobody has taken still in the ring
#   e   gives every byte of input back
#   cN  reads N bytes of input and then writes a line with their checksum: for each byte, sum = 31 * sum + byte,
#       60 bits of it
#   l   claims 2 GiB of output in the ring
#   i   nothing
# It never spins: it waits for its console's event channel (SCHEDOP_poll), with interrupts masked all the time.
        .set    VIRT_BASE, 0
        # Machine frames to guest frames, as Xen maps it for 64-bit PV guests (xen/include/public/arch-x86/xen-x86_64.h).
        .set    MACHINE_TO_PHYS, 0xffff800000000000
        # struct start_info (xen/include/public/xen.h)
        .set    SHARED_INFO, 40
        .set    CONSOLE_MFN, 72
        .set    CONSOLE_PORT, 80
        .set    CMD_LINE, 128
        # struct xencons_interface (xen/include/public/io/console.h)
        .set    OUT, 1024
        .set    IN_CONS, 3072
        .set    IN_PROD, 3076
        .set    OUT_CONS, 3080
        .set    OUT_PROD, 3084
        # struct shared_info: behind 32 vcpu_infos
        .set    EVTCHN_PENDING, 2048
        .set    HYPERVISOR_update_va_mapping, 14
        .set    HYPERVISOR_sched_op, 29
        .set    HYPERVISOR_event_channel_op, 32
        .set    SCHEDOP_shutdown, 2
        .set    SCHEDOP_poll, 3
        .set    EVTCHNOP_send, 4

        # Xen's ELF notes (xen/include/public/elfnote.h).
        .macro  note kind:req, value:vararg
        .balign 4
        .long   4, 2f - 1f, \kind
        .asciz  "Xen"
1:      \value
2:
        .endm
        .section .note.Xen, "", @note
        note    5, .asciz "xen-3.0"
        note    6, .asciz "outrigger-console-guest"
        note    8, .asciz "generic"
        note    1, .quad _start
        note    2, .quad hypercall_page
        note    3, .quad VIRT_BASE
        note    4, .quad 0
        note    9, .asciz "yes"

        # Registers: rbp the ring, r12 how many are left, r13 the number of the next line, r14d the producer's index.
        .text
        .globl  _start
_start:
        cld
        movq    %rsi, %rbx
        movq    CONSOLE_MFN(%rbx), %rax
        movabsq $MACHINE_TO_PHYS, %rcx
        movq    (%rcx,%rax,8), %rbp
        shlq    $12, %rbp
        movl    CONSOLE_PORT(%rbx), %eax
        movl    %eax, port

        movl    $HYPERVISOR_update_va_mapping, %eax
        movl    $shared, %edi
        movq    SHARED_INFO(%rbx), %rsi
        orq     $0x67, %rsi
        movl    $2, %edx
        syscall

        xorl    %r13d, %r13d
        movl    OUT_PROD(%rbp), %r14d
        leaq    CMD_LINE(%rbx), %rsi
        lodsb
        movb    %al, mode
        # No digits: as many as there are numbers.
        movq    $-1, %r12
        xorl    %ecx, %ecx
digit:
        lodsb
        subb    $'0', %al
        jb      counted
        cmpb    $9, %al
        jbe     0f
        subb    $('a' - '0' - 10), %al
0:      shlq    $4, %rcx
        movzbl  %al, %eax
        orq     %rax, %rcx
        movq    %rcx, %r12
        jmp     digit
counted:
        movb    mode, %al
        cmpb    $'s', %al
        je      flood
        cmpb    $'x', %al
        je      flood
        cmpb    $'w', %al
        je      gun
        cmpb    $'e', %al
        je      echo
        cmpb    $'c', %al
        je      sum
        cmpb    $'l', %al
        je      lie
idle:
        call    clear
        call    wait
        jmp     idle

gun:
        call    clear
        movl    IN_PROD(%rbp), %eax
        cmpl    IN_CONS(%rbp), %eax
        jne     1f
        call    wait
        jmp     gun
1:      movl    %eax, IN_CONS(%rbp)

flood:
        call    room
        shrl    $4, %edx
        jnz     0f
        call    clear
        call    room
        shrl    $4, %edx
        jnz     0f
        call    wait
        jmp     flood
0:      testq   %r12, %r12
        jz      written
        movq    %r13, %rax
        call    line
        incq    %r13
        decq    %r12
        decl    %edx
        jnz     0b
        call    publish
        jmp     flood
written:
        call    publish
        cmpb    $'x', mode
        jne     idle
        movl    $HYPERVISOR_sched_op, %eax
        movl    $SCHEDOP_shutdown, %edi
        movl    $poweroff, %esi
        syscall

echo:
        call    clear
        movl    IN_CONS(%rbp), %r8d
        movl    IN_PROD(%rbp), %r9d
        cmpl    %r8d, %r9d
        jne     0f
        call    wait
        jmp     echo
0:      call    room
        testl   %edx, %edx
        jz      echo
        movl    %r8d, %eax
        andl    $1023, %eax
        movb    (%rbp,%rax), %cl
        movl    %r14d, %eax
        andl    $2047, %eax
        movb    %cl, OUT(%rbp,%rax)
        incl    %r14d
        incl    %r8d
        movl    %r8d, IN_CONS(%rbp)
        movl    %r14d, OUT_PROD(%rbp)
        cmpl    %r8d, %r9d
        jne     0b
        call    publish
        jmp     echo

sum:
        testq   %r12, %r12
        jz      summed
        call    clear
        movl    IN_CONS(%rbp), %r8d
        movl    IN_PROD(%rbp), %r9d
        cmpl    %r8d, %r9d
        jne     0f
        call    wait
        jmp     sum
0:      movl    %r8d, %eax
        andl    $1023, %eax
        movzbl  (%rbp,%rax), %ecx
        imulq   $31, %r13, %r13
        addq    %rcx, %r13
        incl    %r8d
        decq    %r12
        jz      1f
        cmpl    %r8d, %r9d
        jne     0b
1:      movl    %r8d, IN_CONS(%rbp)
        call    notify
        jmp     sum
summed:
        movq    %r13, %rax
        call    line
        call    publish
        jmp     idle

lie:
        movl    OUT_CONS(%rbp), %r14d
        addl    $0x80000000, %r14d
        call    publish
        jmp     idle

        # Room in the output queue, in edx.
room:
        movl    OUT_CONS(%rbp), %edx
        subl    %r14d, %edx
        addl    $2048, %edx
        ret

        # Writes the number in rax as a line at the producer's index.
line:
        movl    %r14d, %edi
        andl    $2047, %edi
        leaq    OUT(%rbp,%rdi), %rdi
        movb    $'\n', 15(%rdi)
        movl    $14, %ecx
0:      movl    %eax, %esi
        andl    $15, %esi
        movb    digits(%rsi), %sil
        movb    %sil, (%rdi,%rcx)
        shrq    $4, %rax
        decl    %ecx
        jns     0b
        addl    $16, %r14d
        ret

publish:
        movl    %r14d, OUT_PROD(%rbp)
notify:
        movl    $HYPERVISOR_event_channel_op, %eax
        movl    $EVTCHNOP_send, %edi
        movl    $port, %esi
        syscall
        ret

        # Forgets an event that has come: whoever calls this looks at the ring afterwards, and then waits.
clear:
        movl    port, %eax
        lock btrq %rax, shared + EVTCHN_PENDING
        ret

wait:
        movl    $HYPERVISOR_sched_op, %eax
        movl    $SCHEDOP_poll, %edi
        movl    $poll, %esi
        syscall
        ret

        .data
digits: .ascii  "0123456789abcdef"
        .balign 8
        # struct sched_poll: the ports, how many, no timeout
poll:   .quad   port
        .long   1, 0
        .quad   0
        # struct sched_shutdown
poweroff:
        .long   0
port:   .long   0
mode:   .byte   0
        .balign 4096
shared: .skip   4096
hypercall_page:
        .skip   4096
