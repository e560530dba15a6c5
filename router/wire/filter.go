package wire

import "golang.org/x/sys/unix"

// Classic BPF programs (Linux' Documentation/networking/filter.rst). Loads from the packet give
// host byte order; one beyond its end ends the program with 0.

func program(f []unix.SockFilter) *unix.SockFprog {
	return &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
}

// steerSPI returns the index of the socket that a datagram belongs to: its first 32 bits, the SPI
// of an ESP packet, modulo the number of sockets. For SO_REUSEPORT the packet starts behind the UDP
// header. IKE and keepalives (RFC 3948, sections 2.2 and 2.3) come out as 0.
func steerSPI(n int) *unix.SockFprog {
	return program([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	})
}

// ownSPI lets the ESP packets with SPI % n == q pass. A raw IPv4 socket sees the packet from its IP
// header on, a raw IPv6 socket from the ESP header on.
func ownSPI(v6 bool, q, n int) *unix.SockFprog {
	load := []unix.SockFilter{
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0}, // X = length of the IPv4 header
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_IND, K: 0},
	}
	if v6 {
		load = []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}}
	}
	return program(append(load, []unix.SockFilter{
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(q), Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18}, // all of it
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}...))
}
