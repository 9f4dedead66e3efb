
/*
 * A frontend that takes one byte at a time, as a monitor does, would have the event loop go round for each of them.
 * What has come is given to it byte by byte, for as long as it takes more, and only then taken off the socket: there
 * is nowhere to put back what it does not take. Bytes that come with file descriptors are read as ever.
 */
static gboolean tcp_chr_read(QIOChannel *chan, GIOCondition cond, void *opaque)
{
    Chardev *chr = CHARDEV(opaque);
    SocketChardev *s = SOCKET_CHARDEV(opaque);
    QIOChannelSocket *sioc = s->sioc;
    uint8_t waiting[1024];
    struct iovec iov = { .iov_base = waiting, .iov_len = sizeof(waiting) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t count, given = 0;

    if (s->state != TCP_CHARDEV_STATE_CONNECTED || s->max_size != 1 || s->do_telnetopt ||
        !sioc || chan != QIO_CHANNEL(sioc)) {
        return tcp_chr_read_once(chan, cond, opaque);
    }
    count = recvmsg(sioc->fd, &msg, MSG_PEEK | MSG_DONTWAIT);
    if (count <= 0 || (msg.msg_flags & MSG_CTRUNC)) {
        return tcp_chr_read_once(chan, cond, opaque);
    }
    do {
        qemu_chr_be_write(chr, &waiting[given++], 1);
    } while (given < count && tcp_chr_read_poll(opaque) == 1);
    if (s->state == TCP_CHARDEV_STATE_CONNECTED && s->sioc == sioc) {
        while (recv(sioc->fd, waiting, given, MSG_DONTWAIT) < 0 && errno == EINTR) {
            /* They are there. */
        }
    }
    return TRUE;
}
