//! AF_XDP, TAP and packet-socket ports over one packet-buffer arena.
