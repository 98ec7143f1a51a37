"""What hostile peers do to real processes on real sockets of this machine."""
