//! PV console rings to pty, log file and socket.
