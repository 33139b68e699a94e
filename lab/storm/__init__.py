"""`tradewind storm`: the event that founded this project, compressed in time, on real sockets."""
